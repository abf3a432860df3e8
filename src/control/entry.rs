//! What the ranks of a start by the caller's all-gather tell each other before they meet, and how they reach
//! rank 0 then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::channel::Channel;
use super::dial::Caller;
use super::exchange::{self, Exchange, Report};
use super::gathering::differ;
use super::handshake::{Hello, Purpose};
use super::host::Place;
use super::interfaces::own_addresses;
use super::listener::Listening;
use super::meeting::{Lines, RETRY, Starting, new_id};
use super::seat::Founding;
use crate::config::Address;
use crate::error::{Error, Result, Status, fail};
use crate::wait::Deadline;

/// Bytes of an [`Entry`].
const ENTRY_BYTES: usize = 2048;
/// How long all addresses of a rank 0 that listens may refuse: then none of them leads to it.
const REFUSED: Duration = Duration::from_secs(1);

/// What a rank gives to the caller's all-gather first.
#[derive(Serialize, Deserialize)]
struct Entry {
    /// Whether it can take part.
    report: Report,
    rank: usize,
    /// What must be the same on all ranks.
    settings: Vec<String>,
    /// Rank 0's is the world's if that has no lines.
    id: u64,
    /// Rank 0's.
    addresses: Vec<Address>,
    place: Place,
}

impl Entry {
    /// As it travels: JSON, and zeros behind it.
    fn encode(mut self) -> Vec<u8> {
        self.report = self.report.cut();
        if let Report::Failed(_) = self.report {
            // Nothing else is of use to anybody.
            (self.settings, self.place) = (Vec::new(), Place::nowhere());
        }
        loop {
            let mut json = serde_json::to_vec(&self).unwrap_or_default();
            // The last addresses are those that lead there least.
            if json.len() <= ENTRY_BYTES || self.addresses.pop().is_none() {
                json.resize(ENTRY_BYTES, 0);
                return json;
            }
        }
    }
}

impl Entry {
    /// Gives it to all ranks: what each gave, unless one cannot take part.
    fn give(self, exchange: &Exchange) -> Result<Vec<Entry>> {
        let own = self.report.clone();
        let mut all: Vec<Entry> = Vec::new();
        for (rank, bytes) in exchange.gather(&self.encode())?.iter().enumerate() {
            all.push(exchange::read(bytes, rank)?);
        }
        let reports: Vec<_> = all.iter().map(|each| each.report.encode()).collect();
        exchange.sum_up(&own, &reports)?;
        Ok(all)
    }
}

/// Takes part in the first gather of a start, for nothing but to tell the others why this rank cannot go on.
pub fn decline(exchange: &Exchange, rank: usize, why: &Error) -> Result<()> {
    let (report, settings) = (Report::Failed(why.clone()), Vec::new());
    let place = Place::nowhere();
    Entry { report, rank, settings, id: 0, addresses: Vec::new(), place }.give(exchange).map(|_| ())
}

/// What the ranks of a start have told each other by the caller's all-gather.
#[derive(Clone)]
pub struct Gathered {
    id: u64,
    /// Where rank 0 can be reached.
    addresses: Vec<Address>,
    places: Vec<Place>,
    /// Rank 0's.
    listener: Option<Arc<Listening>>,
}

impl Gathered {
    /// Of this start alone.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where rank 0 can be reached, perhaps.
    pub fn rank_0(&self) -> Result<&[Address]> {
        if self.addresses.is_empty() {
            fail!(PeerLost, "rank 0 has no address at which it could be reached");
        }
        Ok(&self.addresses)
    }
}

impl Starting<'_> {
    /// All ranks tell each other what they come with; rank 0 listens from then on. What keeps one from it
    /// fails the start for all.
    pub fn introduce(&self, exchange: &Exchange) -> Result<Gathered> {
        let mut listener = None;
        let id = new_id().and_then(|id| {
            if self.plan.rank == 0 {
                let own = self.listen(&Address::new("", 0), true)?;
                listener = Some((own.clone(), own_addresses(own.address)?));
            }
            Ok(id)
        });
        let own = Entry {
            report: Report::of(&id),
            rank: self.plan.rank,
            settings: self.settings(1),
            id: id.unwrap_or_default(),
            addresses: listener.iter().flat_map(|(_, all)| all.clone()).collect(),
            place: self.place.clone(),
        };
        let all = own.give(exchange)?;
        self.check_all(&all)?;
        let (id, addresses) = (all[0].id, all[0].addresses.clone());
        let places = all.into_iter().map(|each| each.place).collect();
        Ok(Gathered { id, addresses, places, listener: listener.map(|(listener, _)| listener) })
    }

    /// Fails unless what the ranks gave is in their order, and their settings are the same.
    fn check_all(&self, all: &[Entry]) -> Result<()> {
        for (rank, each) in all.iter().enumerate() {
            if each.rank != rank {
                let other = each.rank;
                fail!(
                    Config,
                    "the caller's all-gather function brought what rank {other} gave as rank {rank}'s"
                );
            }
            if each.settings != all[0].settings {
                return Err(differ(rank, &each.settings, &all[0].settings));
            }
        }
        Ok(())
    }

    /// A connection to rank 0, which listens, unless nothing leads there; none for rank 0 itself. It is
    /// given up at once where all its addresses have been refusing for a while.
    pub fn try_rank_0(&self, gathered: &Gathered) -> Result<Option<Channel>> {
        if self.plan.rank == 0 {
            return Ok(None);
        }
        let addresses = gathered.rank_0()?;
        // One that swallows everything leaves the others their time.
        let each = self.limit.map(|limit| limit / addresses.len() as u32);
        let (hello, mut refusing) = (self.hello(), None);
        loop {
            let mut all_refuse = true;
            let mut last = Error::new(Status::PeerLost, "nothing to call");
            for address in
                addresses.iter().map(Address::resolve).flat_map(Result::unwrap_or_default)
            {
                let deadline = self.deadline.or(Deadline::after(each));
                let caller = Caller { secret: self.plan.secret.as_deref(), deadline, stop: None };
                let called = caller.connect(address).map_err(|e| (e, true));
                match called.and_then(|s| caller.greet(s, &hello).map_err(|e| (e, false))) {
                    Ok(channel) => return Ok(Some(channel)),
                    Err((e, _)) if matches!(e.status, Status::Auth | Status::Config) => {
                        return Err(e.at("rank 0"));
                    }
                    Err((e, calling)) => {
                        all_refuse &= calling && e.status == Status::PeerLost;
                        last = e;
                    }
                }
            }
            refusing = if all_refuse { refusing.or(Some(Instant::now())) } else { None };
            let refused = refusing.is_some_and(|since| since.elapsed() >= REFUSED);
            if refused || self.deadline.passed() {
                return Err(Error { status: Status::PeerLost, ..last.at("no way to rank 0") });
            }
            std::thread::sleep(RETRY);
        }
    }

    /// How this rank comes to rank 0.
    pub(super) fn hello(&self) -> Hello {
        Hello {
            purpose: Purpose::Join,
            lane: 0,
            world: 0,
            group: 0,
            from: self.plan.rank as u32,
            to: 0,
            size: self.plan.size as u32,
            nonce: [0; 16],
        }
    }

    /// Meets rank 0, to which there is a connection.
    pub fn meet_after(
        &self,
        gathered: Gathered,
        channel: Option<Channel>,
    ) -> Result<(Founding, Lines)> {
        let Gathered { addresses, listener, .. } = gathered;
        match (listener, channel) {
            (Some(listener), _) => {
                self.gather(vec![listener], addresses.into_iter().take(1).collect())
            }
            (None, Some(channel)) => self.join_by(channel, &addresses, Vec::new(), Vec::new()),
            (None, None) => fail!(Internal, "rank {} has not reached rank 0", self.plan.rank),
        }
    }

    /// What a world is made of whose ranks have no lines.
    pub fn without_lines(&self, gathered: Gathered) -> Founding {
        let nowhere = vec![Vec::new(); self.plan.size];
        let founding = self.founding(gathered.id, nowhere, 0, gathered.places, Vec::new());
        Founding { has_lines: false, ..founding }
    }
}
