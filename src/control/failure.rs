//! What becomes of a world's groups when something fails or a rank is gone, and how that is told.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::member::Member;
use super::message::{Message, Wait};
use super::state::{Presence, Shared};
use super::world::World;
use crate::call::{Call, mismatch};
use crate::error::{Error, Status};
use crate::health::Health;
use crate::wait::Deadline;

impl World {
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
    pub(super) fn announce_failure(&self, member: &Member) {
        if let (Err(cause), false) = (member.health.check(), self.gone.load(Ordering::Relaxed)) {
            let fail = Message::Fail { group: member.group, cause };
            self.tell(self.others(member), fail);
        }
    }

    /// The other ranks of a group, as ranks of the world.
    fn others(&self, member: &Member) -> Vec<usize> {
        member.ranks.iter().copied().filter(|rank| *rank != self.rank).collect()
    }

    /// Tells the group's other ranks which collective this rank has been waiting in for a while.
    pub fn announce_stall(&self, member: &Member, call: Call) {
        self.tell_stall(member, self.others(member), Wait::Collective(call));
    }

    /// Tells a rank of the group that this one has been waiting for a while to send to it.
    pub fn announce_send(&self, member: &Member, peer: usize) {
        let wait = Wait::Message { connected: true };
        self.tell_stall(member, vec![member.ranks[peer]], wait);
    }

    /// Tells a rank of the group that this one has been waiting for a while to receive from it. If its
    /// lane has come, it has the group, and nothing is to be learnt.
    pub fn announce_recv(&self, member: &Member, peer: usize) {
        let peer = member.ranks[peer];
        if self.shared.lock().expects_message(member.group, peer) {
            self.tell_stall(member, vec![peer], Wait::Message { connected: false });
        }
    }

    fn tell_stall(&self, member: &Member, to: Vec<usize>, wait: Wait) {
        let Member { group, parent, .. } = *member;
        self.tell(to, Message::Stalled { group, parent, wait });
    }

    /// `group` has failed on another rank.
    pub(super) fn told_of_failure(self: &Arc<Self>, group: u64, cause: Error) {
        let mut shared = self.shared.lock();
        // Until all lines are up, only rank 0 can reach everybody.
        let pass_on = self.rank == 0 && group == 0 && !shared.go;
        if !shared.groups.contains_key(&group) {
            shared.note_early_failure(group, cause);
            return;
        }
        drop(shared);
        self.fail_group(group, &cause, pass_on);
    }

    /// `peer` has waited for a while in `group`, which was made of `parent`.
    pub(super) fn told_of_stall(&self, peer: usize, group: u64, parent: u64, wait: Wait) {
        let mut shared = self.shared.lock();
        let Some(member) = shared.groups.get(&group).cloned() else {
            let cause = match shared.forgotten.get(&group) {
                Some(begun) => is_in_vain(&wait, *begun).then(|| {
                    let cause = format!("{} has freed its handle", self.name_of(self.rank));
                    Error::new(Status::PeerLost, cause)
                }),
                None => self.unmade(&shared, parent),
            };
            if let Some(cause) = cause {
                // Should it be in the making here after all.
                shared.note_early_failure(group, cause.clone());
                shared.arrived.retain(|key, _| key.group != group);
                self.tell(vec![peer], Message::Absent { group, wait, cause });
            }
            return;
        };
        drop(shared);
        let (Wait::Collective(call), Some(peer)) = (wait, member.rank_of(peer)) else {
            return;
        };
        if let (Some(ours), Some(rank)) =
            (member.calls.claim(peer, call), member.rank_of(self.rank))
        {
            self.fail_group(group, &mismatch(rank, &ours, peer, &call), true);
        }
    }

    /// Why a split of `parent` has not made a group here that it made elsewhere; `None` if it may be
    /// under way.
    fn unmade(&self, shared: &Shared, parent: u64) -> Option<Error> {
        let here = self.name_of(self.rank);
        let scene = format!("the split that makes this group failed on {here}");
        if shared.forgotten.contains_key(&parent) {
            return Some(Error::new(Status::PeerLost, scene));
        }
        Some(shared.groups.get(&parent)?.health.check().err()?.at(scene))
    }

    /// `peer` says that this rank waits in vain for it, which it has told nobody else.
    pub(super) fn told_of_absence(&self, peer: usize, group: u64, wait: Wait, cause: &Error) {
        // What it sent before it was done with the group has come by now, or its lane has.
        let has_come = matches!(wait, Wait::Message { connected: false })
            && !self.shared.lock().expects_message(group, peer);
        if !has_come {
            self.fail_group(group, cause, true);
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

    /// A rank is gone: fails every group that it belongs to. Which those are, if that is news.
    pub fn lose(&self, lost: usize, cause: &str, announce: bool) -> Vec<Member> {
        let mut shared = self.shared.lock();
        if matches!(shared.presence[lost], Presence::Left | Presence::Lost(_)) {
            // Some other rank missed its goodbye, or was slower to notice.
            return Vec::new();
        }
        shared.presence[lost] = Presence::Lost(cause.to_owned());
        let groups: Vec<Member> = shared
            .groups
            .values()
            .filter(|member| member.rank_of(lost).is_some())
            .cloned()
            .collect();
        drop(shared);
        // Before anybody wakes here, who may end the process: others would take that for the cause.
        if announce {
            let peers = (0..self.size).filter(|rank| *rank != self.rank && *rank != lost).collect();
            let cause = Error::new(Status::PeerLost, cause);
            self.tell(peers, Message::Lost { rank: lost, cause });
        }
        for member in &groups {
            member.health.fail(self.lost_error(member, lost, cause));
        }
        self.wake_waiters();
        groups
    }

    /// What a group is failed with when a rank of it is gone.
    pub(super) fn lost_error(&self, member: &Member, lost: usize, cause: &str) -> Error {
        let place = match member.rank_of(lost) {
            Some(rank) if member.group != 0 => format!("rank {rank} (rank {lost} of the world)"),
            _ => format!("rank {lost}"),
        };
        Error::new(Status::PeerLost, format!("lost {place}: {cause}"))
    }

    /// Whether this rank itself has said goodbye.
    pub fn has_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Whether a rank has said goodbye, as far as is known now.
    pub fn is_gone(&self, peer: usize) -> bool {
        matches!(self.shared.lock().presence[peer], Presence::Left)
    }

    /// Whether a rank is gone without a goodbye.
    pub fn is_lost(&self, peer: usize) -> bool {
        matches!(self.shared.lock().presence[peer], Presence::Lost(_))
    }

    /// Waits for what explains that a group's link to `peer` broke: whether that rank has said
    /// goodbye. False once the group has failed for another reason, or `limit` has passed.
    pub fn has_left(&self, peer: usize, health: &Health, limit: Duration) -> bool {
        let deadline = Deadline::after(Some(limit));
        let mut shared = self.shared.lock();
        // Nothing of that comes where there are no lines.
        while self.has_lines && health.check().is_ok() {
            if matches!(shared.presence[peer], Presence::Left) {
                return true;
            }
            if !self.wait(&mut shared, deadline) {
                break;
            }
        }
        false
    }
}

/// Whether a rank that has freed a group, of which it had begun so many collectives, is waited for in vain:
/// what was begun has run, or has failed the group; what was sent has a lane.
fn is_in_vain(wait: &Wait, begun: u64) -> bool {
    match wait {
        Wait::Collective(call) => call.sequence >= begun,
        Wait::Message { connected } => !connected,
    }
}

/// What groups are failed with that this rank leaves.
pub(super) fn finalized() -> Error {
    Error::new(Status::Aborted, "mlxd_finalize was called")
}
