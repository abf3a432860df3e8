//! What stands in front of the data of a message.

use crate::error::{Result, fail};

/// Bytes of a [`Header`]; elements of every type stay aligned behind it.
pub const HEADER_BYTES: usize = 16;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Bytes of a channel.
    Data = 1,
    /// Gives credits back.
    Credits = 2,
    /// The last of a channel.
    Close = 3,
    /// The last of a wire.
    Goodbye = 4,
    /// The first of a wire.
    Hello = 5,
}

/// What stands in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The receiver's number of the channel.
    pub channel: u32,
    /// Its place among the wire's messages that way: where one was lost, the next one shows it.
    pub number: u32,
    /// Bytes that follow.
    pub length: u32,
    /// Credits given back.
    pub credits: u16,
    /// What it is.
    pub kind: Kind,
}

impl Header {
    /// As it travels: channel, number, length, credits, kind, spare (little endian).
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.channel.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.number.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.credits.to_le_bytes());
        bytes[14] = self.kind as u8;
        bytes
    }

    /// The inverse, of a message of `length` bytes in all that should be the one of this number.
    pub fn decode(bytes: &[u8; HEADER_BYTES], length: usize, number: u32) -> Result<Header> {
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let kinds = [Kind::Data, Kind::Credits, Kind::Close, Kind::Goodbye, Kind::Hello];
        let Some(kind) = kinds.into_iter().find(|kind| *kind as u8 == bytes[14]) else {
            fail!(Internal, "a message of the unknown kind {}", bytes[14]);
        };
        let credits = u16::from_le_bytes([bytes[12], bytes[13]]);
        let header = Header { channel: word(0), number: word(4), length: word(8), credits, kind };
        if header.number != number {
            let lost = header.number.wrapping_sub(number);
            fail!(
                Backend,
                "messages were lost on the way: number {} came, {number} was due ({lost} missing); \
                 connections of type uc do not send again what is lost: use MLXD_RDMA_QP=rc where \
                 devices have it",
                header.number
            );
        }
        if header.length as usize + HEADER_BYTES != length {
            fail!(Internal, "a message of {length} bytes says that {} are data", header.length);
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    #[test]
    fn headers_travel() {
        for kind in [Kind::Data, Kind::Credits, Kind::Close, Kind::Goodbye, Kind::Hello] {
            let header =
                Header { channel: u32::MAX, number: 7, length: 70_000, credits: 300, kind };
            let bytes = header.encode();
            assert_eq!(Header::decode(&bytes, 70_000 + HEADER_BYTES, 7), Ok(header));
            let lost = Header::decode(&bytes, 70_000 + HEADER_BYTES, 5).unwrap_err();
            assert!(lost.status == Status::Backend && lost.message.contains("2 missing"), "{lost}");
            assert_eq!(Header::decode(&bytes, 70_000, 7).unwrap_err().status, Status::Internal);
        }
        assert!(Header::decode(&[0; HEADER_BYTES], HEADER_BYTES, 0).is_err());
    }
}
