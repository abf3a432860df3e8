//! Messages: sends and receives between two ranks.
//!
//! A tag tells the receiver the element type, and whether more of the message follows: so sizes and
//! types are compared without a header or a probe.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::time::Duration;

use super::Mpi;
use super::abi::{MessageStatus, Request, SUCCESS};
use super::staging::Staging;
use super::waiting::Way;
use crate::backend::{Limits, Message};
use crate::call::{self, Call, Verb};
use crate::dtype::Dtype;
use crate::error::{Result, fail};

/// What of a message travels at once.
#[derive(Clone, Copy)]
struct Part {
    peer: c_int,
    /// In bytes.
    start: usize,
    count: c_int,
    tag: c_int,
}

/// The tag's lower bits are the element type; this one says that the message goes on.
const MORE: c_int = 16;

/// The parts of a message of so many bytes; one that is empty travels, too.
fn parts(peer: usize, bytes: usize, part_bytes: usize, dtype: Dtype) -> impl Iterator<Item = Part> {
    (0..bytes.max(1)).step_by(part_bytes).map(move |start| {
        let count = part_bytes.min(bytes - start);
        let more = if start + count < bytes { MORE } else { 0 };
        Part { peer: peer as c_int, start, count: count as c_int, tag: dtype as c_int | more }
    })
}

impl Mpi {
    /// A send, a receive, or both at once.
    ///
    /// # Safety
    /// As for [`Backend::run`](crate::backend::Backend::run).
    pub(super) unsafe fn exchange(
        &self,
        dtype: Dtype,
        send: Option<Message<*const u8>>,
        recv: Option<Message<*mut u8>>,
        limits: Limits,
    ) -> Result<()> {
        let limit = if send.is_none() { limits.recv } else { limits.operation };
        let way = self.way(limits, limit);
        let size = dtype.size();
        let (mut input, mut output) = (Staging::default(), Staging::default());
        let mut from = send.map_or(ptr::null(), |message| message.memory);
        let mut into = recv.map_or(ptr::null_mut(), |message| message.memory);
        if matches!(way, Way::Bounded(_)) {
            if let Some(message) = send {
                let staged = input.room(message.count * size)?;
                // SAFETY: the caller vouches for as many bytes; the other side is ours.
                unsafe { copy(message.memory, staged, message.count * size) };
                from = staged;
            }
            if let Some(message) = recv {
                into = output.room(message.count * size)?;
            }
        }
        // SAFETY: the caller vouches for its memory; ours is as large.
        let outcome = unsafe { self.transfer(dtype, send, recv, from, into, way) };
        if outcome.is_err() && matches!(way, Way::Bounded(_)) {
            // Still under way.
            std::mem::forget((input, output));
            return outcome;
        }
        outcome?;
        if let (Some(message), Way::Bounded(_)) = (recv, way) {
            // SAFETY: as above.
            unsafe { copy(into, message.memory, message.count * size) };
        }
        Ok(())
    }

    /// Part by part; those of both directions at once, so that no cycle of ranks waits for itself.
    unsafe fn transfer(
        &self,
        dtype: Dtype,
        send: Option<Message<*const u8>>,
        recv: Option<Message<*mut u8>>,
        from: *const u8,
        into: *mut u8,
        way: Way,
    ) -> Result<()> {
        let cut = |peer, count: usize| parts(peer, count * dtype.size(), self.part_bytes, dtype);
        let mut sends = send.into_iter().flat_map(|m| cut(m.peer, m.count));
        let mut recvs = recv.into_iter().flat_map(|m| cut(m.peer, m.count));
        loop {
            let (sending, receiving) = (sends.next(), recvs.next());
            if sending.is_none() && receiving.is_none() {
                return Ok(());
            }
            // SAFETY: parts lie within the messages, for whose memory the caller vouches.
            let arrived = unsafe {
                match way {
                    Way::Blocking => self.transfer_blocking(sending, receiving, from, into)?,
                    Way::Bounded(limit) => {
                        self.transfer_bounded(sending, receiving, from, into, limit)?
                    }
                }
            };
            if let (Some(part), Some(message), Some((code, status))) = (receiving, recv, arrived) {
                self.compare(dtype, &message, part, code, &status)?;
            }
        }
    }

    /// The receive's error code and status, if there was one.
    unsafe fn transfer_blocking(
        &self,
        sending: Option<Part>,
        receiving: Option<Part>,
        from: *const u8,
        into: *mut u8,
    ) -> Result<Option<(c_int, MessageStatus)>> {
        let (bytes, any_tag) = (self.runtime.library.abi.datatype(Dtype::Uint8), self.any_tag());
        let mut status = MessageStatus::default();
        let send = |part: Part| {
            // SAFETY: the part lies within the message, for which the caller vouches.
            self.runtime.call("MPI_Send", |f| unsafe {
                (f.send)(at(from, part), part.count, bytes, part.peer, part.tag, self.comm)
            })
        };
        let Some(part) = receiving else {
            return sending.map_or(Ok(()), send).map(|()| None);
        };
        let to = at(into, part).cast_mut();
        let code = if let Some(sent) = sending {
            let mut request = Request(0);
            // SAFETY: likewise; the wait below ends the receive.
            self.runtime.call("MPI_Irecv", |f| unsafe {
                (f.irecv)(to, part.count, bytes, part.peer, any_tag, self.comm, &mut request)
            })?;
            let sent = send(sent);
            // SAFETY: the request of the receive above.
            let code = self.runtime.code(|f| unsafe { (f.wait)(&mut request, &mut status) })?;
            sent.map(|()| code)?
        } else {
            // SAFETY: likewise.
            self.runtime.code(|f| unsafe {
                (f.recv)(to, part.count, bytes, part.peer, any_tag, self.comm, &mut status)
            })?
        };
        Ok(Some((code, status)))
    }

    /// The same in nonblocking calls, on memory of ours.
    unsafe fn transfer_bounded(
        &self,
        sending: Option<Part>,
        receiving: Option<Part>,
        from: *const u8,
        into: *mut u8,
        limit: Option<Duration>,
    ) -> Result<Option<(c_int, MessageStatus)>> {
        let (bytes, any_tag) = (self.runtime.library.abi.datatype(Dtype::Uint8), self.any_tag());
        let mut requests = [Request(0); 2];
        let [incoming, outgoing] = &mut requests;
        if let Some(part) = receiving {
            let to = at(into, part).cast_mut();
            // SAFETY: memory of ours, kept for good should this fail.
            self.runtime.call("MPI_Irecv", |f| unsafe {
                (f.irecv)(to, part.count, bytes, part.peer, any_tag, self.comm, incoming)
            })?;
        }
        if let Some(part) = sending {
            // SAFETY: likewise.
            self.runtime.call("MPI_Isend", |f| unsafe {
                let from = at(from, part);
                (f.isend)(from, part.count, bytes, part.peer, part.tag, self.comm, outgoing)
            })?;
        }
        let mut status = MessageStatus::default();
        let mut arrived = None;
        if receiving.is_some() {
            let code = self.finish("the receive", limit, incoming, &mut status)?;
            arrived = Some((code, status));
        }
        if sending.is_some() {
            let code = self.finish("the send", limit, outgoing, &mut MessageStatus::default())?;
            self.runtime.library.check("MPI_Isend", code)?;
        }
        Ok(arrived)
    }

    fn any_tag(&self) -> c_int {
        self.runtime.library.abi.any_tag
    }

    /// Whether what came is what was expected.
    fn compare(
        &self,
        dtype: Dtype,
        message: &Message<*mut u8>,
        part: Part,
        code: c_int,
        status: &MessageStatus,
    ) -> Result<()> {
        let library = &self.runtime.library;
        let call = |dtype: Dtype, count| Call {
            sequence: message.sequence,
            verb: Verb::Message,
            dtype: dtype as u8,
            root: -1,
            count,
        };
        let ours = call(dtype, message.count as u64);
        if code != SUCCESS && !library.is_truncation(code) {
            return library.check("the receive", code);
        }
        let mut count: c_int = 0;
        // SAFETY: the status of a completed receive of bytes.
        self.runtime.call("MPI_Get_count", |f| unsafe {
            (f.get_count)(status, library.abi.datatype(Dtype::Uint8), &mut count)
        })?;
        let tag = status.0[library.abi.status_tag];
        if code == SUCCESS && (tag, count) == (part.tag, part.count) {
            return Ok(());
        }
        let (rank, peer) = (self.rank, message.peer);
        match Dtype::from_number(tag & !MORE) {
            // All of it is here, so its size is known.
            Some(theirs) if code == SUCCESS && tag & MORE == 0 => {
                let bytes = part.start + count as usize;
                let theirs = call(theirs, (bytes / theirs.size()) as u64);
                Err(call::mismatch(rank, &ours, peer, &theirs))
            }
            _ => fail!(
                Mismatch,
                "rank {rank} receives a {ours}, rank {peer} sent a longer one; \
                 sizes and types of a send and its receive must be equal"
            ),
        }
    }
}

/// Where a part begins; somewhere, if it is empty.
fn at(memory: *const u8, part: Part) -> *const c_void {
    match part.count {
        0 => ptr::dangling(),
        _ => memory.wrapping_add(part.start).cast(),
    }
}

/// Copies, if there is anything to copy.
///
/// # Safety
/// `from` is readable and `to` writable for `bytes`, and they do not overlap.
pub(super) unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    if bytes > 0 {
        // SAFETY: as this function's contract says.
        unsafe { ptr::copy_nonoverlapping(from, to, bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_message() {
        let cut = |bytes| -> Vec<(usize, c_int, c_int)> {
            parts(3, bytes, 64, Dtype::Int16).map(|p| (p.start, p.count, p.tag)).collect()
        };
        assert_eq!(cut(0), [(0, 0, 2)]);
        assert_eq!(cut(64), [(0, 64, 2)]);
        assert_eq!(cut(130), [(0, 64, 18), (64, 64, 18), (128, 2, 2)]);
    }
}
