//! Rank 0's view of a start: who has come, who fits, and who is gone again.
//!
//! A rank is *joined* once it has said what it comes with, and *met* once it has answered the news of
//! who is missing: it waits for this start, not for one that is over. From then on the start needs it.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::net::{Shutdown, shutdown};

use super::channel::Channel;
use super::host::Place;
use super::listener::Joiner;
use super::message::Message;
use super::wording::ranks;
use crate::config::Address;
use crate::error::{Error, Result, Status};
use crate::wait::{Deadline, interest, wait};

/// How often those who came are told who is missing, at least.
const NEWS: Duration = Duration::from_millis(500);
/// How long those who came may take to hear why the start is given up.
const FAREWELL: Duration = Duration::from_millis(500);

/// Why ranks may not have come.
pub const ELSEWHERE: &str = "; did they start, do they have the same address for rank 0 and the same \
                         world size, and did they choose the same backend?";

/// What a start is given up with that some ranks did not come to.
pub fn too_late(missing: &[usize], limit: Option<Duration>, remarks: &[String]) -> Error {
    let limit = limit.unwrap_or_default().as_millis();
    let who = if missing.is_empty() { "some ranks".to_owned() } else { ranks(missing) };
    let remarks = remarks.iter().map(|remark| format!("; {remark}")).collect::<String>();
    let message = format!("{who} did not come within {limit} ms{remarks}{ELSEWHERE}");
    Error::new(Status::Timeout, message)
}

/// A rank that has come to rank 0.
pub struct Guest {
    /// The connection with it.
    pub channel: Channel,
    /// Where it listens, its patience, and where it is, once it has said so.
    pub joined: Option<(Vec<Address>, u64, Place)>,
    /// When it last answered the news, once it has.
    met: Option<Instant>,
    /// Since when an answer is owed.
    asked: Option<Instant>,
}

impl Guest {
    /// When it will have been silent for so long. It speaks only when it is asked, so it is given half of
    /// that for the answer, however long nobody asked.
    fn is_silent_at(&self, limit: Duration) -> Option<Instant> {
        let (met, asked) = self.met.zip(self.asked)?;
        Some(met.checked_add(limit)?.max(asked.checked_add(limit / 2)?))
    }

    fn tell_news(&mut self, missing: &[usize]) {
        if self.joined.is_some() {
            // One that is gone is noticed when it is listened to.
            let _ = self.channel.tell(&Message::Waiting { missing: missing.to_vec() });
            self.asked.get_or_insert_with(Instant::now);
        }
    }
}

/// Rank 0's view of a start.
pub struct Gathering {
    /// Ranks in the world.
    pub size: usize,
    /// Connections per rank.
    pub lanes: usize,
    /// What must be the same on all ranks.
    pub settings: Vec<String>,
    /// How long others may stay silent for rank 0, in milliseconds; 0 for ever.
    pub patience: u64,
    /// By rank; there is none for rank 0.
    pub guests: Vec<Option<Guest>>,
    /// Those whose rank another process has that is not met yet, and may be one that has ended.
    pub lobby: VecDeque<Joiner>,
    /// What went wrong with others: shown if the start fails.
    pub remarks: Vec<String>,
}

impl Gathering {
    /// Ranks that have not come, or not answered yet.
    pub fn missing(&self) -> Vec<usize> {
        let here = |guest: &Option<Guest>| guest.as_ref().is_some_and(|g| g.met.is_some());
        (1..self.size).filter(|rank| !here(&self.guests[*rank])).collect()
    }

    /// Per rank where it is: rank 0 at `own`, then all who came.
    pub fn places(&self, own: &Place) -> Vec<Place> {
        let joined = self.guests.iter().flatten().filter_map(|guest| guest.joined.as_ref());
        let theirs = joined.map(|(_, _, place)| place.clone());
        std::iter::once(own.clone()).chain(theirs).collect()
    }

    /// Those to listen to.
    pub fn channels(&self) -> impl Iterator<Item = &Channel> {
        self.guests.iter().flatten().map(|guest| &guest.channel)
    }

    /// How often to tell the news: often enough for the least patient of all.
    pub fn news_interval(&self) -> Duration {
        let joined = self.guests.iter().flatten().filter_map(|guest| guest.joined.as_ref());
        let all = joined.map(|(_, patience, _)| *patience).chain([self.patience]);
        let least = all.filter(|patience| *patience > 0).min();
        least.map_or(NEWS, |least| NEWS.min(Duration::from_millis(least.div_ceil(4))))
    }

    /// Tells all who came who is missing. They answer.
    pub fn tell_all_news(&mut self) {
        let missing = self.missing();
        self.guests.iter_mut().flatten().for_each(|guest| guest.tell_news(&missing));
    }

    /// Lets in those who came, and those who had to wait.
    pub fn let_in(&mut self, joiners: Vec<Joiner>) {
        self.lobby.extend(joiners);
        for joiner in std::mem::take(&mut self.lobby) {
            self.receive(joiner);
        }
    }

    /// Lets a rank in, unless it does not fit.
    fn receive(&mut self, joiner: Joiner) {
        let Joiner { hello, channel } = joiner;
        let rank = hello.from as usize;
        if hello.size as usize != self.size {
            let why = format!(
                "rank {rank} was started for a world of {}, rank 0 for one of {}",
                hello.size, self.size
            );
            return self.refuse(channel, why);
        }
        if rank == 0 || rank >= self.size {
            return self.refuse(channel, format!("there is no room for a rank {rank}"));
        }
        match &self.guests[rank] {
            None => {
                let guest = Guest { channel, joined: None, met: None, asked: None };
                self.guests[rank] = Some(guest);
            }
            Some(first) if first.met.is_some() => {
                let (one, other) = (&first.channel.peer, &channel.peer);
                let why = format!("two processes have rank {rank}: one at {one}, one at {other}");
                self.refuse(channel, why);
            }
            Some(_) => self.lobby.push_back(Joiner { hello, channel }),
        }
    }

    fn refuse(&mut self, mut channel: Channel, why: String) {
        let _ = channel.tell(&Message::Refused(Error::new(Status::Config, why.clone())));
        self.remarks.push(why);
    }

    /// Hears what has come from those who came; an error if one that the start needs is gone, or was
    /// silent for longer than `patience`.
    pub fn listen_to_guests(&mut self, patience: Option<Duration>) -> Result<()> {
        for rank in 1..self.size {
            while self.listen_to(rank)? {}
            let Some(guest) = &mut self.guests[rank] else { continue };
            let Some(limit) = patience else { continue };
            if guest.is_silent_at(limit).is_some_and(|at| Instant::now() >= at) {
                let error = lost(rank, &format!("it was silent for {} ms", limit.as_millis()));
                // Nobody waits for it any more; should it wake up, it knows why.
                let _ = guest.channel.tell(&Message::Refused(error.clone()));
                self.guests[rank] = None;
                return Err(error);
            }
        }
        Ok(())
    }

    /// When the first of those who came will have been silent for so long.
    pub fn silence_ends(&self, patience: Option<Duration>) -> Deadline {
        let silent =
            |limit| self.guests.iter().flatten().filter_map(move |g| g.is_silent_at(limit));
        let first = patience.and_then(|limit| silent(limit).min());
        Deadline::after(first.map(|at| at.saturating_duration_since(Instant::now())))
    }

    /// Hears one message of a guest, if there is one.
    fn listen_to(&mut self, rank: usize) -> Result<bool> {
        let Some(guest) = &mut self.guests[rank] else { return Ok(false) };
        match guest.channel.flush().and_then(|()| guest.channel.hear()) {
            Ok(None) => return Ok(false),
            Ok(Some(Message::Join { settings, addresses, .. }))
                if settings != self.settings || addresses.len() != self.lanes =>
            {
                let why = differ(rank, &settings, &self.settings).message;
                if let Some(guest) = self.guests[rank].take() {
                    self.refuse(guest.channel, why);
                }
            }
            Ok(Some(Message::Join { addresses, patience, place, .. })) => {
                guest.joined = Some((addresses, patience, place));
                // At once, so that it knows that this is the start that it came for.
                let missing = self.missing();
                self.guests[rank].iter_mut().for_each(|guest| guest.tell_news(&missing));
            }
            Ok(Some(Message::Ping)) if guest.joined.is_some() => {
                (guest.met, guest.asked) = (Some(Instant::now()), None);
            }
            // It gives this start up.
            Ok(Some(Message::Fail { cause, .. })) if guest.met.is_some() => {
                self.guests[rank] = None;
                return Err(cause);
            }
            Ok(Some(other)) => log::debug!("rank {rank} said {other:?} during the start"),
            Err(e) => {
                let met = guest.met.is_some();
                self.guests[rank] = None;
                if met {
                    return Err(lost(rank, &e.message));
                }
                self.remarks.push(format!("rank {rank} came and went: {e}"));
            }
        }
        Ok(true)
    }

    /// The end of a start that some ranks did not come to.
    pub fn too_late(&self, limit: Option<Duration>) -> Error {
        too_late(&self.missing(), limit, &self.remarks)
    }

    /// Ends the start for all who came; the cause.
    pub fn give_up(&mut self, error: Error) -> Error {
        let guests = self.guests.drain(..).flatten().map(|guest| guest.channel);
        let mut channels: Vec<Channel> =
            guests.chain(self.lobby.drain(..).map(|joiner| joiner.channel)).collect();
        for channel in &mut channels {
            // One that is gone needs no word.
            let _ = channel.tell(&Message::Refused(error.clone()));
        }
        // A connection that is closed with answers unread takes back what it was told.
        channels.retain(|channel| shutdown(channel, Shutdown::Write).is_ok());
        let deadline = Deadline::after(Some(FAREWELL));
        while !channels.is_empty() && !deadline.passed() {
            let mut fds: Vec<_> =
                channels.iter().map(|c| interest(c.as_fd(), true, false)).collect();
            if !wait(&mut fds, deadline).is_ok_and(|ready| ready) {
                break;
            }
            channels.retain_mut(|channel| channel.hear().is_ok());
        }
        error
    }
}

/// What a rank is turned away with whose settings are not rank 0's.
pub fn differ(rank: usize, theirs: &[String], rank_0: &[String]) -> Error {
    let (theirs, rank_0) = (theirs.join(", "), rank_0.join(", "));
    let why =
        format!("the settings of rank {rank} differ from rank 0's: {theirs} there, {rank_0} here");
    Error::new(Status::Config, why)
}

/// The end of a start that has lost a rank.
pub fn lost(rank: usize, cause: &str) -> Error {
    Error::new(Status::PeerLost, format!("lost rank {rank} during the start: {cause}"))
}
