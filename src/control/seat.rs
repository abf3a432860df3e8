//! How this rank takes its place in a world, and leaves it.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::commands::CommandQueue;
use super::failure::finalized;
use super::host::{self, Place};
use super::listener::Listening;
use super::mailbox::Mailbox;
use super::member::Member;
use super::state::{Presence, Shared};
use super::world::World;
use crate::config::Address;

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
    /// The way to the control thread.
    pub commands: Arc<CommandQueue>,
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
            commands: founding.commands,
            shared: Mutex::new(Shared::new(vec![presence; size], hosts)),
            changed: Condvar::new(),
            gone: AtomicBool::new(false),
        });
        Seat { world, _listeners: founding.listeners }
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
        // The control thread may hold it for a moment longer.
        if let Some(mailbox) = self.mailbox.lock().take() {
            mailbox.close();
        }
        for member in groups {
            member.health.close(finalized());
        }
        self.wake_waiters();
        if self.has_lines {
            self.commands.leave(self.key());
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
