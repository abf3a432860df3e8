//! Where this host can be reached: the addresses of its interfaces.

use std::net::{IpAddr, SocketAddr};

use crate::config::Address;
use crate::error::{Error, Result};

/// Where others may reach a socket of this host: every interface's address, loopback last.
pub fn own_addresses(bound: SocketAddr) -> Result<Vec<Address>> {
    if !bound.ip().is_unspecified() {
        return Ok(vec![bound.into()]);
    }
    let mut ips = interface_addresses()?;
    if bound.is_ipv4() {
        ips.retain(IpAddr::is_ipv4);
    }
    ips.sort_by_key(|ip| (ip.is_loopback(), ip.is_ipv6()));
    Ok(ips.into_iter().map(|ip| Address::new(ip.to_string(), bound.port())).collect())
}

fn interface_addresses() -> Result<Vec<IpAddr>> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: getifaddrs writes the head of a list that it allocated.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return Err(Error::system("getifaddrs", std::io::Error::last_os_error()));
    }
    let mut ips = Vec::new();
    let mut next = list;
    while !next.is_null() {
        // SAFETY: next is an entry of the list, which is freed only below; its address, where there
        // is one, has the size that its family says.
        unsafe {
            let entry = &*next;
            if !entry.ifa_addr.is_null() {
                match i32::from((*entry.ifa_addr).sa_family) {
                    libc::AF_INET => {
                        let address = &*entry.ifa_addr.cast::<libc::sockaddr_in>();
                        ips.push(IpAddr::from(address.sin_addr.s_addr.to_ne_bytes()));
                    }
                    libc::AF_INET6 => {
                        let address = &*entry.ifa_addr.cast::<libc::sockaddr_in6>();
                        let ip = std::net::Ipv6Addr::from(address.sin6_addr.s6_addr);
                        // A link-local address means nothing without its interface.
                        if !ip.is_unicast_link_local() {
                            ips.push(ip.into());
                        }
                    }
                    _ => {}
                }
            }
            next = entry.ifa_next;
        }
    }
    // SAFETY: the list came from getifaddrs and nothing refers to it any more.
    unsafe { libc::freeifaddrs(list) };
    Ok(ips)
}
