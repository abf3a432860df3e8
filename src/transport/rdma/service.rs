//! What a wire does for its channels: opens and closes them, gives them what has landed and rooms to send
//! from, and has them woken.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::CREDITS_DUE;
use super::buffers::Buffer;
use super::channel::{Channel, Filled, Landed, Ways};
use super::greeting::Orphan;
use super::wire::{State, Wire};
use crate::error::{Error, Result, fail};
use crate::verbs::queue_pair::Queue;
use crate::wait::Wake;

/// How a channel stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// More may come.
    Open,
    /// The peer has sent its last.
    Closed,
    /// The wire is of no more use.
    Failed(Error),
}

impl Wire {
    /// A new channel, which is woken by `bell`; `None` if the wire has no room for one.
    pub fn open(&self, ways: Ways, bell: Arc<Wake>) -> Result<Option<u32>> {
        let mut state = self.state.lock();
        self.look(&mut state);
        self.tidy(&mut state);
        if state.is_over() {
            fail!(PeerLost, "connection to {} closed", self.name);
        }
        // What ended it was one group's failure; others go on without it.
        if state.end.is_some() {
            return Ok(None);
        }
        let requests = match state.slabs.promise(&self.device, ways.receives()) {
            Ok(Some(requests)) => requests,
            Ok(None) => return Ok(None),
            Err(e) => {
                log::warn!("no more receives for {}: {e}", self.name);
                return Ok(None);
            }
        };
        // SAFETY: the slabs are in the state, which goes after the queue pair; a buffer is touched only
        // once its receive has completed.
        if let Err(e) = unsafe { self.pair.post_recvs(&requests) } {
            self.fail(&mut state, e.clone());
            return Err(e);
        }
        let number = state.next;
        let Some(next) = number.checked_add(1) else { return Ok(None) };
        state.next = next;
        state.channels.insert(number, Channel::new(ways, bell));
        Ok(Some(number))
    }

    /// The peer has told its number of a channel, and how many messages it takes.
    pub fn meet(&self, number: u32, peer: u32, credits: usize) -> Result<()> {
        let mut state = self.state.lock();
        let Some(channel) = state.channels.get_mut(&number) else { return Ok(()) };
        channel.peer = Some(peer);
        channel.refill(credits)
    }

    /// A channel that never was: the peer will send nothing over it.
    pub fn forget(&self, number: u32) {
        let mut state = self.state.lock();
        state.forget(number);
    }

    /// Nobody uses this end of a channel any more. What it has not read is dropped; its receives stay
    /// promised until the peer has closed it as well.
    pub fn close(
        &self,
        number: u32,
        unread: &mut dyn Iterator<Item = Buffer>,
        unsent: &mut dyn Iterator<Item = u16>,
    ) {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.repost(unread);
        for room in unsent {
            if let Err(e) = state.rooms.give_back(room.into()) {
                self.fail(state, e);
            }
        }
        let Some(channel) = state.channels.get_mut(&number) else { return };
        channel.dropped = true;
        let landed = std::mem::take(&mut channel.landed);
        state.repost(&mut landed.into_iter().map(|landed| landed.buffer));
        state.closing.push(number);
        self.look(state);
        self.tidy(state);
    }

    /// As [`Wire::close`], where the peer's number has not come.
    pub fn abandon(&self, number: u32, orphan: Orphan) {
        let mut state = self.state.lock();
        let state = &mut *state;
        if let Some(channel) = state.channels.get_mut(&number) {
            channel.dropped = true;
            // The peer may have sent before its hello was read.
            let landed = std::mem::take(&mut channel.landed);
            state.repost(&mut landed.into_iter().map(|landed| landed.buffer));
            state.orphans.push(orphan);
        }
    }

    /// Looks at the wire. Moves what has landed for a channel to `landed`, and as many rooms as it may
    /// send from, `wanted` at most, to `rooms`; `returned` is how many messages with lent memory have been
    /// sent since the last turn. `slept` if its thread was woken.
    pub fn turn(
        &self,
        number: u32,
        slept: bool,
        wanted: usize,
        landed: &mut VecDeque<Landed>,
        rooms: &mut Vec<(u16, *mut u8)>,
        returned: &mut usize,
    ) -> Standing {
        let mut state = self.state.lock();
        let state = &mut *state;
        if slept {
            self.take_events(state, number);
        }
        self.look(state);
        // Those for which there was no room the last time.
        if let Err(e) = self.give_credits_back(state, number) {
            self.fail(state, e);
        }
        *returned = self.take_returned(state, number);
        let over = state.is_over();
        let free = &mut state.rooms;
        let Some(channel) = state.channels.get_mut(&number) else { return Standing::Closed };
        landed.append(&mut channel.landed);
        let open = !channel.closed && !over;
        if open && channel.target().is_some() && state.end.is_none() {
            while rooms.len() < wanted && channel.credits > 0 {
                if free.free() == free.total() {
                    // What is sent from it has not been waited for yet.
                    state.answered = Instant::now();
                }
                let Some(room) = free.take() else { break };
                rooms.push((room, free.bytes(room)));
                channel.credits -= 1;
            }
        }
        match &state.end {
            // What becomes of a wire after that is no news.
            _ if state.left => Standing::Closed,
            Some(end) => Standing::Failed(end.clone()),
            None if state.control.failure_of(channel.name).is_some() => {
                let cause = state.control.failure_of(channel.name).cloned();
                cause.map_or(Standing::Closed, Standing::Failed)
            }
            None if channel.refused.is_some() => {
                channel.refused.clone().map_or(Standing::Closed, Standing::Failed)
            }
            None if open => Standing::Open,
            None => Standing::Closed,
        }
    }

    /// Posts the buffers again that a channel has read, sends the rooms that it has filled behind their
    /// headers, and gives credits back if that is due.
    pub fn finish(&self, number: u32, read: &[Buffer], filled: &[Filled]) {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.repost(&mut read.iter().copied());
        let outcome = self.post_again(state).and_then(|()| {
            if let Some(channel) = state.channels.get_mut(&number) {
                channel.untold += read.len();
            }
            self.send_all(state, number, filled)?;
            self.give_credits_back(state, number)
        });
        if let Err(e) = outcome {
            self.fail(state, e);
        }
    }

    /// Gets ready to be woken once something comes for a channel that waits for data, or to send.
    /// False if something is there already.
    pub fn prepare_to_sleep(&self, number: u32, receives: bool, sends: bool) -> bool {
        let mut state = self.state.lock();
        let state = &mut *state;
        let mut outcome = self.pair.arm(Queue::Recv);
        let due = state.channels.get(&number).is_some_and(|channel| channel.untold >= CREDITS_DUE);
        let due = due || state.control.wants_room();
        let lent = state.channels.get(&number).is_some_and(|channel| channel.lent > 0);
        if sends || due || lent {
            outcome = outcome.and_then(|()| self.pair.arm(Queue::Send));
        }
        // A send that failed shows nowhere else if the device leaves the receives alone.
        if let Err(e) = outcome.and_then(|()| self.free_rooms(state)) {
            self.fail(state, e);
        }
        self.look(state);
        let (free, ended, over) = (state.rooms.free(), state.end.is_some(), state.is_over());
        let wants_room = !due && state.control.wants_room();
        let Some(channel) = state.channels.get_mut(&number) else { return false };
        let can_send = sends && channel.credits > 0 && channel.target().is_some();
        let can_receive = receives && !channel.landed.is_empty();
        let failed = state.control.failure_of(channel.name).is_some();
        // What was sent completes also where the peer sends nothing more.
        let only_lent = lent && !sends && !receives;
        let closed = !only_lent && (over || failed || channel.closed || channel.refused.is_some());
        let something_is_here = can_receive || channel.returned > 0 || wants_room;
        if something_is_here || ended || closed || ((can_send || due) && free > 0) {
            return false;
        }
        channel.asleep = true;
        channel.hungry = can_send || due || lent;
        true
    }

    /// After a sleep: takes in what woke this thread, so that others who sleep are woken by what comes
    /// next.
    fn take_events(&self, state: &mut State, number: u32) {
        if let Some(channel) = state.channels.get_mut(&number) {
            (channel.asleep, channel.hungry) = (false, false);
        }
        self.answer_events(state);
    }

    /// Takes in what has become ready, for all who sleep.
    pub(super) fn answer_events(&self, state: &mut State) {
        let mut sent = false;
        while let Some(queue) = self.pair.take_event() {
            sent |= queue == Queue::Send;
            let others = state.channels.values().any(|channel| match queue {
                Queue::Recv => channel.asleep,
                Queue::Send => channel.asleep && channel.hungry,
            });
            if others && let Err(e) = self.pair.arm(queue) {
                self.fail(state, e);
            }
        }
        // Others who wait for that sleep on: it came before the queue was armed again.
        if sent && let Err(e) = self.free_rooms(state) {
            self.fail(state, e);
        }
    }

    /// Closes what was given up, once the peer has told its number, or that it has none.
    fn tidy(&self, state: &mut State) {
        let mut orphans = std::mem::take(&mut state.orphans);
        orphans.retain_mut(|orphan| match orphan.read() {
            Ok(None) => true,
            Ok(Some(Some((peer, _)))) => {
                if let Some(channel) = state.channels.get_mut(&orphan.number) {
                    channel.peer = Some(peer);
                    state.closing.push(orphan.number);
                }
                false
            }
            Ok(Some(None)) | Err(_) => {
                state.forget(orphan.number);
                false
            }
        });
        state.orphans = orphans;
    }
}
