//! What the ends of a wire tell each other before it is one: over another connection, since they have
//! none yet.

use super::BUFFER;
use crate::error::{Result, fail};
use crate::frame::{is_sealed, seal};
use crate::verbs::address::{ADDRESS_BYTES, PortAddress};
use crate::verbs::partition::PartitionKey;
use crate::verbs::queue_pair::{Kind, Remote};

/// Bytes of an [`Introduction`].
pub const INTRODUCTION_BYTES: usize = 48;
/// Introduces nobody: this end has no queue pair to offer.
pub const NOBODY: [u8; INTRODUCTION_BYTES] = [0; INTRODUCTION_BYTES];
/// Opens it; its number changes whenever ends with and without a change could not work together.
const MAGIC: [u8; 8] = *b"wire\x00\x00\x00\x03";

/// One end of a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// Its type.
    pub kind: Kind,
    /// Its port's key of the partition that it is in.
    pub partition: PartitionKey,
    /// Its queue pair, and how that is reached.
    pub remote: Remote,
}

impl Introduction {
    /// As it travels: magic, kind, MTU, partition, number, packet number, bytes of a buffer, address, CRC-32.
    pub fn encode(&self) -> [u8; INTRODUCTION_BYTES] {
        let mut bytes = [0; INTRODUCTION_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8] = (self.kind == Kind::Uc).into();
        bytes[9] = self.remote.mtu as u8;
        bytes[10..12].copy_from_slice(&self.partition.0.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.remote.number.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.remote.first_packet.to_le_bytes());
        bytes[20..24].copy_from_slice(&(BUFFER as u32).to_le_bytes());
        bytes[24..24 + ADDRESS_BYTES].copy_from_slice(&self.remote.address.encode());
        seal(&mut bytes);
        bytes
    }

    /// The inverse.
    pub fn decode(bytes: &[u8; INTRODUCTION_BYTES]) -> Result<Introduction> {
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        if !is_sealed(bytes) {
            fail!(System, "what its queue pair is was changed on the way: the checksum is wrong");
        }
        if bytes[0..8] != MAGIC || word(20) != BUFFER as u32 {
            fail!(Config, "it has another version of libmlxd; all ranks need the same");
        }
        let address = PortAddress::decode(&std::array::from_fn(|at| bytes[24 + at]))?;
        let kind = if bytes[8] == 0 { Kind::Rc } else { Kind::Uc };
        let remote =
            Remote { number: word(12), first_packet: word(16), address, mtu: bytes[9].into() };
        let partition = PartitionKey(u16::from_le_bytes([bytes[10], bytes[11]]));
        Ok(Introduction { kind, partition, remote })
    }

    /// Fails unless this end and the other can be connected.
    pub fn require_match(&self, theirs: &Introduction) -> Result<()> {
        if self.kind != theirs.kind {
            fail!(
                Config,
                "its queue pair is of type {}, this rank's of type {}: give all ranks the same \
                 MLXD_RDMA_QP",
                theirs.kind,
                self.kind
            );
        }
        if !self.partition.meets(theirs.partition) {
            fail!(
                Config,
                "its port's partition key is {}, this rank's {}: both must be members of one partition, \
                 and one a full member (MLXD_RDMA_PKEY_INDEX chooses another)",
                theirs.partition,
                self.partition
            );
        }
        let (here, there) = (self.remote.address, theirs.remote.address);
        if here.kind != there.kind {
            fail!(
                Config,
                "its port is reached by {there}, this rank's by {here}: they need addresses of one \
                 kind (MLXD_RDMA_GID_INDEX chooses another)"
            );
        }
        if here.is_ipv4() != there.is_ipv4() {
            fail!(
                Config,
                "its port is reached by {there}, this rank's by {here}: both need an IPv4 address, or \
                 neither (MLXD_RDMA_GID_INDEX chooses another)"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;
    use crate::verbs::abi::ibv_gid;
    use crate::verbs::address::AddressKind;

    fn end(kind: Kind, of: AddressKind) -> Introduction {
        let address = PortAddress { kind: of, lid: 5, gid: ibv_gid { raw: [3; 16] } };
        Introduction {
            kind,
            partition: PartitionKey(0x8123),
            remote: Remote { number: 0xabcdef, first_packet: 0x123456, address, mtu: 5 },
        }
    }

    #[test]
    fn introductions_travel() {
        let here = end(Kind::Uc, AddressKind::RoceV2);
        let mut bytes = here.encode();
        assert_eq!(Introduction::decode(&bytes), Ok(here));
        bytes[14] ^= 1;
        assert_eq!(Introduction::decode(&bytes).unwrap_err().status, Status::System);
        bytes[7] ^= 3;
        seal(&mut bytes);
        assert_eq!(Introduction::decode(&bytes).unwrap_err().status, Status::Config);
    }

    #[test]
    fn ends_must_match() {
        let here = end(Kind::Rc, AddressKind::RoceV2);
        assert_eq!(here.require_match(&here), Ok(()));
        let elsewhere = Introduction { partition: PartitionKey::DEFAULT, ..here };
        for (other, why) in [
            (elsewhere, "0xffff (full member), this rank's 0x8123"),
            (end(Kind::Uc, AddressKind::RoceV2), "MLXD_RDMA_QP"),
            (end(Kind::Rc, AddressKind::RoceV1), "RoCE v1"),
        ] {
            let error = here.require_match(&other).unwrap_err();
            assert!(error.status == Status::Config && error.message.contains(why), "{error}");
        }
    }
}
