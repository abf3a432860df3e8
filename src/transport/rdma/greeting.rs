//! The connection beside a channel: over it each end tells the other its number, and it stays to tell of
//! the end.

use std::net::TcpStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::error::{Error, Result, Status, fail};
use crate::frame::{is_sealed, seal};

/// Bytes of a [`Hello`] that travels.
const HELLO_BYTES: usize = 24;
/// Opens it.
const MAGIC: [u8; 8] = *b"channel\x01";

/// One end's number and credits; `None` if its wire has no room for the channel.
pub type Hello = Option<(u32, usize)>;

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
pub struct Greeting {
    /// The connection.
    pub stream: TcpStream,
    bytes: [u8; HELLO_BYTES],
    come: usize,
}

impl Greeting {
    /// Says hello on a new connection, whose buffers are empty.
    pub fn new(stream: TcpStream, hello: Hello) -> Result<Greeting> {
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
    pub fn read(&mut self) -> Result<Option<Hello>> {
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
    /// What is still read of it.
    pub greeting: Greeting,
}

impl Orphan {
    /// The peer's hello, once it is there; an error if it never will be.
    pub fn read(&mut self) -> Result<Option<Hello>> {
        self.greeting.read()
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
