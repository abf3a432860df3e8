//! Starts by a caller's all-gather of ranks that need not reach each other over TCP: with lines if they
//! do, all of them, else without.
//!
//! All ranks are in such a start from its first gather on, so that what has not got through after a while
//! never will. First each rank tries to reach rank 0, then the control plane comes up as always; after
//! either, each tells the others by another gather how it fared, and what one of them lacks, all do without.

use std::sync::Arc;
use std::time::Duration;

use super::gather::{Gatherer, Word};
use super::meeting::Starting;
use super::reactor::Reactor;
use super::start::here;
use super::world::{Member, Seat, World};
use crate::config::{AllGather, RingStart};
use crate::error::{Result, Status};
use crate::wait::Deadline;

/// How long a rank may try to reach rank 0, at most.
const REACH: Duration = Duration::from_secs(10);
/// The part of a start's limit that this may take.
const PART: u32 = 3;

/// A world that has come up.
pub struct Started {
    /// This rank's.
    pub world: Seat,
    /// The group of all ranks.
    pub member: Member,
    /// By what its ranks tell each other more, if they have no lines.
    pub gatherer: Option<Gatherer>,
}

/// Starts a world whose ranks share no memory as [`start`](super::start()) does, or one without lines. `ready` is whether this rank can
/// take part, for what the control plane does not know; a new group of all ranks comes of `member`.
pub fn start_anyhow(
    plan: &RingStart,
    all_gather: AllGather,
    reactor: &Arc<Reactor>,
    ready: Result<()>,
    member: impl Fn() -> Result<Member>,
) -> Result<Started> {
    let all = Deadline::after(plan.connect_timeout);
    let (place, _) = here(plan)?;
    let gatherer = Gatherer::new(all_gather, plan.rank, plan.size);
    let limit = plan.connect_timeout.map_or(REACH, |limit| REACH.min(limit / PART));
    let part = |place| Starting {
        plan,
        reactor,
        limit: Some(limit),
        deadline: all.or(Deadline::after(Some(limit))),
        place,
    };
    let gathered = part(place.clone()).introduce(&gatherer, ready)?;
    let reaching = part(place.clone());
    let mut channel = reaching.reach_rank_0(&gathered);
    let mut why = gatherer.agree(&word(&channel))?;
    if why.is_none() {
        // A world of many takes longer, and that its ranks meet is likely by now.
        let limit = plan.connect_timeout.map(|limit| limit - limit / PART);
        let deadline = all.or(Deadline::after(limit));
        let starting = Starting { limit, deadline, ..part(place.clone()) };
        let channel = std::mem::replace(&mut channel, Ok(None))?;
        let member = member()?;
        let met = starting.meet_after(gathered.clone(), channel);
        let up = met.and_then(|met| starting.bring_up(met, member.clone(), |_| 0));
        why = gatherer.agree(&word(&up))?;
        if why.is_none() {
            let (world, _) = up?;
            return Ok(Started { world, member, gatherer: None });
        }
        // Ranks that have lines with some of the others hang up.
    }
    let world = World::found(reaching.without_lines(gathered));
    let member = member()?;
    world.enter(member.clone());
    log::warn!(
        "rank {} of {}: the ranks do not all reach each other over TCP ({}), so the world goes without: \
         that a rank is lost is noticed by whoever waits for it, by failed sends or a limit, and failures \
         are not told to others",
        plan.rank,
        plan.size,
        why.unwrap_or_default()
    );
    Ok(Started { world, member, gatherer: Some(gatherer) })
}

/// How a rank fared that has come to this over TCP.
fn word<T>(outcome: &Result<T>) -> Word {
    match outcome {
        Err(e) if [Status::PeerLost, Status::Timeout, Status::System].contains(&e.status) => {
            Word::OutOfReach(e.message.clone())
        }
        outcome => Word::of(outcome),
    }
}
