//! Algorithms in which every step has its own pair of peers.

use super::schedule::{Buffer, Schedule, Span, Step};

/// `count` elements in `Input` and `Output`, a multiple of `size`: block j of rank i becomes block i
/// of rank j. In step s every rank sends to the rank s to its right, so that no rank is sent to by
/// two at once.
pub fn all_to_all(rank: usize, size: usize, count: usize) -> Schedule {
    let block = |buffer, index| Span::block(buffer, index, count, size);
    let mut steps = Vec::with_capacity(2 * size);
    for step in 1..size {
        let (to, from) = ((rank + step) % size, (rank + size - step) % size);
        steps.push(Step::Send { to, from: block(Buffer::Input, to) });
        steps.push(Step::Recv { from, into: block(Buffer::Output, from) });
    }
    steps.push(Step::Copy { from: block(Buffer::Input, rank), into: block(Buffer::Output, rank) });
    Schedule { steps, scratch: 0 }
}

/// Dissemination (Hensgen, Finkel and Manber, 1988): in round k a token goes to the rank 2^k to the
/// right; after log2 n rounds, rounded up, every rank has heard of every other.
pub fn barrier(rank: usize, size: usize) -> Schedule {
    // Received before the next is sent: what one rank has heard of travels on with its token.
    let token = Span { buffer: Buffer::Scratch, start: 0, len: 1 };
    let mut steps = Vec::new();
    let mut distance = 1;
    while distance < size {
        steps.push(Step::Send { to: (rank + distance) % size, from: token });
        steps.push(Step::Recv { from: (rank + size - distance) % size, into: token });
        distance *= 2;
    }
    Schedule { steps, scratch: 1 }
}
