//! Wires that are made when they are first needed: the ends introduce themselves over the connection of
//! the channel for which it is.
//!
//! Several channels may need the wire at once, and either rank may be first with any of them. So each end
//! has one queue pair for the other, and introduces it anew over every connection: whichever comes first
//! connects it.

use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::channel::Ways;
use super::introduction::{INTRODUCTION_BYTES, Introduction, NOBODY};
use super::opening::Opening;
use super::wire::{Stub, Wire};
use crate::error::{Error, Result, Status, fail};
use crate::transport::Link;
use crate::transport::late::{Arrival, LateLink};
use crate::wait::Deadline;

/// This rank's end of a wire that may come to be.
pub struct Prospect {
    introduction: Option<Introduction>,
    state: Mutex<State>,
}

enum State {
    /// Introduced, perhaps.
    Stub(Option<Box<Stub>>),
    Wire(Arc<Wire>),
}

impl Prospect {
    /// An end with this queue pair; without one there will be no wire.
    pub fn new(stub: Option<Stub>) -> Prospect {
        let introduction = stub.as_ref().map(Stub::introduction);
        Prospect { introduction, state: Mutex::new(State::Stub(stub.map(Box::new))) }
    }

    /// The wire, if it came to be.
    pub fn wire(&self) -> Option<Arc<Wire>> {
        match &*self.state.lock() {
            State::Wire(wire) => Some(wire.clone()),
            State::Stub(_) => None,
        }
    }

    /// How this end introduces itself; nobody, where nothing can come of it any more.
    fn introduce(&self) -> [u8; INTRODUCTION_BYTES] {
        match (&*self.state.lock(), self.introduction) {
            (State::Stub(Some(_)) | State::Wire(_), Some(introduction)) => introduction.encode(),
            _ => NOBODY,
        }
    }

    /// The other end has nothing to offer.
    fn give_up(&self) {
        if let State::Stub(stub) = &mut *self.state.lock() {
            *stub = None;
        }
    }

    /// The wire to the end that introduced itself so; `None` if there can be none. `peer` is that end,
    /// for messages.
    fn meet(&self, theirs: &Introduction, peer: &str) -> Option<Arc<Wire>> {
        let mut state = self.state.lock();
        let stub = match &mut *state {
            State::Wire(wire) => return Some(wire.clone()),
            State::Stub(stub) => stub.take()?,
        };
        match stub.connect(theirs, peer) {
            Ok(wire) => {
                log::info!("a wire to {} was made", wire.name);
                let wire = Arc::new(wire);
                *state = State::Wire(wire.clone());
                Some(wire)
            }
            Err(e) => {
                log::info!("no wire to {peer}, TCP instead: {e}");
                None
            }
        }
    }
}

/// How long the first message over a wire may take: then TCP serves as well.
const GREETING: Duration = Duration::from_secs(2);

/// A link over such a wire to be, or over its connection if there will be none.
pub struct Approach {
    prospect: Arc<Prospect>,
    /// Until all is said.
    stream: Option<TcpStream>,
    /// The far end, for messages.
    peer: String,
    ways: Ways,
    /// Whether this end has introduced a queue pair.
    offered: bool,
    /// What the peer says: its introduction, then whether it could connect.
    theirs: [u8; INTRODUCTION_BYTES + 1],
    come: usize,
    /// Once this end is connected.
    wire: Option<Arc<Wire>>,
    /// Until when the peer's first message is awaited.
    greeting: Option<Deadline>,
    /// Copy of the stream's descriptor, to wait at.
    bell: TcpStream,
}

impl Approach {
    /// Introduces this end on a new connection, whose other end does the same.
    pub fn new(
        stream: TcpStream,
        peer: String,
        prospect: Arc<Prospect>,
        ways: Ways,
    ) -> Result<Approach> {
        let bytes = prospect.introduce();
        stream.set_nonblocking(true).map_err(|e| Error::system("cannot unblock a socket", e))?;
        stream.set_nodelay(true).map_err(|e| Error::system("TCP_NODELAY", e))?;
        say(&stream, &bytes)?;
        let bell = stream.try_clone().map_err(|e| Error::system("cannot copy a socket", e))?;
        let theirs = [0; INTRODUCTION_BYTES + 1];
        Ok(Approach {
            prospect,
            stream: Some(stream),
            peer,
            ways,
            offered: bytes != NOBODY,
            theirs,
            come: 0,
            wire: None,
            greeting: None,
            bell,
        })
    }

    /// Hears the peer until so many bytes have come; whether they have.
    fn hear(&mut self, wanted: usize) -> Result<bool> {
        let lost = |why: &str| fail!(PeerLost, "connection to {}: {why}", self.peer);
        let Some(stream) = &self.stream else {
            fail!(Internal, "a rank that was approached twice");
        };
        while self.come < wanted {
            match recv(stream, &mut self.theirs[self.come..wanted], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return lost("closed by peer"),
                Ok((count, _)) => self.come += count,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
                Err(e) => return lost(&std::io::Error::from(e).to_string()),
            }
        }
        Ok(true)
    }

    /// Connects this end to the one that introduced itself, and tells it.
    fn connect(&mut self) -> Result<()> {
        let theirs: [u8; INTRODUCTION_BYTES] = std::array::from_fn(|at| self.theirs[at]);
        self.wire = match (self.offered, theirs) {
            (true, NOBODY) => {
                self.prospect.give_up();
                None
            }
            (true, theirs) => self.prospect.meet(&Introduction::decode(&theirs)?, &self.peer),
            (false, _) => None,
        };
        self.stream.iter().try_for_each(|stream| say(stream, &[self.wire.is_some().into()]))
    }

    /// Whether it is known that the wire leads to the peer, or that it does not.
    fn try_out(&mut self) -> bool {
        let Some(wire) = &self.wire else { return true };
        let deadline = *self.greeting.get_or_insert_with(|| Deadline::after(Some(GREETING)));
        wire.say_hello();
        match wire.has_met() {
            Ok(false) if deadline.passed() => {
                let why = "nothing comes over it";
                log::info!("no wire to {}, TCP instead: {why}", self.peer);
                wire.give_up(Error::new(Status::PeerLost, why));
                true
            }
            Ok(met) => met,
            Err(_) => true,
        }
    }
}

/// Sends a few bytes on a connection that has room for them.
fn say(stream: &TcpStream, bytes: &[u8]) -> Result<()> {
    match send(stream, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        // The peer is gone, which shows when it is listened to.
        Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
        Ok(sent) => fail!(System, "a new connection takes no more than {sent} bytes"),
        Err(e) => Err(Error::system("a new connection", e)),
    }
}

impl Arrival for Approach {
    fn look(&mut self) -> Result<Option<Box<dyn Link>>> {
        if self.come < INTRODUCTION_BYTES {
            if !self.hear(INTRODUCTION_BYTES)? {
                return Ok(None);
            }
            self.connect()?;
        }
        if !self.hear(INTRODUCTION_BYTES + 1)? {
            return Ok(None);
        }
        if self.theirs[INTRODUCTION_BYTES] == 0 {
            self.wire = None;
        }
        if !self.try_out() {
            return Ok(None);
        }
        let Some(stream) = self.stream.take() else { return Ok(None) };
        let peer = std::mem::take(&mut self.peer);
        let opening = Opening::new(stream, peer, self.wire.take(), self.ways)?;
        Ok(Some(Box::new(LateLink::new(Box::new(opening)))))
    }

    fn bell(&self) -> BorrowedFd<'_> {
        match (&self.greeting, &self.wire) {
            (Some(_), Some(wire)) => wire.as_fd(),
            _ => self.bell.as_fd(),
        }
    }
}
