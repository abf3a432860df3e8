//! Turns: the order of calls that block, where one thread makes all calls of a process.
//!
//! Two groups that share ranks may split at once. If one rank blocked in the first group's split and
//! another in the second's, neither would come to the other's. So all ranks make them in one order:
//! each of a split's ranks proposes a time of its own clock, the greatest becomes the split's time,
//! and a rank makes that split once no other of its splits can get an earlier one. (Skeen's total
//! order of multicasts; Birman and Joseph, "Reliable communication in the presence of failures",
//! ACM TOCS 5(1), 1987, section 4.3.)

use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::id::GroupId;
use crate::error::Result;
use crate::wait::Deadline;

/// 50 ms: how often a wait looks up.
const LOOK_UP: Duration = Duration::from_millis(50);

/// The splits that wait in this process.
#[derive(Debug, Default)]
pub struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    clock: u64,
    /// Each with the earliest time it can get: a group has one at most.
    waiting: Vec<(u64, GroupId)>,
}

/// A split's place in the order, until it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    turns: &'a Turns,
    group: GroupId,
    /// This rank's proposal.
    pub time: u64,
}

impl Turns {
    /// Proposes a time for this group's split.
    pub fn propose(&self, group: GroupId) -> Turn<'_> {
        let mut state = self.state.lock();
        state.clock += 1;
        let time = state.clock;
        state.waiting.push((time, group));
        Turn { turns: self, group, time }
    }
}

impl Turn<'_> {
    /// Waits for its turn, with the greatest time that a rank proposed; false if the deadline passes.
    /// `look` is asked now and then, and ends the wait with its error.
    pub fn wait(
        &self,
        greatest: u64,
        deadline: Deadline,
        mut look: impl FnMut() -> Result<()>,
    ) -> Result<bool> {
        let mut state = self.turns.state.lock();
        state.clock = state.clock.max(greatest);
        let own = (greatest, self.group);
        for split in state.waiting.iter_mut().filter(|split| split.1 == self.group) {
            *split = own;
        }
        self.turns.changed.notify_all();
        while state.waiting.iter().any(|other| *other < own) {
            if deadline.passed() {
                return Ok(false);
            }
            let pause = deadline.left().map_or(LOOK_UP, |left| left.min(LOOK_UP));
            self.turns.changed.wait_for(&mut state, pause);
            MutexGuard::unlocked(&mut state, &mut look)?;
        }
        Ok(true)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.state.lock().waiting.retain(|split| split.1 != self.group);
        self.turns.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Status};

    fn id(group: u64) -> GroupId {
        GroupId { world: 1, group }
    }

    /// Whether it is this one's turn now.
    fn its(turn: &Turn<'_>, greatest: u64) -> bool {
        turn.wait(greatest, Deadline::after(Some(Duration::ZERO)), || Ok(())).unwrap()
    }

    #[test]
    fn a_split_waits_for_those_that_may_be_earlier() {
        let turns = Turns::default();
        let (first, second) = (turns.propose(id(1)), turns.propose(id(2)));
        assert!(first.time < second.time);
        // Nobody knows the first one's time yet: it may come before the second's.
        assert!(!its(&second, second.time));
        // It does not: another rank proposed a later one.
        assert!(!its(&first, 9));
        assert!(its(&second, second.time));
        drop(second);
        assert!(its(&first, 9));
        // What comes now is later still.
        assert!(turns.propose(id(3)).time > 9);
    }

    #[test]
    fn ranks_that_split_in_opposite_order_take_turns_alike() {
        let ranks = [Turns::default(), Turns::default()];
        let ours = [ranks[0].propose(id(1)), ranks[0].propose(id(2))];
        let theirs = [ranks[1].propose(id(2)), ranks[1].propose(id(1))];
        let greatest = [ours[0].time.max(theirs[1].time), ours[1].time.max(theirs[0].time)];
        assert_eq!(greatest[0], greatest[1]);
        // Equal times are ordered by group.
        assert!(!its(&ours[1], greatest[1]) && !its(&theirs[0], greatest[1]));
        assert!(its(&ours[0], greatest[0]) && its(&theirs[1], greatest[0]));
    }

    #[test]
    fn a_failure_ends_the_wait() {
        let turns = Turns::default();
        let (_first, second) = (turns.propose(id(1)), turns.propose(id(2)));
        let failed = || Err(Error::new(Status::Aborted, "enough"));
        assert_eq!(second.wait(2, Deadline::NEVER, failed).unwrap_err().status, Status::Aborted);
    }
}
