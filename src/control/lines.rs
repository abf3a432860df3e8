//! Lines: how the control connections of a world come up, and how its ranks wait for each other.

use std::os::fd::AsFd;

use super::channel::Channel;
use super::dial::Caller;
use super::handshake::Purpose;
use super::host::number;
use super::lookup::resolve;
use super::message::Message;
use super::state::{Presence, Shared};
use super::wording::ranks;
use super::world::World;
use crate::error::{Result, fail};
use crate::health::Health;
use crate::wait::Deadline;

impl World {
    /// Calls the control line of a rank below this one.
    pub fn call_line(&self, peer: usize, deadline: Deadline, health: &Health) -> Result<Channel> {
        let hello = self.hello(Purpose::Control, 0, peer, 0);
        let caller =
            Caller { secret: self.secret.as_deref(), deadline, stop: Some(health.as_fd()) };
        let addresses = resolve(&self.addresses[peer][0], deadline, Some(health))?;
        caller.call_and_enter(&addresses, &hello)
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

    /// Waits until every line is up.
    pub fn await_lines(&self, health: &Health, deadline: Deadline) -> Result<()> {
        let missing = self.await_all(health, deadline, |shared| {
            let coming = |(rank, p): (usize, &Presence)| {
                (matches!(p, Presence::Coming) && rank != self.rank).then_some(rank)
            };
            shared.presence.iter().enumerate().filter_map(coming).collect()
        })?;
        if !missing.is_empty() {
            fail!(Timeout, "{} did not connect in time", ranks(&missing));
        }
        Ok(())
    }

    /// Says that this rank has its lines, and whether it shares its host's memory; waits until all
    /// ranks say so, and learns which of them share.
    pub fn get_ready(&self, shares: bool, health: &Health, deadline: Deadline) -> Result<()> {
        if self.rank > 0 {
            self.tell(vec![0], Message::Ready { shares });
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
            (1..self.size).filter(|rank| !shared.ready.contains_key(rank)).collect()
        })?;
        if !missing.is_empty() {
            fail!(Timeout, "{} did not connect to the others in time", ranks(&missing));
        }
        let mut shared = self.shared.lock();
        shared.ready.insert(0, shares);
        let all_share = |rank| shared.ready.get(&rank).is_some_and(|shares| *shares);
        let hosts = number(&self.places, all_share);
        shared.hosts.clone_from(&hosts);
        shared.go = true;
        drop(shared);
        self.tell((1..self.size).collect(), Message::Go { hosts });
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
}
