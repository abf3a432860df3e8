//! A link over a channel of a wire.

use std::cell::Cell;
use std::collections::VecDeque;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::PAYLOAD;
use super::buffers::Buffer;
use super::channel::{Filled, Landed};
use super::greeting::ended;
use super::message::HEADER_BYTES;
use super::service::Standing;
use super::wire::Wire;
use crate::error::{Error, Result, Status};
use crate::transport::posts::{Recvs, Sends};
use crate::transport::{Interest, Landing, Lent, Link};
use crate::verbs::abi::ibv_sge;
use crate::verbs::lending::{Lease, Wish};
use crate::wait::Wake;

/// 4 messages: no more are sent in one step, so that receiving goes on meanwhile.
const STEP: usize = 4;
/// 16 bytes: no element is wider.
const WIDEST: usize = 16;
/// 4 KiB: less of lent memory is copied, which costs less than a second piece of a message does.
const WORTH_LENDING: usize = 4 << 10;
/// 3 s: what was sent comes another way than the news that the peer has closed its end, and later if it had
/// to be sent again, which takes devices 0.3 to 1 s.
const BEHIND: Duration = Duration::from_secs(3);

/// One end.
pub struct RdmaLink {
    wire: Arc<Wire>,
    /// This end's number of the channel.
    number: u32,
    /// The sign of life, where there is one.
    stream: Option<TcpStream>,
    /// The far end, for messages: `rank 1 (10.0.0.2:5001)`.
    peer: String,
    sends: Sends,
    recvs: Recvs,
    /// Memory of the caller's that is sent from where it is.
    lent: Vec<Lease>,
    /// The messages with such that the device may still read, in order: where what they read begins, of
    /// all bytes, and what keeps it registered.
    under_way: VecDeque<(u64, Lease)>,
    /// What has landed in buffers and not yet where it belongs.
    landed: VecDeque<Landed>,
    /// The first bytes of an element whose others are in the next buffer: `split[..split_len]`.
    split: [u8; WIDEST],
    split_len: usize,
    /// Rooms and buffers of the step under way, kept for their memory.
    rooms: Vec<(u16, *mut u8)>,
    filled: Vec<Filled>,
    read: Vec<Buffer>,
    /// Whether somebody may have woken this end, or left.
    slept: Cell<bool>,
    bell: Arc<Wake>,
    /// All that wakes this end: the wire, the bell, and the stream until it was closed.
    wakes: OwnedFd,
    /// When the stream was closed, and why.
    gone: Option<(Instant, Error)>,
}

// SAFETY: the raw pointers are only used in `progress`, whose callers vouch for the memory behind
// them from whichever thread owns the link then; rooms and landed buffers are this link's alone.
unsafe impl Send for RdmaLink {}

impl RdmaLink {
    /// A link over a channel that both ends have opened; the stream is connected to the peer, and
    /// nothing more will be sent over it. Or, without one, that they open under the same name.
    pub(super) fn new(
        wire: Arc<Wire>,
        number: u32,
        stream: Option<TcpStream>,
        peer: String,
        bell: Arc<Wake>,
    ) -> Result<RdmaLink> {
        let wakes = watch(&wire, &bell, stream.as_ref());
        let link = |wakes| RdmaLink {
            wire: wire.clone(),
            number,
            stream,
            peer,
            sends: Sends::default(),
            recvs: Recvs::default(),
            lent: Vec::new(),
            under_way: VecDeque::new(),
            landed: VecDeque::new(),
            split: [0; WIDEST],
            split_len: 0,
            rooms: Vec::new(),
            filled: Vec::new(),
            read: Vec::new(),
            slept: Cell::new(false),
            bell,
            wakes,
            gone: None,
        };
        match wakes {
            Ok(wakes) => Ok(link(wakes)),
            Err(e) => {
                wire.close(number, &mut std::iter::empty(), &mut std::iter::empty());
                Err(e)
            }
        }
    }

    /// Lands what is in buffers as far as posts and grains allow; whether there was any.
    fn land_some(&mut self) -> bool {
        let before = self.recvs.landed();
        let mut taken = false;
        while let (Some(landed), Some(front)) = (self.landed.front_mut(), self.recvs.front()) {
            // SAFETY: the buffer has so many bytes there, and is this link's alone.
            let bytes = unsafe { std::slice::from_raw_parts(landed.from, landed.len) };
            let grain = front.landing.grain();
            let mut take = 0;
            if self.split_len > 0 || (bytes.len() < grain && grain <= WIDEST) {
                take = bytes.len().min(grain - self.split_len);
                self.split[self.split_len..self.split_len + take].copy_from_slice(&bytes[..take]);
                self.split_len += take;
                if self.split_len == grain {
                    self.split_len = 0;
                    // SAFETY: whoever posted the landing vouches for its memory; `split` is our own.
                    unsafe { self.recvs.land(&self.split[..grain]) };
                }
            } else {
                // SAFETY: whoever posted the landings vouches for their memory; the buffer is our own.
                take += unsafe { self.recvs.land(bytes) };
            }
            landed.from = landed.from.wrapping_add(take);
            landed.len -= take;
            taken |= take > 0;
            if landed.len == 0 {
                self.read.push(landed.buffer);
                self.landed.pop_front();
            } else if take == 0 {
                break;
            }
        }
        taken || self.recvs.landed() > before
    }

    /// Makes messages of what is posted, as many as there are rooms: bytes are copied into the room until
    /// it is full, or some come that are lent, which are sent from where they are.
    fn fill_rooms(&mut self) {
        while let Some((room, bytes)) = self.rooms.pop() {
            let mut filled = Filled::empty(room);
            while let Some((from, left)) = self.sends.front() {
                let space = PAYLOAD - filled.copied;
                filled.lent = self.lend_next(space);
                let take = left.min(space);
                if take == 0 || filled.lent.is_some() {
                    break;
                }
                // SAFETY: whoever posted these bytes keeps them valid and unchanged until they are sent;
                // the room has a buffer's bytes, and nothing is sent from it yet.
                unsafe {
                    let into = bytes.add(HEADER_BYTES + filled.copied);
                    std::ptr::copy_nonoverlapping(from, into, take);
                }
                self.sends.advance(take);
                filled.copied += take;
            }
            self.filled.push(filled);
        }
    }

    /// Takes what is posted next, and all that follows it in memory, as far as it is lent: `space` bytes
    /// at most, and none if that would be few.
    fn lend_next(&mut self, space: usize) -> Option<ibv_sge> {
        let (from, left) = self.sends.front()?;
        let mut len = left.min(space);
        if len < WORTH_LENDING {
            return None;
        }
        let lease = self.lent.iter().find(|lease| lease.piece(from, len).is_some())?.clone();
        let start = self.sends.sent();
        self.sends.advance(len);
        while let Some((next, left)) = self.sends.front() {
            let more = left.min(space - len);
            let goes_on = next == from.wrapping_add(len) && lease.piece(from, len + more).is_some();
            if more == 0 || !goes_on {
                break;
            }
            self.sends.advance(more);
            len += more;
        }
        let piece = lease.piece(from, len);
        self.under_way.push_back((start, lease));
        piece
    }

    /// Returns once the device reads nothing more of the caller's memory.
    fn call_back(&mut self) {
        self.lent.clear();
        if self.under_way.is_empty() {
            return;
        }
        let (stream, peer, gone) = (&self.stream, &self.peer, self.gone.is_some());
        let ended = || stream.as_ref().is_some_and(|stream| ended(stream, peer).is_some());
        let back = self.wire.call_back(self.number, &|| gone || ended());
        let leases = self.under_way.drain(..).map(|(_, lease)| lease);
        if !back {
            self.wire.strand(leases);
        }
    }

    /// Messages that what is posted makes, as many as one step sends.
    fn messages(&self) -> usize {
        let mut bytes = 0;
        for (_, len) in self.sends.iter() {
            bytes += len;
            if bytes >= STEP * PAYLOAD {
                return STEP;
            }
        }
        bytes.div_ceil(PAYLOAD)
    }

    /// After a sleep: whether the peer has closed the stream.
    fn wake_up(&mut self) {
        self.bell.clear();
        if self.gone.is_none()
            && let Some(stream) = &self.stream
            && let Some(why) = ended(stream, &self.peer)
        {
            self.gone = Some((Instant::now(), why));
            // It would be ready for ever.
            if let Err(e) = epoll::delete(&self.wakes, stream) {
                log::debug!("epoll: {e}");
            }
        }
    }

    fn waits(&self) -> bool {
        !self.sends.is_empty() || !self.recvs.is_empty() || !self.under_way.is_empty()
    }

    /// Why nothing can come any more, if that is so.
    fn end(&self, standing: Standing) -> Result<()> {
        match (standing, &self.gone) {
            (Standing::Failed(why), gone) if gone.is_none() || why.status != Status::PeerLost => {
                Err(why)
            }
            (_, Some((since, why))) if since.elapsed() >= BEHIND => Err(why.clone()),
            // The peer's device answers what it was sent before.
            (Standing::Closed, _) if self.sends.is_empty() && self.recvs.is_empty() => Ok(()),
            (Standing::Closed | Standing::Failed(_), _) => {
                let message = format!("connection to {} closed by peer", self.peer);
                Err(Error::new(Status::PeerLost, message))
            }
            (Standing::Open, _) => Ok(()),
        }
    }
}

/// Ready to read when one of these is.
fn watch(wire: &Wire, bell: &Wake, stream: Option<&TcpStream>) -> Result<OwnedFd> {
    let system = |e| Error::system("epoll", e);
    let all = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(system)?;
    for fd in [wire.as_fd(), bell.as_fd()].into_iter().chain(stream.map(AsFd::as_fd)) {
        epoll::add(&all, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)
            .map_err(system)?;
    }
    Ok(all)
}

impl Drop for RdmaLink {
    fn drop(&mut self) {
        self.call_back();
        let unread = self.landed.drain(..).map(|landed| landed.buffer);
        // There are such only if a step was not finished, which a bug alone can do.
        let unsent = self.rooms.drain(..).map(|(room, _)| room);
        let unsent = &mut unsent.chain(self.filled.drain(..).map(|filled| filled.room));
        self.wire.close(self.number, &mut unread.chain(self.read.drain(..)), unsent);
        // Also where a forked child still has the descriptor.
        if let Some(stream) = &self.stream {
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
    }
}

impl Link for RdmaLink {
    unsafe fn lend(&mut self, memory: &[Lent]) {
        self.lent.clear();
        for Lent { from, len, sent, call } in memory {
            let start = *from as usize;
            let wish = Wish { span: start..start.saturating_add(*len), sent: *sent, call: *call };
            self.lent.extend(self.wire.lend(&wish));
        }
    }

    unsafe fn post_send(&mut self, from: *const u8, len: usize) {
        self.sends.post(from, len);
    }

    unsafe fn post_recv(&mut self, landing: Landing, len: usize) {
        self.recvs.post(landing, len);
    }

    fn progress(&mut self) -> Result<bool> {
        let slept = self.slept.take();
        if slept {
            self.wake_up();
        }
        let wanted = self.messages();
        let (landed, rooms, mut returned) = (&mut self.landed, &mut self.rooms, 0);
        let standing = self.wire.turn(self.number, slept, wanted, landed, rooms, &mut returned);
        self.under_way.drain(..returned.min(self.under_way.len()));
        let sent = !self.rooms.is_empty();
        self.fill_rooms();
        let received = self.land_some();
        if sent || !self.read.is_empty() {
            self.wire.finish(self.number, &self.read, &self.filled);
            self.read.clear();
            self.filled.clear();
        }
        if received && let Some((since, _)) = &mut self.gone {
            *since = Instant::now();
        }
        let moved = sent || received || returned > 0;
        if !moved && self.waits() {
            self.end(standing)?;
        }
        Ok(moved)
    }

    fn sent(&self) -> u64 {
        self.under_way.front().map_or(self.sends.sent(), |(start, _)| *start)
    }

    fn landed(&self) -> u64 {
        self.recvs.landed()
    }

    fn cancel(&mut self) {
        self.sends.clear();
        self.recvs.clear();
        self.call_back();
    }

    fn stir(&mut self) {
        self.wire.stir(self.stream.is_none());
    }

    fn interest(&self) -> Option<Interest<'_>> {
        let (receives, sends) = (!self.recvs.is_empty(), !self.sends.is_empty());
        let waits = self.waits();
        if waits && !self.wire.prepare_to_sleep(self.number, receives, sends) {
            self.bell.wake();
        }
        self.slept.set(waits || self.slept.get());
        Some(Interest { fd: self.wakes.as_fd(), read: waits, write: false })
    }
}
