//! A link with checksums: what goes over it is that of the link below in frames, and no byte lands
//! before the checksum of its frame was found right.
//!
//! The sender's memory is summed up, then sent by the link below from where it is; at the other end a
//! frame is received into a buffer here, and lands from that.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;

use super::posts::{Recvs, Sends};
use super::{Interest, Landing, Lent, Link};
use crate::error::{Error, Result, Status};
use crate::frame::{Frame, HEADER_BYTES};

/// 64 KiB: the most data of a frame. It is summed up and copied while it is in the cache, and its header
/// costs nothing beside it.
const LARGEST: usize = 64 << 10;
/// Frames that the link below is told of at once: enough to fill a system call and the socket behind it,
/// few enough that what was summed up still is in the cache when it is copied.
const UNDER_WAY: usize = 4;
/// 16 bytes: no element is wider, so that less is left of a frame when the next one is needed.
const WIDEST: usize = 16;

/// One end.
pub struct CheckedLink<L> {
    below: L,
    /// The far end, for messages: `rank 1 (10.0.0.2:5001)`.
    peer: String,
    out: Outgoing,
    input: Incoming,
}

struct Outgoing {
    /// What is in no frame yet.
    posts: Sends,
    /// The frames under way, the next one first: where each ends in the stream below, and its data.
    frames: VecDeque<(u64, usize)>,
    /// Their headers, each at its number modulo their count. (The link below reads them through raw
    /// pointers: no reference is made to one that is under way.)
    headers: Vec<[u8; HEADER_BYTES]>,
    /// The next frame's.
    number: u64,
    /// Where the last frame ends in the stream below.
    end: u64,
    sent: u64,
}

struct Incoming {
    posts: Recvs,
    /// Bytes posted so far.
    wanted: u64,
    /// The frame whose data is waited for; none while its header is.
    frame: Option<Frame>,
    /// The next frame's.
    number: u64,
    /// What was asked of the link below: how far it will have come then.
    asked: Option<u64>,
    /// Whether that is a frame's data and the next header, in one.
    ahead: bool,
    /// Bytes of what comes next that are here already, after a cancelled request.
    here: usize,
    /// What is right and has not landed is `data[start..end]`; what comes next goes behind it.
    data: Vec<u8>,
    start: usize,
    end: usize,
    /// Data found right so far.
    checked: u64,
}

// SAFETY: the raw pointers are only used in `progress`, whose callers vouch for the memory behind
// them from whichever thread owns the link then.
unsafe impl<L: Send> Send for CheckedLink<L> {}

impl<L: Link> CheckedLink<L> {
    /// A link over `below`, whose other end has one as well.
    pub fn new(below: L, peer: String) -> CheckedLink<L> {
        CheckedLink {
            below,
            peer,
            out: Outgoing {
                posts: Sends::default(),
                frames: VecDeque::with_capacity(UNDER_WAY),
                headers: vec![[0; HEADER_BYTES]; UNDER_WAY],
                number: 0,
                end: 0,
                sent: 0,
            },
            input: Incoming {
                posts: Recvs::default(),
                wanted: 0,
                frame: None,
                number: 0,
                asked: None,
                ahead: false,
                here: 0,
                data: vec![0; WIDEST + LARGEST + HEADER_BYTES],
                start: 0,
                end: 0,
                checked: 0,
            },
        }
    }

    /// Puts what is posted into frames, as long as few are under way.
    fn frame_some(&mut self) {
        let out = &mut self.out;
        while out.frames.len() < UNDER_WAY && !out.posts.is_empty() {
            let pieces = first(&out.posts, LARGEST);
            // SAFETY: whoever posted these bytes keeps them valid and unchanged until they are sent.
            let bytes = pieces.map(|(from, len)| unsafe { std::slice::from_raw_parts(from, len) });
            let frame = Frame::of(bytes);
            let slot = (out.number % UNDER_WAY as u64) as usize;
            // SAFETY: there is one of this number, and the frame that had it before has been sent.
            let header = unsafe {
                let header = out.headers.as_mut_ptr().add(slot);
                header.write(frame.encode(out.number));
                header.cast::<u8>()
            };
            // SAFETY: a header stays until its frame has been sent; for the others as above.
            unsafe {
                self.below.post_send(header, HEADER_BYTES);
                first(&out.posts, LARGEST).for_each(|(from, len)| self.below.post_send(from, len));
            }
            out.posts.advance(frame.length());
            out.number += 1;
            out.end += (HEADER_BYTES + frame.length()) as u64;
            out.frames.push_back((out.end, frame.length()));
        }
    }

    /// Counts the frames that have been sent.
    fn count_sent(&mut self) {
        while let Some((end, data)) = self.out.frames.front() {
            if *end > self.below.sent() {
                break;
            }
            self.out.sent += *data as u64;
            self.out.frames.pop_front();
        }
    }

    /// Asks the link below for what comes next, if something is to land. The next header is asked for
    /// with a frame's data where it will be needed: then it costs no system call, and no copy of what
    /// comes behind it.
    fn ask(&mut self) {
        let input = &mut self.input;
        if input.asked.is_some() || input.posts.is_empty() {
            return;
        }
        if input.here == 0 {
            // What is left is less than an element.
            input.data.copy_within(input.start..input.end, 0);
            (input.start, input.end) = (0, input.end - input.start);
        }
        let left = input.end - input.start;
        let len = input.frame.map_or(0, |frame| frame.length());
        input.ahead = len > 0 && input.wanted - input.posts.landed() > (left + len) as u64;
        let header = if len == 0 || input.ahead { HEADER_BYTES } else { 0 };
        let rest = len + header - input.here;
        input.asked = Some(self.below.landed() + rest as u64);
        // SAFETY: the bytes are the buffer's, which is as long as what is left, a frame and a header;
        // nobody looks at them until they have landed, and they stay where they are when the link is
        // moved.
        unsafe {
            let into = input.data.as_mut_ptr().add(input.end + input.here);
            self.below.post_recv(Landing::Copy { into }, rest);
        }
    }

    /// Checks what was asked for, as soon as it is there; whether it was.
    fn check(&mut self) -> Result<bool> {
        let input = &mut self.input;
        let Some(asked) = input.asked else { return Ok(false) };
        let header = if input.ahead { HEADER_BYTES as u64 } else { 0 };
        let due = if input.frame.is_some() { asked - header } else { asked };
        if self.below.landed() < due {
            return Ok(false);
        }
        input.here = 0;
        let Some(frame) = input.frame.take() else {
            input.asked = None;
            let header = input.data[input.end..].first_chunk();
            let frame = header.and_then(|header| Frame::decode(header, input.number));
            input.frame = frame.filter(|frame| (1..=LARGEST).contains(&frame.length()));
            if input.frame.is_none() {
                let at = input.checked;
                return Err(self.changed(format_args!(
                    "at byte {at} of this connection bytes were changed, lost or doubled"
                )));
            }
            return Ok(true);
        };
        if !input.ahead {
            input.asked = None;
        }
        let (start, end) = (input.end, input.end + frame.length());
        let (from, to) = (input.checked, input.checked + frame.length() as u64);
        if !frame.holds(&input.data[start..end]) {
            return Err(self.changed(format_args!(
                "bytes {from} to {to} of this connection have another checksum"
            )));
        }
        (input.end, input.checked, input.number) = (end, to, input.number + 1);
        Ok(true)
    }

    /// Lands what was found right as far as posts and grains allow; whether there was any.
    fn land(&mut self) -> bool {
        let input = &mut self.input;
        // SAFETY: whoever posted the landings vouches for their memory; the buffer is our own.
        let landed = unsafe { input.posts.land(&input.data[input.start..input.end]) };
        input.start += landed;
        landed > 0
    }

    fn changed(&self, what: impl fmt::Display) -> Error {
        let message = format!(
            "what came from {} is not what it sent: {what} (MLXD_CHECKSUM; the network or a machine \
             on the way is faulty)",
            self.peer
        );
        Error::new(Status::System, message)
    }
}

/// The first pieces of what is posted, of `limit` bytes at most.
fn first(posts: &Sends, limit: usize) -> impl Iterator<Item = (*const u8, usize)> {
    posts.iter().scan(limit, |left, (from, len)| {
        let take = len.min(*left);
        *left -= take;
        (take > 0).then_some((from, take))
    })
}

impl<L: Link> Link for CheckedLink<L> {
    unsafe fn lend(&mut self, memory: &[Lent]) {
        // What is summed up is sent from where it is.
        // SAFETY: as this function's contract says.
        unsafe { self.below.lend(memory) };
    }

    unsafe fn post_send(&mut self, from: *const u8, len: usize) {
        self.out.posts.post(from, len);
    }

    unsafe fn post_recv(&mut self, landing: Landing, len: usize) {
        self.input.posts.post(landing, len);
        self.input.wanted += len as u64;
    }

    fn progress(&mut self) -> Result<bool> {
        // What is left of a frame comes first: the link below knows nothing of it.
        let landed = self.land();
        self.frame_some();
        self.ask();
        let moved = self.below.progress();
        self.count_sent();
        // What had come before the end lands nevertheless.
        let checked = self.check()?;
        let landed = self.land() || landed;
        Ok(moved? || checked || landed)
    }

    fn sent(&self) -> u64 {
        self.out.sent
    }

    fn landed(&self) -> u64 {
        self.input.posts.landed()
    }

    /// A frame of which a part has been sent by then is never whole, which the other end will find out;
    /// of others it never hears.
    fn cancel(&mut self) {
        let input = &mut self.input;
        if let Some(asked) = input.asked.take() {
            let len = input.frame.map_or(0, |frame| frame.length());
            let header = if len == 0 || input.ahead { HEADER_BYTES } else { 0 };
            input.here = len + header - (asked - self.below.landed()) as usize;
        }
        input.posts.clear();
        input.wanted = input.posts.landed();
        self.below.cancel();
        let (out, sent) = (&mut self.out, self.below.sent());
        let unsent = |(end, len): &&(u64, usize)| end - (HEADER_BYTES + len) as u64 >= sent;
        out.number -= out.frames.iter().filter(unsent).count() as u64;
        out.posts.clear();
        out.frames.clear();
        out.end = sent;
    }

    fn stir(&mut self) {
        self.below.stir();
    }

    fn interest(&self) -> Option<Interest<'_>> {
        self.below.interest()
    }
}
