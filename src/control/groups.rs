//! Groups of a world: how they are made known, and let go of.

use std::sync::atomic::Ordering;

use super::failure::finalized;
use super::member::Member;
use super::message::Message;
use super::state::Presence;
use super::world::World;
use crate::error::Error;

impl World {
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

    /// Fails a group of these ranks on the others: this one could not make its part of it.
    pub fn fail_unmade(&self, group: u64, ranks: &[usize], cause: &Error) {
        let others = ranks.iter().copied().filter(|rank| *rank != self.rank).collect();
        let fail = Message::Fail { group, cause: cause.clone() };
        self.tell(others, fail);
        self.forget(group);
        if !self.has_lines {
            self.shared.lock().unmade.push((group, ranks.to_vec(), cause.clone()));
        }
    }

    /// Groups that were not made here, of which the others are still to be told: where there are no lines.
    pub fn take_unmade(&self) -> Vec<(u64, Vec<usize>, Error)> {
        std::mem::take(&mut self.shared.lock().unmade)
    }
}
