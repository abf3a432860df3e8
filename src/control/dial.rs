//! Calling another rank: connect, then the caller's side of the handshake.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::channel::Channel;
use super::handshake::{self, CHALLENGE_BYTES, Challenge, Hello, Side};
use super::message::Message;
use crate::error::{Error, Result, Status, fail};
use crate::wait::{Deadline, interest, wait};

/// 3 s for an address when there are others to try: enough for a handshake across the world and one
/// lost packet.
const NOT_THE_LAST: Duration = Duration::from_secs(3);

/// What a call is made with.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// The shared secret.
    pub secret: Option<&'a str>,
    /// When to give up.
    pub deadline: Deadline,
    /// Ready to read when the call is no longer wanted.
    pub stop: Option<BorrowedFd<'a>>,
}

impl Caller<'_> {
    /// Calls the first of `addresses` that answers as a rank does; the listener's verdict comes next.
    pub fn call(&self, addresses: &[SocketAddr], hello: &Hello) -> Result<Channel> {
        let mut last = Error::new(Status::Config, "no address to call");
        for (at, address) in addresses.iter().enumerate() {
            // One that swallows everything must not keep the others from being tried.
            let is_last = at + 1 == addresses.len();
            let slice = if is_last { None } else { Some(NOT_THE_LAST) };
            let part = Caller { deadline: self.deadline.or(Deadline::after(slice)), ..*self };
            match part.connect(*address).and_then(|stream| part.greet(stream, hello)) {
                Ok(channel) => return Ok(channel),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// Calls, and waits for the welcome after which the connection may be used.
    pub fn call_and_enter(&self, addresses: &[SocketAddr], hello: &Hello) -> Result<Channel> {
        let mut channel = self.call(addresses, hello)?;
        match channel.await_with(self.deadline, self.stop, Channel::hear)? {
            Message::Welcome => Ok(channel),
            Message::Refused(cause) => Err(cause),
            other => fail!(Internal, "{} answered a hello with {other:?}", channel.peer),
        }
    }

    /// Connects to an address.
    pub fn connect(&self, address: SocketAddr) -> Result<TcpStream> {
        let failed = |e: std::io::Error| {
            Error::new(Status::PeerLost, format!("cannot connect to {address}: {e}"))
        };
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))
            .map_err(|e| Error::system("socket", e))?;
        socket.set_nonblocking(true).map_err(|e| Error::system("cannot unblock a socket", e))?;
        match socket.connect(&address.into()) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(e) => return Err(failed(e)),
        }
        let mut fds = vec![interest(socket.as_fd(), false, true)];
        fds.extend(self.stop.map(|fd| interest(fd, true, false)));
        if !wait(&mut fds, self.deadline)? {
            fail!(Timeout, "no connection to {address} in time");
        }
        if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
            fail!(Aborted, "stopped while connecting to {address}");
        }
        match socket.take_error() {
            // Nobody listened, and the system gave this end the port that it called.
            Ok(None) if is_echo(&socket) => {
                fail!(PeerLost, "cannot connect to {address}: nobody listens there")
            }
            Ok(None) => Ok(socket.into()),
            Ok(Some(e)) | Err(e) => Err(failed(e)),
        }
    }

    /// Shakes hands over a new connection.
    pub fn greet(&self, stream: TcpStream, hello: &Hello) -> Result<Channel> {
        let mut channel = Channel::new(stream)?;
        let hello = Hello { nonce: handshake::nonce()?, ..*hello };
        channel.send(&hello.encode())?;
        let take = |channel: &mut Channel| channel.take::<CHALLENGE_BYTES>();
        let frame = channel.await_with(self.deadline, self.stop, take)?;
        let challenge = Challenge::decode(&frame).map_err(|e| e.at(&channel.peer))?;
        if challenge.garbled {
            return Err(handshake::changed().at(&channel.peer));
        }
        if self.secret.is_some() != challenge.secret {
            let (has, lacks) = if challenge.secret {
                (&*channel.peer, "this rank")
            } else {
                ("this rank", &*channel.peer)
            };
            fail!(Auth, "{has} has an MLXD_SECRET, {lacks} has none; all ranks need the same");
        }
        let expected = handshake::proof(self.secret, Side::Listener, &hello, &challenge.nonce)?;
        if !handshake::equal(&expected, &challenge.proof) {
            fail!(Auth, "{} has another MLXD_SECRET; all ranks need the same", channel.peer);
        }
        let proof = handshake::proof(self.secret, Side::Caller, &hello, &challenge.nonce)?;
        channel.send(&handshake::encode_answer(&proof))?;
        Ok(channel)
    }
}

/// Whether a socket is connected to itself.
fn is_echo(socket: &Socket) -> bool {
    let end = |address: std::io::Result<socket2::SockAddr>| address.ok()?.as_socket();
    let local = end(socket.local_addr());
    local.is_some() && local == end(socket.peer_addr())
}
