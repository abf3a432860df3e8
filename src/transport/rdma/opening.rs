//! How the two ends of a channel meet: each tells the other its number over a connection of their own,
//! which stays beside the channel to tell of the end.

use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::channel::Ways;
use super::link::RdmaLink;
use super::wire::Wire;
use crate::error::{Error, Result, Status, fail};
use crate::frame::{is_sealed, seal};
use crate::transport::Link;
use crate::transport::late::Arrival;
use crate::transport::tcp::TcpLink;
use crate::wait::Wake;

/// Bytes of a [`Hello`] that travels.
const HELLO_BYTES: usize = 24;
/// Opens it.
const MAGIC: [u8; 8] = *b"channel\x01";

/// One end's number and credits; `None` if its wire has no room for the channel.
type Hello = Option<(u32, usize)>;

/// As it travels: magic, whether there is a channel, number, credits, CRC-32.
fn encode(hello: Hello) -> [u8; HELLO_BYTES] {
    let mut bytes = [0; HELLO_BYTES];
    bytes[0..8].copy_from_slice(&MAGIC);
    if let Some((number, credits)) = hello {
        bytes[8] = 1;
        bytes[12..16].copy_from_slice(&number.to_le_bytes());
        bytes[16..20].copy_from_slice(&(credits as u32).to_le_bytes());
    }
    seal(&mut bytes);
    bytes
}

/// The inverse.
fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Hello> {
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    if !is_sealed(bytes) || bytes[0..8] != MAGIC {
        fail!(System, "what opens a channel was changed on the way: its checksum is wrong");
    }
    Ok((bytes[8] != 0).then_some((word(12), word(16) as usize)))
}

/// The connection beside a channel, of which the peer's hello has not come.
struct Greeting {
    stream: TcpStream,
    bytes: [u8; HELLO_BYTES],
    come: usize,
}

impl Greeting {
    /// Says hello on a new connection, whose buffers are empty.
    fn new(stream: TcpStream, hello: Hello) -> Result<Greeting> {
        stream.set_nonblocking(true).map_err(|e| Error::system("cannot unblock a socket", e))?;
        stream.set_nodelay(true).map_err(|e| Error::system("TCP_NODELAY", e))?;
        let bytes = encode(hello);
        match send(&stream, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(HELLO_BYTES) => {}
            // The peer is gone, which shows when its hello is read.
            Err(Errno::PIPE | Errno::CONNRESET) => {}
            Ok(sent) => fail!(System, "a new connection takes no more than {sent} bytes"),
            Err(e) => return Err(Error::system("a new connection", e)),
        }
        Ok(Greeting { stream, bytes: [0; HELLO_BYTES], come: 0 })
    }

    /// The peer's hello, once it is there.
    fn read(&mut self) -> Result<Option<Hello>> {
        while self.come < HELLO_BYTES {
            match recv(&self.stream, &mut self.bytes[self.come..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => fail!(PeerLost, "closed by peer"),
                Ok((count, _)) => self.come += count,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
                Err(e) => fail!(PeerLost, "{}", std::io::Error::from(e)),
            }
        }
        decode(&self.bytes).map(Some)
    }
}

/// A channel that was given up before the peer's hello came: the peer may know this end's number.
pub struct Orphan {
    /// This end's number.
    pub number: u32,
    greeting: Greeting,
}

impl Orphan {
    /// The peer's hello, once it is there; an error if it never will be.
    pub fn read(&mut self) -> Result<Option<Hello>> {
        self.greeting.read()
    }
}

/// A link over a channel to be, or over its connection where there is no wire, or a wire has no room.
pub struct Opening {
    /// The far end, for messages.
    peer: String,
    bell: Arc<Wake>,
    /// The wire and this end's number, if it has room.
    channel: Option<(Arc<Wire>, u32)>,
    /// Until the peer's hello has come.
    greeting: Option<Greeting>,
}

impl Opening {
    /// Opens a channel of this wire, if there is one; the stream leads to its other end, who does the
    /// same.
    pub fn new(
        stream: TcpStream,
        peer: String,
        wire: Option<Arc<Wire>>,
        ways: Ways,
    ) -> Result<Opening> {
        let bell = Arc::new(Wake::new()?);
        let channel = match wire {
            Some(wire) => wire.open(ways, bell.clone())?.map(|number| (wire, number)),
            None => None,
        };
        let hello = channel.as_ref().map(|(_, number)| (*number, ways.credits()));
        // From here on a failure gives the number back.
        let mut opening = Opening { peer, bell, channel, greeting: None };
        opening.greeting = Some(Greeting::new(stream, hello)?);
        Ok(opening)
    }
}

impl Arrival for Opening {
    fn look(&mut self) -> Result<Option<Box<dyn Link>>> {
        let Some(greeting) = &mut self.greeting else {
            fail!(Internal, "a channel that was opened twice");
        };
        let hello =
            greeting.read().map_err(|e| e.at(format_args!("connection to {}", self.peer)))?;
        let Some(hello) = hello else { return Ok(None) };
        let Some(Greeting { stream, .. }) = self.greeting.take() else { return Ok(None) };
        let peer = std::mem::take(&mut self.peer);
        match (self.channel.take(), hello) {
            (Some((wire, number)), Some((theirs, credits))) => {
                if let Err(e) = wire.meet(number, theirs, credits) {
                    wire.close(number, &mut std::iter::empty(), &mut std::iter::empty());
                    return Err(e);
                }
                let bell = self.bell.clone();
                Ok(Some(Box::new(RdmaLink::new(wire, number, Some(stream), peer, bell)?)))
            }
            (channel, _) => {
                if let Some((wire, number)) = channel {
                    wire.forget(number);
                }
                log::info!("no room for a channel to {peer}: TCP instead");
                Ok(Some(Box::new(TcpLink::new(stream, peer)?)))
            }
        }
    }

    fn bell(&self) -> BorrowedFd<'_> {
        match &self.greeting {
            Some(greeting) => greeting.stream.as_fd(),
            None => self.bell.as_fd(),
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let Some((wire, number)) = self.channel.take() else { return };
        match self.greeting.take() {
            Some(greeting) => {
                // Tells the peer.
                let _ = greeting.stream.shutdown(std::net::Shutdown::Write);
                wire.abandon(number, Orphan { number, greeting });
            }
            None => wire.forget(number),
        }
    }
}

/// Reads what closes a stream on which nothing more comes: why, or `None` while it is open.
pub fn ended(stream: &TcpStream, peer: &str) -> Option<Error> {
    let message = match recv(stream, &mut [0u8; 1], RecvFlags::DONTWAIT) {
        Err(Errno::AGAIN | Errno::INTR) => return None,
        Ok((0, _)) | Err(Errno::CONNRESET | Errno::PIPE) => {
            format!("connection to {peer} closed by peer")
        }
        Ok(_) => return Some(Error::new(Status::Internal, format!("{peer} sent what none reads"))),
        Err(e) => format!("connection to {peer}: {}", std::io::Error::from(e)),
    };
    Some(Error::new(Status::PeerLost, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::conformance::streams;

    #[test]
    fn hellos_travel() {
        for hello in [None, Some((0, 0)), Some((u32::MAX, 8))] {
            assert_eq!(decode(&encode(hello)), Ok(hello));
        }
        let mut bytes = encode(Some((1, 2)));
        bytes[12] ^= 1;
        assert_eq!(decode(&bytes).unwrap_err().status, Status::System);
    }

    #[test]
    fn a_hello_is_awaited_or_never_comes() {
        let (a, b) = streams();
        let mut here = Greeting::new(a, Some((5, 8))).unwrap();
        assert_eq!(here.read(), Ok(None));
        let mut there = Greeting::new(b, None).unwrap();
        assert_eq!(there.read(), Ok(Some(Some((5, 8)))));
        assert_eq!(here.read(), Ok(Some(None)));
        let (a, b) = streams();
        let mut here = Greeting::new(a, None).unwrap();
        drop(b);
        while here.read() == Ok(None) {}
        assert_eq!(here.read().unwrap_err().status, Status::PeerLost);
    }
}
