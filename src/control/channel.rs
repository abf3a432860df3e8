//! One connection of the control plane: buffered both ways, never blocking. Messages travel in frames,
//! with checksums.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use super::message::Message;
use crate::config::Address;
use crate::error::{Error, Result, Status, fail};
use crate::frame::{Frame, HEADER_BYTES};
use crate::wait::{Deadline, interest, wait};

/// 16 MiB: no message comes near (the largest names every rank's addresses); a longer one is not
/// from a rank.
const LONGEST: usize = 16 << 20;

/// A connection with what has been read and not yet taken, and what is still to be written.
#[derive(Debug)]
pub struct Channel {
    stream: TcpStream,
    inbox: Vec<u8>,
    outbox: VecDeque<u8>,
    /// Messages told and heard so far: the numbers of their frames.
    told: u64,
    heard: u64,
    /// The far end.
    address: SocketAddr,
    /// Likewise, for messages.
    pub peer: String,
}

/// What reading came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// Bytes came.
    Some,
    /// None are there now.
    Nothing,
    /// The peer has closed its end.
    End,
}

impl Channel {
    /// Takes over a connected stream.
    pub fn new(stream: TcpStream) -> Result<Channel> {
        let address = stream.peer_addr().map_err(|e| failed("getpeername", e))?;
        let peer = Address::from(address).to_string();
        stream.set_nonblocking(true).map_err(|e| failed("cannot unblock a socket", e))?;
        // Small frames that wait for an acknowledgement would cost 40 ms each.
        stream.set_nodelay(true).map_err(|e| failed("TCP_NODELAY", e))?;
        Ok(Channel {
            stream,
            inbox: Vec::new(),
            outbox: VecDeque::new(),
            told: 0,
            heard: 0,
            address,
            peer,
        })
    }

    /// The stream, for another use; nothing must be left in either direction.
    pub fn into_stream(self) -> Result<TcpStream> {
        if !self.inbox.is_empty() || !self.outbox.is_empty() {
            fail!(Internal, "bytes left over from the handshake with {}", self.peer);
        }
        Ok(self.stream)
    }

    /// The local end's address.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        self.stream.local_addr().map_err(|e| failed("getsockname", e))
    }

    /// The far end's address, also once it is gone.
    pub fn peer_addr(&self) -> SocketAddr {
        self.address
    }

    /// Whether something is still to be written.
    pub fn has_output(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Queues bytes and writes what can be written.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.outbox.extend(bytes);
        self.flush()
    }

    /// Queues a message and writes what can be written.
    pub fn tell(&mut self, message: &Message) -> Result<()> {
        let message = message.encode()?;
        self.outbox.extend(Frame::of([&message[..]]).encode(self.told));
        self.told += 1;
        self.send(&message)
    }

    /// Writes what can be written now.
    pub fn flush(&mut self) -> Result<()> {
        while !self.outbox.is_empty() {
            match self.stream.write(self.outbox.as_slices().0) {
                Ok(n) => drop(self.outbox.drain(..n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.lost(e)),
            }
        }
        Ok(())
    }

    /// Reads until `bytes` are in the inbox, never more: what follows may not be ours to read.
    fn fill_to(&mut self, bytes: usize) -> Result<Filled> {
        let mut filled = Filled::Nothing;
        while self.inbox.len() < bytes {
            let have = self.inbox.len();
            // Grown as bytes come: a length that somebody claims costs no memory.
            self.inbox.resize(bytes.min(have + (64 << 10)), 0);
            let read = self.stream.read(&mut self.inbox[have..]);
            self.inbox.truncate(have + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Ok(Filled::End),
                Ok(_) => filled = Filled::Some,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(filled),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.lost(e)),
            }
        }
        Ok(Filled::Some)
    }

    /// A frame of fixed size, once it is there.
    pub fn take<const N: usize>(&mut self) -> Result<Option<[u8; N]>> {
        let filled = self.fill_to(N)?;
        if let Ok(frame) = <[u8; N]>::try_from(self.inbox.as_slice()) {
            self.inbox.clear();
            return Ok(Some(frame));
        }
        match filled {
            Filled::End => Err(self.closed()),
            _ => Ok(None),
        }
    }

    /// A message, once it is there.
    pub fn hear(&mut self) -> Result<Option<Message>> {
        let mut filled = self.fill_to(HEADER_BYTES)?;
        if let Some(header) = self.inbox.first_chunk() {
            let Some(frame) = Frame::decode(header, self.heard) else {
                return Err(self.changed());
            };
            let whole = HEADER_BYTES + frame.length();
            if frame.length() > LONGEST {
                fail!(Config, "{} sent no message of this library", self.peer);
            }
            if filled != Filled::End {
                filled = self.fill_to(whole)?;
            }
            if self.inbox.len() == whole {
                let bytes = &self.inbox[HEADER_BYTES..];
                if !frame.holds(bytes) {
                    return Err(self.changed());
                }
                let message =
                    Message::decode(bytes).map_err(|e| e.at(format_args!("from {}", self.peer)))?;
                self.inbox.clear();
                self.heard += 1;
                return Ok(Some(message));
            }
        }
        match filled {
            Filled::End => Err(self.closed()),
            _ => Ok(None),
        }
    }

    /// Writes what is queued, then waits for what `take` takes.
    pub fn await_with<T>(
        &mut self,
        deadline: Deadline,
        stop: Option<BorrowedFd<'_>>,
        mut take: impl FnMut(&mut Channel) -> Result<Option<T>>,
    ) -> Result<T> {
        loop {
            self.flush()?;
            if let Some(taken) = take(self)? {
                return Ok(taken);
            }
            let mut fds = vec![interest(self.stream.as_fd(), true, self.has_output())];
            fds.extend(stop.map(|fd| interest(fd, true, false)));
            if !wait(&mut fds, deadline)? {
                fail!(Timeout, "{} did not answer in time", self.peer);
            }
            if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
                fail!(Aborted, "stopped while waiting for {}", self.peer);
            }
        }
    }

    fn changed(&self) -> Error {
        let message = format!(
            "message {} from {} is not what was sent: it was changed, lost or doubled on the way",
            self.heard + 1,
            self.peer
        );
        Error::new(Status::System, message)
    }

    fn closed(&self) -> Error {
        Error::new(Status::PeerLost, format!("connection to {} closed by peer", self.peer))
    }

    fn lost(&self, cause: std::io::Error) -> Error {
        Error::new(Status::PeerLost, format!("connection to {}: {cause}", self.peer))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A call on a socket that failed: a peer that has gone by then is not this system's fault.
fn failed(what: &str, cause: std::io::Error) -> Error {
    let gone = cause.kind() == ErrorKind::NotConnected;
    let error = Error::system(what, cause);
    if gone { Error { status: Status::PeerLost, ..error } } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_peer_that_is_gone_already_is_lost() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (there, _) = listener.accept().unwrap();
        // Closing with bytes unread resets the connection.
        (&stream).write_all(b"unread").unwrap();
        while there.peek(&mut [0; 6]).unwrap() < 6 {}
        drop(there);
        let deadline = Deadline::after(Some(std::time::Duration::from_secs(10)));
        while stream.peer_addr().is_ok() {
            assert!(!deadline.passed(), "never reset");
        }
        assert_eq!(Channel::new(stream).unwrap_err().status, Status::PeerLost);
    }
}
