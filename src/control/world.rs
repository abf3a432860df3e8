//! One world as this rank sees it: who is there, which groups there are, and what failed.

use std::collections::{HashMap, VecDeque};
use std::net::TcpStream;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::Address;
use super::failure::finalized;
use super::handshake::Purpose;
use super::host::{self, Place};
use super::lanes::LaneKey;
use super::listener::Listening;
use super::mailbox::Mailbox;
use super::message::Message;
use super::reactor::{Reactor, WorldKey};
use super::records::Records;
use super::sharing::News;
use crate::call::CallLog;
use crate::error::{Error, Result, fail};
use crate::health::Health;
use crate::wait::{Deadline, Wake};

/// Whether a rank can be talked to.
#[derive(Clone, Debug)]
pub(super) enum Presence {
    /// Not connected yet.
    Coming,
    /// Connected.
    Here,
    /// Said goodbye.
    Left,
    /// Gone without a word.
    Lost(String),
}

/// This rank's part in a group, as the control plane knows it.
#[derive(Clone, Debug)]
pub struct Member {
    /// The group's id, the same on all its ranks; 0 is the world.
    pub group: u64,
    /// The group that was split to make it; the world is its own.
    pub parent: u64,
    /// Per rank of the group its rank in the world.
    pub ranks: Vec<usize>,
    /// Failed when the group does.
    pub health: Arc<Health>,
    /// What this rank has called.
    pub calls: Arc<CallLog>,
}

impl Member {
    /// That of a new group, made of `parent`.
    pub fn new(group: u64, parent: u64, ranks: Vec<usize>) -> Result<Member> {
        Ok(Member {
            group,
            parent,
            ranks,
            health: Arc::new(Health::new()?),
            calls: Arc::new(CallLog::default()),
        })
    }

    /// That of a new world of so many ranks.
    pub fn of_world(size: usize) -> Result<Member> {
        Member::new(0, 0, (0..size).collect())
    }

    /// The number within the group of a rank of the world.
    pub(super) fn rank_of(&self, world_rank: usize) -> Option<usize> {
        self.ranks.iter().position(|rank| *rank == world_rank)
    }
}

/// What changes while the world goes on.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) presence: Vec<Presence>,
    /// Ranks that are ready, and whether they share their host's memory.
    pub(super) ready: HashMap<usize, bool>,
    pub(super) go: bool,
    /// Per rank its host's number: at first those that may share memory have the same, from `go`
    /// on those that do.
    pub(super) hosts: Vec<u32>,
    /// What others told of segments.
    pub(super) news: VecDeque<News>,
    pub(super) groups: HashMap<u64, Member>,
    pub(super) early_failures: VecDeque<(u64, Error)>,
    /// Groups that were not made here, their ranks and why, where there are no lines to tell.
    pub(super) unmade: Vec<(u64, Vec<usize>, Error)>,
    pub(super) arrived: HashMap<LaneKey, TcpStream>,
    /// Who waits for which lane.
    pub(super) expected: HashMap<LaneKey, Arc<Wake>>,
    /// What others told of groups, until it is asked for.
    pub(super) records: Records,
    /// Groups that this rank has let go of, and how many collectives it had begun in each.
    pub(super) forgotten: HashMap<u64, u64>,
    next_group: u32,
}

/// Failures kept for groups that this rank has not made yet.
const EARLY_FAILURES: usize = 64;

impl Shared {
    /// Whether a lane for messages from `from` is waited for that has not come.
    pub(super) fn expects_message(&self, group: u64, from: usize) -> bool {
        let lane =
            |key: &LaneKey| (key.group, key.from, key.purpose) == (group, from, Purpose::Message);
        self.expected.keys().any(lane)
    }

    /// Keeps what failed a group first until this rank makes it, if it ever does.
    pub(super) fn note_early_failure(&mut self, group: u64, cause: Error) {
        let known = self.early_failures.iter().any(|(other, _)| *other == group);
        if known || self.forgotten.contains_key(&group) {
            return;
        }
        if self.early_failures.len() == EARLY_FAILURES {
            self.early_failures.pop_front();
        }
        self.early_failures.push_back((group, cause));
    }

    /// Fails if a rank is not there any more.
    pub(super) fn check_presence(&self, rank: usize) -> Result<()> {
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
    pub(super) addresses: Vec<Vec<Address>>,
    /// Per rank where it is.
    pub(super) places: Vec<Place>,
    /// Whether each rank of this rank's machine has a core of its own.
    pub has_core_each: bool,
    /// Whether its ranks have lines; else nobody is told anything, and a rank counts as there until its
    /// wire shows otherwise.
    pub has_lines: bool,
    /// This rank's, until it leaves.
    pub(super) mailbox: Mutex<Option<Arc<Mailbox>>>,
    pub(super) secret: Option<String>,
    pub(super) reactor: Arc<Reactor>,
    pub(super) shared: Mutex<Shared>,
    pub(super) changed: Condvar,
    /// Set once this rank has left: what happens to its groups then is nobody else's affair.
    pub(super) gone: AtomicBool,
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
    pub places: Vec<Place>,
    /// See [`World`].
    pub has_lines: bool,
    /// See [`World`].
    pub mailbox: Option<Mailbox>,
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
        let Founding { id, rank, peer_timeout, ping, connect_timeout, has_lines, .. } = founding;
        let size = founding.addresses.len();
        let presence = if has_lines { Presence::Coming } else { Presence::Here };
        let may_share = |rank: usize| founding.places[rank].door.is_some();
        let hosts = host::number(&founding.places, may_share);
        let has_core_each = host::has_core_each(&founding.places, rank);
        let world = Arc::new(World {
            id,
            rank,
            size,
            peer_timeout,
            ping,
            connect_timeout,
            addresses: founding.addresses,
            places: founding.places,
            has_core_each,
            has_lines,
            mailbox: Mutex::new(founding.mailbox.map(Arc::new)),
            secret: founding.secret,
            reactor: founding.reactor,
            shared: Mutex::new(Shared {
                presence: vec![presence; size],
                ready: HashMap::new(),
                go: false,
                hosts,
                news: VecDeque::new(),
                groups: HashMap::new(),
                early_failures: VecDeque::new(),
                unmade: Vec::new(),
                arrived: HashMap::new(),
                expected: HashMap::new(),
                records: Records::default(),
                forgotten: HashMap::new(),
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

    /// How many ranks before this one are on its machine.
    pub fn rank_on_machine(&self) -> usize {
        let own = &self.places[self.rank].machine;
        self.places[..self.rank].iter().filter(|place| place.machine == *own).count()
    }

    /// `rank 1 (10.0.0.2:5001)`
    pub fn name_of(&self, rank: usize) -> String {
        self.name_as(rank, rank)
    }

    /// The same for a rank of the world that has the number `rank` in a group.
    pub fn name_as(&self, rank: usize, world_rank: usize) -> String {
        match self.addresses[world_rank].first() {
            Some(address) => format!("rank {rank} ({address})"),
            None => format!("rank {rank}"),
        }
    }

    /// Tells some ranks, where there are lines.
    pub(super) fn tell(&self, to: Vec<usize>, message: Message) {
        if self.has_lines {
            self.reactor.tell(self.key(), to, message);
        }
    }

    /// A number that this rank has not given to a group before.
    pub fn next_group_number(&self) -> u32 {
        let mut shared = self.shared.lock();
        shared.next_group += 1;
        shared.next_group
    }

    /// Waits until the others were told all that this rank had to say, as far as the connections take it.
    pub fn settle(&self, limit: Duration) {
        self.reactor.settle(limit);
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
            member.health.close(finalized());
        }
        shared.groups.insert(member.group, member);
    }

    /// Forgets a group and the lanes that came for it. What failed it is told once more: others may
    /// see this rank leave before they hear of that from elsewhere.
    pub fn forget(&self, group: u64) {
        let mut shared = self.shared.lock();
        let member = shared.groups.remove(&group);
        if let Some(member) = &member {
            self.announce_failure(member);
        }
        shared.forgotten.insert(group, member.map_or(0, |member| member.calls.begun()));
        shared.news.retain(|news| news.group != group);
        shared.arrived.retain(|key, _| key.group != group);
        shared.expected.retain(|key, _| key.group != group);
        shared.records.forget(group);
        drop(shared);
        if let Some(mailbox) = self.mailbox() {
            mailbox.forget(|id| id == group);
        }
    }

    /// This rank's mailbox, unless it has none or has left.
    pub(super) fn mailbox(&self) -> Option<Arc<Mailbox>> {
        self.mailbox.lock().clone()
    }

    /// Sleeps until something changes; false once the deadline has passed.
    pub(super) fn wait(&self, shared: &mut MutexGuard<'_, Shared>, deadline: Deadline) -> bool {
        match deadline.instant() {
            Some(at) => !self.changed.wait_until(shared, at).timed_out() || !deadline.passed(),
            None => {
                self.changed.wait(shared);
                true
            }
        }
    }

    /// Wakes all who wait for a change. The lock is taken so that nobody is between check and wait.
    pub(super) fn wake_waiters(&self) {
        drop(self.shared.lock());
        self.changed.notify_all();
    }

    /// `peer` has said something.
    pub fn heard(self: &Arc<Self>, peer: usize, message: Message) {
        match message {
            Message::Ready { shares } => {
                self.shared.lock().ready.insert(peer, shares);
                self.changed.notify_all();
            }
            Message::Go { hosts } if peer == 0 && hosts.len() == self.size => {
                let mut shared = self.shared.lock();
                (shared.go, shared.hosts) = (true, hosts);
                drop(shared);
                self.changed.notify_all();
            }
            Message::Shared { group, segment } => self.told_of_segment(peer, group, segment),
            Message::Fail { group, cause } => self.told_of_failure(group, cause),
            Message::Lost { rank, cause } if rank < self.size => {
                self.lose(rank, &cause.message, false);
            }
            Message::Stalled { group, parent, wait } => {
                self.told_of_stall(peer, group, parent, wait);
            }
            Message::Absent { group, wait, cause } => {
                self.told_of_absence(peer, group, wait, &cause);
            }
            Message::Record { group, topic, bytes } => self.told(peer, group, topic, bytes),
            Message::Ping => {}
            other => log::debug!("rank {peer} said {other:?}, which means nothing here"),
        }
    }
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
