//! Bruck's all-gather (Bruck, Ho, Kipnis, Upfal and Weathersby, 1997): in step k every rank sends
//! the 2^k blocks that it has, its own and those that follow, to the rank 2^k below it. log2 n
//! steps, rounded up, for any n. Blocks go straight to their places, so nothing is rotated at the
//! end; a run of blocks that wraps around goes as two.

use super::schedule::{Buffer, Schedule, Span, Step};

/// `count` elements in `Input`, `size * count` in `Output`.
pub fn all_gather(rank: usize, size: usize, count: usize) -> Schedule {
    let input = Span { buffer: Buffer::Input, start: 0, len: count };
    let place = Span { buffer: Buffer::Output, start: rank * count, len: count };
    let mut steps = vec![Step::Copy { from: input, into: place }];
    // Blocks rank, rank + 1, ... rank + have - 1 are here.
    let mut have = 1;
    while have < size {
        let blocks = have.min(size - have);
        let (to, from) = ((rank + size - have) % size, (rank + have) % size);
        for run in runs(rank, blocks, size, count) {
            steps.push(Step::Send { to, from: run });
        }
        for run in runs(from, blocks, size, count) {
            steps.push(Step::Recv { from, into: run });
        }
        have += blocks;
    }
    Schedule { steps, scratch: 0 }
}

/// `blocks` blocks of the output from block `first` on, around the end: one span or two.
fn runs(first: usize, blocks: usize, size: usize, count: usize) -> impl Iterator<Item = Span> {
    let before_end = blocks.min(size - first);
    let span = |first: usize, blocks: usize| Span {
        buffer: Buffer::Output,
        start: first * count,
        len: blocks * count,
    };
    [span(first, before_end), span(0, blocks - before_end)].into_iter().filter(|s| s.len > 0)
}
