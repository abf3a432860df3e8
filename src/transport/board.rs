//! The board: what each rank of a host writes for the others to read, in the segment that they share.
//!
//! Words: work on the board is cut into *blocks*, numbered from 0 for as long as the board is there.
//! A rank has a *row*: [`DEPTH`] *slots*, used in turn, for the part of a block that it contributes;
//! as many *results*, for what it computed of a block; and the number of blocks that it has *done*:
//! read all it will ever read of them. A slot opens with the header of the call that the block belongs to, and
//! slots and results with a *stamp*: one more than the number of the block in them, written last.
//!
//! Nothing read here is trusted but the bytes to be reduced or copied: offsets and lengths follow from
//! this rank's own call.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};

use super::bell::Bell;
use super::segment::Segment;
use crate::call::Header;

/// Blocks in flight: a rank may be that far ahead of the slowest. Four let the three stages of an
/// all-reduce overlap, and leave one for ranks that are not in step.
pub const DEPTH: u64 = 4;

/// 128: two cache lines, since processors fetch them in pairs. All offsets are multiples of it.
const LINE: usize = 128;
/// A cache line stands before the data of a slot: the stamp, the header of the call, and data that is
/// small enough.
const HEAD: usize = 64;
const HEADER_AT: usize = 8;
const INLINE_AT: usize = 56;
/// Data of at most so many bytes travels in the line of the stamp.
pub const INLINE: usize = 8;
/// 1 MiB: more in flight than the caches hold gains nothing.
const MOST: usize = 1 << 20;

/// The board as one rank sees it.
#[derive(Debug)]
pub struct Board {
    segment: Arc<Segment>,
    rank: usize,
    ranks: usize,
    /// Bytes of data in a slot, and of a result.
    slot: usize,
    result: usize,
}

impl Board {
    /// A view of the board in the first `bytes` bytes of a segment, at which `ranks` ranks meet. With
    /// too many ranks for so many bytes slots are too small for a cache line of each rank: see
    /// [`Board::slot_bytes`].
    pub fn new(segment: Arc<Segment>, bytes: usize, rank: usize, ranks: usize) -> Board {
        let turn = (bytes / ranks).saturating_sub(LINE) / DEPTH as usize;
        // turn = LINE + slot + LINE + result, where result is slot / ranks, rounded up to lines.
        let both = turn.saturating_sub(3 * LINE);
        let slot = (both - both / (ranks + 1)).min(MOST) / LINE * LINE;
        let result = slot.div_ceil(ranks).next_multiple_of(LINE);
        Board { segment, rank, ranks, slot, result }
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks that meet here.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Bytes that a slot holds, a multiple of 128. A result holds each rank's equal share of them,
    /// rounded up to such a multiple.
    pub fn slot_bytes(&self) -> usize {
        self.slot
    }

    /// The address of `len` bytes in a rank's row.
    fn row(&self, rank: usize, offset: usize, len: usize) -> *mut u8 {
        let row = LINE + DEPTH as usize * (LINE + self.slot + LINE + self.result);
        self.segment.at(rank * row + offset, len)
    }

    fn slot(&self, rank: usize, block: u64) -> *mut u8 {
        let bytes = LINE + self.slot;
        self.row(rank, LINE + (block % DEPTH) as usize * bytes, bytes)
    }

    fn result(&self, rank: usize, block: u64) -> *mut u8 {
        let (slots, bytes) = (DEPTH as usize * (LINE + self.slot), LINE + self.result);
        self.row(rank, LINE + slots + (block % DEPTH) as usize * bytes, bytes)
    }

    /// The word that stands first in a line.
    fn word(&self, line: *mut u8) -> &AtomicU64 {
        // SAFETY: lines are within the segment, which lives as long as this board, and aligned; all
        // ranks use these words as atomics.
        unsafe { AtomicU64::from_ptr(line.cast()) }
    }

    fn done_word(&self, rank: usize) -> &AtomicU64 {
        self.word(self.row(rank, 0, LINE))
    }

    /// Wakes those who sleep until this rank's row changes; to be called soon after it did, and before
    /// this rank waits itself.
    pub fn ring(&self) {
        self.bell(self.rank).ring();
    }

    /// What rank `rank` rings when its row has changed.
    pub fn bell(&self, rank: usize) -> &Bell {
        // SAFETY: the second half of a row's first line, within the segment, is nothing else; zeros are
        // a bell, and all ranks use it as one.
        unsafe { &*self.row(rank, LINE / 2, size_of::<Bell>()).cast::<Bell>() }
    }

    /// Where `bytes` bytes of data are in a rank's slot for a block.
    pub fn data(&self, rank: usize, block: u64, bytes: usize) -> *mut u8 {
        let at = if bytes <= INLINE { INLINE_AT } else { HEAD };
        // SAFETY: both places are within the slot.
        unsafe { self.slot(rank, block).add(at) }
    }

    /// Where a rank's result of a block is.
    pub fn result_data(&self, rank: usize, block: u64) -> *mut u8 {
        // SAFETY: a result begins with a line.
        unsafe { self.result(rank, block).add(LINE) }
    }

    /// Shows this rank's slot to the others. The first block of a call comes with its header.
    pub fn post(&self, block: u64, header: Option<&Header>) {
        let slot = self.slot(self.rank, block);
        let words = header.map_or([0; 6], Header::words);
        // SAFETY: the place is within this rank's slot, which nobody reads before its stamp.
        unsafe { slot.add(HEADER_AT).cast::<[u64; 6]>().write(words) };
        self.word(slot).store(block + 1, Release);
    }

    /// Whether a rank has posted its slot for a block.
    pub fn has_posted(&self, rank: usize, block: u64) -> bool {
        self.word(self.slot(rank, block)).load(Acquire) > block
    }

    /// The header that a rank's block came with, as [`Header::words`] are; zeros for a later block of a
    /// call.
    pub fn header(&self, rank: usize, block: u64) -> [u64; 6] {
        // SAFETY: the words are within the slot; a rank that is in step does not change them meanwhile,
        // and of one that is not any values will do.
        unsafe { self.slot(rank, block).add(HEADER_AT).cast::<[u64; 6]>().read_volatile() }
    }

    /// Shows this rank's result of a block to the others.
    pub fn post_result(&self, block: u64) {
        self.word(self.result(self.rank, block)).store(block + 1, Release);
    }

    /// Whether a rank has posted its result of a block.
    pub fn has_result(&self, rank: usize, block: u64) -> bool {
        self.word(self.result(rank, block)).load(Acquire) > block
    }

    /// This rank will not read anything of blocks before this one any more.
    pub fn post_done(&self, before: u64) {
        self.done_word(self.rank).store(before, Release);
    }

    /// How many blocks, from the first on, a rank is done with.
    pub fn done(&self, rank: usize) -> u64 {
        self.done_word(rank).load(Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::{Call, Verb};

    #[test]
    fn rows_do_not_overlap_and_fit() {
        for (bytes, ranks) in
            [(1 << 20, 2), (16 << 20, 2), (16 << 20, 3), (16 << 20, 128), (65536, 1)]
        {
            let segment = Arc::new(Segment::create(bytes).unwrap().0);
            let board = Board::new(segment, bytes, 0, ranks);
            assert!(board.slot_bytes().is_multiple_of(LINE));
            assert!(board.slot_bytes() >= bytes / ranks / DEPTH as usize / 3 || board.slot == MOST);
            let mut places = Vec::new();
            for rank in 0..ranks {
                places.push((board.row(rank, 0, LINE) as usize, LINE));
                for block in 0..DEPTH {
                    places.push((board.slot(rank, block) as usize, LINE + board.slot));
                    places.push((board.result(rank, block) as usize, LINE + board.result));
                    assert!(board.result >= board.slot.div_ceil(ranks).next_multiple_of(64));
                }
            }
            places.sort_unstable();
            assert!(places.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0), "{bytes} {ranks}");
            assert!(places.iter().all(|(at, _)| at % LINE == 0));
        }
    }

    #[test]
    fn what_is_posted_is_seen_from_the_other_side() {
        let (segment, fd) = Segment::create(1 << 20).unwrap();
        let other = Arc::new(Segment::map(fd, 1 << 20).unwrap());
        let one = Board::new(Arc::new(segment), 1 << 20, 0, 2);
        let other = Board::new(other, 1 << 20, 1, 2);
        let call = Call { sequence: 7, verb: Verb::AllSum, dtype: 11, root: -1, count: 9 };
        let header = Header { call, before: Some(Call { sequence: 6, ..call }) };
        assert!(!other.has_posted(0, 0));
        // SAFETY: this rank's slot is its own until it is posted.
        unsafe { one.data(0, 0, 9).write(42) };
        one.post(0, Some(&header));
        assert!(other.has_posted(0, 0) && !other.has_posted(0, DEPTH));
        assert_eq!(other.header(0, 0), header.words());
        // SAFETY: it has been posted.
        assert_eq!(unsafe { other.data(0, 0, 9).read() }, 42);
        assert!(!one.has_result(1, 5));
        other.post_result(5);
        assert!(one.has_result(1, 5) && !one.has_result(0, 5));
        other.post_done(6);
        assert_eq!((one.done(1), one.done(0)), (6, 0));
    }
}
