//! What the ends of a wire tell each other over its control channel: they open channels without a
//! connection beside the wire, and find out whether messages were lost.
//!
//! An end that opens a channel says so; the channel is there when both have. What the peer has opened, and
//! this end has not, is kept until it does, or lets go of the group. An end whose group has failed says
//! that as well.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::channel::{Channel, Filled, Ways};
use super::control::PROBE;
use super::message::{HEADER_BYTES, Kind as Said};
use super::record::{EVERY_GROUP, Name, RECORD_BYTES, Record};
use super::wire::{State, Wire};
use super::{CONTROL, CONTROL_CREDITS};
use crate::error::{Error, Result, Status, fail};
use crate::verbs::queue_pair::Kind;
use crate::wait::{Deadline, Wake};

/// How long what ended a wire may take to leave this end.
const LAST_WORDS: Duration = Duration::from_millis(10);

impl Wire {
    /// A new channel that has this name at both ends. Nothing goes over it before the other end has
    /// opened it as well.
    pub fn open_as(&self, name: Name, ways: Ways, bell: Arc<Wake>) -> Result<u32> {
        let opened = self.open(ways, bell)?;
        let mut state = self.state.lock();
        let state = &mut *state;
        if let Some(end) = &state.end {
            return Err(end.clone());
        }
        // A group that has failed closes its channels, and opens none of them again.
        if state.channels.values().any(|channel| channel.name == Some(name)) {
            opened.iter().for_each(|number| state.forget(*number));
            fail!(PeerLost, "connection to {} closed", self.name);
        }
        let end = opened.map(|number| (number, ways.credits()));
        state.control.unsaid.push_back(Record::Open { name, end });
        let theirs = state.control.early.remove(&name);
        let Some(number) = opened else {
            self.speak_or_fail(state);
            fail!(Unavailable, "{}", self.no_room("this end"));
        };
        if let Some(channel) = state.channels.get_mut(&number) {
            (channel.name, channel.told) = (Some(name), false);
            if let Some(theirs) = theirs
                && let Err(e) = self.met(channel, theirs)
            {
                self.fail(state, e);
            }
        }
        self.speak_or_fail(state);
        Ok(number)
    }

    /// This end has let go of a group: whoever opens a channel of it waits in vain.
    pub fn forget_group(&self, group: u64) {
        let mut state = self.state.lock();
        if state.end.is_some() || state.is_over() {
            return;
        }
        let control = &mut state.control;
        control.forgotten.insert(group);
        control.failed.remove(&group);
        for (_, theirs) in control.early.extract_if(|name, _| name.group == group) {
            if let Some((number, _)) = theirs {
                control.unsaid.push_back(Record::Gone { number });
            }
        }
        self.speak_or_fail(&mut state);
    }

    /// A group has failed at this end.
    pub fn tell_failure(&self, group: u64, cause: &Error) {
        let mut state = self.state.lock();
        // Perhaps credits have come.
        self.look(&mut state);
        if state.end.is_some() || state.is_over() {
            return;
        }
        let record = Record::Fail { group, cause: cause.clone() };
        state.control.unsaid.push_back(record);
        self.speak_or_fail(&mut state);
    }

    /// For who waits for others: whether this wire has something to say to its group.
    pub fn watch(&self, group: u64) -> Result<()> {
        let mut state = self.state.lock();
        self.look(&mut state);
        self.probe(&mut state, true);
        match (state.control.failed.get(&group), &state.end) {
            (Some(cause), _) => Err(cause.clone()),
            (None, Some(end)) if !state.left => Err(end.clone()),
            _ => Ok(()),
        }
    }

    /// Why the wire has ended without a goodbye, if it has.
    pub fn lost(&self) -> Option<Error> {
        let state = self.state.lock();
        state.end.clone().filter(|_| !state.left)
    }

    /// Whether there are channels.
    pub fn is_used(&self) -> bool {
        !self.state.lock().channels.is_empty()
    }

    /// Nothing has moved for a while on a channel, beside which there is a connection that tells of the
    /// peer's end, or, `alone`, none.
    pub fn stir(&self, alone: bool) {
        self.probe(&mut self.state.lock(), alone);
    }

    /// Sends what shows that the peer is gone, if nothing else does, or that something was lost: messages
    /// are numbered, so that any message shows that one before it has not come.
    fn probe(&self, state: &mut State, alone: bool) {
        // What became of the last one.
        if state.end.is_none()
            && let Err(e) = self.free_rooms(state)
        {
            self.fail(state, e);
        }
        if state.end.is_some() || state.is_over() || !state.met {
            return;
        }
        match self.kind() {
            // The device answers for its rank, whatever that does, as long as the rank is there.
            Kind::Rc if alone && self.probes && !state.probing => {
                match self.pair.post_probe(PROBE) {
                    Ok(()) => state.probing = true,
                    Err(e) => log::debug!("{}: {e}", self.name),
                }
            }
            Kind::Rc => {}
            // The peer gives the credit back when it looks. Half of them are left for other records.
            Kind::Uc if state.control.credits > CONTROL_CREDITS / 2 => {
                if state.control.unsaid.is_empty() {
                    state.control.unsaid.push_back(Record::Probe);
                }
                self.speak_or_fail(state);
            }
            Kind::Uc => {}
        }
    }

    /// A message of the control channel has come.
    pub(super) fn heard(&self, state: &mut State, said: Said, data: &[u8]) -> Result<()> {
        if said == Said::Credits {
            return Ok(());
        }
        let Ok(bytes) = <&[u8; RECORD_BYTES]>::try_from(data) else {
            fail!(Internal, "a record of {} bytes came from {}", data.len(), self.name);
        };
        state.control.land()?;
        match Record::decode(bytes)? {
            Record::Open { name, end } => self.offered(state, name, end),
            Record::Gone { number } => {
                if let Some(channel) = state.channels.get_mut(&number) {
                    let why = format!("{} has no part in the group any more", self.name);
                    channel.refuse(Error::new(Status::PeerLost, why));
                    state.forget_if_refused(number);
                }
                Ok(())
            }
            Record::Fail { group: EVERY_GROUP, cause } => Err(cause.at("at the other end")),
            Record::Fail { group, cause } => {
                if !state.control.forgotten.contains(&group) {
                    state.control.failed.entry(group).or_insert(cause);
                    let of_it =
                        |channel: &&mut Channel| channel.name.is_some_and(|n| n.group == group);
                    state.channels.values_mut().filter(of_it).for_each(Channel::wake);
                }
                Ok(())
            }
            Record::Probe => {
                // It has the number of the message that is next.
                state.heard = state.heard.wrapping_sub(1);
                Ok(())
            }
        }
    }

    /// The peer has opened its end of a channel, or has no room for it.
    fn offered(&self, state: &mut State, name: Name, end: Option<(u32, usize)>) -> Result<()> {
        let ours = |(_, channel): &(&u32, &mut Channel)| channel.name == Some(name);
        if let Some((number, channel)) = state.channels.iter_mut().find(ours) {
            let number = *number;
            if channel.peer.is_some() {
                // Of a name that this end has had its channel of.
                state.control.unsaid.extend(end.map(|(number, _)| Record::Gone { number }));
                return Ok(());
            }
            self.met(channel, end)?;
            channel.wake();
            state.close_if_dropped(number);
            state.forget_if_refused(number);
        } else if !state.control.forgotten.contains(&name.group) {
            state.control.early.insert(name, end);
        } else if let Some((number, _)) = end {
            state.control.unsaid.push_back(Record::Gone { number });
        }
        Ok(())
    }

    /// What the other end of a channel has said.
    fn met(&self, channel: &mut Channel, theirs: Option<(u32, usize)>) -> Result<()> {
        match theirs {
            Some((number, credits)) => {
                channel.peer = Some(number);
                channel.refill(credits)
            }
            None => {
                channel.refuse(Error::new(Status::Unavailable, self.no_room("the other end")));
                Ok(())
            }
        }
    }

    fn no_room(&self, whose: &str) -> String {
        format!(
            "{whose} of the wire to {} has no room for another channel, and TCP cannot stand in for \
             it here; free groups that are not needed any more",
            self.name
        )
    }

    /// Sends the records that wait, and credits, as far as there are credits and rooms.
    pub(super) fn speak(&self, state: &mut State) -> Result<()> {
        while state.control.wants_room() && state.end.is_none() && !state.is_over() {
            if state.rooms.free() == 0 {
                self.free_rooms(state)?;
            }
            let Some(room) = state.rooms.take() else { break };
            let next = state.control.next();
            match next.and_then(|at| state.control.unsaid.remove(at)) {
                Some(record) => self.say_record(state, room, &record)?,
                None => self.send(state, CONTROL, Said::Credits, &[Filled::empty(room)])?,
            }
        }
        Ok(())
    }

    /// Sends a record from this room, by a credit that there is.
    fn say_record(&self, state: &mut State, room: u16, record: &Record) -> Result<()> {
        state.control.credits -= 1;
        let into = state.rooms.bytes(room).wrapping_add(HEADER_BYTES);
        // SAFETY: the room is taken, has a buffer's bytes, and nothing is sent from it yet.
        unsafe { into.cast::<[u8; RECORD_BYTES]>().write(record.encode()) };
        let message = [Filled { copied: RECORD_BYTES, ..Filled::empty(room) }];
        if let Record::Probe = record {
            // It shows what is missing, and is not missed itself: it takes no number, and no credits along.
            let (number, untold) = (state.sent, std::mem::take(&mut state.control.untold));
            self.send(state, CONTROL, Said::Data, &message)?;
            (state.sent, state.control.untold) = (number, untold);
            return Ok(());
        }
        self.send(state, CONTROL, Said::Data, &message)?;
        if let Record::Open { end: Some((number, _)), .. } = record {
            state.told(*number);
        }
        Ok(())
    }

    /// The wire is about to end. The peer of a reliable one learns that when it sends; that of another one
    /// is told, if it can be.
    pub(super) fn say_last(&self, state: &mut State, cause: &Error) {
        if self.kind() == Kind::Rc || state.is_over() || !state.met {
            return;
        }
        let record = Record::Fail { group: EVERY_GROUP, cause: cause.clone() };
        // Twice: where one message was lost another may be.
        state.control.unsaid = VecDeque::from([record.clone(), record]);
        let deadline = Deadline::after(Some(LAST_WORDS));
        // What was read and is not posted again is not missed: nothing is received any more.
        let mut said = self.speak(state);
        while said.is_ok() && state.rooms.free() < state.rooms.total() && !deadline.passed() {
            std::thread::yield_now();
            said = self.free_rooms(state);
        }
    }

    fn speak_or_fail(&self, state: &mut State) {
        // What was read and not posted again yet, the peer must not be told of.
        let spoken = self.post_again(state).and_then(|()| self.speak(state));
        if let Err(e) = spoken.and_then(|()| self.close_all(state)) {
            self.fail(state, e);
        }
    }
}

#[cfg(test)]
impl Wire {
    /// Tells the peer of an end that it may know already.
    pub(super) fn say_opened(&self, name: Name, number: u32) {
        let mut state = self.state.lock();
        state.control.unsaid.push_back(Record::Open { name, end: Some((number, 0)) });
        self.speak_or_fail(&mut state);
    }
}

impl State {
    /// The peer was told of this end of a channel.
    fn told(&mut self, number: u32) {
        if let Some(channel) = self.channels.get_mut(&number) {
            channel.told = true;
            channel.wake();
        }
        self.close_if_dropped(number);
    }

    /// What was closed before the ends of its channel had met is closed now.
    fn close_if_dropped(&mut self, number: u32) {
        let over = |channel: &Channel| channel.dropped && channel.target().is_some();
        if self.channels.get(&number).is_some_and(over) && !self.closing.contains(&number) {
            self.closing.push(number);
        }
    }
}
