//! What goes over a wire: messages, credits, and the wake-ups of those who wait for them.

use std::collections::VecDeque;
use std::sync::Arc;

use super::buffers::Buffer;
use super::channel::{Channel, Landed, Ways};
use super::message::{HEADER_BYTES, Header, Kind};
use super::opening::Orphan;
use super::wire::{State, Wire};
use super::{CREDITS_DUE, PAYLOAD};
use crate::error::{Error, Result, Status, fail};
use crate::verbs::abi::{
    IBV_WC_RETRY_EXC_ERR, IBV_WC_SUCCESS, IBV_WC_WR_FLUSH_ERR, ibv_sge, ibv_wc, wc_status,
};
use crate::verbs::queue_pair::Queue;
use crate::wait::Wake;

/// Completions that are taken at once.
const BATCH: usize = 16;

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
    /// send from, `wanted` at most, to `rooms`; `slept` if its thread was woken.
    pub fn turn(
        &self,
        number: u32,
        slept: bool,
        wanted: usize,
        landed: &mut VecDeque<Landed>,
        rooms: &mut Vec<(u16, *mut u8)>,
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
        let over = state.is_over();
        let free = &mut state.rooms;
        let Some(channel) = state.channels.get_mut(&number) else { return Standing::Closed };
        landed.append(&mut channel.landed);
        let open = !channel.closed && !over;
        if open && channel.peer.is_some() && state.end.is_none() {
            while rooms.len() < wanted && channel.credits > 0 {
                let Some(room) = free.take() else { break };
                rooms.push((room, free.bytes(room)));
                channel.credits -= 1;
            }
        }
        match &state.end {
            // What becomes of a wire after that is no news.
            _ if state.left => Standing::Closed,
            Some(end) => Standing::Failed(end.clone()),
            None if open => Standing::Open,
            None => Standing::Closed,
        }
    }

    /// Posts the buffers again that a channel has read, sends the rooms that it has filled behind their
    /// headers, and gives credits back if that is due.
    pub fn finish(&self, number: u32, read: &[Buffer], filled: &[(u16, usize)]) {
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
        if sends || due {
            outcome = outcome.and_then(|()| self.pair.arm(Queue::Send));
        }
        // A send that failed shows nowhere else if the device leaves the receives alone.
        if let Err(e) = outcome.and_then(|()| self.free_rooms(state)) {
            self.fail(state, e);
        }
        self.look(state);
        let (free, over) = (state.rooms.free(), state.end.is_some() || state.is_over());
        let Some(channel) = state.channels.get_mut(&number) else { return false };
        let can_send = sends && channel.credits > 0 && channel.peer.is_some();
        let can_receive = receives && !channel.landed.is_empty();
        if can_receive || over || channel.closed || ((can_send || due) && free > 0) {
            return false;
        }
        channel.asleep = true;
        channel.hungry = can_send || due;
        true
    }

    /// After a sleep: takes in what woke this thread, so that others who sleep are woken by what comes
    /// next.
    fn take_events(&self, state: &mut State, number: u32) {
        if let Some(channel) = state.channels.get_mut(&number) {
            (channel.asleep, channel.hungry) = (false, false);
        }
        while let Some(queue) = self.pair.take_event() {
            let others = state.channels.values().any(|channel| match queue {
                Queue::Recv => channel.asleep,
                Queue::Send => channel.asleep && channel.hungry,
            });
            if others && let Err(e) = self.pair.arm(queue) {
                self.fail(state, e);
            }
        }
    }

    /// Takes in what has completed, and hands it to the channels.
    pub(super) fn look(&self, state: &mut State) {
        if state.end.is_none()
            && let Err(e) = self.take_in(state)
        {
            self.take_in_the_rest(state);
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
        self.check(completion)?;
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

    /// Fails unless this is the completion of something that worked.
    fn check(&self, completion: &ibv_wc) -> Result<()> {
        let mut status = completion.status;
        if status == IBV_WC_SUCCESS {
            return Ok(());
        }
        if status == IBV_WC_WR_FLUSH_ERR {
            // A consequence: what stopped the queue pair is, if anything, the failure of a send.
            let mut done = [ibv_wc::default(); BATCH];
            while let Ok(count @ 1..) = self.pair.poll(Queue::Send, &mut done) {
                let cause = done[..count]
                    .iter()
                    .find(|wc| ![IBV_WC_SUCCESS, IBV_WC_WR_FLUSH_ERR].contains(&wc.status));
                if let Some(cause) = cause {
                    status = cause.status;
                    break;
                }
            }
        }
        let what = wc_status(status);
        match status {
            IBV_WC_RETRY_EXC_ERR => fail!(PeerLost, "no answer from {}: {what}", self.name),
            _ => fail!(Backend, "the queue pair to {} failed: {what}", self.name),
        }
    }

    fn post_again(&self, state: &mut State) -> Result<()> {
        if state.reposts.is_empty() {
            return Ok(());
        }
        // SAFETY: the slabs are in the state, which goes after the queue pair; these buffers were read.
        unsafe { self.pair.post_recvs(&state.reposts)? };
        state.reposts.clear();
        Ok(())
    }

    /// Takes back the rooms whose sends have completed, and wakes those who want one.
    pub(super) fn free_rooms(&self, state: &mut State) -> Result<()> {
        let mut done = [ibv_wc::default(); BATCH];
        loop {
            let count = self.pair.poll(Queue::Send, &mut done)?;
            for completion in &done[..count] {
                // Nobody answers for a peer that has left.
                if !(state.left && completion.status != IBV_WC_SUCCESS) {
                    self.check(completion)?;
                }
                state.rooms.give_back(completion.wr_id)?;
            }
            if count > 0 {
                state
                    .channels
                    .values_mut()
                    .filter(|channel| channel.hungry)
                    .for_each(Channel::wake);
            }
            if count < BATCH {
                return Ok(());
            }
        }
    }

    /// Sends the last message of each channel that is closed.
    fn close_all(&self, state: &mut State) -> Result<()> {
        while let Some(number) = state.closing.last().copied() {
            let known = state.channels.get(&number).is_some_and(|channel| channel.peer.is_some());
            if known && !state.is_over() {
                let Some(room) = state.rooms.take() else { return Ok(()) };
                self.send(state, number, Kind::Close, &[(room, 0)])?;
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

    /// Sends a message of the wire's own.
    pub(super) fn say(&self, state: &mut State, kind: Kind) {
        if state.end.is_some() {
            return;
        }
        let sent = match state.rooms.take() {
            Some(room) => self.send(state, 0, kind, &[(room, 0)]),
            None => Ok(()),
        };
        if let Err(e) = sent {
            self.fail(state, e);
        }
    }

    fn send_all(&self, state: &mut State, number: u32, filled: &[(u16, usize)]) -> Result<()> {
        match filled {
            [] => Ok(()),
            _ => self.send(state, number, Kind::Data, filled),
        }
    }

    /// Sends rooms with so many bytes of data each, as the next messages of a channel.
    fn send(
        &self,
        state: &mut State,
        number: u32,
        kind: Kind,
        rooms: &[(u16, usize)],
    ) -> Result<()> {
        let mut requests: Vec<(u64, ibv_sge)> = Vec::with_capacity(rooms.len());
        for (room, len) in rooms {
            let (peer, credits) = match (kind, state.channels.get_mut(&number)) {
                (Kind::Goodbye | Kind::Hello, _) => (0, 0),
                (_, Some(Channel { peer: None, .. }) | None) => {
                    fail!(Internal, "a message for channel {number}, which is not open")
                }
                (_, Some(channel)) => (channel.peer.unwrap_or(0), channel.tell()),
            };
            let header = Header {
                channel: peer,
                number: state.sent,
                length: *len as u32,
                credits: credits as u16,
                kind,
            };
            state.sent = state.sent.wrapping_add(1);
            // SAFETY: the room is taken, and nothing is sent from it yet.
            unsafe { state.rooms.bytes(*room).cast::<[u8; HEADER_BYTES]>().write(header.encode()) };
            requests.push(state.rooms.request(*room, HEADER_BYTES + len));
        }
        // SAFETY: the rooms are in the state, which goes after the queue pair; one is written again only
        // once it was given back.
        unsafe { self.pair.post_sends(&requests) }
    }

    /// Tells the peer of buffers that were read, if they are many and nothing else told it.
    fn give_credits_back(&self, state: &mut State, number: u32) -> Result<()> {
        let Some(channel) = state.channels.get(&number) else { return Ok(()) };
        let idle =
            channel.peer.is_none() || channel.closed || state.is_over() || state.end.is_some();
        if channel.untold < CREDITS_DUE || idle {
            return Ok(());
        }
        if state.rooms.free() == 0 {
            self.free_rooms(state)?;
        }
        match state.rooms.take() {
            Some(room) => self.send(state, number, Kind::Credits, &[(room, 0)]),
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
        state.end = Some(cause);
        // What is posted must not touch memory that is used for something else one day.
        if let Err(e) = self.pair.stop() {
            log::debug!("queue pair to {}: {e}", self.name);
        }
        state.channels.values_mut().for_each(Channel::wake);
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

impl State {
    /// Whether either end has said goodbye: nothing more is sent.
    pub(super) fn is_over(&self) -> bool {
        self.left || self.said
    }

    /// These buffers are posted again soon.
    fn repost(&mut self, buffers: &mut dyn Iterator<Item = Buffer>) {
        for buffer in buffers {
            self.reposts.push(self.slabs.request(buffer));
        }
    }

    /// Nothing more comes for a channel: its receives are free.
    fn forget(&mut self, number: u32) {
        if let Some(channel) = self.channels.remove(&number) {
            self.slabs.release(channel.ways().receives());
            self.repost(&mut channel.landed.into_iter().map(|landed| landed.buffer));
        }
    }
}
