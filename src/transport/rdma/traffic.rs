//! What goes over a wire: messages, credits, and the wake-ups of those who wait for them.

use std::ffi::c_uint;
use std::time::Instant;

use super::buffers::Buffer;
use super::channel::{Channel, Filled, Landed};
use super::message::{HEADER_BYTES, Header, Kind};
use super::wire::{State, Wire};
use super::{CONTROL, CREDITS_DUE, PAYLOAD};
use crate::error::{Error, Result, Status, fail};
use crate::verbs::abi::{
    IBV_WC_RETRY_EXC_ERR, IBV_WC_SUCCESS, IBV_WC_WR_FLUSH_ERR, ibv_wc, wc_status,
};
use crate::verbs::posting::SendRequest;
use crate::verbs::queue_pair::Queue;

/// Completions that are taken at once.
const BATCH: usize = 16;

impl Wire {
    /// Takes in what has completed, and hands it to the channels.
    pub(super) fn look(&self, state: &mut State) {
        if state.end.is_none()
            && let Err(e) = self.take_in(state)
        {
            self.fail(state, e);
        }
    }

    /// What came before the wire failed, and was not looked at.
    fn take_in_the_rest(&self, state: &mut State) {
        let mut done = [ibv_wc::default(); BATCH];
        while let Ok(count @ 1..) = self.pair.poll(Queue::Recv, &mut done) {
            for completion in &done[..count] {
                if completion.status != IBV_WC_SUCCESS || self.received(state, completion).is_err()
                {
                    return;
                }
            }
        }
    }

    fn take_in(&self, state: &mut State) -> Result<()> {
        let mut done = [ibv_wc::default(); BATCH];
        loop {
            let count = self.pair.poll(Queue::Recv, &mut done)?;
            for completion in &done[..count] {
                self.received(state, completion)?;
            }
            self.post_again(state)?;
            if count < BATCH {
                break;
            }
        }
        self.speak(state)?;
        let few = state.rooms.free() < state.rooms.total() / 2;
        if few || !state.closing.is_empty() || state.left {
            self.free_rooms(state)?;
            self.close_all(state)?;
        }
        Ok(())
    }

    fn received(&self, state: &mut State, completion: &ibv_wc) -> Result<()> {
        // Nothing comes after a goodbye, whatever stops this end then.
        if state.left {
            return Ok(());
        }
        if completion.status != IBV_WC_SUCCESS {
            return Err(self.named(state, completion.status));
        }
        let buffer = state.slabs.landed(completion.wr_id)?;
        let (bytes, length) = (state.slabs.bytes(buffer), completion.byte_len as usize);
        if !(HEADER_BYTES..=HEADER_BYTES + PAYLOAD).contains(&length) {
            fail!(Internal, "a message of {length} bytes came from {}", self.name);
        }
        // SAFETY: the device has written so many bytes there, and the buffer is this thread's now.
        let header = unsafe { bytes.cast::<[u8; HEADER_BYTES]>().read() };
        let header = Header::decode(&header, length, state.heard);
        let header = header.map_err(|e| e.at(format_args!("from {}", self.name)))?;
        state.heard = state.heard.wrapping_add(1);
        if [Kind::Hello, Kind::Goodbye].contains(&header.kind) {
            match header.kind {
                Kind::Hello => state.met = true,
                _ => state.left = true,
            }
            state.channels.values_mut().for_each(Channel::wake);
            state.repost(&mut std::iter::once(buffer));
            return Ok(());
        }
        if header.channel == CONTROL {
            state.control.refill(header.credits.into())?;
            let from = bytes.wrapping_add(HEADER_BYTES);
            // SAFETY: the device has written so many bytes there, and the buffer is this thread's now.
            let data = unsafe { std::slice::from_raw_parts(from, header.length as usize) };
            self.heard(state, header.kind, data)?;
            state.repost(&mut std::iter::once(buffer));
            return Ok(());
        }
        let Some(channel) = state.channels.get_mut(&header.channel) else {
            fail!(Internal, "{} sent to channel {}, which is not", self.name, header.channel);
        };
        channel.refill(header.credits.into())?;
        channel.wake();
        if header.kind == Kind::Data && !channel.dropped {
            let (from, len) = (bytes.wrapping_add(HEADER_BYTES), header.length as usize);
            return channel.land(Landed { buffer, from, len });
        }
        if header.kind == Kind::Close {
            channel.closed = true;
            if channel.finished {
                state.forget(header.channel);
            }
        }
        state.repost(&mut std::iter::once(buffer));
        Ok(())
    }

    /// What a completion that failed comes to.
    fn named(&self, state: &mut State, mut status: c_uint) -> Error {
        if status == IBV_WC_WR_FLUSH_ERR {
            // A consequence: what stopped the queue pair is, if anything, the failure of a send.
            match self.take_sent(state) {
                Ok(IBV_WC_SUCCESS) | Err(_) => {}
                Ok(cause) => status = cause,
            }
        }
        let what = wc_status(status);
        match status {
            IBV_WC_RETRY_EXC_ERR => {
                Error::new(Status::PeerLost, format!("no answer from {}: {what}", self.name))
            }
            _ => {
                let failed = format!("the queue pair to {} failed: {what}", self.name);
                Error::new(Status::Backend, failed)
            }
        }
    }

    pub(super) fn post_again(&self, state: &mut State) -> Result<()> {
        if state.reposts.is_empty() {
            return Ok(());
        }
        // SAFETY: the slabs are in the state, which goes after the queue pair; these buffers were read.
        unsafe { self.pair.post_recvs(&state.reposts)? };
        state.reposts.clear();
        Ok(())
    }

    /// Takes back what has been sent, and wakes those who wait for that.
    pub(super) fn free_rooms(&self, state: &mut State) -> Result<()> {
        match self.take_sent(state)? {
            // What comes of a wire that has ended is no news.
            status if status != IBV_WC_SUCCESS && !state.left && state.end.is_none() => {
                Err(self.named(state, status))
            }
            _ => Ok(()),
        }
    }

    /// The same, whatever came of the sends: the status of one that failed, if one has.
    fn take_sent(&self, state: &mut State) -> Result<c_uint> {
        let mut done = [ibv_wc::default(); BATCH];
        let mut status = IBV_WC_SUCCESS;
        loop {
            let count = self.pair.poll(Queue::Send, &mut done)?;
            for completion in &done[..count] {
                // One that was flushed is the consequence of another.
                if [IBV_WC_SUCCESS, IBV_WC_WR_FLUSH_ERR].contains(&status)
                    && completion.status != IBV_WC_SUCCESS
                {
                    status = completion.status;
                }
                // Nobody answers for a peer that has left.
                let sent = completion.status == IBV_WC_SUCCESS || state.left;
                state.give_back(completion.wr_id, sent)?;
            }
            if count > 0 {
                state
                    .channels
                    .values_mut()
                    .filter(|channel| channel.hungry)
                    .for_each(Channel::wake);
            }
            if count < BATCH {
                return Ok(status);
            }
        }
    }

    /// Sends the last message of each channel that is closed.
    pub(super) fn close_all(&self, state: &mut State) -> Result<()> {
        while let Some(number) = state.closing.last().copied() {
            let channel = state.channels.get(&number);
            let known = channel.is_some_and(|channel| channel.target().is_some());
            // Once its ends have met.
            let later = !known && channel.is_some_and(|channel| channel.name.is_some());
            if later && !state.is_over() {
                state.closing.pop();
                state.forget_if_refused(number);
                continue;
            }
            if known && !state.is_over() {
                let Some(room) = state.rooms.take() else { return Ok(()) };
                self.send(state, number, Kind::Close, &[Filled::empty(room)])?;
            }
            state.closing.pop();
            let Some(channel) = state.channels.get_mut(&number) else { continue };
            channel.finished = true;
            if channel.closed {
                state.forget(number);
            }
        }
        Ok(())
    }

    /// Sends a message of the wire's own; false if there is no room for it, or it has failed.
    pub(super) fn say(&self, state: &mut State, kind: Kind) -> bool {
        if state.end.is_some() {
            return false;
        }
        let Some(room) = state.rooms.take() else { return false };
        let sent = self.send(state, CONTROL, kind, &[Filled::empty(room)]);
        if let Err(e) = sent {
            self.fail(state, e);
        }
        state.end.is_none()
    }

    pub(super) fn send_all(&self, state: &mut State, number: u32, filled: &[Filled]) -> Result<()> {
        match filled {
            [] => Ok(()),
            _ => self.send(state, number, Kind::Data, filled),
        }
    }

    /// Sends what these rooms have, as the next messages of a channel.
    pub(super) fn send(
        &self,
        state: &mut State,
        number: u32,
        kind: Kind,
        rooms: &[Filled],
    ) -> Result<()> {
        if state.rooms.total() - state.rooms.free() == rooms.len() {
            state.answered = Instant::now();
        }
        let mut requests: Vec<SendRequest> = Vec::with_capacity(rooms.len());
        for filled in rooms {
            let (peer, credits) = match (kind, state.channels.get_mut(&number)) {
                (Kind::Goodbye | Kind::Hello, _) => (CONTROL, 0),
                _ if number == CONTROL => (CONTROL, state.control.tell()),
                (_, Some(Channel { peer: None, .. }) | None) => {
                    fail!(Internal, "a message for channel {number}, which is not open")
                }
                (_, Some(channel)) => (channel.peer.unwrap_or(0), channel.tell()),
            };
            let header = Header {
                channel: peer,
                number: state.sent,
                length: filled.len() as u32,
                credits: credits as u16,
                kind,
            };
            state.sent = state.sent.wrapping_add(1);
            let bytes = state.rooms.bytes(filled.room);
            // SAFETY: the room is taken, and nothing is sent from it yet.
            unsafe { bytes.cast::<[u8; HEADER_BYTES]>().write(header.encode()) };
            let len = HEADER_BYTES + filled.copied;
            requests.push(state.rooms.request(filled.room, len, filled.lent));
            state.count(number, filled);
        }
        // SAFETY: the rooms are in the state, which goes after the queue pair; one is written again only
        // once it was given back. What is lent stays until it is returned: see `lending.rs`.
        unsafe { self.pair.post_sends(&requests) }
    }

    /// Tells the peer of buffers that were read, if they are many and nothing else told it.
    pub(super) fn give_credits_back(&self, state: &mut State, number: u32) -> Result<()> {
        let Some(channel) = state.channels.get(&number) else { return Ok(()) };
        let idle =
            channel.target().is_none() || channel.closed || state.is_over() || state.end.is_some();
        if channel.untold < CREDITS_DUE || idle {
            return Ok(());
        }
        if state.rooms.free() == 0 {
            self.free_rooms(state)?;
        }
        match state.rooms.take() {
            Some(room) => self.send(state, number, Kind::Credits, &[Filled::empty(room)]),
            // Later: this thread asks for a room before it sleeps.
            None => Ok(()),
        }
    }

    /// The end of the wire, and so of all its channels.
    pub(super) fn fail(&self, state: &mut State, cause: Error) {
        if state.end.is_some() {
            return;
        }
        if cause.status != Status::PeerLost {
            log::warn!("{}: {cause}", self.name);
        }
        self.take_in_the_rest(state);
        self.say_last(state, &cause);
        state.end = Some(cause);
        // What is posted must not touch memory that is used for something else one day.
        if let Err(e) = self.pair.stop() {
            log::debug!("queue pair to {}: {e}", self.name);
        }
        state.channels.values_mut().for_each(Channel::wake);
    }
}

impl State {
    /// Whether either end has said goodbye: nothing more is sent.
    pub(super) fn is_over(&self) -> bool {
        self.left || self.said
    }

    /// These buffers are posted again soon.
    pub(super) fn repost(&mut self, buffers: &mut dyn Iterator<Item = Buffer>) {
        for buffer in buffers {
            self.reposts.push(self.slabs.request(buffer));
        }
    }

    /// The peer never opened a channel that this end has closed: nothing comes for it.
    pub(super) fn forget_if_refused(&mut self, number: u32) {
        let over = |channel: &Channel| channel.refused.is_some() && channel.dropped;
        if self.channels.get(&number).is_some_and(over) {
            self.forget(number);
        }
    }

    /// Nothing more comes for a channel: its receives are free.
    pub(super) fn forget(&mut self, number: u32) {
        if let Some(channel) = self.channels.remove(&number) {
            self.slabs.release(channel.ways().receives());
            self.repost(&mut channel.landed.into_iter().map(|landed| landed.buffer));
        }
    }
}
