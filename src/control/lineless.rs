//! Starts by a caller's all-gather of ranks that need not reach each other over TCP: with lines if they
//! do, all of them, else without.
//!
//! All ranks are in such a start from its first gather on, so that what has not got through after a while
//! never will; time counts from then. First each rank tries to reach rank 0, then the control plane comes up
//! as always; after either, each tells the others by another gather how it fared, and what one of them
//! lacks, all do without. Whatever one rank finds wrong, it tells by the next gather: all call the function
//! equally often.

use std::sync::Arc;
use std::time::Duration;

use super::entry::{Gathered, decline};
use super::exchange::{Exchange, REPORT_BYTES, Report};
use super::gathering::ELSEWHERE;
use super::handshake::{self, Hello, PROOF_BYTES, Purpose, Side};
use super::host::Place;
use super::meeting::Starting;
use super::member::Member;
use super::reactor::Reactor;
use super::seat::Seat;
use super::world::World;
use crate::config::{AllGather, RingStart};
use crate::error::{Error, Result, Status};
use crate::wait::Deadline;

/// How long a rank may try to reach rank 0, at most.
const REACH: Duration = Duration::from_secs(10);
/// The part of a start's limit that this may take.
const PART: u32 = 3;
/// How long the ranks of a start without a limit may take to meet: all are there, but one may have given
/// up while another waits for it.
const MEET: Duration = Duration::from_secs(60);

/// A world that has come up.
pub struct Started {
    /// This rank's.
    pub world: Seat,
    /// The group of all ranks.
    pub member: Member,
    /// By what its ranks tell each other more, if they have no lines.
    pub exchange: Option<Exchange>,
}

/// What a rank needs before it can take part.
struct Prepared {
    place: Place,
    /// For the world with lines, and for that without.
    members: [Member; 2],
}

/// Starts a world whose ranks share no memory as [`start`](super::start()) does, or one without lines.
/// `ready` is whether this rank can take part, for what the control plane does not know; a new group of all
/// ranks comes of `member`.
pub fn start_by_all_gather(
    plan: &RingStart,
    all_gather: AllGather,
    reactor: &Arc<Reactor>,
    ready: Result<()>,
    member: impl Fn() -> Result<Member>,
) -> Result<Started> {
    let exchange = Exchange::new(all_gather, plan.rank, plan.size);
    let prepared = ready.and_then(|()| {
        let place = Place::here(plan.host_id.as_deref(), None)?;
        Ok(Prepared { place, members: [member()?, member()?] })
    });
    let Prepared { place, members: [member, lineless] } = match prepared {
        Ok(prepared) => prepared,
        Err(e) => {
            decline(&exchange, plan.rank, &e)?;
            return Err(e);
        }
    };
    let part = |limit: Option<Duration>| Starting {
        plan,
        reactor,
        limit,
        deadline: Deadline::after(limit),
        place: place.clone(),
    };
    let gathered = part(None).introduce(&exchange)?;
    let reach = plan.connect_timeout.map_or(REACH, |limit| REACH.min(limit / PART));
    let reached = part(Some(reach)).try_rank_0(&gathered);
    let mut why = agree_on_secret(plan, &exchange, &gathered, &report(&reached))?;
    if why.is_none() {
        // A world of many takes longer, and that its ranks meet is likely by now.
        let limit = plan.connect_timeout.map_or(MEET, |limit| limit - limit / PART);
        let starting = part(Some(limit));
        let met = reached.and_then(|channel| starting.meet_after(gathered.clone(), channel));
        let up = met.and_then(|met| starting.bring_up(met, member.clone(), |_| 0));
        why = exchange.agree(&report(&up))?;
        if why.is_none() {
            let (world, _) = up?;
            return Ok(Started { world, member, exchange: None });
        }
        // Ranks that have lines with some of the others hang up.
    }
    let world = World::found(part(None).without_lines(gathered));
    world.enter(lineless.clone());
    log::warn!(
        "rank {} of {}: the ranks do not all reach each other over TCP ({}), and go without: a rank that is \
         gone is missed only by those who wait, and over MLXD_RDMA_QP=uc only by their limits",
        plan.rank,
        plan.size,
        why.unwrap_or_default().replace(ELSEWHERE, "")
    );
    Ok(Started { world, member: lineless, exchange: Some(exchange) })
}

/// Takes part in a start that this rank cannot go on with, so that the others learn why.
pub fn decline_by_all_gather(all_gather: AllGather, rank: usize, size: usize, why: &Error) {
    // It has failed here anyway.
    let _ = decline(&Exchange::new(all_gather, rank, size), rank, why);
}

/// As [`Exchange::agree`]; the ranks also prove that they have the same secret, which TCP may not get to.
fn agree_on_secret(
    plan: &RingStart,
    exchange: &Exchange,
    gathered: &Gathered,
    own: &Report,
) -> Result<Option<String>> {
    let proof = |rank: usize| {
        let hello = Hello {
            purpose: Purpose::Join,
            lane: 0,
            world: gathered.id(),
            group: 0,
            from: rank as u32,
            to: 0,
            size: plan.size as u32,
            nonce: [0; 16],
        };
        handshake::proof(plan.secret.as_deref(), Side::Caller, &hello, &[0; 16])
    };
    let proven = proof(plan.rank);
    let own = match &proven {
        Ok(_) => own.clone(),
        Err(e) => Report::Failed(e.clone()),
    };
    let bytes = [own.encode(), proven.unwrap_or([0; PROOF_BYTES]).to_vec()].concat();
    let all = exchange.gather(&bytes)?;
    for (rank, theirs) in all.iter().enumerate() {
        let theirs = std::array::from_fn(|at| theirs[REPORT_BYTES + at]);
        if !handshake::equal(&theirs, &proof(rank)?) {
            // One that could not make it says so.
            if theirs == [0; PROOF_BYTES] {
                exchange.sum_up(&own, &all)?;
            }
            let why =
                format!("rank {rank} has another MLXD_SECRET, or none; all ranks need the same");
            return Err(Error::new(Status::Auth, why));
        }
    }
    exchange.sum_up(&own, &all)
}

/// How a rank fared that has come to this over TCP.
fn report<T>(outcome: &Result<T>) -> Report {
    match outcome {
        Err(e) if [Status::PeerLost, Status::Timeout, Status::System].contains(&e.status) => {
            Report::OutOfReach(e.message.clone())
        }
        outcome => Report::of(outcome),
    }
}
