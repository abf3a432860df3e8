//! Which algorithm runs: the one place that decides it, from the call, the number of ranks and how they
//! are connected, so that all ranks decide alike.
//!
//! Over links an [`Algorithm`] runs; ranks that all share one host meet at a board, where a
//! [`Pattern`] does.

use super::board::pattern::{Kind, Pattern};
use crate::call::{Call, Verb};
use crate::config::Topology;
use crate::dtype::Dtype;

/// An algorithm for links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// n-1 steps with the neighbours for each phase; every byte moves as seldom as it can.
    Ring,
    /// log2 n exchanges of everything.
    Doubling,
    /// log2 n exchanges of all that was gathered so far.
    Bruck,
    /// log2 n steps down a tree.
    Tree,
    /// Every rank exchanges with every other.
    Pairwise,
}

impl Algorithm {
    /// The algorithms that a verb has, the one for few bytes first.
    pub fn of(verb: Verb) -> &'static [Algorithm] {
        match verb {
            Verb::AllSum | Verb::AllMax | Verb::AllMin | Verb::SumScatter => {
                &[Algorithm::Doubling, Algorithm::Ring]
            }
            Verb::AllGather | Verb::Split => &[Algorithm::Bruck, Algorithm::Ring],
            Verb::Broadcast => &[Algorithm::Tree, Algorithm::Ring],
            Verb::Barrier => &[Algorithm::Pairwise, Algorithm::Ring],
            Verb::AllToAll | Verb::Message => &[Algorithm::Pairwise],
        }
    }
}

/// The algorithm for a call on this number of ranks. Where only neighbours reach each other well, what can
/// be done between them is, however few bytes there are; blocks of an all-to-all go straight to their
/// ranks all the same.
pub fn choose(call: &Call, size: usize, topology: Topology) -> Algorithm {
    let algorithms = Algorithm::of(call.verb);
    if topology == Topology::Ring && algorithms.contains(&Algorithm::Ring) {
        return Algorithm::Ring;
    }
    let bytes = input_bytes(call);
    let few = match call.verb {
        Verb::AllSum | Verb::AllMax | Verb::AllMin => bytes <= few_to_reduce(size),
        Verb::SumScatter => bytes <= few_to_reduce(size),
        Verb::AllGather | Verb::Split => bytes.saturating_mul(size) <= FEW_TO_GATHER,
        Verb::Broadcast => bytes <= FEW_TO_BROADCAST,
        Verb::AllToAll | Verb::Barrier | Verb::Message => true,
    };
    match algorithms {
        [first, ..] if few => *first,
        [.., last] => *last,
        [] => Algorithm::Ring,
    }
}

fn element_bytes(call: &Call) -> usize {
    Dtype::from_number(call.dtype.into()).map_or(1, Dtype::size)
}

fn input_bytes(call: &Call) -> usize {
    (call.count as usize).saturating_mul(element_bytes(call))
}

/// Up to here the fewer messages of recursive doubling are worth its more bytes. Its time over the
/// ring's, all_sum of float32, ranks of one host over TCP, medians of 5:
///
/// | ranks | 4 B | 16 KiB | 32 KiB | 64 KiB | 128 KiB | 256 KiB | 512 KiB | 1 MiB |
/// |---|---|---|---|---|---|---|---|---|
/// | 2 | 0.54 | 0.72 | 0.76 | 1.13 | 0.89 | 1.56 | | 1.81 |
/// | 3 | | | | 0.70 | 0.76 | 0.96 | 1.10 | 1.56 |
/// | 4 | | | | 0.60 | 0.67 | 0.79 | 1.01 | 1.61 |
/// | 5 | | | | 0.34 | 0.38 | 0.57 | 1.18 | 1.67 |
/// | 8 | | | | 0.52 | 0.62 | 0.80 | 1.33 | 1.60 |
fn few_to_reduce(size: usize) -> usize {
    if size == 2 { 32 << 10 } else { 256 << 10 }
}

/// In `output`: beyond, the ring's cut-through wins. Time of Bruck's over the ring's, all_gather of float32,
/// ranks of one host over TCP, on a busy machine, medians of 5 in turn:
///
/// | ranks | 16 KiB | 64 KiB | 128 KiB | 256 KiB | 1 MiB |
/// |---|---|---|---|---|---|
/// | 2 | 0.71 | 1.12 | 1.00 | 1.27 | 1.06 |
/// | 4 | 0.82 | 0.77 | 0.85 | 1.01 | 1.05 |
const FEW_TO_GATHER: usize = 64 << 10;
/// Up to here the tree's fewer steps are worth a root that sends log2 n times. Time of the tree over that of
/// the chain, from the root's call to the last rank's return, ranks of one host over TCP and 2 cores, medians
/// of 3 in turn:
///
/// | ranks | 4 KiB | 32 KiB | 64 KiB | 128 KiB | 256 KiB | 1 MiB | 4 MiB |
/// |---|---|---|---|---|---|---|---|
/// | 3 | 0.67 | 0.71 | 0.77 | 0.74 | 0.95 | 0.66 | 1.17 |
/// | 4 | 0.45 | 0.57 | 0.78 | 0.72 | 0.85 | 0.85 | 0.72 |
/// | 8 | 0.63 | 0.54 | 0.67 | 0.86 | 1.03 | 1.17 | 1.15 |
///
/// Between hosts the root's own cable counts, which a loopback does not have; so not beyond 128 KiB.
const FEW_TO_BROADCAST: usize = 128 << 10;

/// The pattern for a call on this number of ranks, at a board with slots of `slot` bytes.
pub fn choose_at_board(call: &Call, ranks: usize, slot: usize) -> Pattern {
    let bytes = input_bytes(call);
    let kind = match call.verb {
        Verb::AllSum | Verb::AllMax | Verb::AllMin if bytes <= FEW_TO_REDUCE_ALL / ranks => {
            Kind::ReduceAll
        }
        Verb::AllSum | Verb::AllMax | Verb::AllMin => Kind::ReduceSlices,
        Verb::SumScatter => Kind::ReducePieces,
        Verb::AllToAll => Kind::MovePieces,
        Verb::AllGather | Verb::Split | Verb::Barrier | Verb::Message => Kind::Gather,
        Verb::Broadcast => Kind::Broadcast { root: usize::try_from(call.root).unwrap_or(0) },
    };
    Pattern::new(kind, call, ranks, element_bytes(call), slot.min(BLOCK))
}

/// Whether the output of a call is better written past the caches.
pub fn streams(call: &Call, ranks: usize) -> bool {
    let input = input_bytes(call);
    let output = match call.verb {
        Verb::AllGather => input.saturating_mul(ranks),
        Verb::SumScatter => input / ranks,
        _ => input,
    };
    output >= STREAMED
}

/// 64 KiB in all ranks' slots: up to here reducing everything everywhere is quicker than meeting twice. Its
/// time over that of slices, all_sum of float32 on 2 cores, the best of 3 runs:
///
/// | ranks | 4 B | 1 KiB | 4 KiB | 16 KiB | 32 KiB | 64 KiB | 128 KiB |
/// |---|---|---|---|---|---|---|---|
/// | 2 | 0.59 | 0.71 | 0.97 | 0.94 | 1.10 | 0.96 | 1.03 |
/// | 4 | 0.54 | 0.68 | | 1.15 | 1.59 | 1.43 | 1.54 |
/// | 8 | 0.64 | 0.70 | 0.75 | 1.06 | 1.16 | 2.08 | 2.45 |
const FEW_TO_REDUCE_ALL: usize = 64 << 10;
/// 256 KiB: bytes of a block, whose slots stay in the caches of a core. (all_sum of 64 MiB with blocks of 64, 128,
/// 256 and 512 KiB: 14.6, 14.1, 14.2 and 13.5 ms on 2 ranks, 36, 34, 30 and 31 ms on 4; of 256 KiB on 4 ranks
/// 81, 68, 61 and 60 us.)
const BLOCK: usize = 256 << 10;
/// 4 MiB of output: less stays in the caches for whoever reads it next. (all_sum on 2 ranks, streamed and not:
/// 1 MiB 124 and 89 us, 4 MiB 597 and 657 us, 64 MiB 14 and 16 ms.)
const STREAMED: usize = 4 << 20;
