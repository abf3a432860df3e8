//! A link over one TCP connection.

use std::io::IoSlice;
use std::net::TcpStream;
use std::os::fd::AsFd;

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};

use socket2::SockRef;

use super::posts::{Recvs, Sends};
use super::{Interest, Landing, Link};
use crate::error::{Error, Result, Status};

/// 64 KiB: what is read at once into the staging buffer, which then still is in the cache when it is
/// reduced. (All-sum of 4 and 64 MiB on 2 ranks, processor time: 128 KiB 1.25 and 1.14 times, 256 KiB
/// 1.17 and 1.05 times, 512 KiB 1.17 and 1.09 times that with 64 KiB.)
const STAGING: usize = 64 << 10;
/// 16 KiB: from here on bytes that are only stored are read straight to their place; below, reading
/// ahead saves a system call.
const DIRECT: usize = 16 << 10;
/// 1 MiB: no more is read in one step, so that sending goes on meanwhile.
const STEP: usize = 1 << 20;
/// 128 KiB to send and 4 MiB to receive, between ranks of one host: few bytes on their way stay in the
/// cache, and a wide window lets the sender go on at once. (All-sum on 2 ranks, 4, 16 and 64 MiB: 1.9,
/// 14 and 51 ms; with the sizes that the system chooses, which suit a network, 3.8, 17 and 62 ms; with
/// 128 KiB and a window of the system's choice 3.2, 13 and 50 ms; smaller ones alike up to 1 MiB.)
const LOCAL_BUFFERS: (usize, usize) = (128 << 10, 4 << 20);
/// Pieces that one system call sends: headers and data of several steps.
const PIECES: usize = 16;

/// One end of a connection.
pub struct TcpLink {
    stream: TcpStream,
    /// The far end, for messages: `rank 1 (10.0.0.2:5001)`.
    peer: String,
    sends: Sends,
    recvs: Recvs,
    /// Bytes that were read and have not landed: `staging[start..end]`.
    staging: Box<[u8]>,
    start: usize,
    end: usize,
}

// SAFETY: the raw pointers are only used in `progress`, whose callers vouch for the memory behind
// them from whichever thread owns the link then.
unsafe impl Send for TcpLink {}

impl TcpLink {
    /// A link over a connected stream.
    pub fn new(stream: TcpStream, peer: String) -> Result<TcpLink> {
        stream.set_nonblocking(true).map_err(|e| Error::system("cannot unblock a socket", e))?;
        stream.set_nodelay(true).map_err(|e| Error::system("TCP_NODELAY", e))?;
        if is_local(&stream) {
            let (socket, (send, recv)) = (SockRef::from(&stream), LOCAL_BUFFERS);
            // Only a matter of speed: the system may allow less.
            let sized = socket.set_send_buffer_size(send);
            if let Err(e) = sized.and_then(|()| socket.set_recv_buffer_size(recv)) {
                log::debug!("buffer sizes for {peer}: {e}");
            }
        }
        Ok(TcpLink {
            stream,
            peer,
            sends: Sends::default(),
            recvs: Recvs::default(),
            staging: vec![0; STAGING].into_boxed_slice(),
            start: 0,
            end: 0,
        })
    }

    fn lost(&self, cause: rustix::io::Errno) -> Error {
        let cause = std::io::Error::from(cause);
        Error::new(Status::PeerLost, format!("connection to {}: {cause}", self.peer))
    }

    fn send_some(&mut self) -> Result<bool> {
        if self.sends.is_empty() {
            return Ok(false);
        }
        let mut pieces = [IoSlice::new(&[]); PIECES];
        let mut count = 0;
        for (piece, (from, len)) in pieces.iter_mut().zip(self.sends.iter()) {
            // SAFETY: whoever posted these bytes keeps them valid and unchanged until they are sent.
            *piece = IoSlice::new(unsafe { std::slice::from_raw_parts(from, len) });
            count += 1;
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let mut none = SendAncillaryBuffer::default();
        let sent = match sendmsg(&self.stream, &pieces[..count], &mut none, flags) {
            Ok(sent) => sent,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(false),
            Err(e) => return Err(self.lost(e)),
        };
        self.sends.advance(sent);
        Ok(true)
    }

    /// Lands staged bytes as far as posts and grains allow.
    fn land_staged(&mut self) -> bool {
        // SAFETY: whoever posted the landings vouches for their memory; staging is our own.
        let landed = unsafe { self.recvs.land(&self.staging[self.start..self.end]) };
        self.start += landed;
        landed > 0
    }

    fn receive_some(&mut self) -> Result<bool> {
        if self.recvs.is_empty() {
            return Ok(false);
        }
        if self.land_staged() {
            return Ok(true);
        }
        let Some(front) = self.recvs.front() else {
            return Ok(false);
        };
        if let (Landing::Copy { into }, true) =
            (front.landing, front.left >= DIRECT && self.start == self.end)
        {
            // SAFETY: whoever posted the landing vouches for its memory; it may be uninitialised,
            // which a slice of MaybeUninit allows.
            let place = unsafe {
                let into = into.add(front.done).cast::<std::mem::MaybeUninit<u8>>();
                std::slice::from_raw_parts_mut(into, front.left.min(STEP))
            };
            let received = match recv(&self.stream, place, RecvFlags::DONTWAIT) {
                Ok(((initialised, _), _)) => initialised.len(),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(false),
                Err(e) => return Err(self.lost(e)),
            };
            self.recvs.advance(received);
            return self.more(received);
        }
        // What is left is less than a grain, or there is none: it moves to the front.
        self.staging.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let free = &mut self.staging[self.end..];
        let received = match recv(&self.stream, free, RecvFlags::DONTWAIT) {
            Ok((received, _)) => received,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(false),
            Err(e) => return Err(self.lost(e)),
        };
        self.end += received;
        self.more(received)?;
        self.land_staged();
        Ok(true)
    }

    fn more(&self, received: usize) -> Result<bool> {
        if received == 0 {
            let message = format!("connection to {} closed by peer", self.peer);
            return Err(Error::new(Status::PeerLost, message));
        }
        Ok(true)
    }
}

/// Whether both ends are on this host.
fn is_local(stream: &TcpStream) -> bool {
    match (stream.local_addr(), stream.peer_addr()) {
        (Ok(here), Ok(there)) => here.ip() == there.ip() || there.ip().is_loopback(),
        _ => false,
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        // Also where a forked child still has the descriptor; what was sent arrives before it.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }
}

impl Link for TcpLink {
    unsafe fn post_send(&mut self, from: *const u8, len: usize) {
        self.sends.post(from, len);
    }

    unsafe fn post_recv(&mut self, landing: Landing, len: usize) {
        self.recvs.post(landing, len);
    }

    fn progress(&mut self) -> Result<bool> {
        let sent = self.send_some()?;
        Ok(self.receive_some()? || sent)
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
        Some(Interest {
            fd: self.stream.as_fd(),
            read: !self.recvs.is_empty(),
            write: !self.sends.is_empty(),
        })
    }
}
