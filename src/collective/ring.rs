//! Ring algorithms: every rank sends to its right neighbour and receives from its left.
//!
//! All-reduce is the reduce-scatter and the all-gather of Patarasuk and Yuan, "Bandwidth optimal
//! all-reduce algorithms for clusters of workstations" (2009): each rank sends 2 (n-1) / n of the
//! buffer, the least there is. Each block is summed in the order in which it travels, so the bytes
//! are the same on all ranks and in every run.

use super::schedule::{Buffer, Schedule, Span, Step};

fn left(rank: usize, size: usize) -> usize {
    (rank + size - 1) % size
}

fn right(rank: usize, size: usize) -> usize {
    (rank + 1) % size
}

/// `rank - steps` on the ring.
fn back(rank: usize, steps: usize, size: usize) -> usize {
    (rank + 2 * size - steps) % size
}

/// `count` elements in `Input` and `Output`.
pub fn all_reduce(rank: usize, size: usize, count: usize) -> Schedule {
    let block = |buffer, index| Span::block(buffer, index, count, size);
    let mut steps = Vec::with_capacity(4 * size);
    // Steps 0..n-1: send the partial sum of a block right, add the own part to the next one.
    for step in 0..size - 1 {
        let (sent, received) = (back(rank, step, size), back(rank, step + 1, size));
        let from = if step == 0 { Buffer::Input } else { Buffer::Output };
        steps.push(Step::Send { to: right(rank, size), from: block(from, sent) });
        steps.push(Step::Reduce {
            from: left(rank, size),
            own: block(Buffer::Input, received),
            into: block(Buffer::Output, received),
            own_first: false,
        });
    }
    // Now block rank + 1 is complete here. Steps n-1..2n-2: send complete blocks right.
    for step in 0..size - 1 {
        let (sent, received) = (back(rank + 1, step, size), back(rank, step, size));
        steps.push(Step::Send { to: right(rank, size), from: block(Buffer::Output, sent) });
        steps.push(Step::Recv { from: left(rank, size), into: block(Buffer::Output, received) });
    }
    Schedule { steps, scratch: 0 }
}

/// `count` elements in `Input`, a multiple of `size`; block `rank` of the sum in `Output`.
pub fn reduce_scatter(rank: usize, size: usize, count: usize) -> Schedule {
    let len = count / size;
    let input = |index| Span::block(Buffer::Input, index, count, size);
    let mut steps = Vec::with_capacity(2 * size);
    // Partial sums of blocks that belong to others pass through two scratch places in turn.
    let partial = |step: usize| Span { buffer: Buffer::Scratch, start: (step % 2) * len, len };
    for step in 0..size - 1 {
        let (sent, received) = (back(rank, step + 1, size), back(rank, step + 2, size));
        let from = if step == 0 { input(sent) } else { partial(step - 1) };
        let last = step == size - 2;
        let into =
            if last { Span { buffer: Buffer::Output, start: 0, len } } else { partial(step) };
        steps.push(Step::Send { to: right(rank, size), from });
        steps.push(Step::Reduce {
            from: left(rank, size),
            own: input(received),
            into,
            own_first: false,
        });
    }
    Schedule { steps, scratch: if size > 2 { 2 * len } else { 0 } }
}

/// `count` elements in `Input`, `size * count` in `Output`.
pub fn all_gather(rank: usize, size: usize, count: usize) -> Schedule {
    let place = |index: usize| Span { buffer: Buffer::Output, start: index * count, len: count };
    let input = Span { buffer: Buffer::Input, start: 0, len: count };
    let mut steps = Vec::with_capacity(2 * size);
    for step in 0..size - 1 {
        let (sent, received) = (back(rank, step, size), back(rank, step + 1, size));
        let from = if step == 0 { input } else { place(sent) };
        steps.push(Step::Send { to: right(rank, size), from });
        steps.push(Step::Recv { from: left(rank, size), into: place(received) });
    }
    steps.push(Step::Copy { from: input, into: place(rank) });
    Schedule { steps, scratch: 0 }
}

/// `count` elements in `Output`, those of `root`: a chain from it once around, in which every rank
/// passes bytes on as they come.
pub fn broadcast(rank: usize, size: usize, count: usize, root: usize) -> Schedule {
    let all = Span { buffer: Buffer::Output, start: 0, len: count };
    let position = (rank + size - root) % size;
    let mut steps = Vec::with_capacity(2);
    if position > 0 {
        steps.push(Step::Recv { from: left(rank, size), into: all });
    }
    if position + 1 < size {
        steps.push(Step::Send { to: right(rank, size), from: all });
    }
    Schedule { steps, scratch: 0 }
}
