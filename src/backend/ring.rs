//! The ring backend: collectives and messages over links between processes.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::{Backend, Collective, Limits, Message, Operation};
use crate::call::{Call, CallLog, Verb, mismatch};
use crate::collective::drive::{Patience, drive};
use crate::collective::engine::{Engine, Job};
use crate::collective::links::{Links, Way};
use crate::collective::plan;
use crate::collective::schedule::{Buffer, Schedule, Span, Step};
use crate::config::RingStart;
use crate::control::{self, LaneKey, Member, Purpose, Reactor, World};
use crate::dtype::Dtype;
use crate::error::{Error, Result, Status, fail};
use crate::health::Health;
use crate::reduce::kernel;
use crate::transport::Link;
use crate::transport::tcp::TcpLink;
use crate::wait::{Deadline, interest, wait};

/// How long a broken link waits for the control plane to say why: a failed group's links are closed
/// just after its ranks were told the cause.
const WHY: Duration = Duration::from_secs(1);

/// All connections to a peer for one purpose.
type Lanes = Vec<Box<dyn Link>>;

/// A group over links.
pub struct Ring {
    world: Arc<World>,
    member: Member,
    rank: usize,
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
        let world = control::start(plan, reactor, member.clone())?;
        Ring::connected(world, member)
    }

    /// A group whose neighbours are connected; the other ranks are when they are first needed.
    fn connected(world: Arc<World>, member: Member) -> Result<Ring> {
        let rank = member.ranks.iter().position(|rank| *rank == world.rank).unwrap_or(0);
        let size = member.ranks.len();
        let links = Links::new(world.lanes());
        let ring = Ring {
            world,
            member,
            rank,
            collectives: Mutex::new((Engine::default(), links)),
            lanes: Mutex::default(),
            engines: Mutex::default(),
        };
        if size > 1 {
            let mut neighbours = vec![(rank + 1) % size, (rank + size - 1) % size];
            neighbours.dedup();
            let silent = || {};
            let mut patience = Patience::new(ring.world.connect_timeout, &silent);
            let connected =
                ring.connect(&mut ring.collectives.lock().1, &neighbours, &mut patience);
            connected.map_err(|e| ring.failed(e))?;
        }
        Ok(ring)
    }

    /// Connects those of `peers` that are not: the lower rank calls.
    fn connect(
        &self,
        links: &mut Links,
        peers: &[usize],
        patience: &mut Patience<'_>,
    ) -> Result<()> {
        let new = || peers.iter().filter(|peer| !links.has(**peer, Way::Out));
        let mut fresh: Vec<(usize, Lanes)> = Vec::new();
        // Those to call first: it needs nobody but their control threads.
        for &peer in new().filter(|peer| **peer > self.rank) {
            fresh.push((peer, self.call(peer, Purpose::Collective)?));
        }
        for &peer in new().filter(|peer| **peer < self.rank) {
            fresh.push((peer, self.await_call(peer, Purpose::Collective, patience)?));
        }
        for (peer, lanes) in fresh {
            links.add(peer, &[Way::Out, Way::In], lanes);
        }
        Ok(())
    }

    /// All lanes to a peer, called from here.
    fn call(&self, peer: usize, purpose: Purpose) -> Result<Lanes> {
        let to = self.member.ranks[peer];
        (0..self.world.lanes() as u16)
            .map(|lane| {
                let key =
                    LaneKey { group: self.member.group, from: self.world.rank, purpose, lane };
                let stream = self
                    .world
                    .call_peer(key, to, &self.member.health)
                    .map_err(|e| e.at(format_args!("no connection to rank {peer}")))?;
                self.link(stream, peer)
            })
            .collect()
    }

    /// All lanes that a peer calls.
    fn await_call(
        &self,
        peer: usize,
        purpose: Purpose,
        patience: &mut Patience<'_>,
    ) -> Result<Lanes> {
        let from = self.member.ranks[peer];
        let mut lanes = Vec::new();
        while lanes.len() < self.world.lanes() {
            let key = LaneKey { group: self.member.group, from, purpose, lane: lanes.len() as u16 };
            match self.world.await_peer(key, &self.member.health, patience.next()) {
                Ok(stream) => lanes.push(self.link(stream, peer)?),
                Err(e) if e.status == Status::Timeout => patience
                    .wears_off(|| format!("rank {peer} has not connected for this operation"))?,
                Err(e) => return Err(e.at(format_args!("no connection from rank {peer}"))),
            }
        }
        Ok(lanes)
    }

    fn link(&self, stream: std::net::TcpStream, peer: usize) -> Result<Box<dyn Link>> {
        let address = self.world.address_of(self.member.ranks[peer]);
        Ok(Box::new(TcpLink::new(stream, format!("rank {peer} ({address})"))?))
    }

    unsafe fn collective(&self, call: Call, c: &Collective, limits: Limits) -> Result<()> {
        if let Some((peer, theirs)) = self.member.calls.begin(call) {
            return Err(mismatch(self.rank, &call, peer, &theirs));
        }
        if c.count == 0 && c.verb != Verb::Barrier {
            return Ok(());
        }
        let (schedule, reduction) = plan(&call, self.rank, self.size());
        let notify = || self.world.announce_stall(&self.member, call);
        let mut patience = Patience::new(limits.operation, &notify);
        let (engine, links) = &mut *self.collectives.lock();
        self.connect(links, &schedule.peers(), &mut patience)?;
        let job = Job {
            input: c.input,
            output: c.output,
            size: c.dtype.size(),
            kernel: reduction.map(|reduction| kernel(reduction, c.dtype)),
            rank: self.rank,
            sent: call,
            expected: call,
        };
        engine.begin(&schedule, job, links)?;
        // SAFETY: the caller vouches for the memory; schedules stay within it.
        unsafe { drive(engine, links, &self.member.health, &mut patience) }
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
        let mut patience = Patience::new(limit, &silent);
        let mut links = Links::new(self.world.lanes());
        let mut schedule = Schedule::default();
        let all = |buffer, len| Span { buffer, start: 0, len };
        if let Some(send) = send {
            let known = self.lanes.lock().remove(&(send.peer, Way::Out));
            let lanes = match known {
                Some(lanes) => lanes,
                None => self.call(send.peer, Purpose::Message)?,
            };
            links.add(send.peer, &[Way::Out], lanes);
            schedule.steps.push(Step::Send { to: send.peer, from: all(Buffer::Input, send.count) });
        }
        if let Some(recv) = recv {
            let known = self.lanes.lock().remove(&(recv.peer, Way::In));
            let lanes = match known {
                Some(lanes) => lanes,
                None => self.await_call(recv.peer, Purpose::Message, &mut patience)?,
            };
            links.add(recv.peer, &[Way::In], lanes);
            let into = all(Buffer::Output, recv.count);
            schedule.steps.push(Step::Recv { from: recv.peer, into });
        }
        let call = |sequence, count| Call {
            sequence,
            verb: Verb::Message,
            dtype: dtype as u8,
            root: -1,
            count: count as u64,
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
        engine.begin(&schedule, job, &links)?;
        // SAFETY: the caller vouches for the memory of both messages.
        unsafe { drive(&mut engine, &mut links, &self.member.health, &mut patience)? };
        self.engines.lock().push(engine);
        let mut used = links.take().into_iter();
        let mut known = self.lanes.lock();
        let ends = [send.map(|m| (m.peer, Way::Out)), recv.map(|m| (m.peer, Way::In))];
        for end in ends.into_iter().flatten() {
            known.insert(end, used.by_ref().take(self.world.lanes()).collect());
        }
        Ok(())
    }

    /// Fails the group with this error or an earlier one, and returns that.
    fn failed(&self, error: Error) -> Error {
        let health = &self.member.health;
        if error.status == Status::PeerLost && health.check().is_ok() {
            let why = Deadline::after(Some(WHY));
            // Told or not, the cause is looked up below.
            let _ = wait(&mut [interest(health.as_fd(), true, false)], why);
        }
        self.world.fail_group(self.member.group, &error, true);
        health.check().err().unwrap_or(error)
    }
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
        let outcome = unsafe {
            match operation {
                Operation::Collective { sequence, collective } => {
                    self.collective(collective.call(*sequence), collective, limits)
                }
                Operation::Exchange { dtype, send, recv } => {
                    self.exchange(*dtype, *send, *recv, limits)
                }
            }
        };
        outcome.map_err(|e| self.failed(e))
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
        Ok(Some(Box::new(Ring::connected(self.world.clone(), member)?)))
    }

    fn fail(&self, cause: &Error) {
        self.world.fail_group(self.member.group, cause, true);
    }

    fn leave(&self) {
        self.world.finalize();
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
