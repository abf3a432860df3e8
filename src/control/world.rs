//! One world as this rank sees it: who is there, which groups there are, and what failed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::TcpStream;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::dial::Caller;
use super::handshake::{Hello, Purpose};
use super::listener::Listening;
use super::message::Message;
use super::reactor::{Reactor, WorldKey};
use super::{Address, channel::Channel};
use crate::call::{Call, CallLog, mismatch};
use crate::error::{Error, Result, Status, fail};
use crate::health::Health;
use crate::wait::{Deadline, Wake};

/// Failures kept for groups that this rank has not made yet.
const EARLY_FAILURES: usize = 64;

/// Whether a rank can be talked to.
#[derive(Clone, Debug)]
enum Presence {
    /// Not connected yet.
    Coming,
    /// Connected.
    Here,
    /// Said goodbye.
    Left,
    /// Gone without a word.
    Lost(String),
}

/// Which of the lanes that other ranks made to this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaneKey {
    /// The group it belongs to.
    pub group: u64,
    /// Who called: a rank of the world.
    pub from: usize,
    /// What for.
    pub purpose: Purpose,
    /// Which of several.
    pub lane: u16,
}

/// This rank's part in a group, as the control plane knows it.
#[derive(Clone, Debug)]
pub struct Member {
    /// The group's id, the same on all its ranks; 0 is the world.
    pub group: u64,
    /// Per rank of the group its rank in the world.
    pub ranks: Vec<usize>,
    /// Failed when the group does.
    pub health: Arc<Health>,
    /// What this rank has called.
    pub calls: Arc<CallLog>,
}

impl Member {
    fn rank_of(&self, world_rank: usize) -> Option<usize> {
        self.ranks.iter().position(|rank| *rank == world_rank)
    }
}

#[derive(Debug)]
struct Shared {
    presence: Vec<Presence>,
    ready: HashSet<usize>,
    go: bool,
    groups: HashMap<u64, Member>,
    early_failures: VecDeque<(u64, Error)>,
    arrived: HashMap<LaneKey, TcpStream>,
    /// Who waits for which lane.
    expected: HashMap<LaneKey, Arc<Wake>>,
    /// Groups that this rank has let go of.
    forgotten: HashSet<u64>,
    next_group: u32,
}

impl Shared {
    /// Fails if a rank is not there any more.
    fn check_presence(&self, rank: usize) -> Result<()> {
        match &self.presence[rank] {
            Presence::Left => fail!(PeerLost, "it has left"),
            Presence::Lost(cause) => fail!(PeerLost, "{cause}"),
            Presence::Coming | Presence::Here => Ok(()),
        }
    }
}

/// One start of `size` ranks.
#[derive(Debug)]
pub struct World {
    /// Minted by rank 0 for this start.
    pub id: u64,
    /// This rank.
    pub rank: usize,
    /// Ranks.
    pub size: usize,
    /// How long a peer may stay silent.
    pub peer_timeout: Option<Duration>,
    /// How long this rank may stay silent: short enough for every rank's limit.
    pub ping: Option<Duration>,
    /// How long a connection may take.
    pub connect_timeout: Option<Duration>,
    /// Per rank where it listens, an address for each lane.
    addresses: Vec<Vec<Address>>,
    secret: Option<String>,
    reactor: Arc<Reactor>,
    shared: Mutex<Shared>,
    changed: Condvar,
    /// Set once this rank has left: what happens to its groups then is nobody else's affair.
    gone: AtomicBool,
}

/// What [`World::found`] makes a world of.
pub struct Founding {
    /// See [`World`].
    pub id: u64,
    /// See [`World`].
    pub rank: usize,
    /// See [`World`].
    pub peer_timeout: Option<Duration>,
    /// See [`World`].
    pub ping: Option<Duration>,
    /// See [`World`].
    pub connect_timeout: Option<Duration>,
    /// See [`World`].
    pub addresses: Vec<Vec<Address>>,
    /// See [`World`].
    pub secret: Option<String>,
    /// The process's.
    pub reactor: Arc<Reactor>,
    /// Where this rank listens.
    pub listeners: Vec<Arc<Listening>>,
}

impl World {
    /// A world whose lines are not up yet.
    pub fn found(founding: Founding) -> Seat {
        let Founding { id, rank, peer_timeout, ping, connect_timeout, .. } = founding;
        let size = founding.addresses.len();
        let world = Arc::new(World {
            id,
            rank,
            size,
            peer_timeout,
            ping,
            connect_timeout,
            addresses: founding.addresses,
            secret: founding.secret,
            reactor: founding.reactor,
            shared: Mutex::new(Shared {
                presence: vec![Presence::Coming; size],
                ready: HashSet::new(),
                go: false,
                groups: HashMap::new(),
                early_failures: VecDeque::new(),
                arrived: HashMap::new(),
                expected: HashMap::new(),
                forgotten: HashSet::new(),
                next_group: 0,
            }),
            changed: Condvar::new(),
            gone: AtomicBool::new(false),
        });
        Seat { world, _listeners: founding.listeners }
    }

    /// What tells this world and rank from others in the process.
    pub fn key(&self) -> WorldKey {
        (self.id, self.rank)
    }

    /// Connections that two ranks have for one purpose.
    pub fn lanes(&self) -> usize {
        self.addresses[self.rank].len().max(1)
    }

    /// Ranks that listen at this rank's host, as far as addresses tell.
    pub fn ranks_here(&self) -> usize {
        let host = |rank: &Vec<Address>| rank.first().map(|address| address.host.clone());
        let own = host(&self.addresses[self.rank]);
        let here = |rank: &&Vec<Address>| {
            host(rank) == own || rank.first().is_some_and(Address::is_loopback)
        };
        self.addresses.iter().filter(here).count()
    }

    /// `rank 1 (10.0.0.2:5001)`
    pub fn name_of(&self, rank: usize) -> String {
        format!("rank {rank} ({})", self.address_of(rank))
    }

    /// Where a rank listens, for messages.
    pub fn address_of(&self, rank: usize) -> String {
        self.addresses[rank].first().map_or_else(String::new, Address::to_string)
    }

    /// A number that this rank has not given to a group before.
    pub fn next_group_number(&self) -> u32 {
        let mut shared = self.shared.lock();
        shared.next_group += 1;
        shared.next_group
    }

    /// Makes a group known: from now on it fails when a rank of it is lost, or tells so.
    pub fn enter(&self, member: Member) {
        let mut shared = self.shared.lock();
        for (group, cause) in &shared.early_failures {
            if *group == member.group {
                member.health.fail(cause.clone());
            }
        }
        shared.early_failures.retain(|(group, _)| *group != member.group);
        // One that left in good order may have done its part in this group.
        for (rank, presence) in shared.presence.iter().enumerate() {
            if let (Presence::Lost(cause), Some(_)) = (presence, member.rank_of(rank)) {
                member.health.fail(self.lost_error(&member, rank, cause));
            }
        }
        if self.gone.load(Ordering::Relaxed) {
            member.health.fail(finalized());
        }
        shared.groups.insert(member.group, member);
    }

    /// Forgets a group and the lanes that came for it. What failed it is told once more: others may
    /// see this rank leave before they hear of that from elsewhere.
    pub fn forget(&self, group: u64) {
        let mut shared = self.shared.lock();
        if let Some(member) = shared.groups.remove(&group) {
            self.announce_failure(&member);
        }
        shared.forgotten.insert(group);
        shared.arrived.retain(|key, _| key.group != group);
        shared.expected.retain(|key, _| key.group != group);
    }

    /// Fails a group here, and on its other ranks if `announce`.
    pub fn fail_group(&self, group: u64, cause: &Error, announce: bool) {
        let Some(member) = self.shared.lock().groups.get(&group).cloned() else {
            return;
        };
        let first = member.health.fail(cause.clone());
        self.wake_waiters();
        if first && announce {
            self.announce_failure(&member);
        }
    }

    /// Tells the group's other ranks what failed it, if anything did.
    fn announce_failure(&self, member: &Member) {
        if let (Err(cause), false) = (member.health.check(), self.gone.load(Ordering::Relaxed)) {
            let fail = Message::Fail { group: member.group, cause };
            self.reactor.tell(self.key(), self.others(member), fail);
        }
    }

    /// The other ranks of a group, as ranks of the world.
    fn others(&self, member: &Member) -> Vec<usize> {
        member.ranks.iter().copied().filter(|rank| *rank != self.rank).collect()
    }

    /// Tells the group's other ranks what this rank has been waiting in for a while.
    pub fn announce_stall(&self, member: &Member, call: Call) {
        let stalled = Message::Stalled { group: member.group, call };
        self.reactor.tell(self.key(), self.others(member), stalled);
    }

    /// A lane to `peer`, called from here.
    pub fn call_peer(
        &self,
        key: LaneKey,
        peer: usize,
        health: &Health,
        deadline: Deadline,
    ) -> Result<TcpStream> {
        self.shared.lock().check_presence(peer)?;
        let lane = usize::from(key.lane) % self.addresses[peer].len();
        let addresses = self.addresses[peer][lane].resolve()?;
        let hello = self.hello(key.purpose, key.group, peer, key.lane);
        let caller = Caller {
            secret: self.secret.as_deref(),
            deadline: deadline.or(Deadline::after(self.connect_timeout)),
            stop: Some(health.as_fd()),
        };
        let channel = caller.call_and_enter(&addresses, &hello);
        health.check()?;
        channel?.into_stream()
    }

    /// Asks to be woken when a lane that the other rank calls is there, or never will be.
    pub fn expect_lane(&self, key: LaneKey) -> Result<Arc<Wake>> {
        let wake = Arc::new(Wake::new()?);
        // It may have come already.
        wake.wake();
        self.shared.lock().expected.insert(key, wake.clone());
        Ok(wake)
    }

    /// A lane that the other rank called, if it is there.
    pub fn take_lane(&self, key: LaneKey) -> Result<Option<TcpStream>> {
        let mut shared = self.shared.lock();
        if let Some(stream) = shared.arrived.remove(&key) {
            shared.expected.remove(&key);
            return Ok(Some(stream));
        }
        shared.check_presence(key.from).map(|()| None)
    }

    /// A lane has come in.
    pub fn deliver(&self, key: LaneKey, stream: TcpStream) {
        let mut shared = self.shared.lock();
        if shared.forgotten.contains(&key.group) || self.gone.load(Ordering::Relaxed) {
            // Closed: that is how the caller learns it.
            return;
        }
        shared.arrived.insert(key, stream);
        if let Some(wake) = shared.expected.remove(&key) {
            wake.wake();
        }
    }

    /// Calls the control line of a rank below this one.
    pub fn call_line(
        self: &Arc<Self>,
        peer: usize,
        deadline: Deadline,
        health: &Health,
    ) -> Result<()> {
        let hello = self.hello(Purpose::Control, 0, peer, 0);
        let caller =
            Caller { secret: self.secret.as_deref(), deadline, stop: Some(health.as_fd()) };
        let channel = caller.call_and_enter(&self.addresses[peer][0].resolve()?, &hello)?;
        self.add_line(peer, channel)
    }

    /// Takes over the control connection with `peer`.
    pub fn add_line(self: &Arc<Self>, peer: usize, channel: Channel) -> Result<()> {
        self.reactor.add_line(self, peer, channel)?;
        self.line_up(peer);
        Ok(())
    }

    fn hello(&self, purpose: Purpose, group: u64, peer: usize, lane: u16) -> Hello {
        Hello {
            purpose,
            lane,
            world: self.id,
            group,
            from: self.rank as u32,
            to: peer as u32,
            size: self.size as u32,
            nonce: [0; 16],
        }
    }

    /// Waits until every line is up, then until every rank says so.
    pub fn come_up(&self, health: &Health, deadline: Deadline) -> Result<()> {
        let missing = self.await_all(health, deadline, |shared| {
            let coming = |(rank, p): (usize, &Presence)| {
                (matches!(p, Presence::Coming) && rank != self.rank).then_some(rank)
            };
            shared.presence.iter().enumerate().filter_map(coming).collect()
        })?;
        if !missing.is_empty() {
            fail!(Timeout, "{} did not connect in time", ranks(&missing));
        }
        if self.rank > 0 {
            self.reactor.tell(self.key(), vec![0], Message::Ready);
            let missing =
                self.await_all(
                    health,
                    deadline,
                    |shared| {
                        if shared.go { Vec::new() } else { vec![0] }
                    },
                )?;
            if !missing.is_empty() {
                fail!(Timeout, "rank 0 did not say in time that all ranks are connected");
            }
            return Ok(());
        }
        let missing = self.await_all(health, deadline, |shared| {
            (1..self.size).filter(|rank| !shared.ready.contains(rank)).collect()
        })?;
        if !missing.is_empty() {
            fail!(Timeout, "{} did not connect to the others in time", ranks(&missing));
        }
        self.shared.lock().go = true;
        self.reactor.tell(self.key(), (1..self.size).collect(), Message::Go);
        Ok(())
    }

    /// Waits until nobody is missing; those who are when the deadline passes.
    fn await_all(
        &self,
        health: &Health,
        deadline: Deadline,
        missing: impl Fn(&Shared) -> Vec<usize>,
    ) -> Result<Vec<usize>> {
        let mut shared = self.shared.lock();
        loop {
            health.check()?;
            let absent = missing(&shared);
            // Whoever left before its part was done will not do it any more.
            let left = |rank: &&usize| matches!(shared.presence[**rank], Presence::Left);
            if let Some(rank) = absent.iter().find(left) {
                fail!(PeerLost, "{} left during the start", self.name_of(*rank));
            }
            if absent.is_empty() || !self.wait(&mut shared, deadline) {
                return Ok(absent);
            }
        }
    }

    /// Sleeps until something changes; false once the deadline has passed.
    fn wait(&self, shared: &mut parking_lot::MutexGuard<'_, Shared>, deadline: Deadline) -> bool {
        match deadline.instant() {
            Some(at) => !self.changed.wait_until(shared, at).timed_out() || !deadline.passed(),
            None => {
                self.changed.wait(shared);
                true
            }
        }
    }

    /// Wakes all who wait for a change. The lock is taken so that nobody is between check and wait.
    fn wake_waiters(&self) {
        drop(self.shared.lock());
        self.changed.notify_all();
    }

    /// The control line with `peer` is up.
    pub fn line_up(&self, peer: usize) {
        let mut shared = self.shared.lock();
        if matches!(shared.presence[peer], Presence::Coming) {
            shared.presence[peer] = Presence::Here;
        }
        drop(shared);
        self.changed.notify_all();
    }

    /// `peer` has said something.
    pub fn heard(self: &Arc<Self>, peer: usize, message: Message) {
        match message {
            Message::Ready => {
                self.shared.lock().ready.insert(peer);
                self.changed.notify_all();
            }
            Message::Go => {
                self.shared.lock().go = true;
                self.changed.notify_all();
            }
            Message::Fail { group, cause } => self.told_of_failure(group, cause),
            Message::Lost { rank, cause } if rank < self.size => {
                self.lose(rank, &cause.message, false);
            }
            Message::Stalled { group, call } => self.told_of_stall(peer, group, call),
            Message::Ping => {}
            other => log::debug!("rank {peer} said {other:?}, which means nothing here"),
        }
    }

    fn told_of_failure(self: &Arc<Self>, group: u64, cause: Error) {
        let mut shared = self.shared.lock();
        // Until all lines are up, only rank 0 can reach everybody.
        let pass_on = self.rank == 0 && group == 0 && !shared.go;
        if !shared.groups.contains_key(&group) {
            if shared.early_failures.len() == EARLY_FAILURES {
                shared.early_failures.pop_front();
            }
            shared.early_failures.push_back((group, cause));
            return;
        }
        drop(shared);
        self.fail_group(group, &cause, pass_on);
    }

    fn told_of_stall(&self, peer: usize, group: u64, call: Call) {
        let shared = self.shared.lock();
        let Some(member) = shared.groups.get(&group).cloned() else {
            if shared.forgotten.contains(&group) {
                let cause = format!("{} has freed its handle", self.name_of(self.rank));
                let cause = Error::new(Status::PeerLost, cause);
                self.reactor.tell(self.key(), vec![peer], Message::Fail { group, cause });
            }
            return;
        };
        drop(shared);
        let Some(peer) = member.rank_of(peer) else {
            return;
        };
        if let (Some(ours), Some(rank)) =
            (member.calls.claim(peer, call), member.rank_of(self.rank))
        {
            self.fail_group(group, &mismatch(rank, &ours, peer, &call), true);
        }
    }

    /// The control line with `peer` broke.
    pub fn line_lost(&self, peer: usize, cause: Error) {
        self.lose(peer, &cause.message, true);
    }

    /// `peer` has said goodbye: groups go on until they need something from it.
    pub fn left(&self, peer: usize) {
        let mut shared = self.shared.lock();
        // Lanes that it has not called will not come any more.
        shared.expected.iter().filter(|(k, _)| k.from == peer).for_each(|(_, wake)| wake.wake());
        // Lanes that it made stay: what it sent on them before it left is still there.
        shared.presence[peer] = Presence::Left;
        drop(shared);
        self.changed.notify_all();
    }

    /// A rank is gone: fails every group that it belongs to.
    pub fn lose(&self, lost: usize, cause: &str, announce: bool) {
        let mut shared = self.shared.lock();
        if matches!(shared.presence[lost], Presence::Left | Presence::Lost(_)) {
            // Some other rank missed its goodbye, or was slower to notice.
            return;
        }
        shared.presence[lost] = Presence::Lost(cause.to_owned());
        let groups: Vec<Member> = shared
            .groups
            .values()
            .filter(|member| member.rank_of(lost).is_some())
            .cloned()
            .collect();
        drop(shared);
        for member in groups {
            member.health.fail(self.lost_error(&member, lost, cause));
        }
        self.wake_waiters();
        if announce {
            let peers = (0..self.size).filter(|rank| *rank != self.rank && *rank != lost).collect();
            let cause = Error::new(Status::PeerLost, cause);
            self.reactor.tell(self.key(), peers, Message::Lost { rank: lost, cause });
        }
    }

    /// What a group is failed with when a rank of it is gone.
    fn lost_error(&self, member: &Member, lost: usize, cause: &str) -> Error {
        let place = match member.rank_of(lost) {
            Some(rank) if member.group != 0 => format!("rank {rank} (rank {lost} of the world)"),
            _ => format!("rank {lost}"),
        };
        Error::new(Status::PeerLost, format!("lost {place}: {cause}"))
    }

    /// Waits for what explains that a group's link to `peer` broke: whether that rank has said
    /// goodbye. False once the group has failed for another reason, or `limit` has passed.
    pub fn has_left(&self, peer: usize, health: &Health, limit: Duration) -> bool {
        let deadline = Deadline::after(Some(limit));
        let mut shared = self.shared.lock();
        while health.check().is_ok() {
            if matches!(shared.presence[peer], Presence::Left) {
                return true;
            }
            if !self.wait(&mut shared, deadline) {
                break;
            }
        }
        false
    }

    /// Says goodbye to the other ranks; every group answers ABORTED from now on.
    pub fn leave(&self) {
        let mut shared = self.shared.lock();
        let groups: Vec<Member> = shared.groups.values().cloned().collect();
        groups.iter().for_each(|member| self.announce_failure(member));
        if self.gone.swap(true, Ordering::Relaxed) {
            return;
        }
        shared.arrived.clear();
        drop(shared);
        for member in groups {
            member.health.fail(finalized());
        }
        self.wake_waiters();
        self.reactor.leave(self.key());
    }
}

fn finalized() -> Error {
    Error::new(Status::Aborted, "mlxd_finalize was called")
}

/// A use of a world: while there is one this rank listens, and when the last one ends, it says
/// goodbye. (The control thread holds worlds too, for moments; it never holds this.)
#[derive(Debug)]
pub struct Seat {
    world: Arc<World>,
    _listeners: Vec<Arc<Listening>>,
}

impl Deref for Seat {
    type Target = Arc<World>;

    fn deref(&self) -> &Arc<World> {
        &self.world
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.world.leave();
    }
}

/// `rank 3`, `ranks 1, 2`, `ranks 0, 1, 2, 3, 4, 5, 6, 7 and 92 more`.
pub fn ranks(list: &[usize]) -> String {
    let shown: Vec<String> = list.iter().take(8).map(usize::to_string).collect();
    let more = list.len().saturating_sub(8);
    let plural = if list.len() == 1 { "rank" } else { "ranks" };
    let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{plural} {}{tail}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_listed_for_people() {
        assert_eq!(ranks(&[3]), "rank 3");
        assert_eq!(ranks(&[1, 2]), "ranks 1, 2");
        let many: Vec<usize> = (0..10).collect();
        assert_eq!(ranks(&many), "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
    }
}
