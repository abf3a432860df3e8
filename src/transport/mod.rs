//! Links: ordered pipes of bytes between this rank and one other.
//!
//! Sends and receives are *posted*: the link remembers where the bytes are or shall go, and moves
//! them when [`Link::progress`] is called, never at another time. Both directions are independent,
//! and each keeps the order of its posts. What has moved is told by two counters, so that whoever
//! posted knows how far each of its pieces has come.
//!
//! A link knows nothing of collectives. What it lands may be reduced on the way ([`Landing`]), so
//! that bytes go from where the transport has them straight to where they belong.

pub mod bell;
pub mod board;
pub mod byte_ring;
pub mod checked;
#[cfg(test)]
mod conformance;
pub mod copy;
pub mod late;
pub mod local;
pub mod posts;
pub mod rdma;
pub mod segment;
pub mod shm;
pub mod tcp;

use std::os::fd::BorrowedFd;

use crate::error::Result;
use crate::reduce::Kernel;

/// What becomes of bytes that arrive.
#[derive(Clone, Copy, Debug)]
pub enum Landing {
    /// They are stored.
    Copy {
        /// Where.
        into: *mut u8,
    },
    /// They are combined with bytes that are here: `into = received op own`, or `own op received`.
    Reduce {
        /// Where the result goes; may be `own`.
        into: *mut u8,
        /// This rank's operand.
        own: *const u8,
        /// The operation.
        kernel: Kernel,
        /// Bytes of an element.
        size: usize,
        /// Whether `own` is the left operand.
        own_first: bool,
    },
}

impl Landing {
    /// Bytes that can only land together.
    pub fn grain(&self) -> usize {
        match self {
            Landing::Copy { .. } => 1,
            Landing::Reduce { size, .. } => *size,
        }
    }

    /// Lands `len` bytes, `offset` bytes behind the start.
    ///
    /// # Safety
    /// The memory that the landing names is valid for `offset + len` bytes and no thread uses it
    /// meanwhile; `from` is valid for `len` bytes and does not overlap it; `offset` and `len` are
    /// multiples of the grain.
    pub unsafe fn land(&self, offset: usize, from: *const u8, len: usize) {
        match *self {
            // SAFETY: as this function's contract says.
            Landing::Copy { into } => unsafe {
                std::ptr::copy_nonoverlapping(from, into.add(offset), len);
            },
            Landing::Reduce { into, own, kernel, size, own_first } => {
                // SAFETY: as this function's contract says; `into` may be `own`, as kernels allow.
                unsafe {
                    let (into, own) = (into.add(offset), own.add(offset));
                    let (a, b) = if own_first { (own, from) } else { (from, own) };
                    kernel(into, a, b, len / size);
                }
            }
        }
    }
}

/// What a link waits for when nothing moves.
#[derive(Clone, Copy, Debug)]
pub struct Interest<'a> {
    /// Its descriptor.
    pub fd: BorrowedFd<'a>,
    /// Until it can be read.
    pub read: bool,
    /// Until it can be written.
    pub write: bool,
}

/// Memory that a call sends from.
#[derive(Clone, Copy, Debug)]
pub struct Lent {
    /// Where it begins.
    pub from: *const u8,
    /// Bytes of it.
    pub len: usize,
    /// Bytes that the call sends of it, over all its links.
    pub sent: u64,
    /// The call's number: no other of this process has the same.
    pub call: u64,
}

/// An ordered pipe of bytes to and from one peer.
pub trait Link: Send {
    /// Some of what is posted from now on will be of this memory: a link that sends from where bytes are
    /// gets ready for that. What was lent before is taken back: all that was posted of it was sent.
    ///
    /// # Safety
    /// It is valid until it is taken back or the link is cancelled.
    unsafe fn lend(&mut self, _memory: &[Lent]) {}

    /// Sends these bytes after all that was posted before.
    ///
    /// # Safety
    /// They stay valid and unchanged until [`Link::sent`] has counted them or the link is cancelled.
    unsafe fn post_send(&mut self, from: *const u8, len: usize);

    /// Receives `len` bytes, a multiple of the landing's grain, after all that was posted before.
    ///
    /// # Safety
    /// The landing's memory stays valid, and nobody else uses it, until [`Link::landed`] has
    /// counted these bytes or the link is cancelled.
    unsafe fn post_recv(&mut self, landing: Landing, len: usize);

    /// Moves what can be moved without waiting; whether anything moved. Posted memory is touched
    /// here and nowhere else. After an error the link is of no more use.
    fn progress(&mut self) -> Result<bool>;

    /// Bytes sent since the link was made: their memory may be reused.
    fn sent(&self) -> u64;

    /// Bytes landed since the link was made.
    fn landed(&self) -> u64;

    /// Forgets what is posted. Nobody reads or writes the memory any more when this returns.
    fn cancel(&mut self);

    /// Called now and then while nothing moves: makes it show that the peer is gone, or that something
    /// was lost, where only something that is sent does.
    fn stir(&mut self) {}

    /// What to wait for, asked just before that: some links get ready to be woken now, and find out
    /// only after it that the peer is gone. `None` where only calling [`Link::progress`] again tells.
    fn interest(&self) -> Option<Interest<'_>>;
}
