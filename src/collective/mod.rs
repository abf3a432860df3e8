//! Collectives over links: each algorithm as data, and the one engine that runs such data.
//!
//! Words: a *block* is one rank's share of a buffer; a *step* is one transfer or local copy of one
//! rank; a *schedule* is all steps of one rank in one collective.

pub mod board;
mod bruck;
mod choose;
mod doubling;
pub mod drive;
pub mod engine;
mod lending;
pub mod links;
mod pairwise;
mod ring;
pub mod schedule;
mod tree;
#[cfg(test)]
mod walk;

pub use choose::{Algorithm, choose, choose_at_board, streams};

use crate::call::{Call, Verb};
use crate::config::Topology;
use crate::reduce::Reduction;
use schedule::Schedule;

/// What this rank does in a call.
pub fn plan(call: &Call, rank: usize, size: usize, topology: Topology) -> Schedule {
    schedule(choose(call, size, topology), call, rank, size)
}

/// How what meets in a call is combined.
pub fn reduction(verb: Verb) -> Option<Reduction> {
    match verb {
        Verb::AllSum | Verb::SumScatter => Some(Reduction::Sum),
        Verb::AllMax => Some(Reduction::Max),
        Verb::AllMin => Some(Reduction::Min),
        _ => None,
    }
}

/// What this rank does in a call by this algorithm, one of those that the verb has.
fn schedule(algorithm: Algorithm, call: &Call, rank: usize, size: usize) -> Schedule {
    let count = call.count as usize;
    let root = usize::try_from(call.root).unwrap_or(0);
    match (call.verb, algorithm) {
        (Verb::AllSum | Verb::AllMax | Verb::AllMin, Algorithm::Doubling) => {
            doubling::all_reduce(rank, size, count)
        }
        (Verb::AllSum | Verb::AllMax | Verb::AllMin, _) => ring::all_reduce(rank, size, count),
        (Verb::SumScatter, Algorithm::Doubling) => doubling::reduce_scatter(rank, size, count),
        (Verb::SumScatter, _) => ring::reduce_scatter(rank, size, count),
        (Verb::AllGather | Verb::Split, Algorithm::Bruck) => bruck::all_gather(rank, size, count),
        (Verb::AllGather | Verb::Split, _) => ring::all_gather(rank, size, count),
        (Verb::Broadcast, Algorithm::Tree) => tree::broadcast(rank, size, count, root),
        (Verb::Broadcast, _) => ring::broadcast(rank, size, count, root),
        (Verb::AllToAll, _) => pairwise::all_to_all(rank, size, count),
        (Verb::Barrier, Algorithm::Ring) => ring::barrier(rank, size),
        (Verb::Barrier, _) => pairwise::barrier(rank, size),
        (Verb::Message, _) => Schedule::default(),
    }
}
