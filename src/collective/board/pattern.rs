//! Which rank posts, combines and collects what of a call in which block: pure arithmetic.
//!
//! A call runs in up to three stages, each of which a block passes one turn after the one before:
//! 1. *post*: a rank copies what others need of its input into its slot;
//! 2. *combine*: it reduces or copies what it needs of the others' slots into its output, and posts
//!    what it reduced if others need it;
//! 3. *collect*: it copies the others' results into its output.

use std::ops::Range;

use crate::call::Call;

/// How a call uses the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Everybody posts everything and reduces everything: one stage less, `ranks` times the work.
    ReduceAll,
    /// Each rank reduces its slice of every block, and collects the other slices.
    ReduceSlices,
    /// Every rank's input has a piece for each rank, which reduces them.
    ReducePieces,
    /// Every rank's input has a piece for each rank, which stores them one behind the other.
    MovePieces,
    /// Everybody needs everybody's input.
    Gather,
    /// Everybody needs one rank's buffer.
    Broadcast {
        /// That rank.
        root: usize,
    },
}

/// How a call of `count` elements is cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// How it uses the board.
    pub kind: Kind,
    ranks: usize,
    /// Elements to be cut into blocks: of the whole input, or of each piece of it.
    length: usize,
    /// Elements of a block, or of a piece of it.
    chunk: usize,
    /// What slices of a block are multiples of, in elements: 64 bytes.
    grain: usize,
}

impl Pattern {
    /// The pattern of a call, of elements of `size` bytes, on a board with slots of `slot` bytes, a
    /// multiple of 64. Blocks are of `block` bytes at most.
    pub fn new(kind: Kind, call: &Call, ranks: usize, size: usize, block: usize) -> Pattern {
        let count = call.count as usize;
        let (length, parts) = match kind {
            Kind::ReducePieces | Kind::MovePieces => (count / ranks, ranks),
            _ => (count, 1),
        };
        let grain = 64 / size;
        let chunk = (block / size / parts / grain * grain).max(grain);
        Pattern { kind, ranks, length, chunk, grain }
    }

    /// Blocks: one at least, since every call is posted.
    pub fn blocks(&self) -> u64 {
        self.length.div_ceil(self.chunk).max(1) as u64
    }

    /// Stages that it has.
    pub fn stages(&self) -> u64 {
        if self.kind == Kind::ReduceSlices { 3 } else { 2 }
    }

    /// All other ranks, the next one first, so that not all turn to the same.
    pub fn others(&self, rank: usize) -> impl Iterator<Item = usize> + use<> {
        let ranks = self.ranks;
        (1..ranks).map(move |i| (rank + i) % ranks)
    }

    /// The ranks whose slots a rank reads: all others; of a broadcast only the root's.
    pub fn sources(&self, rank: usize) -> impl Iterator<Item = usize> + use<> {
        let kind = self.kind;
        self.others(rank).filter(move |peer| match kind {
            Kind::Broadcast { root } => root == *peer,
            _ => true,
        })
    }

    /// The elements of a block: of the whole input, or of each piece of it.
    pub fn block(&self, block: u64) -> Range<usize> {
        let start = block as usize * self.chunk;
        start..self.length.min(start + self.chunk)
    }

    /// The slice of a block that a rank reduces: all ranks' slices are equal but for the last ones.
    pub fn slice(&self, block: u64, rank: usize) -> Range<usize> {
        let all = self.block(block);
        let share = all.len().div_ceil(self.ranks).next_multiple_of(self.grain);
        let at = |rank: usize| all.end.min(all.start + rank * share);
        at(rank)..at(rank + 1)
    }

    /// Where a rank's piece begins in a slot that has a piece for each, in elements.
    pub fn piece_in_slot(&self, rank: usize) -> usize {
        rank * self.chunk
    }

    /// The elements of a block's piece for a rank, in an array that has all pieces one behind the other.
    pub fn piece(&self, block: u64, rank: usize) -> Range<usize> {
        let all = self.block(block);
        rank * self.length + all.start..rank * self.length + all.end
    }
}
