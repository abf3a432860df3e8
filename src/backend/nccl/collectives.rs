//! Collectives: each is one of NCCL's, or a group of its sends and receives.

use super::Shared;
use super::messages::Transfer;
use super::routes::{BYTE, MAX, Route, route};
use super::work::{Needs, Patience};
use crate::backend::Collective;
use crate::call::Verb;
use crate::collective::reduction;
use crate::cuda::StreamHandle;
use crate::error::{Result, fail};

impl Shared {
    /// Asks NCCL for a collective on this stream.
    ///
    /// # Safety
    /// As for [`Shared::launch`].
    pub(super) unsafe fn collective(
        &self,
        collective: &Collective,
        stream: StreamHandle,
        patience: &mut Patience,
        needs: &Needs,
    ) -> Result<()> {
        let reduction = reduction(collective.verb);
        // SAFETY: as this function's contract says.
        unsafe {
            match reduction.map(|reduction| (reduction, route(reduction, collective.dtype))) {
                Some((reduction, Route::Staged)) => {
                    self.staged(collective, reduction, stream, patience, needs)
                }
                Some((_, Route::Nccl { dtype, op, parts })) => {
                    self.reduce(collective, (dtype, op, parts), stream, patience, needs)
                }
                None => self.move_bytes(collective, stream, patience, needs),
            }
        }
    }

    unsafe fn reduce(
        &self,
        collective: &Collective,
        (dtype, op, parts): (i32, i32, usize),
        stream: StreamHandle,
        patience: &mut Patience,
        needs: &Needs,
    ) -> Result<()> {
        let Collective { verb, count, input, output, .. } = *collective;
        let (from, into, count) = (input.cast(), output.cast(), count * parts);
        let progress = match verb {
            Verb::SumScatter => {
                let count = count / self.member.ranks.len();
                // SAFETY: the caller vouches for the memory; the communicator is there.
                self.comm.call("ncclReduceScatter", |f, comm| unsafe {
                    (f.reduce_scatter)(from, into, count, dtype, op, comm, stream.raw())
                })
            }
            // SAFETY: likewise.
            _ => self.comm.call("ncclAllReduce", |f, comm| unsafe {
                (f.all_reduce)(from, into, count, dtype, op, comm, stream.raw())
            }),
        };
        self.await_host(progress?, patience, needs)
    }

    unsafe fn move_bytes(
        &self,
        collective: &Collective,
        stream: StreamHandle,
        patience: &mut Patience,
        needs: &Needs,
    ) -> Result<()> {
        let Collective { verb, dtype, count, root, input, output } = *collective;
        let (from, into, bytes) = (input.cast(), output.cast(), count * dtype.size());
        let progress = match verb {
            // SAFETY: the caller vouches for the memory; the communicator is there.
            Verb::AllGather => self.comm.call("ncclAllGather", |f, comm| unsafe {
                (f.all_gather)(from, into, bytes, BYTE, comm, stream.raw())
            }),
            // SAFETY: likewise.
            Verb::Broadcast => self.comm.call("ncclBroadcast", |f, comm| unsafe {
                (f.broadcast)(into.cast_const(), into, bytes, BYTE, root, comm, stream.raw())
            }),
            Verb::AllToAll => {
                let block = bytes / self.member.ranks.len();
                let all = (0..self.member.ranks.len()).flat_map(|rank| {
                    let send = input.wrapping_add(rank * block);
                    let recv = output.wrapping_add(rank * block);
                    [Transfer::Send(send, block, rank), Transfer::Recv(recv, block, rank)]
                });
                // SAFETY: all blocks lie within the caller's buffers.
                return unsafe { self.transfer(all, stream, patience, needs) };
            }
            // NCCL has none: the least that all ranks take part in.
            Verb::Barrier => {
                let mark = self.mark()? as *mut std::ffi::c_void;
                // SAFETY: a byte of our own.
                self.comm.call("ncclAllReduce", |f, comm| unsafe {
                    (f.all_reduce)(mark.cast_const(), mark, 1, BYTE, MAX, comm, stream.raw())
                })
            }
            _ => fail!(Internal, "no collective of the device's"),
        };
        self.await_host(progress?, patience, needs)
    }
}
