//! A place to meet: host and port, as people write them.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use crate::error::{Error, Result, fail};

/// `host:port`, where the host is an IPv4 address, an IPv6 address in brackets, or a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Address {
    /// Without brackets.
    pub host: String,
    /// Never 0 where it was read from a setting.
    pub port: u16,
}

impl Address {
    /// This host and port.
    pub fn new(host: impl Into<String>, port: u16) -> Address {
        Address { host: host.into(), port }
    }

    /// The host as a numeric address, if it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Whether it can only be this host, as far as it tells without being looked up.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.ip().is_some_and(|ip| ip.is_loopback())
    }

    /// Every socket address that it stands for, at least one.
    pub fn resolve(&self) -> Result<Vec<SocketAddr>> {
        let found: Vec<SocketAddr> = match (self.host.as_str(), self.port).to_socket_addrs() {
            Ok(found) => found.collect(),
            Err(e) => fail!(Config, "cannot resolve the host name of {self}: {e}"),
        };
        if found.is_empty() {
            fail!(Config, "the host name of {self} has no address");
        }
        Ok(found)
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address::new(address.ip().to_canonical().to_string(), address.port())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Address> {
        let Some((host, port)) = text.rsplit_once(':') else {
            fail!(Config, "{text:?} has no port; an address is host:port, such as 10.0.0.1:5000");
        };
        let port = match port.parse::<u16>() {
            Ok(port) if port > 0 => port,
            _ => fail!(Config, "{text:?} has no port between 1 and 65535 after its last colon"),
        };
        let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_ok() => inner,
            Some(_) => fail!(Config, "{text:?} has no IPv6 address between its brackets"),
            None if host.contains(':') => {
                fail!(Config, "{text:?}: put an IPv6 address in brackets, such as [::1]:5000")
            }
            None => host,
        };
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '/') {
            fail!(Config, "{text:?} has no host name or address before its port");
        }
        Ok(Address::new(host, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for text in ["10.0.0.1:5000", "[::1]:1", "[fe80::1]:65535", "node-3.cluster:80"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn malformed_addresses_say_why() {
        for (text, why) in [
            ("", "no port"),
            ("host", "no port"),
            ("host:", "between 1 and 65535"),
            ("host:0", "between 1 and 65535"),
            ("host:65536", "between 1 and 65535"),
            ("host:-1", "between 1 and 65535"),
            (":5000", "no host"),
            ("a b:5000", "no host"),
            ("http://x:5000", "brackets"),
            ("::1:5000", "brackets"),
            ("[host]:5000", "IPv6"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.message.contains(why), "{text:?}: {error}");
        }
    }
}
