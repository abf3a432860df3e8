//! What a wire keeps of a channel, under its lock.

use std::collections::VecDeque;
use std::sync::Arc;

use super::buffers::Buffer;
use super::record::Name;
use super::{CREDIT_MESSAGES, CREDITS};
use crate::error::{Error, Result, fail};
use crate::verbs::abi::ibv_sge;
use crate::wait::Wake;

/// Which ways bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ways {
    /// To the peer.
    pub sends: bool,
    /// From the peer.
    pub receives: bool,
}

impl Ways {
    /// Receives that are posted for this end of a channel: see the module.
    pub fn receives(self) -> usize {
        let data = if self.receives { CREDITS } else { 0 };
        let credits = if self.sends { CREDIT_MESSAGES } else { 0 };
        data + credits + 1
    }

    /// Credits that the other end has at first.
    pub fn credits(self) -> usize {
        if self.receives { CREDITS } else { 0 }
    }
}

/// Data that has landed.
#[derive(Clone, Copy, Debug)]
pub struct Landed {
    /// Where.
    pub buffer: Buffer,
    /// Its next byte that was not read.
    pub from: *const u8,
    /// Bytes that were not read.
    pub len: usize,
}

// SAFETY: this is an address; whoever reads behind it owns the buffer then.
unsafe impl Send for Landed {}

/// One end of a channel.
pub struct Channel {
    ways: Ways,
    /// What it is called, where its ends meet over the wire.
    pub name: Option<Name>,
    /// The peer's number of it, once it has told.
    pub peer: Option<u32>,
    /// Whether the peer was told of this end, which it is before anything is sent to it.
    pub told: bool,
    /// Why the peer never will tell.
    pub refused: Option<Error>,
    /// Messages of data that may be sent.
    pub credits: usize,
    /// Messages of data that have landed and were not taken.
    pub landed: VecDeque<Landed>,
    /// Buffers that were read and are posted again, which the peer was not told of.
    pub untold: usize,
    /// Data messages that the peer may have sent more than it gave back.
    pub granted: usize,
    /// Whether the peer has sent its last.
    pub closed: bool,
    /// Whether nobody uses this end any more.
    pub dropped: bool,
    /// Whether this end has sent its last, or has nobody to send it to.
    pub finished: bool,
    /// Wakes its thread.
    pub bell: Arc<Wake>,
    /// Whether that sleeps.
    pub asleep: bool,
    /// Whether it waits for a send to complete: for its room, or because it sends memory of a caller's.
    pub hungry: bool,
    /// Messages with memory of a caller's that the device may still read.
    pub lent: usize,
    /// Those that it has sent since the channel's last turn.
    pub returned: usize,
}

/// A message of data to send.
#[derive(Clone, Copy, Debug)]
pub struct Filled {
    /// The room of its header.
    pub room: u16,
    /// Bytes behind that in the room.
    pub copied: usize,
    /// What follows those, of a caller's memory.
    pub lent: Option<ibv_sge>,
}

impl Filled {
    /// A message without data.
    pub fn empty(room: u16) -> Filled {
        Filled { room, copied: 0, lent: None }
    }

    /// Bytes of data.
    pub fn len(&self) -> usize {
        self.copied + self.lent.map_or(0, |piece| piece.length as usize)
    }
}

impl Channel {
    /// A new one, which its peer was not told of.
    pub fn new(ways: Ways, bell: Arc<Wake>) -> Channel {
        Channel {
            ways,
            name: None,
            peer: None,
            told: true,
            refused: None,
            credits: 0,
            landed: VecDeque::new(),
            untold: 0,
            granted: ways.credits(),
            closed: false,
            dropped: false,
            finished: false,
            bell,
            asleep: false,
            hungry: false,
            lent: 0,
            returned: 0,
        }
    }

    /// Which ways bytes go.
    pub fn ways(&self) -> Ways {
        self.ways
    }

    /// Takes in credits that came back.
    pub fn refill(&mut self, credits: usize) -> Result<()> {
        self.credits += credits;
        if self.credits > CREDITS {
            fail!(Internal, "{} credits on a channel, {CREDITS} at most", self.credits);
        }
        Ok(())
    }

    /// The peer's number of it, once something may be sent to that.
    pub fn target(&self) -> Option<u32> {
        self.peer.filter(|_| self.told)
    }

    /// The peer never opens its end.
    pub fn refuse(&mut self, why: Error) {
        if self.peer.is_none() {
            self.refused = Some(why);
            self.wake();
        }
    }

    /// A data message has come.
    pub fn land(&mut self, landed: Landed) -> Result<()> {
        let Some(left) = self.granted.checked_sub(1) else {
            fail!(Internal, "data on a channel without credits for it");
        };
        self.granted = left;
        self.landed.push_back(landed);
        Ok(())
    }

    /// Credits to give back, which the next message takes along.
    pub fn tell(&mut self) -> usize {
        let credits = std::mem::take(&mut self.untold);
        self.granted += credits;
        credits
    }

    /// Wakes its thread if that sleeps.
    pub fn wake(&mut self) {
        if std::mem::take(&mut self.asleep) {
            self.bell.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ends of one direction, with nothing read: the receiver's queue holds what was promised.
    #[test]
    fn what_is_under_way_is_bounded() {
        // The sender sends whenever it may; the receiver reads, gives back, and its own messages of
        // credits stay unread for as long as `deaf` says.
        for deaf in [false, true] {
            let bell = Arc::new(Wake::new().unwrap());
            let one_way = |sends, receives| Ways { sends, receives };
            let mut sender = Channel::new(one_way(true, false), bell.clone());
            let mut receiver = Channel::new(one_way(false, true), bell);
            sender.credits = receiver.ways().credits();
            let (mut unread_data, mut unread_credits) = (0, Vec::new());
            for _ in 0..100 {
                while sender.credits > 0 {
                    sender.credits -= 1;
                    unread_data += 1;
                    assert!(unread_data < receiver.ways().receives());
                }
                while unread_data > 0 {
                    unread_data -= 1;
                    receiver.granted -= 1;
                    receiver.untold += 1;
                    if receiver.untold >= super::super::CREDITS_DUE {
                        unread_credits.push(receiver.tell());
                    }
                }
                assert!(unread_credits.len() < sender.ways().receives(), "{unread_credits:?}");
                if !deaf {
                    unread_credits.drain(..).for_each(|some| sender.refill(some).unwrap());
                }
            }
            assert_eq!(unread_credits.len(), if deaf { CREDIT_MESSAGES } else { 0 });
        }
    }

    #[test]
    fn more_than_was_granted_is_refused() {
        let bell = Arc::new(Wake::new().unwrap());
        let mut channel = Channel::new(Ways { sends: true, receives: true }, bell);
        assert!(channel.refill(CREDITS).is_ok() && channel.refill(1).is_err());
        channel.granted = 0;
        let slabs = super::super::buffers::Slabs::new(1);
        assert!(slabs.landed(0).is_err());
    }
}
