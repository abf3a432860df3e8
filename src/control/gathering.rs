//! Rank 0's view of a start: who has come, who fits, and who is gone again.
//!
//! A rank is *joined* once it has said what it comes with, and *met* once it has answered the news of
//! who is missing: it waits for this start, not for one that is over. From then on the start needs it.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::net::{Shutdown, shutdown};

use super::Address;
use super::channel::Channel;
use super::host::Place;
use super::listener::Joiner;
use super::message::Message;
use super::world::ranks;
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
    /// When it last answered, once it has.
    met: Option<Instant>,
}

/// Rank 0's view of a start.
pub struct Gathering {
    /// Ranks in the world.
    pub size: usize,
    /// Connections per rank.
    pub lanes: usize,
    /// What must be the same on all ranks.
    pub settings: Vec<String>,
    /// By rank; there is none for rank 0.
    pub guests: Vec<Option<Guest>>,
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

    /// How often to tell the news: often enough for the least patient of those who came.
    pub fn news_interval(&self) -> Duration {
        let joined = self.guests.iter().flatten().filter_map(|guest| guest.joined.as_ref());
        let patience = joined.map(|(_, patience, _)| *patience).filter(|patience| *patience > 0);
        patience.min().map_or(NEWS, |least| NEWS.min(Duration::from_millis(least.div_ceil(4))))
    }

    /// Tells all who came who is missing. They answer.
    pub fn tell_all_news(&mut self) {
        let missing = self.missing();
        self.tell(&Message::Waiting { missing });
    }

    /// Tells all who came.
    fn tell(&mut self, message: &Message) {
        for guest in self.guests.iter_mut().flatten() {
            // One that is gone is noticed when it is listened to.
            let _ = guest.channel.tell(message);
        }
    }

    /// Tells a guest at once that this is the start that it came for.
    fn tell_news(&mut self, rank: usize) {
        let news = Message::Waiting { missing: self.missing() };
        if let Some(guest) = &mut self.guests[rank] {
            let _ = guest.channel.tell(&news);
        }
    }

    /// Lets a rank in, unless it does not fit. An error ends the start.
    pub fn receive(&mut self, joiner: Joiner) -> Result<()> {
        let Joiner { hello, channel } = joiner;
        let rank = hello.from as usize;
        if hello.size as usize != self.size {
            let why = format!(
                "rank {rank} was started for a world of {}, rank 0 for one of {}",
                hello.size, self.size
            );
            self.refuse(channel, why);
            return Ok(());
        }
        if rank == 0 || rank >= self.size {
            self.refuse(channel, format!("there is no room for a rank {rank}"));
            return Ok(());
        }
        // An earlier process of this rank may have ended before it was met.
        self.listen_to(rank)?;
        if let Some(first) = &self.guests[rank] {
            let (one, other) = (&first.channel.peer, &channel.peer);
            let why = format!("two processes have rank {rank}: one at {one}, one at {other}");
            self.refuse(channel, why);
            return Ok(());
        }
        self.guests[rank] = Some(Guest { channel, joined: None, met: None });
        Ok(())
    }

    fn refuse(&mut self, mut channel: Channel, why: String) {
        let _ = channel.tell(&Message::Refused(Error::new(Status::Config, why.clone())));
        self.remarks.push(why);
    }

    /// Hears what has come from those who came; an error if one that the start needs is gone, or was
    /// silent for longer than `patience`.
    pub fn listen_to_guests(&mut self, patience: Option<Duration>) -> Result<()> {
        for rank in 1..self.size {
            self.listen_to(rank)?;
            let Some(Guest { met: Some(met), .. }) = self.guests[rank] else { continue };
            if let Some(limit) = patience.filter(|limit| met.elapsed() >= *limit) {
                let cause = format!("it was silent for {} ms", limit.as_millis());
                return Err(self.lose(rank, &cause));
            }
        }
        Ok(())
    }

    /// When the first of those who came will have been silent for so long.
    pub fn silence_ends(&self, patience: Option<Duration>) -> Deadline {
        let met = self.guests.iter().flatten().filter_map(|guest| guest.met).min();
        let left = patience.zip(met).map(|(limit, met)| limit.saturating_sub(met.elapsed()));
        Deadline::after(left)
    }

    /// The end of a start that needs a rank which is gone; nobody waits for it any more.
    fn lose(&mut self, rank: usize, cause: &str) -> Error {
        self.guests[rank] = None;
        lost(rank, cause)
    }

    fn listen_to(&mut self, rank: usize) -> Result<()> {
        let Some(guest) = &mut self.guests[rank] else { return Ok(()) };
        match guest.channel.flush().and_then(|()| guest.channel.hear()) {
            Ok(None) => {}
            Ok(Some(Message::Join { settings, addresses, .. }))
                if settings != self.settings || addresses.len() != self.lanes =>
            {
                let why = format!(
                    "the settings of rank {rank} differ from rank 0's: {} there, {} here",
                    settings.join(", "),
                    self.settings.join(", ")
                );
                if let Some(guest) = self.guests[rank].take() {
                    self.refuse(guest.channel, why);
                }
            }
            Ok(Some(Message::Join { addresses, patience, place, .. })) => {
                guest.joined = Some((addresses, patience, place));
                self.tell_news(rank);
            }
            Ok(Some(Message::Ping)) if guest.joined.is_some() => guest.met = Some(Instant::now()),
            // It gives this start up.
            Ok(Some(Message::Fail { cause, .. })) if guest.met.is_some() => {
                self.guests[rank] = None;
                return Err(cause);
            }
            Ok(Some(other)) => log::debug!("rank {rank} said {other:?} during the start"),
            Err(e) if guest.met.is_some() => return Err(self.lose(rank, &e.message)),
            Err(e) => {
                self.remarks.push(format!("rank {rank} came and went: {e}"));
                self.guests[rank] = None;
            }
        }
        Ok(())
    }

    /// The end of a start that some ranks did not come to.
    pub fn too_late(&self, limit: Option<Duration>) -> Error {
        too_late(&self.missing(), limit, &self.remarks)
    }

    /// Ends the start for all who came; the cause.
    pub fn give_up(&mut self, error: Error) -> Error {
        self.tell(&Message::Refused(error.clone()));
        // A connection that is closed with answers unread takes back what it was told.
        let mut channels: Vec<Channel> =
            self.guests.drain(..).flatten().map(|guest| guest.channel).collect();
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

/// The end of a start that has lost a rank.
pub fn lost(rank: usize, cause: &str) -> Error {
    Error::new(Status::PeerLost, format!("lost rank {rank} during the start: {cause}"))
}
