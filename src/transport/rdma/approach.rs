//! Wires that are made when they are first needed: the ends introduce themselves over the connection of
//! the channel for which it is.
//!
//! Several channels may need the wire at once, and either rank may be first with any of them. So each end
//! has one queue pair for the other, and introduces it anew over every connection: whichever comes first
//! connects it.

use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::channel::Ways;
use super::introduction::{INTRODUCTION_BYTES, Introduction};
use super::opening::Opening;
use super::wire::{Stub, Wire};
use crate::error::{Error, Result, fail};
use crate::transport::Link;
use crate::transport::late::{Arrival, LateLink};

/// Introduces nobody: this end has no queue pair to offer.
const NOBODY: [u8; INTRODUCTION_BYTES] = [0; INTRODUCTION_BYTES];

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

/// A link over such a wire to be, or over its connection if there will be none.
pub struct Approach {
    prospect: Arc<Prospect>,
    /// Until the peer has introduced itself.
    stream: Option<TcpStream>,
    /// The far end, for messages.
    peer: String,
    ways: Ways,
    theirs: [u8; INTRODUCTION_BYTES],
    come: usize,
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
        let bytes = prospect.introduction.map_or(NOBODY, |introduction| introduction.encode());
        stream.set_nonblocking(true).map_err(|e| Error::system("cannot unblock a socket", e))?;
        match send(&stream, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(INTRODUCTION_BYTES) => {}
            // The peer is gone, which shows when it is listened to.
            Err(Errno::PIPE | Errno::CONNRESET) => {}
            Ok(sent) => fail!(System, "a new connection takes no more than {sent} bytes"),
            Err(e) => return Err(Error::system("a new connection", e)),
        }
        let bell = stream.try_clone().map_err(|e| Error::system("cannot copy a socket", e))?;
        Ok(Approach { prospect, stream: Some(stream), peer, ways, theirs: NOBODY, come: 0, bell })
    }
}

impl Arrival for Approach {
    fn look(&mut self) -> Result<Option<Box<dyn Link>>> {
        let lost = |why: &str| fail!(PeerLost, "connection to {}: {why}", self.peer);
        while self.come < INTRODUCTION_BYTES {
            let Some(stream) = &self.stream else {
                fail!(Internal, "a rank that was approached twice");
            };
            match recv(stream, &mut self.theirs[self.come..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return lost("closed by peer"),
                Ok((count, _)) => self.come += count,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
                Err(e) => return lost(&std::io::Error::from(e).to_string()),
            }
        }
        let wire = match self.theirs {
            NOBODY => None,
            theirs => self.prospect.meet(&Introduction::decode(&theirs)?, &self.peer),
        };
        let Some(stream) = self.stream.take() else { return Ok(None) };
        let peer = std::mem::take(&mut self.peer);
        let opening = Opening::new(stream, peer, wire, self.ways)?;
        Ok(Some(Box::new(LateLink::new(Box::new(opening)))))
    }

    fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
