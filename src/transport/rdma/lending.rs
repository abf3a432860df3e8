//! Memory of callers that a wire sends from where it is: which messages of a channel the device may still
//! read, until they have completed.

use std::time::{Duration, Instant};

use super::CONTROL;
use super::channel::Filled;
use super::control::PROBE;
use super::wire::{FLUSH, PAUSE, State, Wire};
use crate::error::{Error, Result, Status};
use crate::verbs::lending::{Lease, Wish};
use crate::wait::Deadline;

/// 3 s without any answer on the wire: a device answers within microseconds, whatever its program does, and
/// what was lost on the way is sent again after 0.3 to 1 s. To end the wire ends it for other groups, too.
const ANSWER: Duration = Duration::from_secs(3);
/// 0.3 s, where the peer's connection beside the wire is closed, and it has not closed the channel, which
/// it does first: its process is gone, and its device answers no more.
const GONE: Duration = Duration::from_millis(300);

impl Wire {
    /// Memory of a caller, registered, if that is worth it and the device sends it behind a header.
    pub fn lend(&self, wish: &Wish) -> Option<Lease> {
        (self.pair.send_pieces > 1).then(|| self.device.lend(wish)).flatten()
    }

    /// Takes in what has been sent, if a channel waits for that: how many messages with lent memory since
    /// this was called last.
    pub(super) fn take_returned(&self, state: &mut State, number: u32) -> usize {
        if state.channels.get(&number).is_some_and(|channel| channel.lent > 0)
            && let Err(e) = self.free_rooms(state)
        {
            self.fail(state, e);
        }
        state.channels.get_mut(&number).map_or(0, |channel| std::mem::take(&mut channel.returned))
    }

    /// Waits until the device reads no lent memory of a channel any more. Ends the wire if nothing is
    /// answered for long, the less if the peer `is_gone`: then what was posted completes at once. False if
    /// not even that does, or if it could not be posted, which nobody knows of each message.
    pub fn call_back(&self, number: u32, is_gone: &dyn Fn() -> bool) -> bool {
        let mut flushed = Deadline::NEVER;
        let mut before = 0;
        loop {
            let mut state = self.state.lock();
            self.look(&mut state);
            if let Err(e) = self.free_rooms(&mut state) {
                self.fail(&mut state, e);
            }
            let Some(channel) = state.channels.get_mut(&number) else { return true };
            let left = channel.lent;
            if left == 0 {
                channel.returned = 0;
                return true;
            }
            let limit = if is_gone() && !channel.closed { GONE } else { ANSWER };
            if state.end.is_none() && state.answered.elapsed() > limit {
                let why = format!("no answer from {} to what was sent", self.name);
                self.fail(&mut state, Error::new(Status::PeerLost, why));
            }
            if state.end.is_some() && std::mem::replace(&mut before, left) != left {
                flushed = Deadline::after(Some(FLUSH));
            }
            if flushed.passed() {
                return false;
            }
            drop(state);
            std::thread::sleep(PAUSE);
        }
    }

    /// What the device did not give back stays registered as long as the wire is there.
    pub fn strand(&self, leases: impl Iterator<Item = Lease>) {
        log::warn!("{} did not stop: memory that it may read stays registered", self.name);
        self.state.lock().stranded.extend(leases);
    }
}

impl State {
    /// A message of a channel is about to be sent.
    pub(super) fn count(&mut self, number: u32, filled: &Filled) {
        if number != CONTROL {
            self.bytes.copied += filled.copied as u64;
        }
        let Some(piece) = &filled.lent else { return };
        self.bytes.lent += u64::from(piece.length);
        self.rooms.lend(filled.room, number);
        if let Some(channel) = self.channels.get_mut(&number) {
            channel.lent += 1;
        }
    }

    /// A send has completed; `sent` if the peer has it.
    pub(super) fn give_back(&mut self, id: u64, sent: bool) -> Result<()> {
        if sent {
            self.answered = Instant::now();
        }
        if id == PROBE {
            self.probing = false;
        } else if let Some(number) = self.rooms.give_back(id)?
            && let Some(channel) = self.channels.get_mut(&number)
        {
            channel.lent = channel.lent.saturating_sub(1);
            channel.returned += usize::from(sent);
        }
        Ok(())
    }
}
