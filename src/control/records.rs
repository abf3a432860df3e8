//! Records: a few bytes that ranks of a group tell each other over their lines, for what has no lanes.

use std::collections::HashSet;

use super::member::Member;
use super::message::{Message, Topic};
use super::world::World;
use crate::error::{Result, fail};
use crate::health::Health;
use crate::wait::Deadline;

/// Records of groups that this rank has not made yet: more are from no rank that works.
const EARLY: usize = 1 << 16;

impl World {
    /// `peer` has told a record.
    pub(super) fn told(&self, peer: usize, group: u64, topic: Topic, bytes: Vec<u8>) {
        let mut shared = self.shared.lock();
        if shared.forgotten.contains_key(&group) || shared.records.told.len() >= EARLY {
            return;
        }
        shared.records.told.insert((group, topic, peer), bytes);
        drop(shared);
        self.changed.notify_all();
    }

    /// Tells these ranks of the group.
    pub fn tell_record(&self, member: &Member, peers: &[usize], topic: Topic, bytes: &[u8]) {
        let to = peers.iter().map(|peer| member.ranks[*peer]).collect();
        let message = Message::Record { group: member.group, topic, bytes: bytes.to_vec() };
        self.tell(to, message);
    }

    /// What a rank of the group tells, sooner or later. `health` is that of the group which waits.
    pub fn await_record(
        &self,
        member: &Member,
        peer: usize,
        topic: Topic,
        health: &Health,
        deadline: Deadline,
    ) -> Result<Vec<u8>> {
        let from = member.ranks[peer];
        let mut shared = self.shared.lock();
        loop {
            if let Some(bytes) = shared.records.told.remove(&(member.group, topic, from)) {
                return Ok(bytes);
            }
            health.check()?;
            member.health.check()?;
            if let Err(e) = shared.check_presence(from) {
                return Err(e.at(self.name_of(from)));
            }
            if !self.wait(&mut shared, deadline) {
                fail!(Timeout, "rank {peer} did not come in time");
            }
        }
    }

    /// Tells all ranks of the group, and waits until all have told: what each said, in the order of ranks.
    pub fn exchange(
        &self,
        member: &Member,
        topic: Topic,
        own: &[u8],
        health: &Health,
        deadline: Deadline,
    ) -> Result<Vec<Vec<u8>>> {
        let others: Vec<usize> =
            (0..member.ranks.len()).filter(|rank| member.ranks[*rank] != self.rank).collect();
        self.tell_record(member, &others, topic, own);
        let others: HashSet<usize> = others.into_iter().collect();
        let of = |rank| match others.contains(&rank) {
            true => self.await_record(member, rank, topic, health, deadline),
            false => Ok(own.to_vec()),
        };
        (0..member.ranks.len()).map(of).collect()
    }
}
