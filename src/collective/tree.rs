//! A binomial tree: in step k, from the last to the first, every rank that has the bytes sends them
//! to the one 2^k further from the root. log2 n steps, rounded up.

use super::schedule::{Buffer, Schedule, Span, Step};

/// `count` elements in `Output`, those of `root`.
pub fn broadcast(rank: usize, size: usize, count: usize, root: usize) -> Schedule {
    let all = Span { buffer: Buffer::Output, start: 0, len: count };
    // Distance from the root, around the ranks.
    let position = (rank + size - root) % size;
    let rank_at = |position: usize| (position + root) % size;
    let mut steps = Vec::new();
    // The lowest bit of the position is the step in which the bytes come; the root has them.
    let reach = match position {
        0 => size.next_power_of_two(),
        _ => {
            let bit = 1 << position.trailing_zeros();
            steps.push(Step::Recv { from: rank_at(position - bit), into: all });
            bit
        }
    };
    let mut distance = reach / 2;
    while distance > 0 {
        if position + distance < size {
            steps.push(Step::Send { to: rank_at(position + distance), from: all });
        }
        distance /= 2;
    }
    Schedule { steps, scratch: 0 }
}
