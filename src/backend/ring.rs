//! The ring backend: collectives and messages over links between processes.

use std::collections::HashMap;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::{Backend, Collective, Limits, Message, Operation};
use crate::call::{Call, CallLog, Header, Verb, mismatch};
use crate::collective::drive::{Patience, drive};
use crate::collective::engine::{Engine, Job};
use crate::collective::links::{Links, Way};
use crate::collective::schedule::{Buffer, Schedule, Span, Step};
use crate::collective::{plan, reduction};
use crate::config::RingStart;
use crate::control::{self, LaneKey, Member, Purpose, Reactor, Seat};
use crate::dtype::Dtype;
use crate::error::{Error, Result, Status, fail};
use crate::health::Health;
use crate::reduce::kernel;
use crate::thread::quietly;
use crate::transport::Link;
use crate::transport::late::LateLink;
use crate::transport::segment::{self, Segment};
use crate::transport::tcp::TcpLink;
use crate::wait::Deadline;

/// How long a broken link waits for the control plane to say why: a failed group's links are closed
/// just after its ranks were told the cause.
const WHY: Duration = Duration::from_secs(1);

/// All connections to a peer for one purpose.
type Lanes = Vec<Box<dyn Link>>;

/// A group over links.
pub struct Ring {
    world: Arc<Seat>,
    member: Member,
    rank: usize,
    /// Shared with the group's other ranks on this host, if there are any.
    #[expect(dead_code, reason = "what moves data through it comes with its link")]
    segment: Option<Arc<Segment>>,
    /// Whether every rank of this host has a core of its own.
    spin: bool,
    /// What collectives run on: one at a time.
    collectives: Mutex<(Engine, Links)>,
    /// Lanes for messages, while none is under way: by peer and way.
    lanes: Mutex<HashMap<(usize, Way), Lanes>>,
    /// Engines for messages, while they are not in use.
    engines: Mutex<Vec<Engine>>,
}

impl Ring {
    /// Starts a world, of two ranks at least.
    pub fn start(plan: &RingStart, reactor: &Arc<Reactor>) -> Result<Ring> {
        let member = member(0, (0..plan.size).collect())?;
        let (world, segment) = control::start(plan, reactor, member.clone(), segment::bytes)?;
        let ring = Ring::new(Arc::new(world), member, segment);
        // Neighbours at once, so that a start tells of a lane that does not work; the other ranks,
        // like all ranks of parts of the world, when they are first needed.
        let (rank, size) = (plan.rank, plan.size);
        let mut neighbours = vec![(rank + 1) % size, (rank + size - 1) % size];
        neighbours.dedup();
        for peer in neighbours {
            let links = &mut ring.collectives.lock().1;
            let connected = ring.connect(links, &[peer], Deadline::NEVER);
            // One that has left already will be missed when it is needed.
            if let Err(e) = connected
                && !(e.status == Status::PeerLost && ring.has_left(peer))
            {
                return Err(ring.failed(e, Some(peer)));
            }
        }
        Ok(ring)
    }

    fn new(world: Arc<Seat>, member: Member, segment: Option<Segment>) -> Ring {
        let rank = member.ranks.iter().position(|rank| *rank == world.rank).unwrap_or(0);
        let links = Links::new(world.lanes());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = world.ranks_here() <= cores;
        Ring {
            world,
            member,
            rank,
            segment: segment.map(Arc::new),
            spin,
            collectives: Mutex::new((Engine::default(), links)),
            lanes: Mutex::default(),
            engines: Mutex::default(),
        }
    }

    /// Connects those of `peers` that are not: the lower rank calls.
    fn connect(&self, links: &mut Links, peers: &[usize], deadline: Deadline) -> Result<()> {
        for &peer in peers {
            if !links.has(peer, Way::Out) {
                let lanes = match peer > self.rank {
                    true => self.call(peer, Purpose::Collective, deadline)?,
                    false => self.await_call(peer, Purpose::Collective)?,
                };
                links.add(peer, &[Way::Out, Way::In], lanes);
            }
        }
        Ok(())
    }

    /// Whether a rank that does not answer any more has left in good order; waits a moment for it, or
    /// for another cause, to be known.
    fn has_left(&self, peer: usize) -> bool {
        self.world.has_left(self.member.ranks[peer], &self.member.health, WHY)
    }

    /// All lanes to a peer, called from here.
    fn call(&self, peer: usize, purpose: Purpose, deadline: Deadline) -> Result<Lanes> {
        let to = self.member.ranks[peer];
        (0..self.world.lanes() as u16)
            .map(|lane| {
                let key =
                    LaneKey { group: self.member.group, from: self.world.rank, purpose, lane };
                let stream = self
                    .world
                    .call_peer(key, to, &self.member.health, deadline)
                    .map_err(|e| e.at(format_args!("no connection to rank {peer}")))?;
                tcp(stream, self.name_of(peer))
            })
            .collect()
    }

    /// All lanes that a peer calls, sooner or later.
    fn await_call(&self, peer: usize, purpose: Purpose) -> Result<Lanes> {
        let from = self.member.ranks[peer];
        (0..self.world.lanes() as u16)
            .map(|lane| {
                let key = LaneKey { group: self.member.group, from, purpose, lane };
                let wake = self.world.expect_lane(key)?;
                let (world, name) = (Arc::clone(&self.world), self.name_of(peer));
                let arrive = move || {
                    let stream = world.take_lane(key);
                    let stream =
                        stream.map_err(|e| e.at(format_args!("no connection from {name}")));
                    stream?.map(|stream| tcp(stream, name.clone())).transpose()
                };
                Ok(Box::new(LateLink::new(Box::new(arrive), wake)) as Box<dyn Link>)
            })
            .collect()
    }

    /// `rank 1 (10.0.0.2:5001)`
    fn name_of(&self, peer: usize) -> String {
        format!("rank {peer} ({})", self.world.address_of(self.member.ranks[peer]))
    }

    unsafe fn collective(&self, call: Call, c: &Collective, limits: Limits) -> Result<()> {
        let (before, wrong) = self.member.calls.begin(call);
        if let Some((peer, theirs)) = wrong {
            return Err(self.failed(mismatch(self.rank, &call, peer, &theirs), None));
        }
        if c.count == 0 && c.verb != Verb::Barrier {
            return Ok(());
        }
        let schedule = plan(&call, self.rank, self.size());
        let notify = || self.world.announce_stall(&self.member, call);
        let mut patience = Patience::new(limits.operation, self.spin, &notify);
        let header = Header { call, before };
        let job = Job {
            input: c.input,
            output: c.output,
            size: c.dtype.size(),
            kernel: reduction(c.verb).map(|reduction| kernel(reduction, c.dtype)),
            rank: self.rank,
            sent: header,
            expected: header,
        };
        let (engine, links) = &mut *self.collectives.lock();
        // A panic must leave no posts behind that point into the caller's memory.
        let outcome = quietly(|| {
            self.connect(links, &schedule.peers(), patience.deadline())?;
            engine.begin(&schedule, job, links)?;
            // SAFETY: the caller vouches for the memory; schedules stay within it.
            unsafe { drive(engine, links, &self.member.health, &mut patience) }
        });
        outcome.unwrap_or_else(Err).map_err(|e| self.broken(e, engine, links))
    }

    unsafe fn exchange(
        &self,
        dtype: Dtype,
        send: Option<Message<*const u8>>,
        recv: Option<Message<*mut u8>>,
        limits: Limits,
    ) -> Result<()> {
        let silent = || {};
        let limit = if send.is_none() { limits.recv } else { limits.operation };
        let mut patience = Patience::new(limit, self.spin, &silent);
        let mut links = Links::new(self.world.lanes());
        let mut schedule = Schedule::default();
        let all = |buffer, len| Span { buffer, start: 0, len };
        if let Some(send) = send {
            let known = self.lanes.lock().remove(&(send.peer, Way::Out));
            let lanes = match known {
                Some(lanes) => lanes,
                None => self
                    .call(send.peer, Purpose::Message, patience.deadline())
                    .map_err(|e| self.failed(e, Some(send.peer)))?,
            };
            links.add(send.peer, &[Way::Out], lanes);
            schedule.steps.push(Step::Send { to: send.peer, from: all(Buffer::Input, send.count) });
        }
        if let Some(recv) = recv {
            let known = self.lanes.lock().remove(&(recv.peer, Way::In));
            let lanes = match known {
                Some(lanes) => lanes,
                None => self
                    .await_call(recv.peer, Purpose::Message)
                    .map_err(|e| self.failed(e, Some(recv.peer)))?,
            };
            links.add(recv.peer, &[Way::In], lanes);
            let into = all(Buffer::Output, recv.count);
            schedule.steps.push(Step::Recv { from: recv.peer, into });
        }
        let call = |sequence, count: usize| {
            let (dtype, count) = (dtype as u8, count as u64);
            let call = Call { sequence, verb: Verb::Message, dtype, root: -1, count };
            Header { call, before: None }
        };
        let job = Job {
            input: send.map_or(std::ptr::null(), |m| m.memory),
            output: recv.map_or(std::ptr::null_mut(), |m| m.memory),
            size: dtype.size(),
            kernel: None,
            rank: self.rank,
            sent: send.map_or(call(0, 0), |m| call(m.sequence, m.count)),
            expected: recv.map_or(call(0, 0), |m| call(m.sequence, m.count)),
        };
        let mut engine = self.engines.lock().pop().unwrap_or_default();
        let outcome = quietly(|| {
            engine.begin(&schedule, job, &links)?;
            // SAFETY: the caller vouches for the memory of both messages.
            unsafe { drive(&mut engine, &mut links, &self.member.health, &mut patience) }
        });
        outcome.unwrap_or_else(Err).map_err(|e| self.broken(e, &engine, &mut links))?;
        self.engines.lock().push(engine);
        let mut used = links.take().into_iter();
        let mut known = self.lanes.lock();
        let ends = [send.map(|m| (m.peer, Way::Out)), recv.map(|m| (m.peer, Way::In))];
        for end in ends.into_iter().flatten() {
            known.insert(end, used.by_ref().take(self.world.lanes()).collect());
        }
        Ok(())
    }

    /// Fails the group with this error, or what caused it, and returns that. The links are closed
    /// after that, so that the other ranks learn the cause before they see its consequence.
    fn broken(&self, error: Error, engine: &Engine, links: &mut Links) -> Error {
        let error = self.failed(error, engine.broke_with());
        links.close();
        error
    }

    /// Fails the group with this error, or what caused it, and returns that. `peer` is the rank that
    /// it has to do with, if it is one.
    fn failed(&self, mut error: Error, peer: Option<usize>) -> Error {
        // This rank itself has not left: without a peer that only waits for another cause.
        let peer = peer.unwrap_or(self.rank);
        if error.status == Status::PeerLost && self.has_left(peer) {
            error.message = format!("{} has left, but is still needed", self.name_of(peer));
        }
        self.world.fail_group(self.member.group, &error, true);
        self.member.health.check().err().unwrap_or(error)
    }
}

fn tcp(stream: TcpStream, peer: String) -> Result<Box<dyn Link>> {
    Ok(Box::new(TcpLink::new(stream, peer)?))
}

/// This rank's part in a new group.
fn member(group: u64, ranks: Vec<usize>) -> Result<Member> {
    Ok(Member {
        group,
        ranks,
        health: Arc::new(Health::new()?),
        calls: Arc::new(CallLog::default()),
    })
}

impl Backend for Ring {
    fn name(&self) -> &'static str {
        "ring"
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.member.ranks.len()
    }

    fn health(&self) -> &Health {
        &self.member.health
    }

    unsafe fn run(&self, operation: &Operation, limits: Limits) -> Result<()> {
        self.member.health.check()?;
        // SAFETY: the caller vouches for the operation's memory.
        unsafe {
            match operation {
                Operation::Collective { sequence, collective } => {
                    self.collective(collective.call(*sequence), collective, limits)
                }
                Operation::Exchange { dtype, send, recv } => {
                    self.exchange(*dtype, *send, *recv, limits)
                }
            }
        }
    }

    fn split(
        &self,
        color: i32,
        key: i32,
        sequence: u64,
        limits: Limits,
    ) -> Result<Option<Box<dyn Backend>>> {
        let number = self.world.next_group_number();
        let own: [i32; 3] = [color, key, number as i32];
        let mut all = vec![[0i32; 3]; self.size()];
        let collective = Collective {
            verb: Verb::Split,
            dtype: Dtype::Int32,
            count: own.len(),
            root: -1,
            input: own.as_ptr().cast(),
            output: all.as_mut_ptr().cast(),
        };
        let operation = Operation::Collective { sequence, collective };
        // SAFETY: `own` has 3 elements and `all` 3 for each rank; both live until it has run.
        unsafe { self.run(&operation, limits)? };
        let Some(ranks) = group_of(color, &all) else {
            return Ok(None);
        };
        let Some(&leader) = ranks.first() else {
            fail!(Internal, "a group without ranks");
        };
        let ranks: Vec<usize> = ranks.into_iter().map(|rank| self.member.ranks[rank]).collect();
        // The leader never gives the same number to two groups.
        let id = (ranks[0] as u64) << 32 | u64::from(all[leader][2] as u32);
        let member = member(id, ranks)?;
        self.world.enter(member.clone());
        let node = self.world.node(&member);
        let deadline = Deadline::after(limits.operation);
        let shared = self.world.share(&member, segment::bytes(node.len()), deadline);
        let (segment, outcome) = match shared {
            Ok(segment) => (segment, Ok(())),
            Err(e) => (None, Err(e)),
        };
        let part = Ring::new(self.world.clone(), member, segment);
        // Without it the group fails: its ranks must not go different ways.
        outcome.map_err(|e| part.failed(e, node.first().copied()))?;
        Ok(Some(Box::new(part)))
    }

    fn fail(&self, cause: &Error) {
        self.world.fail_group(self.member.group, cause, true);
    }

    fn leave(&self) {
        self.world.leave();
        // Operations that are under way have been woken; what they use is closed once they are gone.
        if let Some(mut collectives) = self.collectives.try_lock_for(WHY) {
            collectives.1.close();
        }
        self.lanes.lock().clear();
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.world.forget(self.member.group);
    }
}

/// The ranks that gave `color`, ordered by key, then by rank; a negative key counts as the rank.
/// `None` for colour -1. `all` has each rank's colour and key.
fn group_of(color: i32, all: &[[i32; 3]]) -> Option<Vec<usize>> {
    if color < 0 {
        return None;
    }
    let mut ranks: Vec<usize> = (0..all.len()).filter(|rank| all[*rank][0] == color).collect();
    let key = |rank: usize| if all[rank][1] < 0 { rank as i64 } else { all[rank][1].into() };
    ranks.sort_by_key(|rank| (key(*rank), *rank));
    Some(ranks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_ordered_by_key_then_rank() {
        let all = [[0, 5, 1], [1, 0, 1], [0, 5, 1], [0, -1, 1], [-1, 0, 1], [0, 0, 1]];
        assert_eq!(group_of(0, &all), Some(vec![5, 3, 0, 2]));
        assert_eq!(group_of(1, &all), Some(vec![1]));
        assert_eq!(group_of(-1, &all), None);
    }
}
