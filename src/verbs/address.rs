//! By which address a port is reached: of an InfiniBand port its LID, of an Ethernet port one of its
//! GIDs.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::Path;

use super::abi::ibv_gid;
use crate::error::{Result, fail};

/// What a GID stands for; only ports that use the same kind reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AddressKind {
    /// InfiniBand within a subnet: the LID counts.
    Lid = 0,
    /// InfiniBand between subnets, or what the system does not tell the kind of.
    Global = 1,
    /// RoCE v1: Ethernet frames of their own.
    RoceV1 = 2,
    /// RoCE v2: UDP over IP.
    RoceV2 = 3,
}

impl AddressKind {
    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<AddressKind> {
        [AddressKind::Lid, AddressKind::Global, AddressKind::RoceV1, AddressKind::RoceV2]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

impl fmt::Display for AddressKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AddressKind::Lid => "InfiniBand",
            AddressKind::Global => "InfiniBand with global addresses",
            AddressKind::RoceV1 => "RoCE v1",
            AddressKind::RoceV2 => "RoCE v2",
        })
    }
}

/// An entry of a port's table of GIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GidEntry {
    /// Its place in the table.
    pub index: u32,
    /// The GID.
    pub gid: ibv_gid,
    /// Its kind.
    pub kind: AddressKind,
}

impl GidEntry {
    /// As an IPv6 address, which GIDs are written as.
    pub fn ip(&self) -> Ipv6Addr {
        Ipv6Addr::from(self.gid.raw)
    }

    /// How well it suits, less is better; `None` if it leads nowhere: `is_own` tells whether an
    /// address is one of this host's network interfaces, since a port has a link-local GID even where
    /// its interface has no address at all.
    fn rank(&self, is_own: &dyn Fn(&Ipv6Addr) -> bool) -> Option<u8> {
        let ip = self.ip();
        if ip.is_unspecified() {
            return None;
        }
        match (self.kind, ip.to_ipv4_mapped().is_some(), ip.is_unicast_link_local()) {
            (AddressKind::RoceV2, true, _) => Some(0),
            (AddressKind::RoceV2, false, false) => Some(1),
            (AddressKind::RoceV2, false, true) => is_own(&ip).then_some(2),
            (AddressKind::RoceV1, true, _) => Some(3),
            (AddressKind::RoceV1, false, _) => Some(4),
            (AddressKind::Global | AddressKind::Lid, ..) => Some(5),
        }
    }
}

/// The entry of an Ethernet port to use: RoCE v2 with an IPv4 address first, then with an IPv6 address,
/// then RoCE v1.
pub fn choose_gid(entries: &[GidEntry], is_own: &dyn Fn(&Ipv6Addr) -> bool) -> Option<GidEntry> {
    let ranked = entries.iter().filter_map(|entry| Some((entry.rank(is_own)?, entry.index, entry)));
    ranked.min_by_key(|(rank, index, _)| (*rank, *index)).map(|(_, _, entry)| *entry)
}

/// The kind of an entry as the system tells it.
pub fn gid_kind(device: &str, port: u8, index: u32) -> AddressKind {
    let path = format!("/sys/class/infiniband/{device}/ports/{port}/gid_attrs/types/{index}");
    match std::fs::read_to_string(Path::new(&path)) {
        Ok(text) if text.trim() == "RoCE v2" => AddressKind::RoceV2,
        Ok(text) if text.trim() == "IB/RoCE v1" => AddressKind::RoceV1,
        _ => AddressKind::Global,
    }
}

/// Whether a network interface of this host has this IPv6 address.
pub fn is_own_address(ip: &Ipv6Addr) -> bool {
    let hex: String = ip.octets().iter().map(|byte| format!("{byte:02x}")).collect();
    let table = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    table.lines().any(|line| line.starts_with(&hex))
}

/// Bytes of a [`PortAddress`] that travels.
pub const ADDRESS_BYTES: usize = 20;

/// A port as others reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAddress {
    /// What counts.
    pub kind: AddressKind,
    /// In an InfiniBand subnet.
    pub lid: u16,
    /// Elsewhere.
    pub gid: ibv_gid,
}

impl PortAddress {
    /// Whether it is a GID that stands for an IPv4 address.
    pub fn is_ipv4(&self) -> bool {
        self.kind != AddressKind::Lid && Ipv6Addr::from(self.gid.raw).to_ipv4_mapped().is_some()
    }

    /// As it travels: kind, spare, LID, GID.
    pub fn encode(&self) -> [u8; ADDRESS_BYTES] {
        let mut bytes = [0; ADDRESS_BYTES];
        bytes[0] = self.kind as u8;
        bytes[2..4].copy_from_slice(&self.lid.to_le_bytes());
        bytes[4..20].copy_from_slice(&self.gid.raw);
        bytes
    }

    /// The inverse.
    pub fn decode(bytes: &[u8; ADDRESS_BYTES]) -> Result<PortAddress> {
        let Some(kind) = AddressKind::from_number(bytes[0]) else {
            fail!(Internal, "an address of the unknown kind {}", bytes[0]);
        };
        let lid = u16::from_le_bytes([bytes[2], bytes[3]]);
        let gid = ibv_gid { raw: std::array::from_fn(|at| bytes[4 + at]) };
        Ok(PortAddress { kind, lid, gid })
    }
}

impl fmt::Display for PortAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            AddressKind::Lid => write!(f, "LID {}", self.lid),
            kind => {
                let ip = Ipv6Addr::from(self.gid.raw);
                match ip.to_ipv4_mapped() {
                    Some(ip) => write!(f, "{kind}, {ip}"),
                    None => write!(f, "{kind}, {ip}"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u32, ip: &str, kind: AddressKind) -> GidEntry {
        let ip: Ipv6Addr = ip.parse().unwrap();
        GidEntry { index, gid: ibv_gid { raw: ip.octets() }, kind }
    }

    #[test]
    fn gids_are_chosen_by_kind() {
        let table = [
            entry(0, "fe80::1", AddressKind::RoceV1),
            entry(1, "fe80::1", AddressKind::RoceV2),
            entry(2, "::ffff:10.9.0.1", AddressKind::RoceV1),
            entry(3, "2001:db8::1", AddressKind::RoceV2),
            entry(4, "::ffff:10.9.0.1", AddressKind::RoceV2),
            entry(5, "::ffff:10.9.0.2", AddressKind::RoceV2),
            entry(6, "::", AddressKind::RoceV2),
        ];
        let best = |from: &[usize], own: bool| {
            let some: Vec<GidEntry> = from.iter().map(|at| table[*at]).collect();
            choose_gid(&some, &|_| own).map(|entry| entry.index)
        };
        assert_eq!(best(&[0, 1, 2, 3, 4, 5, 6], true), Some(4));
        assert_eq!(best(&[0, 1, 2, 3], true), Some(3));
        assert_eq!(best(&[0, 1, 2], true), Some(1));
        // The link-local GID of an interface without addresses leads nowhere.
        assert_eq!(best(&[0, 1, 2], false), Some(2));
        assert_eq!(best(&[1, 6], false), None);
        assert_eq!(best(&[], true), None);
    }

    #[test]
    fn addresses_travel() {
        for kind in
            [AddressKind::Lid, AddressKind::Global, AddressKind::RoceV1, AddressKind::RoceV2]
        {
            let address = PortAddress { kind, lid: 0xbeef, gid: ibv_gid { raw: [7; 16] } };
            assert_eq!(PortAddress::decode(&address.encode()), Ok(address));
        }
        assert!(PortAddress::decode(&[9; ADDRESS_BYTES]).is_err());
        let v4 = entry(0, "::ffff:10.9.0.1", AddressKind::RoceV2);
        let address = PortAddress { kind: v4.kind, lid: 0, gid: v4.gid };
        assert_eq!(address.to_string(), "RoCE v2, 10.9.0.1");
    }

    #[test]
    fn own_addresses_are_known() {
        assert!(!is_own_address(&"2001:db8::dead".parse().unwrap()));
    }
}
