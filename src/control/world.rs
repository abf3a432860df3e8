//! One world as this rank sees it. What its ranks do for each other is said elsewhere, by topic: `seat`, `hearing`,
//! `groups`, `failure`, `lanes`, `lines`, `records`, `sharing`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::commands::{CommandQueue, WorldKey};
use super::host::Place;
use super::mailbox::Mailbox;
use super::message::Message;
use super::state::Shared;
use crate::config::Address;
use crate::wait::Deadline;

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
    /// The way to the control thread.
    pub(super) commands: Arc<CommandQueue>,
    pub(super) shared: Mutex<Shared>,
    pub(super) changed: Condvar,
    /// Set once this rank has left: what happens to its groups then is nobody else's affair.
    pub(super) gone: AtomicBool,
}

impl World {
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
            self.commands.tell(self.key(), to, message);
        }
    }

    /// Waits until the others were told all that this rank had to say, as far as the connections take it.
    pub fn settle(&self, limit: Duration) {
        self.commands.settle(limit);
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
}
