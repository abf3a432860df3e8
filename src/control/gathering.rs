//! Rank 0's view of a start: who has come, and who fits.

use std::time::Duration;

use super::Address;
use super::channel::Channel;
use super::host::Place;
use super::listener::Joiner;
use super::message::Message;
use super::world::ranks;
use crate::error::{Error, Status};

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
    /// Ranks that have not come, or not said what they come with.
    pub fn missing(&self) -> Vec<usize> {
        let here = |guest: &Option<Guest>| guest.as_ref().is_some_and(|g| g.joined.is_some());
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

    /// Tells all who came.
    pub fn tell(&mut self, message: &Message) {
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

    /// Lets a rank in, unless it does not fit.
    pub fn receive(&mut self, joiner: Joiner) {
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
        // An earlier process of this rank may have ended meanwhile.
        self.listen_to(rank);
        if let Some(first) = &self.guests[rank] {
            let (one, other) = (&first.channel.peer, &channel.peer);
            let why = format!("two processes have rank {rank}: one at {one}, one at {other}");
            return self.refuse(channel, why);
        }
        self.guests[rank] = Some(Guest { channel, joined: None });
    }

    fn refuse(&mut self, mut channel: Channel, why: String) {
        let _ = channel.tell(&Message::Refused(Error::new(Status::Config, why.clone())));
        self.remarks.push(why);
    }

    /// Hears what has come from those who came.
    pub fn listen_to_guests(&mut self) {
        for rank in 1..self.size {
            self.listen_to(rank);
        }
    }

    fn listen_to(&mut self, rank: usize) {
        let Some(guest) = &mut self.guests[rank] else { return };
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
            Ok(Some(other)) => log::debug!("rank {rank} said {other:?} during the start"),
            Err(e) => {
                self.remarks.push(format!("rank {rank} came and went: {e}"));
                self.guests[rank] = None;
            }
        }
    }

    /// The end of a start that some ranks did not come to.
    pub fn too_late(&self, limit: Option<Duration>) -> Error {
        too_late(&self.missing(), limit, &self.remarks)
    }

    /// Ends the start for all who came; the cause.
    pub fn give_up(&mut self, error: Error) -> Error {
        self.tell(&Message::Refused(error.clone()));
        error
    }
}
