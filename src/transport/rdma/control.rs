//! One end of the control channel that every wire has from the start: its credits, what waits to be said
//! over it, and what was heard.
//!
//! Its messages are records, which are handled where they are received (`speaking.rs`).

use std::collections::{HashMap, HashSet, VecDeque};

use super::record::{Name, Record};
use super::{CONTROL_CREDITS, CONTROL_CREDITS_DUE};
use crate::error::{Error, Result, fail};

/// The request that a probe completes under.
pub const PROBE: u64 = u64::MAX;

/// One end of the control channel.
pub struct Control {
    /// Records that may be sent.
    pub(super) credits: usize,
    /// Records that were handled, which the peer was not told of.
    pub(super) untold: usize,
    /// Records that the peer may have sent more than it gave back.
    granted: usize,
    /// What waits for a credit, or a room.
    pub(super) unsaid: VecDeque<Record>,
    /// What the peer has opened, or had no room for, and this end has not opened.
    pub(super) early: HashMap<Name, Option<(u32, usize)>>,
    /// Groups that have failed at the other end.
    pub(super) failed: HashMap<u64, Error>,
    /// Groups that this end has let go of.
    pub(super) forgotten: HashSet<u64>,
}

impl Control {
    /// A new one.
    pub fn new() -> Control {
        Control {
            credits: CONTROL_CREDITS,
            untold: 0,
            granted: CONTROL_CREDITS,
            unsaid: VecDeque::new(),
            early: HashMap::new(),
            failed: HashMap::new(),
            forgotten: HashSet::new(),
        }
    }

    /// Takes in credits that came back.
    pub fn refill(&mut self, credits: usize) -> Result<()> {
        self.credits += credits;
        if self.credits > CONTROL_CREDITS {
            fail!(Internal, "{} credits for records, {CONTROL_CREDITS} at most", self.credits);
        }
        Ok(())
    }

    /// Credits to give back, which the next message takes along.
    pub fn tell(&mut self) -> usize {
        let credits = std::mem::take(&mut self.untold);
        self.granted += credits;
        credits
    }

    /// A record has come.
    pub fn land(&mut self) -> Result<()> {
        let Some(left) = self.granted.checked_sub(1) else {
            fail!(Internal, "a record without a credit for it");
        };
        self.granted = left;
        self.untold += 1;
        Ok(())
    }

    /// Why the group of a channel has failed at the other end, if it has.
    pub fn failure_of(&self, name: Option<Name>) -> Option<&Error> {
        self.failed.get(&name?.group)
    }

    /// Which of the records that wait may be sent. The last credit is for a failure.
    pub fn next(&self) -> Option<usize> {
        match self.credits {
            0 => None,
            1 => self.unsaid.iter().position(|record| matches!(record, Record::Fail { .. })),
            _ => (!self.unsaid.is_empty()).then_some(0),
        }
    }

    /// Whether something could be sent, had it a room.
    pub fn wants_room(&self) -> bool {
        self.untold >= CONTROL_CREDITS_DUE || self.next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::super::WIRE_RECEIVES;
    use super::*;

    /// One direction, of which nothing is looked at, or all but the credits that come back: what was
    /// posted for it is enough.
    #[test]
    fn what_is_under_way_is_bounded() {
        for deaf in [false, true] {
            let (mut sender, mut receiver) = (Control::new(), Control::new());
            sender.unsaid.extend((0..100).map(|_| Record::Probe));
            let mut unread_credits = Vec::new();
            loop {
                let mut unread = 0;
                while sender.credits > 0 && sender.unsaid.pop_front().is_some() {
                    (sender.credits, unread) = (sender.credits - 1, unread + 1);
                }
                // Beside the wire's first and last message.
                assert!(unread + unread_credits.len() <= WIRE_RECEIVES - 2);
                if unread == 0 {
                    break;
                }
                for _ in 0..unread {
                    receiver.land().unwrap();
                    if receiver.wants_room() {
                        unread_credits.push(receiver.tell());
                    }
                }
                assert!(unread_credits.len() <= 2, "{unread_credits:?}");
                if !deaf {
                    unread_credits.drain(..).for_each(|some| sender.refill(some).unwrap());
                }
            }
            assert_eq!(sender.unsaid.is_empty(), !deaf);
            assert_eq!(sender.unsaid.len(), if deaf { 100 - CONTROL_CREDITS } else { 0 });
        }
    }

    #[test]
    fn more_than_was_granted_is_refused() {
        let mut control = Control::new();
        assert!(control.refill(1).is_err());
        for _ in 0..CONTROL_CREDITS {
            control.land().unwrap();
        }
        assert!(control.land().is_err());
        assert_eq!(control.tell(), CONTROL_CREDITS);
        assert!(control.land().is_ok());
    }
}
