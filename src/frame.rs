//! Frames: bytes behind a header from which whoever reads them knows that they are those which were
//! sent, all of them, once and in order.
//!
//! A header has the number of bytes, their CRC-32, and the CRC-32 of both and of the frame's number on
//! its way, which does not travel: so a header that was changed is found before its length is believed,
//! and a frame that was dropped or doubled by the header that comes in its place.

use crc32fast::Hasher;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 12;

/// What stands in front of a frame's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    length: u32,
    sum: u32,
}

impl Frame {
    /// The frame of these pieces, one after the other: less than 4 GiB.
    pub fn of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Frame {
        let (mut length, mut sum) = (0, Hasher::new());
        for piece in pieces {
            length += piece.len() as u32;
            sum.update(piece);
        }
        Frame { length, sum: sum.finalize() }
    }

    /// How many bytes follow the header.
    pub fn length(&self) -> usize {
        self.length as usize
    }

    /// Whether these are its bytes.
    pub fn holds(&self, bytes: &[u8]) -> bool {
        Frame::of([bytes]) == *self
    }

    /// The header of this frame as the one of this number: length, sum, sum of the header (little
    /// endian).
    pub fn encode(&self, number: u64) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.sum.to_le_bytes());
        let sum = header_sum(&bytes, number);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The inverse; `None` if this is not the header that was sent with this number.
    pub fn decode(bytes: &[u8; HEADER_BYTES], number: u64) -> Option<Frame> {
        let [length, sum, whole] =
            [0, 4, 8].map(|at| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i])));
        (whole == header_sum(bytes, number)).then_some(Frame { length, sum })
    }
}

fn header_sum(bytes: &[u8; HEADER_BYTES], number: u64) -> u32 {
    let mut sum = Hasher::new();
    sum.update(&number.to_le_bytes());
    sum.update(&bytes[..8]);
    sum.finalize()
}

/// Writes the CRC-32 of all bytes but the last four into those: for what has a fixed size.
pub fn seal(bytes: &mut [u8]) {
    if let Some((body, seal)) = bytes.split_last_chunk_mut::<4>() {
        *seal = crc32fast::hash(body).to_le_bytes();
    }
}

/// Whether these bytes are as [`seal`] left them.
pub fn is_sealed(bytes: &[u8]) -> bool {
    let right = |(body, seal): (&[u8], &[u8; 4])| *seal == crc32fast::hash(body).to_le_bytes();
    bytes.split_last_chunk::<4>().is_some_and(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_good_for_one_number_only() {
        let frame = Frame::of([&b"some "[..], b"bytes"]);
        assert_eq!((frame.length(), frame), (10, Frame::of([&b"some bytes"[..]])));
        let header = frame.encode(7);
        assert_eq!(Frame::decode(&header, 7), Some(frame));
        assert_eq!(Frame::decode(&header, 8), None);
        for bit in 0..HEADER_BYTES * 8 {
            let mut changed = header;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Frame::decode(&changed, 7), None, "bit {bit}");
        }
    }

    #[test]
    fn bytes_that_are_not_those_that_were_sent_are_told_apart() {
        let frame = Frame::of([&b"some bytes"[..]]);
        assert!(frame.holds(b"some bytes"));
        assert!(!frame.holds(b"some bytez") && !frame.holds(b"some byte"));
    }

    #[test]
    fn a_seal_holds_every_bit() {
        let mut sealed = [7u8; 20];
        seal(&mut sealed);
        assert!(is_sealed(&sealed));
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_sealed(&changed), "bit {bit}");
        }
        assert!(!is_sealed(b"abc"));
    }
}
