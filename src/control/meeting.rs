//! How the ranks of a start meet: rank 0 waits for all, the others come to it, and learn where
//! everybody is.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::channel::Channel;
use super::dial::Caller;
use super::exchange::Exchange;
use super::gathering::{ELSEWHERE, Gathering, Guest, lost, too_late};
use super::handshake;
use super::host::{self, Place};
use super::listener::Listening;
use super::lookup::resolve;
use super::message::Message;
use super::reactor::Reactor;
use super::seat::Founding;
use crate::config::{Address, AllGather, Meeting, RingStart, Transport};
use crate::error::{Error, Result, Status, fail};
use crate::wait::{Deadline, interest, wait};

/// Between two calls to a rank 0 that does not listen yet.
pub const RETRY: Duration = Duration::from_millis(30);
/// A connection to a rank that was made during the meeting.
pub type Lines = Vec<(usize, Channel)>;

/// What rank 0 tells once all have come: see [`Message::World`].
struct News {
    id: u64,
    addresses: Vec<Vec<Address>>,
    patience: u64,
    places: Vec<Place>,
}

/// What a rank comes to the meeting with.
pub struct Starting<'a> {
    /// What it starts from.
    pub plan: &'a RingStart,
    /// The process's.
    pub reactor: &'a Arc<Reactor>,
    /// How long it may take.
    pub limit: Option<Duration>,
    /// When it is given up.
    pub deadline: Deadline,
    /// Where this rank is.
    pub place: Place,
}

impl Starting<'_> {
    /// Blocks until all ranks have come: what rank 0 told of them, and the lines there are already.
    pub fn meet(&self) -> Result<(Founding, Lines)> {
        match &self.plan.meeting {
            Meeting::Hostfile(hosts) => self.with_hostfile(hosts),
            Meeting::Coordinator(address) => self.with_coordinator(address),
            Meeting::AllGather(all_gather) => self.with_all_gather(*all_gather),
        }
    }

    /// Every rank listens at its own addresses, and calls rank 0 at its first.
    fn with_hostfile(&self, hosts: &[Vec<Address>]) -> Result<(Founding, Lines)> {
        let mut listeners = Vec::new();
        for (lane, address) in hosts[self.plan.rank].iter().enumerate() {
            listeners.push(self.listen(address, self.plan.rank == 0 && lane == 0)?);
        }
        if self.plan.rank == 0 {
            return self.gather(listeners, hosts[0].clone());
        }
        self.join(&hosts[0][..1], listeners, hosts[self.plan.rank].clone())
    }

    /// Rank 0 listens at `coordinator`; the others where they reach it from.
    fn with_coordinator(&self, coordinator: &Address) -> Result<(Founding, Lines)> {
        if self.plan.rank == 0 {
            let listener = self.listen(coordinator, true)?;
            return self.gather(vec![listener], vec![coordinator.clone()]);
        }
        self.join(std::slice::from_ref(coordinator), Vec::new(), Vec::new())
    }

    /// Rank 0 listens anywhere and hands its addresses out.
    fn with_all_gather(&self, all_gather: AllGather) -> Result<(Founding, Lines)> {
        let exchange = Exchange::new(all_gather, self.plan.rank, self.plan.size);
        let gathered = self.introduce(&exchange)?;
        let channel = match self.plan.rank {
            0 => None,
            _ => Some(self.reach(gathered.rank_0()?)?),
        };
        self.meet_after(gathered, channel)
    }

    pub(super) fn listen(
        &self,
        address: &Address,
        is_meeting_place: bool,
    ) -> Result<Arc<Listening>> {
        let RingStart { bind, secret, .. } = self.plan;
        let (bind, secret) = (bind.as_deref(), secret.as_deref());
        self.reactor.listen(address, bind, secret, is_meeting_place, self.deadline)
    }

    /// What starts that would take each other's ranks hold one after the other.
    fn turn_at<'a>(&self, starts: &'a Mutex<()>) -> Result<MutexGuard<'a, ()>> {
        let turn = match self.deadline.left() {
            Some(left) => starts.try_lock_for(left),
            None => Some(starts.lock()),
        };
        let others = "a start at the same address in another thread has not ended in time";
        turn.ok_or_else(|| Error::new(Status::Timeout, others))
    }

    /// How long others may stay silent, as it travels.
    fn patience(&self) -> u64 {
        self.plan.peer_timeout.map_or(0, |limit| limit.as_millis() as u64)
    }

    /// What must be the same on all ranks, beside size and secret, which the handshake compares.
    pub(super) fn settings(&self, lanes: usize) -> Vec<String> {
        let RingStart { backend, agreed, transport, checksums, .. } = self.plan;
        let checksums = if *checksums { "on" } else { "off" };
        let mut all = vec![
            format!("backend={backend}"),
            format!("checksums={checksums}"),
            format!("connections per rank={lanes}"),
            format!("transport={transport}"),
        ];
        all.extend(agreed.iter().cloned());
        all.sort_unstable();
        all
    }

    pub(super) fn founding(
        &self,
        id: u64,
        addresses: Vec<Vec<Address>>,
        patience: u64,
        places: Vec<Place>,
        listeners: Vec<Arc<Listening>>,
    ) -> Founding {
        Founding {
            id,
            rank: self.plan.rank,
            peer_timeout: self.plan.peer_timeout,
            // A quarter: three pings may be late before this rank is given up.
            ping: (patience > 0).then(|| Duration::from_millis(patience.div_ceil(4))),
            connect_timeout: self.plan.connect_timeout,
            addresses,
            places,
            has_lines: true,
            mailbox: None,
            secret: self.plan.secret.clone(),
            commands: self.reactor.commands().clone(),
            listeners,
        }
    }

    /// Rank 0: waits until every rank has come, then tells each where the others are.
    pub(super) fn gather(
        &self,
        listeners: Vec<Arc<Listening>>,
        own: Vec<Address>,
    ) -> Result<(Founding, Lines)> {
        let door = listeners[0].clone();
        let _one_start_at_a_time = self.turn_at(&door.gathering)?;
        let mut gathering = Gathering {
            size: self.plan.size,
            lanes: own.len(),
            settings: self.settings(own.len()),
            patience: self.patience(),
            guests: (0..self.plan.size).map(|_| None).collect(),
            lobby: VecDeque::new(),
            remarks: Vec::new(),
        };
        self.await_all(&door, &mut gathering).map_err(|e| gathering.give_up(e))?;
        let places = gathering.places(&self.place);
        if self.plan.transport == Transport::Shm {
            host::require_one(&places).map_err(|e| gathering.give_up(e))?;
        }
        let id = new_id()?;
        // Rank 0 itself reaches a guest without an address where it came from.
        let mut addresses = vec![own.clone()];
        let mut told = vec![self.hosted(own)];
        let mut lines = Vec::new();
        let mut patience = self.patience();
        for (rank, guest) in gathering.guests.into_iter().enumerate() {
            let Some(Guest { channel, joined: Some((there, theirs, _)), .. }) = guest else {
                continue;
            };
            patience = [patience, theirs].into_iter().filter(|p| *p > 0).min().unwrap_or(0);
            let seen = channel.peer_addr().ip();
            let loopback = seen.to_canonical().is_loopback();
            let seen = host_of(if loopback { channel.local_addr()?.ip() } else { seen });
            let hosted: Vec<_> = there.iter().map(|a| fill_host(a, &seen)).collect();
            told.push(if loopback { there } else { hosted.clone() });
            addresses.push(hosted);
            lines.push((rank, channel));
        }
        for (_, channel) in &mut lines {
            let (addresses, places) = (told.clone(), places.clone());
            // One that is gone is noticed, and named to all, once its line is looked after.
            let _ = channel.tell(&Message::World { id, addresses, patience, places });
        }
        Ok((self.founding(id, addresses, patience, places, listeners), lines))
    }

    /// Rank 0: waits until every rank has come, and is still there.
    fn await_all(&self, door: &Listening, gathering: &mut Gathering) -> Result<()> {
        let mut news = Instant::now();
        loop {
            gathering.listen_to_guests(self.plan.peer_timeout)?;
            gathering.let_in(door.take_joiners());
            gathering.listen_to_guests(self.plan.peer_timeout)?;
            if gathering.missing().is_empty() {
                return Ok(());
            }
            if self.deadline.passed() {
                return Err(gathering.too_late(self.limit));
            }
            let interval = gathering.news_interval();
            if news.elapsed() >= interval {
                gathering.tell_all_news();
                news = Instant::now();
            }
            let mut fds = vec![interest(door.arrivals(), true, false)];
            fds.extend(gathering.channels().map(|c| interest(c.as_fd(), true, c.has_output())));
            let silence = gathering.silence_ends(self.plan.peer_timeout);
            wait(&mut fds, self.deadline.or(Deadline::after(Some(interval))).or(silence))?;
        }
    }

    /// Rank 0's own addresses as the others are told them: without a hostfile they know where they
    /// reached it better than it does.
    fn hosted(&self, own: Vec<Address>) -> Vec<Address> {
        match self.plan.meeting {
            Meeting::Hostfile(_) => own,
            _ => own.into_iter().map(|a| Address::new("", a.port)).collect(),
        }
    }

    /// The others: come to rank 0 and wait until all have come.
    fn join(
        &self,
        rank_0: &[Address],
        listeners: Vec<Arc<Listening>>,
        own: Vec<Address>,
    ) -> Result<(Founding, Lines)> {
        // Starts of this process with this rank and this rank 0 come one after the other, as they
        // do on rank 0.
        let queue = self.reactor.starts(&rank_0[0].to_string(), self.plan.rank);
        let _one_start_at_a_time = self.turn_at(&queue)?;
        let channel = self.reach(rank_0)?;
        self.join_by(channel, rank_0, listeners, own)
    }

    /// The same, over a connection that is there.
    pub(super) fn join_by(
        &self,
        channel: Channel,
        rank_0: &[Address],
        mut listeners: Vec<Arc<Listening>>,
        mut own: Vec<Address>,
    ) -> Result<(Founding, Lines)> {
        if listeners.is_empty() {
            let from = channel.local_addr()?.ip().to_canonical();
            // Over loopback by a name, others may come from elsewhere.
            let numeric = rank_0.iter().all(|a| a.ip().is_some() || a.host == "localhost");
            let host = match from.is_loopback() {
                true if !numeric => String::new(),
                // Loopback has many addresses: this rank is looked for where rank 0 was reached.
                true => host_of(channel.peer_addr().ip()),
                false => from.to_string(),
            };
            let listener = self.listen(&Address::new(host, 0), false)?;
            own = vec![Address::new("", listener.address.port())];
            listeners.push(listener);
        }
        let lanes = own.len();
        let (settings, patience) = (self.settings(lanes), self.patience());
        let place = self.place.clone();
        let join = Message::Join { addresses: own, settings, patience, place };
        let (channel, News { id, addresses, patience, places }) =
            self.await_world(channel, rank_0, &join)?;
        let named = addresses.len().min(places.len());
        if named != self.plan.size || addresses.iter().any(Vec::is_empty) {
            fail!(Config, "rank 0 named {named} ranks, not {}", self.plan.size);
        }
        let host = host_of(channel.peer_addr().ip());
        let addresses = addresses
            .into_iter()
            .map(|rank| rank.iter().map(|a| fill_host(a, &host)).collect())
            .collect();
        Ok((self.founding(id, addresses, patience, places, listeners), vec![(0, channel)]))
    }

    /// Says what this rank comes with, answers the news of who is missing, and waits until rank 0 says
    /// where the others are; with the connection to it, which may be another by then.
    fn await_world(
        &self,
        mut channel: Channel,
        rank_0: &[Address],
        join: &Message,
    ) -> Result<(Channel, News)> {
        let mut told = channel.tell(join);
        let mut missing = None;
        loop {
            // Rank 0 tells the news again and again, once this start has begun there.
            let silence = missing.as_ref().and(self.plan.peer_timeout);
            let limit = self.deadline.or(Deadline::after(silence));
            match told.and_then(|()| channel.await_with(limit, None, Channel::hear)) {
                Ok(Message::Waiting { missing: mut news }) => {
                    // It has not had the answer of this rank yet.
                    news.retain(|rank| *rank != self.plan.rank);
                    missing = Some(news);
                    told = channel.tell(&Message::Ping);
                }
                Ok(Message::Refused(cause)) => return Err(cause),
                Ok(Message::World { id, addresses, patience, places }) => {
                    return Ok((channel, News { id, addresses, patience, places }));
                }
                Ok(other) => fail!(Internal, "rank 0 said {other:?} during the start"),
                Err(e) if missing.is_some() => {
                    let cause = self.without_rank_0(e, missing);
                    // If it is there, it would take this rank for lost.
                    let _ = channel.tell(&Message::Fail { group: 0, cause: cause.clone() });
                    return Err(cause);
                }
                Err(_) if self.deadline.passed() => return Err(self.not_begun(&channel.peer)),
                // What it said was changed on the way. It still has this rank's connection, and could not
                // tell a second one from another process.
                Err(e) if e.status == Status::System => return Err(e.at("in the start")),
                // Rank 0 has not begun this start: what was reached was left over from another.
                // Closed before this rank comes again, or there would be two of it.
                Err(_) => {
                    drop(channel);
                    std::thread::sleep(RETRY);
                    channel = self.reach(rank_0)?;
                    told = channel.tell(join);
                }
            }
        }
    }

    /// The start ends before rank 0 said where the others are: too late, or it is gone.
    fn without_rank_0(&self, error: Error, missing: Option<Vec<usize>>) -> Error {
        if self.deadline.passed() {
            return too_late(&missing.unwrap_or_default(), self.limit, &[]);
        }
        if error.status == Status::Timeout {
            let limit = self.plan.peer_timeout.unwrap_or_default().as_millis();
            return lost(0, &format!("it was silent for {limit} ms"));
        }
        lost(0, &error.message)
    }

    /// Rank 0's socket answers, but nobody takes part in a start there.
    fn not_begun(&self, rank_0: &str) -> Error {
        let limit = self.limit.unwrap_or_default().as_millis();
        let why = format!("rank 0 at {rank_0} listens, but began no start within {limit} ms");
        Error::new(Status::Timeout, why + ELSEWHERE)
    }

    /// Calls rank 0 until it answers.
    fn reach(&self, rank_0: &[Address]) -> Result<Channel> {
        let hello = self.hello();
        let secret = self.plan.secret.as_deref();
        let caller = Caller { secret, deadline: self.deadline, stop: None };
        loop {
            // A name may become known only once rank 0's host is up.
            let found = rank_0.iter().map(|address| resolve(address, self.deadline, None));
            let candidates: Result<Vec<Vec<_>>> = found.collect();
            let called = candidates
                .map_err(|e| Error { status: Status::PeerLost, ..e })
                .and_then(|candidates| caller.call(&candidates.concat(), &hello));
            match called {
                Ok(channel) => return Ok(channel),
                Err(e) if matches!(e.status, Status::Auth | Status::Config) => {
                    return Err(e.at(format_args!("rank 0 at {}", rank_0[0])));
                }
                Err(e) if self.deadline.passed() => {
                    let limit = self.limit.unwrap_or_default().as_millis();
                    fail!(
                        Timeout,
                        "rank 0 at {} was not there within {limit} ms: {e}{ELSEWHERE}",
                        rank_0[0]
                    );
                }
                Err(_) => std::thread::sleep(RETRY),
            }
        }
    }
}

/// What tells a start from others.
pub(super) fn new_id() -> Result<u64> {
    let nonce = handshake::nonce()?;
    Ok(u64::from_le_bytes(std::array::from_fn(|i| nonce[i])))
}

fn host_of(ip: IpAddr) -> String {
    ip.to_canonical().to_string()
}

/// The address, at `host` if it names none.
fn fill_host(address: &Address, host: &str) -> Address {
    let host = if address.host.is_empty() { host } else { &address.host };
    Address::new(host, address.port)
}
