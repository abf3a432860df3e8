//! How the two ends of a channel meet, and the link that comes of it: each tells the other its number, over a
//! connection of their own, or opens it under a name that both know.

use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::channel::Ways;
use super::greeting::{Greeting, Orphan};
use super::link::RdmaLink;
use super::record::Name;
use super::wire::Wire;
use crate::error::{Result, fail};
use crate::transport::Link;
use crate::transport::late::Arrival;
use crate::transport::tcp::TcpLink;
use crate::wait::Wake;

/// A link over a channel that the other end opens under the same name, sooner or later.
pub fn open(wire: &Arc<Wire>, name: Name, peer: String, ways: Ways) -> Result<RdmaLink> {
    let bell = Arc::new(Wake::new()?);
    let number = wire.open_as(name, ways, bell.clone())?;
    RdmaLink::new(wire.clone(), number, None, peer, bell)
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
