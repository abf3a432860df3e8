//! How a world comes up: every rank meets rank 0, learns of the others, connects to them, and shares
//! memory with those of its host.

use std::sync::Arc;
use std::time::Duration;

use super::host::Place;
use super::mailbox::Mailbox;
use super::meeting::{Lines, Starting};
use super::member::Member;
use super::reactor::Reactor;
use super::seat::{Founding, Seat};
use super::world::World;
use crate::config::{RingStart, Transport};
use crate::error::{Result, Status};
use crate::health::Health;
use crate::transport::segment::Segment;
use crate::wait::Deadline;

/// How long a start that failed may take to tell the others why.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Starts a world: `member` is the group of all its ranks. Blocks until every rank is connected to every
/// other, or the deadline has passed. The segment is what this rank shares with the others of its host, if
/// it has any: of `segment_bytes` of their number.
pub fn start(
    plan: &RingStart,
    reactor: &Arc<Reactor>,
    member: Member,
    segment_bytes: impl Fn(usize) -> usize,
) -> Result<(Seat, Option<Segment>)> {
    let (limit, deadline) = (plan.connect_timeout, Deadline::after(plan.connect_timeout));
    let (place, mailbox) = here(plan)?;
    let starting = Starting { plan, reactor, limit, deadline, place };
    let (founding, lines) = starting.meet()?;
    starting.bring_up((Founding { mailbox, ..founding }, lines), member, segment_bytes)
}

impl Starting<'_> {
    /// Connects the ranks that have met. A start that fails has told the others why.
    pub(super) fn bring_up(
        &self,
        (founding, lines): (Founding, Lines),
        member: Member,
        segment_bytes: impl Fn(usize) -> usize,
    ) -> Result<(Seat, Option<Segment>)> {
        let (reactor, deadline) = (self.reactor, self.deadline);
        let world = World::found(founding);
        world.enter(member.clone());
        reactor.serve(&world);
        let shared = connect(reactor, &world, lines, &member.health, deadline).and_then(|()| {
            let bytes = segment_bytes(world.node(&member).len());
            come_up(&world, &member, bytes, self.plan.transport, deadline)
        });
        let segment = shared.map_err(|e| {
            // A rank that gave up already is not the cause: that is under way from another.
            if e.status == Status::PeerLost {
                world.has_left(world.rank, &member.health, LAST_WORDS);
            }
            // Whoever waits for this rank learns at once that it waits in vain, and of what: the
            // process may end next.
            world.fail_group(0, &e, false);
            world.leave();
            reactor.settle(LAST_WORDS);
            // Another rank's failure may have been what stopped this one.
            member.health.check().err().unwrap_or(e)
        })?;
        Ok((world, segment))
    }
}

/// Where this process is, and its mailbox if others may share memory with it.
fn here(plan: &RingStart) -> Result<(Place, Option<Mailbox>)> {
    let mailbox = match plan.transport {
        Transport::Tcp => None,
        Transport::Auto | Transport::Shm => Mailbox::open()
            .inspect_err(|e| log::warn!("rank {} shares no memory: {e}", plan.rank))
            .ok(),
    };
    let door = mailbox.as_ref().map(|mailbox| mailbox.name().to_owned());
    Ok((Place::here(plan.host_id.as_deref(), door)?, mailbox))
}

/// Brings up the lines of which the meeting left those with rank 0.
fn connect(
    reactor: &Arc<Reactor>,
    world: &World,
    lines: Lines,
    health: &Health,
    deadline: Deadline,
) -> Result<()> {
    for (rank, channel) in lines {
        reactor.add_line(world, rank, channel)?;
    }
    for rank in 1..world.rank {
        let called = world.call_line(rank, deadline, health);
        called.and_then(|channel| reactor.add_line(world, rank, channel)).map_err(|e| {
            let here = world.rank;
            e.at(format_args!("rank {here} cannot reach rank {rank}"))
        })?;
    }
    world.await_lines(health, deadline)
}

/// Shares memory with this host's ranks, where that works on all of them, and waits until every rank
/// is ready.
fn come_up(
    world: &World,
    member: &Member,
    bytes: usize,
    transport: Transport,
    deadline: Deadline,
) -> Result<Option<Segment>> {
    let segment = match world.share(member, &member.health, bytes, deadline) {
        Ok(segment) => segment,
        // What comes too late fails the start anyway.
        Err(e) if deadline.passed() => return Err(e),
        Err(e) if transport == Transport::Shm => return Err(e.at("MLXD_TRANSPORT=shm")),
        // If it is the start that has failed, that shows next.
        Err(e) => {
            log::warn!("rank {} shares no memory with its host: {e}", world.rank);
            None
        }
    };
    world.get_ready(segment.is_some(), &member.health, deadline)?;
    // It may not have worked on another of them.
    Ok(segment.filter(|_| world.node(member).len() > 1))
}
