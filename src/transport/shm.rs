//! A link over memory that two processes of one host share: a ring of bytes for each way.
//!
//! Bytes are copied into the ring by the one end, and land from it at the other. A TCP connection goes
//! with it that carries no data: a byte on it wakes an end that sleeps, and its close says that the
//! peer is gone. While bytes flow there is no system call.

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::byte_ring::{End, LEAST, LINE, Side};
use super::posts::{Recv, Recvs, Sends};
use super::segment::Segment;
use super::{Interest, Landing, Link};
use crate::error::{Error, Result, Status, fail};

/// 256 KiB: no more goes one way in one step, so that the other way goes on meanwhile.
const STEP: usize = 256 << 10;
/// 16 bytes: no element is wider.
const WIDEST: usize = 16;

/// One end.
pub struct ShmLink {
    /// The doorbell, and the sign of life.
    stream: TcpStream,
    /// The far end, for messages: `rank 1 (10.0.0.2:5001)`.
    peer: String,
    /// The rings, where bytes may go that way.
    out: Option<End>,
    input: Option<End>,
    sends: Sends,
    recvs: Recvs,
    /// Whether somebody may have rung, or left, since the stream was read: nobody reads it before.
    slept: Cell<bool>,
    /// Why nothing can come any more but what is in the ring.
    gone: Option<Error>,
    /// Keeps the rings mapped.
    _segment: Arc<Segment>,
}

// SAFETY: the raw pointers are only used in `progress`, whose callers vouch for the memory behind
// them from whichever thread owns the link then.
unsafe impl Send for ShmLink {}

impl ShmLink {
    /// A link over `segment`: this end writes the ring at `out` and reads the one at `incoming`, of
    /// which the peer does the opposite; `None` where nothing will go that way. Their memory is zeros,
    /// a multiple of [`LINE`] in offset and length, [`LEAST`] bytes long or more, and no other link
    /// ever uses it. The stream is connected to the peer, and nothing was or will be sent over it else.
    pub fn new(
        stream: TcpStream,
        peer: String,
        segment: Arc<Segment>,
        out: Option<Range<usize>>,
        incoming: Option<Range<usize>>,
    ) -> Result<ShmLink> {
        // A bell that waits for company is no bell.
        stream.set_nodelay(true).map_err(|e| Error::system("TCP_NODELAY", e))?;
        let end = |range: Option<Range<usize>>, side| {
            range.map(|range| ring(&segment, range, side)).transpose()
        };
        let (out, input) = (end(out, Side::Writer)?, end(incoming, Side::Reader)?);
        Ok(ShmLink {
            stream,
            peer,
            out,
            input,
            sends: Sends::default(),
            recvs: Recvs::default(),
            slept: Cell::new(false),
            gone: None,
            _segment: segment,
        })
    }

    /// Copies into the ring what is posted and has room; whether there was any.
    fn send_some(&mut self) -> Result<bool> {
        let mut moved = 0;
        while let Some((from, left)) = self.sends.front() {
            let Some(out) = &mut self.out else {
                fail!(Internal, "nothing can be sent to {} over this link", self.peer);
            };
            let piece = left.min(out.piece());
            let room = out.ready(piece).map_err(|e| e.at(&self.peer))?;
            let (place, straight) = out.place();
            let len = piece.min(room).min(straight);
            if len == 0 || moved >= STEP {
                break;
            }
            // SAFETY: whoever posted these bytes keeps them valid and unchanged until they are sent;
            // the ring has room for them here, which the reader does not touch.
            unsafe { std::ptr::copy_nonoverlapping(from, place, len) };
            out.advance(len);
            self.sends.advance(len);
            moved += len;
            if out.untold() >= out.piece() && out.tell() {
                self.ring_bell();
            }
        }
        if self.out.as_mut().is_some_and(|out| out.untold() > 0 && out.tell()) {
            self.ring_bell();
        }
        Ok(moved > 0)
    }

    /// Lands what is in the ring as far as posts and grains allow; whether there was any.
    fn receive_some(&mut self) -> Result<bool> {
        let mut moved = 0;
        while let Some(front) = self.recvs.front() {
            let Some(input) = &mut self.input else {
                fail!(Internal, "nothing can come from {} over this link", self.peer);
            };
            let piece = front.left.min(input.piece());
            let ready = input.ready(piece).map_err(|e| e.at(&self.peer))?;
            let grain = front.landing.grain();
            if ready < grain || moved >= STEP {
                break;
            }
            let (place, straight) = input.place();
            let len = piece.min(ready).min(straight);
            let len = match len - len % grain {
                0 => land_across(&front, input, straight)?,
                len => {
                    // SAFETY: whoever posted the landing vouches for its memory; the ring has these
                    // bytes here, which the writer does not touch; `done` and `len` are multiples of
                    // the grain.
                    unsafe { front.landing.land(front.done, place, len) };
                    len
                }
            };
            input.advance(len);
            self.recvs.advance(len);
            moved += len;
            // Not told for less than a piece: a writer that waits for room has filled all the ring but
            // that, so there is more to read, and more will be told.
            if input.untold() >= input.piece() && input.tell() {
                self.ring_bell();
            }
        }
        Ok(moved > 0)
    }

    /// Wakes the peer.
    fn ring_bell(&mut self) {
        loop {
            match send(&self.stream, &[1], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                // Where there is no room, there are bytes that wake it.
                Ok(_) | Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(e) => return self.lost(Some(e)),
            }
        }
    }

    /// Reads what wakes this end, and whether the peer is gone.
    fn wake_up(&mut self) {
        for end in [&self.out, &self.input].into_iter().flatten() {
            end.wake();
        }
        // What this leaves unread, or an end behind it, wakes this end from its next sleep.
        let mut bells = [0u8; 64];
        match recv(&self.stream, &mut bells, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.lost(None),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(e) => self.lost(Some(e)),
        }
    }

    fn lost(&mut self, cause: Option<Errno>) {
        let message = match cause {
            // A peer that closes with a bell unread looks as if it had reset the connection.
            None | Some(Errno::CONNRESET | Errno::PIPE) => {
                format!("connection to {} closed by peer", self.peer)
            }
            Some(e) => format!("connection to {}: {}", self.peer, std::io::Error::from(e)),
        };
        self.gone.get_or_insert(Error::new(Status::PeerLost, message));
    }

    fn waits(&self) -> bool {
        !self.sends.is_empty() || !self.recvs.is_empty()
    }
}

/// The end of a ring in this part of the segment.
fn ring(segment: &Segment, range: Range<usize>, side: Side) -> Result<End> {
    let len = range.len();
    if len < LEAST || !range.start.is_multiple_of(LINE) || !len.is_multiple_of(LINE) {
        fail!(
            Internal,
            "a ring in bytes {range:?} of a segment: {LEAST} at least, and multiples of {LINE}"
        );
    }
    // SAFETY: the link keeps the segment; as `ShmLink::new` says, its memory is zeros and the peer's
    // and ours alone; a mapping begins with a page.
    Ok(unsafe { End::new(segment.at(range.start, len), len, side) })
}

/// Lands one element whose last bytes, all but `straight`, are at the start of the ring.
fn land_across(front: &Recv, input: &End, straight: usize) -> Result<usize> {
    let (mut element, grain) = ([0u8; WIDEST], front.landing.grain());
    if grain > WIDEST {
        fail!(Internal, "an element of {grain} bytes, {WIDEST} at most");
    }
    let ((place, _), rest) = (input.place(), grain - straight);
    // SAFETY: the ring has these bytes, which the writer does not touch, and `element` has room for
    // them; whoever posted the landing vouches for its memory.
    unsafe {
        let into = element.as_mut_ptr();
        std::ptr::copy_nonoverlapping(place, into, straight);
        std::ptr::copy_nonoverlapping(input.start(), into.add(straight), rest);
        front.landing.land(front.done, into, grain);
    }
    Ok(grain)
}

impl Drop for ShmLink {
    fn drop(&mut self) {
        // Also where a forked child still has the descriptor; what was sent is in the ring before it.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }
}

impl Link for ShmLink {
    unsafe fn post_send(&mut self, from: *const u8, len: usize) {
        self.sends.post(from, len);
    }

    unsafe fn post_recv(&mut self, landing: Landing, len: usize) {
        self.recvs.post(landing, len);
    }

    fn progress(&mut self) -> Result<bool> {
        if self.slept.take() {
            self.wake_up();
        }
        // Nobody would read it.
        let sent = self.gone.is_none() && self.send_some()?;
        let moved = self.receive_some()? || sent;
        match &self.gone {
            Some(error) if !moved && self.waits() => Err(error.clone()),
            _ => Ok(moved),
        }
    }

    fn sent(&self) -> u64 {
        self.sends.sent()
    }

    fn landed(&self) -> u64 {
        self.recvs.landed()
    }

    fn cancel(&mut self) {
        self.sends.clear();
        self.recvs.clear();
    }

    fn interest(&self) -> Option<Interest<'_>> {
        let sleeps = |end: &Option<End>, wanted| end.as_ref().is_none_or(|end| end.sleep(wanted));
        let (mut waits, mut moves) = (false, false);
        if !self.sends.is_empty() {
            (waits, moves) = (true, !sleeps(&self.out, 1));
        }
        if let Some(front) = self.recvs.front() {
            (waits, moves) = (true, !sleeps(&self.input, front.landing.grain()) || moves);
        }
        self.slept.set(waits || self.slept.get());
        // The stream has always room for a byte: to wait for that is not to wait.
        Some(Interest { fd: self.stream.as_fd(), read: waits, write: moves })
    }
}
