//! Recursive doubling: in step k every rank exchanges all it has with the rank whose number differs
//! in bit k. Few messages, each with all bytes: for short buffers.
//!
//! As in Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in
//! MPICH" (2005). Where n is no power of two, 2^k < n, the first 2 (n - 2^k) ranks fold: each even
//! one gives its input to the odd one above it, sits out, and gets the result back. Both sides of an
//! exchange reduce the same two operands in the same order, those of the lower ranks on the left, so
//! that all ranks have the same bytes.

use super::schedule::{Buffer, Schedule, Span, Step};

/// `count` elements in `Input` and `Output`.
pub fn all_reduce(rank: usize, size: usize, count: usize) -> Schedule {
    let all = |buffer| Span { buffer, start: 0, len: count };
    let steps = reduce_into(rank, size, all(Buffer::Input), all(Buffer::Output));
    Schedule { steps, scratch: 0 }
}

/// `count` elements in `Input`, a multiple of `size`; block `rank` of the sum in `Output`: an
/// all-reduce into scratch memory, of which the block is copied.
pub fn reduce_scatter(rank: usize, size: usize, count: usize) -> Schedule {
    let all = |buffer| Span { buffer, start: 0, len: count };
    let mut steps = reduce_into(rank, size, all(Buffer::Input), all(Buffer::Scratch));
    let block = Span::block(Buffer::Scratch, rank, count, size);
    steps.push(Step::Copy { from: block, into: Span { start: 0, ..block.of(Buffer::Output) } });
    Schedule { steps, scratch: count }
}

fn reduce_into(rank: usize, size: usize, input: Span, result: Span) -> Vec<Step> {
    let doubled = 1 << size.ilog2();
    let folded = size - doubled;
    let mut steps = Vec::with_capacity(2 * size.ilog2() as usize + 2);
    // Fold: the even ranks below 2 * folded give and wait.
    if rank < 2 * folded && rank.is_multiple_of(2) {
        steps.push(Step::Send { to: rank + 1, from: input });
        steps.push(Step::Recv { from: rank + 1, into: result });
        return steps;
    }
    let mut own = input;
    if rank < 2 * folded {
        steps.push(Step::Reduce { from: rank - 1, own, into: result, own_first: false });
        own = result;
    }
    // Those who stay are numbered 0..doubled, in the order of their ranks.
    let number = if rank < 2 * folded { rank / 2 } else { rank - folded };
    let rank_of = |n: usize| if n < folded { 2 * n + 1 } else { n + folded };
    let mut distance = 1;
    while distance < doubled {
        let partner = number ^ distance;
        let peer = rank_of(partner);
        steps.push(Step::Send { to: peer, from: own });
        steps.push(Step::Reduce { from: peer, own, into: result, own_first: number < partner });
        own = result;
        distance *= 2;
    }
    // Unfold.
    if rank < 2 * folded {
        steps.push(Step::Send { to: rank - 1, from: result });
    }
    steps
}
