//! Collectives over links: each algorithm as data, and the one engine that runs such data.
//!
//! Words: a *block* is one rank's share of a buffer; a *step* is one transfer or local copy of one
//! rank; a *schedule* is all steps of one rank in one collective.

pub mod drive;
pub mod engine;
pub mod links;
mod pairwise;
mod ring;
pub mod schedule;
#[cfg(test)]
mod walk;

use crate::call::{Call, Verb};
use crate::reduce::Reduction;
use schedule::Schedule;

/// What this rank does in a call, and how what meets is combined: the one place that decides which
/// algorithm runs.
pub fn plan(call: &Call, rank: usize, size: usize) -> (Schedule, Option<Reduction>) {
    let count = call.count as usize;
    let root = usize::try_from(call.root).unwrap_or(0);
    match call.verb {
        Verb::AllSum => (ring::all_reduce(rank, size, count), Some(Reduction::Sum)),
        Verb::AllMax => (ring::all_reduce(rank, size, count), Some(Reduction::Max)),
        Verb::AllMin => (ring::all_reduce(rank, size, count), Some(Reduction::Min)),
        Verb::SumScatter => (ring::reduce_scatter(rank, size, count), Some(Reduction::Sum)),
        Verb::AllGather | Verb::Split => (ring::all_gather(rank, size, count), None),
        Verb::AllToAll => (pairwise::all_to_all(rank, size, count), None),
        Verb::Broadcast => (ring::broadcast(rank, size, count, root), None),
        Verb::Barrier => (pairwise::barrier(rank, size), None),
        Verb::Message => (Schedule::default(), None),
    }
}
