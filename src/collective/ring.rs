//! Ring algorithms: every rank exchanges with its two neighbours only.
//!
//! All-reduce is the reduce-scatter and the all-gather of Patarasuk and Yuan, "Bandwidth optimal
//! all-reduce algorithms for clusters of workstations" (2009): each rank sends 2 (n-1) / n of the
//! buffer, the least there is. One half of every buffer travels to the right and one to the left, so
//! that links carry bytes both ways. Each block is summed in the order in which it travels, so the
//! bytes are the same on all ranks and in every run.

use super::schedule::{Buffer, Schedule, Span, Step};

/// One half of a buffer on its way around the ring.
#[derive(Clone, Copy)]
struct Lap {
    rank: usize,
    size: usize,
    /// To the right, that is to the next rank; else to the left.
    rightward: bool,
    /// Per block: its first element within the buffer, and how many elements it has.
    start: usize,
    count: usize,
}

impl Lap {
    /// Both halves of `count` elements; with two ranks, whose one link carries both ways anyway,
    /// and with few elements the whole in one.
    fn both(rank: usize, size: usize, count: usize) -> Vec<Lap> {
        let half = if size > 2 { count.div_ceil(2) } else { count };
        let right = Lap { rank, size, rightward: true, start: 0, count: half };
        let left = Lap { rightward: false, start: half, count: count - half, ..right };
        [right, left].into_iter().filter(|lap| lap.count > 0 || lap.rightward).collect()
    }

    /// The neighbour that bytes go to.
    fn to(&self) -> usize {
        self.after(1)
    }

    /// The neighbour that bytes come from.
    fn from(&self) -> usize {
        self.before(1)
    }

    /// The rank so many steps before this one, in the direction of travel.
    fn before(&self, steps: usize) -> usize {
        let steps = steps % self.size;
        let back = if self.rightward { self.size - steps } else { steps };
        (self.rank + back) % self.size
    }

    fn after(&self, steps: usize) -> usize {
        self.before(self.size - steps % self.size)
    }

    /// Block `index` of this half.
    fn block(&self, buffer: Buffer, index: usize) -> Span {
        let block = Span::block(buffer, index, self.count, self.size);
        Span { start: self.start + block.start, ..block }
    }
}

/// Takes a step of each lap in turn: both directions go on together.
fn interleave(laps: Vec<Vec<Step>>) -> Vec<Step> {
    let longest = laps.iter().map(Vec::len).max().unwrap_or(0);
    (0..longest).flat_map(|at| laps.iter().filter_map(move |lap| lap.get(at).copied())).collect()
}

/// `count` elements in `Input` and `Output`.
pub fn all_reduce(rank: usize, size: usize, count: usize) -> Schedule {
    let laps = Lap::both(rank, size, count).into_iter().map(|lap| {
        let mut steps = Vec::with_capacity(4 * size);
        // Steps 0..n-1: send the partial sum of a block on, add the own part to the next one.
        for step in 0..size - 1 {
            let (sent, received) = (lap.before(step), lap.before(step + 1));
            let from = if step == 0 { Buffer::Input } else { Buffer::Output };
            steps.push(Step::Send { to: lap.to(), from: lap.block(from, sent) });
            steps.push(Step::Reduce {
                from: lap.from(),
                own: lap.block(Buffer::Input, received),
                into: lap.block(Buffer::Output, received),
                own_first: false,
            });
        }
        // Now the block of the next rank is complete here. n-1 steps: send complete blocks on.
        for step in 0..size - 1 {
            let (sent, received) = (lap.before(size - 1 + step), lap.before(step));
            let (sent, received) =
                (lap.block(Buffer::Output, sent), lap.block(Buffer::Output, received));
            steps.push(Step::Send { to: lap.to(), from: sent });
            steps.push(Step::Recv { from: lap.from(), into: received });
        }
        steps
    });
    Schedule { steps: interleave(laps.collect()), scratch: 0 }
}

/// `count` elements in `Input`, a multiple of `size`; block `rank` of the sum in `Output`.
pub fn reduce_scatter(rank: usize, size: usize, count: usize) -> Schedule {
    let len = count / size;
    let mut scratch = 0;
    let laps = Lap::both(rank, size, len).into_iter().map(|lap| {
        // Here a lap is one half of every block.
        let part = |buffer, first| Span { buffer, start: first + lap.start, len: lap.count };
        let input = |index: usize| part(Buffer::Input, index * len);
        // Partial sums of blocks that belong to others pass through two places in turn.
        let partial = |step: usize| part(Buffer::Scratch, (step % 2) * len);
        let mut steps = Vec::with_capacity(2 * size);
        for step in 0..size - 1 {
            let (sent, received) = (lap.before(step + 1), lap.before(step + 2));
            let from = if step == 0 { input(sent) } else { partial(step - 1) };
            let into = if step == size - 2 { part(Buffer::Output, 0) } else { partial(step) };
            steps.push(Step::Send { to: lap.to(), from });
            steps.push(Step::Reduce {
                from: lap.from(),
                own: input(received),
                into,
                own_first: false,
            });
        }
        steps
    });
    let steps = interleave(laps.collect());
    if size > 2 {
        scratch = 2 * len;
    }
    Schedule { steps, scratch }
}

/// `count` elements in `Input`, `size * count` in `Output`.
pub fn all_gather(rank: usize, size: usize, count: usize) -> Schedule {
    let laps = Lap::both(rank, size, count).into_iter().map(|lap| {
        // Here a lap is one half of every rank's elements.
        let part = |buffer, first| Span { buffer, start: first + lap.start, len: lap.count };
        let place = |index: usize| part(Buffer::Output, index * count);
        let input = part(Buffer::Input, 0);
        let mut steps = Vec::with_capacity(2 * size);
        for step in 0..size - 1 {
            let (sent, received) = (lap.before(step), lap.before(step + 1));
            let from = if step == 0 { input } else { place(sent) };
            steps.push(Step::Send { to: lap.to(), from });
            steps.push(Step::Recv { from: lap.from(), into: place(received) });
        }
        steps.push(Step::Copy { from: input, into: place(rank) });
        steps
    });
    Schedule { steps: interleave(laps.collect()), scratch: 0 }
}

/// `count` elements in `Output`, those of `root`: a chain from it once around, in which every rank
/// passes bytes on as they come; one half each way around.
pub fn broadcast(rank: usize, size: usize, count: usize, root: usize) -> Schedule {
    let laps = Lap::both(rank, size, count).into_iter().map(|lap| {
        let half = Span { buffer: Buffer::Output, start: lap.start, len: lap.count };
        let mut steps = Vec::with_capacity(2);
        if rank != root {
            steps.push(Step::Recv { from: lap.from(), into: half });
        }
        if lap.to() != root {
            steps.push(Step::Send { to: lap.to(), from: half });
        }
        steps
    });
    Schedule { steps: interleave(laps.collect()), scratch: 0 }
}

/// In each of half as many rounds as there are ranks, every rank passes on to both neighbours what it has
/// heard of from the other side: then each has heard of all.
pub fn barrier(rank: usize, size: usize) -> Schedule {
    let laps = [true, false].map(|rightward| {
        // Received before the next is sent: what one rank has heard of travels on with its token.
        let token = Span { buffer: Buffer::Scratch, start: usize::from(rightward), len: 1 };
        let lap = Lap { rank, size, rightward, start: 0, count: 1 };
        let round = [
            Step::Send { to: lap.to(), from: token },
            Step::Recv { from: lap.from(), into: token },
        ];
        round.repeat(size / 2)
    });
    Schedule { steps: interleave(laps.into()), scratch: 2 }
}
