//! Messages: a send, a receive, or both at once.

use std::ffi::c_int;

use super::Shared;
use super::library::{IN_PROGRESS, SUCCESS};
use super::routes::BYTE;
use super::work::{Needs, Patience};
use crate::backend::Message;
use crate::cuda::StreamHandle;
use crate::dtype::Dtype;
use crate::error::Result;

/// Bytes that go to a rank or come from it.
#[derive(Clone, Copy, Debug)]
pub enum Transfer {
    /// To this rank.
    Send(*const u8, usize, usize),
    /// From this rank.
    Recv(*mut u8, usize, usize),
}

impl Shared {
    /// A send, a receive, or both at once.
    ///
    /// # Safety
    /// As for [`Shared::launch`].
    pub(super) unsafe fn exchange(
        &self,
        dtype: Dtype,
        send: Option<Message<*const u8>>,
        recv: Option<Message<*mut u8>>,
        stream: StreamHandle,
        patience: &mut Patience,
        needs: &Needs,
    ) -> Result<()> {
        let size = dtype.size();
        let send = send.map(|m| Transfer::Send(m.memory, m.count * size, m.peer));
        let recv = recv.map(|m| Transfer::Recv(m.memory, m.count * size, m.peer));
        // SAFETY: as this function's contract says.
        unsafe { self.transfer(send.into_iter().chain(recv), stream, patience, needs) }
    }

    /// Several sends and receives as one, none of which waits for another.
    ///
    /// # Safety
    /// As for [`Shared::launch`], for all their memory.
    pub(super) unsafe fn transfer(
        &self,
        all: impl Iterator<Item = Transfer>,
        stream: StreamHandle,
        patience: &mut Patience,
        needs: &Needs,
    ) -> Result<()> {
        let mut what = "ncclGroupStart";
        let outcome = self.comm.call("ncclGroupEnd", |f, comm| {
            // SAFETY: the caller vouches for the memory; the communicator is there.
            unsafe {
                let mut code = (f.group_start)();
                if code != SUCCESS {
                    return code;
                }
                for transfer in all {
                    (what, code) = match transfer {
                        Transfer::Send(from, bytes, to) if bytes > 0 => {
                            let to = to as c_int;
                            let from = from.cast();
                            ("ncclSend", (f.send)(from, bytes, BYTE, to, comm, stream.raw()))
                        }
                        Transfer::Recv(into, bytes, from) if bytes > 0 => {
                            let (into, from) = (into.cast(), from as c_int);
                            ("ncclRecv", (f.recv)(into, bytes, BYTE, from, comm, stream.raw()))
                        }
                        _ => continue,
                    };
                    if !matches!(code, SUCCESS | IN_PROGRESS) {
                        break;
                    }
                }
                // Ends the group in any case; what went wrong first counts.
                let end = (f.group_end)();
                match code {
                    SUCCESS | IN_PROGRESS => {
                        what = "ncclGroupEnd";
                        end
                    }
                    code => code,
                }
            }
        });
        let progress = outcome.map_err(|e| match what {
            "ncclGroupEnd" => e,
            what => e.at(what),
        })?;
        self.await_host(progress, patience, needs)
    }
}
