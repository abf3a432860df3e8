//! A link between two ends in one process, for tests: nothing but memory, no descriptor.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::posts::{Recvs, Sends};
use super::{Interest, Landing, Link};
use crate::error::{Error, Result, Status};

/// One direction: the bytes on their way, at most `capacity`.
struct Pipe {
    bytes: VecDeque<u8>,
    capacity: usize,
    closed: bool,
}

/// One end.
pub struct LocalLink {
    out: Arc<Mutex<Pipe>>,
    input: Arc<Mutex<Pipe>>,
    sends: Sends,
    recvs: Recvs,
}

// SAFETY: the raw pointers are only used in `progress`, whose callers vouch for the memory behind
// them from whichever thread owns the link then.
unsafe impl Send for LocalLink {}

impl LocalLink {
    /// Both ends of a new link that holds `capacity` bytes in each direction.
    pub fn pair(capacity: usize) -> (LocalLink, LocalLink) {
        let pipe =
            || Arc::new(Mutex::new(Pipe { bytes: VecDeque::new(), capacity, closed: false }));
        let (there, back) = (pipe(), pipe());
        let end = |out: &Arc<Mutex<Pipe>>, input: &Arc<Mutex<Pipe>>| LocalLink {
            out: out.clone(),
            input: input.clone(),
            sends: Sends::default(),
            recvs: Recvs::default(),
        };
        (end(&there, &back), end(&back, &there))
    }
}

impl Link for LocalLink {
    unsafe fn post_send(&mut self, from: *const u8, len: usize) {
        self.sends.post(from, len);
    }

    unsafe fn post_recv(&mut self, landing: Landing, len: usize) {
        self.recvs.post(landing, len);
    }

    fn progress(&mut self) -> Result<bool> {
        let closed = || Error::new(Status::PeerLost, "connection closed by peer");
        let mut moved = false;
        while let Some((from, len)) = self.sends.front() {
            let mut pipe = self.out.lock();
            if pipe.closed {
                return Err(closed());
            }
            let room = (pipe.capacity - pipe.bytes.len()).min(len);
            if room == 0 {
                break;
            }
            // SAFETY: whoever posted these bytes keeps them valid and unchanged until they are sent.
            pipe.bytes.extend(unsafe { std::slice::from_raw_parts(from, room) });
            self.sends.advance(room);
            moved = true;
        }
        while let Some(front) = self.recvs.front() {
            let mut pipe = self.input.lock();
            let there = pipe.bytes.len().min(front.left);
            let take = there - there % front.landing.grain();
            if take == 0 {
                if pipe.closed && pipe.bytes.is_empty() {
                    return Err(closed());
                }
                break;
            }
            let bytes: Vec<u8> = pipe.bytes.drain(..take).collect();
            // SAFETY: whoever posted the landing vouches for its memory; `bytes` is our own, and
            // `done` and `take` are multiples of the grain.
            unsafe { front.landing.land(front.done, bytes.as_ptr(), take) };
            self.recvs.advance(take);
            moved = true;
        }
        Ok(moved)
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
        None
    }
}

impl Drop for LocalLink {
    fn drop(&mut self) {
        self.out.lock().closed = true;
        self.input.lock().closed = true;
    }
}
