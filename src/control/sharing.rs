//! How ranks of one host come to share memory: the lowest of a group makes a segment, leaves its
//! descriptor in the others' mailboxes, and tells them so over their lines.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::mailbox::Mailbox;
use super::member::Member;
use super::message::Message;
use super::state::{News, Presence};
use super::world::World;
use crate::error::{Error, Result, fail};
use crate::health::Health;
use crate::transport::segment::{Segment, SegmentId};
use crate::wait::Deadline;

/// News of segments that this rank has not asked for yet.
const EARLY_NEWS: usize = 1024;
/// How long to wait where a mailbox is full: its rank's control thread takes in what is there.
const FULL: Duration = Duration::from_millis(1);

impl World {
    /// The group's ranks on this rank's host, as numbers within the group, in ascending order. Ranks
    /// whose host shares no memory are alone.
    pub fn node(&self, member: &Member) -> Vec<usize> {
        let hosts = &self.shared.lock().hosts;
        let here = |rank: &usize| hosts[member.ranks[*rank]] == hosts[self.rank];
        (0..member.ranks.len()).filter(here).collect()
    }

    /// A segment of `bytes` bytes that this rank shares with the other ranks of its node, who call this
    /// too; `None` for a rank that is alone, or if the group has failed meanwhile. Given up when `parent`
    /// fails, the group that this one is made of: the others may not have come so far.
    pub fn share(
        &self,
        member: &Member,
        parent: &Health,
        bytes: usize,
        deadline: Deadline,
    ) -> Result<Option<Segment>> {
        let mut node = self.node(member).into_iter().map(|rank| member.ranks[rank]);
        let leader = node.next().unwrap_or(self.rank);
        let others: Vec<usize> = node.collect();
        if others.is_empty() {
            return Ok(None);
        }
        if leader != self.rank {
            return match self.await_news(member, parent, leader, deadline)? {
                Some(news) => self.take_segment(member, leader, news.segment?, bytes).map(Some),
                None => Ok(None),
            };
        }
        let made = self.hand_out(member, parent, &others, bytes, deadline);
        let told = made.as_ref().map(|(_, id)| *id).map_err(Error::clone);
        let message = Message::Shared { group: member.group, segment: told };
        self.tell(others, message);
        made.map(|(segment, _)| Some(segment))
    }

    /// The leader's part: makes the segment and leaves it with all others.
    fn hand_out(
        &self,
        member: &Member,
        parent: &Health,
        others: &[usize],
        bytes: usize,
        deadline: Deadline,
    ) -> Result<(Segment, SegmentId)> {
        let cannot_make =
            |e: Error| e.at(format_args!("rank {} cannot make shared memory", self.rank));
        let (segment, fd) = Segment::create(bytes).map_err(cannot_make)?;
        let id = SegmentId::of(&fd).map_err(cannot_make)?;
        for rank in others {
            self.leave_with(*rank, member, parent, fd.as_fd(), deadline).map_err(|e| {
                let here = self.rank;
                e.at(format_args!("rank {here} cannot hand shared memory to rank {rank}"))
            })?;
        }
        Ok((segment, id))
    }

    /// Leaves a descriptor in a rank's mailbox, once there is room.
    fn leave_with(
        &self,
        rank: usize,
        member: &Member,
        parent: &Health,
        fd: BorrowedFd<'_>,
        deadline: Deadline,
    ) -> Result<()> {
        let Some(door) = &self.places[rank].door else {
            fail!(Internal, "rank {rank} is to share memory, but has no mailbox");
        };
        while !Mailbox::push(door, member.group, fd)? {
            parent.check()?;
            member.health.check()?;
            if deadline.passed() {
                fail!(Timeout, "too many wait at the Unix socket @{door}");
            }
            std::thread::sleep(FULL);
        }
        Ok(())
    }

    /// The others' part: maps what the leader has left.
    fn take_segment(
        &self,
        member: &Member,
        leader: usize,
        id: SegmentId,
        bytes: usize,
    ) -> Result<Segment> {
        let left = match self.mailbox() {
            Some(mailbox) => {
                let left = mailbox.take(member.group, id);
                self.tidy(&mailbox);
                left?
            }
            None => None,
        };
        let Some(fd) = left else {
            let name = self.name_of(leader);
            fail!(System, "the shared memory that {name} left has not come to rank {}", self.rank);
        };
        Segment::map(fd, bytes).map_err(|e| {
            e.at(format_args!("rank {} cannot map what {} shares", self.rank, self.name_of(leader)))
        })
    }

    /// Waits until the leader says that the segment is there, or why not. `None` if the group has
    /// failed: whatever is called in it will say so.
    fn await_news(
        &self,
        member: &Member,
        parent: &Health,
        leader: usize,
        deadline: Deadline,
    ) -> Result<Option<News>> {
        let mut shared = self.shared.lock();
        loop {
            let ours = |news: &News| news.group == member.group && news.from == leader;
            let told = shared.news.iter().position(ours);
            if let Some(news) = told.and_then(|at| shared.news.remove(at)) {
                return Ok(Some(news));
            }
            parent.check()?;
            if member.health.check().is_err() {
                return Ok(None);
            }
            // A rank that is lost fails the group; one that left has said all that it will.
            if matches!(shared.presence[leader], Presence::Left) {
                fail!(PeerLost, "{} left before it shared memory", self.name_of(leader));
            }
            if !self.wait(&mut shared, deadline) {
                fail!(Timeout, "{} did not share memory in time", self.name_of(leader));
            }
        }
    }

    /// Takes in what has come to the mailbox; for the control thread, which does not wait. False if
    /// that did not work.
    pub(super) fn take_in(&self, mailbox: &Mailbox) -> bool {
        let taken = mailbox.take_in();
        self.tidy(mailbox);
        taken.inspect_err(|e| log::debug!("rank {}: {e}", self.rank)).is_ok()
    }

    /// Closes what has come to the mailbox after its group was let go of.
    fn tidy(&self, mailbox: &Mailbox) {
        let mut over = mailbox.groups();
        if !over.is_empty() {
            over.retain(|group| self.shared.lock().forgotten.contains_key(group));
            mailbox.forget(|group| over.contains(&group));
        }
    }

    /// `from` has told of a group's segment.
    pub(super) fn told_of_segment(&self, from: usize, group: u64, segment: Result<SegmentId>) {
        let mut shared = self.shared.lock();
        if shared.forgotten.contains_key(&group) {
            return;
        }
        if shared.news.len() >= EARLY_NEWS {
            shared.news.pop_front();
        }
        shared.news.push_back(News { group, from, segment });
        drop(shared);
        self.changed.notify_all();
    }
}
