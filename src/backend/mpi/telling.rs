//! How news of failures travel: as messages on the communicator that all ranks share.
//!
//! Nobody waits for them: a rank takes them in now and then when it makes a call, when it asks for a
//! group's status, and while it waits with a limit.

use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering;

use super::abi::{MessageStatus, Request, SUCCESS};
use super::id::GroupId;
use super::news::Failure;
use super::runtime::Runtime;
use crate::dtype::Dtype;
use crate::error::{Error, Status};
use crate::recorder;

/// 4 KiB: what a piece of news may have; MPI sends so little at once, without waiting for a receive.
const NEWS_BYTES: usize = 4096;
/// 1 KiB: what of a cause's sentence travels; escaped, it still fits.
const SENTENCE_BYTES: usize = 1024;
/// There is one kind of message on the communicator.
const TAG: c_int = 0;

impl Runtime {
    /// Takes in what has come, unless somebody did so within this tick of the coarse clock (1 to
    /// 10 ms): to look takes 0.4 us in Open MPI, half of what a small all_sum takes. Must be called by
    /// who may call MPI.
    pub fn listen_now_and_then(&self) {
        let now = recorder::now();
        if self.news.heard.load(Ordering::Relaxed) != now {
            self.news.heard.store(now, Ordering::Relaxed);
            self.listen();
        }
    }

    /// Takes in what has come; must be called by who may call MPI.
    pub fn listen(&self) {
        let Some(comm) = self.news.comm() else { return };
        // Whoever is at it takes in everything.
        let Some(_listening) = self.news.listening.try_lock() else { return };
        let abi = &self.library.abi;
        let (bytes, source) = (abi.datatype(Dtype::Uint8), abi.any_source);
        let mut status = MessageStatus::default();
        let mut buffer = [0u8; NEWS_BYTES];
        // One look may only make MPI fetch what the next one finds.
        let mut misses = 0;
        while misses < 2 {
            let (mut there, mut count): (c_int, c_int) = (0, 0);
            let code = self.code(|f| {
                // SAFETY: the communicator is ours, and the results are.
                let code = unsafe { (f.iprobe)(source, TAG, comm, &mut there, &mut status) };
                if code != SUCCESS || there == 0 {
                    return code;
                }
                let at: *mut c_void = buffer.as_mut_ptr().cast();
                // SAFETY: the buffer has as many bytes; the message is there already.
                unsafe {
                    let code =
                        (f.recv)(at, NEWS_BYTES as c_int, bytes, source, TAG, comm, &mut status);
                    if code == SUCCESS { (f.get_count)(&status, bytes, &mut count) } else { code }
                }
            });
            if !matches!(code, Ok(SUCCESS)) {
                return;
            }
            if there == 0 {
                misses += 1;
                continue;
            }
            let text = buffer.get(..usize::try_from(count).unwrap_or(0)).unwrap_or_default();
            match serde_json::from_slice::<Failure>(text) {
                Ok(failure) => {
                    if failure.id.group == 0 || failure.cause.status == Status::Timeout {
                        self.spoil();
                    }
                    match failure.id {
                        GroupId::STARTS => self.is_out_of_step(failure.cause),
                        _ => self.news.deliver(failure),
                    }
                }
                Err(e) => log::warn!("mpi: news that nobody can read: {e}"),
            }
        }
    }

    /// Tells these ranks, of all that were started together, that a group has failed. Must be called
    /// by who may call MPI.
    pub fn tell(&self, ranks: &[usize], id: GroupId, cause: &Error) {
        let Some(comm) = self.news.comm() else { return };
        let cause = Error::new(cause.status, clipped(&cause.message));
        let Ok(text) = serde_json::to_vec(&Failure { id, cause }) else { return };
        if text.len() > NEWS_BYTES {
            return log::warn!("mpi: a cause of {} bytes is not told", text.len());
        }
        // MPI may read it until nobody knows when: a failure is worth some bytes for good.
        let text: &'static [u8] = text.leak();
        let bytes = self.library.abi.datatype(Dtype::Uint8);
        for rank in ranks.iter().filter(|rank| **rank != self.rank) {
            let mut request = Request(0);
            let (at, count) = (text.as_ptr().cast(), text.len() as c_int);
            // SAFETY: the text stays; MPI completes the send by itself.
            let outcome = self.call("MPI_Isend", |f| unsafe {
                let code = (f.isend)(at, count, bytes, *rank as c_int, TAG, comm, &mut request);
                if code == SUCCESS { (f.request_free)(&mut request) } else { code }
            });
            if let Err(e) = outcome {
                return log::warn!("mpi: rank {rank} is not told of a failure: {e}");
            }
        }
    }

    /// Another rank has said that starts are out of step.
    fn is_out_of_step(&self, cause: Error) {
        // The first cause stays.
        let _ = self.out_of_step.set(cause);
    }
}

/// What of a sentence travels.
fn clipped(sentence: &str) -> &str {
    let mut end = sentence.len().min(SENTENCE_BYTES);
    while !sentence.is_char_boundary(end) {
        end -= 1;
    }
    &sentence[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_clipped_between_letters() {
        assert_eq!(clipped("short"), "short");
        let long = format!("{}é", "x".repeat(SENTENCE_BYTES - 1));
        assert_eq!(clipped(&long).len(), SENTENCE_BYTES - 1);
    }
}
