//! Reductions that NCCL does not know: bytes travel through NCCL, our kernels compute on the host, as a part of
//! the stream.
//!
//! A part of the buffer at a time: each rank gets its block of the part from all ranks, brings it to pinned
//! memory, reduces it there in the order of ranks (so the result is the same everywhere, and that of the other
//! backends), brings it back, and sends it to all.

use std::ffi::{c_int, c_uint, c_void};
use std::ops::Range;
use std::ptr;
use std::sync::OnceLock;

use super::Shared;
use super::messages::Transfer;
use super::work::{Needs, Patience};
use crate::backend::Collective;
use crate::call::Verb;
use crate::cuda::{Driver, StreamHandle};
use crate::error::{Result, fail};
use crate::reduce::environment::Environment;
use crate::reduce::{Kernel, Reduction, kernel};

/// 8 MiB on each side: large enough for full speed over PCIe, and kept as long as the group.
const ROOM: usize = 8 << 20;
/// 256 bytes: blocks begin where every type and every copy is at ease.
const ALIGNMENT: usize = 256;

/// Memory of a group's own; operations use it one after the other, since they are ordered on the device.
#[derive(Debug)]
pub struct Scratch {
    /// On the device.
    pub device: u64,
    /// On the host, page-locked; NULL if there is none.
    host: *mut u8,
}

// SAFETY: addresses, used in the order of the group's operations.
unsafe impl Send for Scratch {}
// SAFETY: likewise.
unsafe impl Sync for Scratch {}

impl Scratch {
    fn new(driver: &Driver, device_bytes: usize, host_bytes: usize) -> Result<Scratch> {
        let mut scratch = Scratch { device: 0, host: ptr::null_mut() };
        let functions = &driver.functions;
        // SAFETY: there is a current context, and the driver writes a word of ours.
        let code = unsafe { (functions.mem_alloc)(&mut scratch.device, device_bytes) };
        driver.check("cuMemAlloc", code)?;
        if host_bytes > 0 {
            let (mut host, flags): (*mut c_void, c_uint) = (ptr::null_mut(), 0);
            // SAFETY: likewise.
            let code = unsafe { (functions.mem_host_alloc)(&mut host, host_bytes, flags) };
            driver.check("cuMemHostAlloc", code).inspect_err(|_| scratch.free(driver))?;
            scratch.host = host.cast();
        }
        Ok(scratch)
    }

    /// Gives it back, once; nobody uses it any more.
    pub fn free(&self, driver: &Driver) {
        // SAFETY: made by `new`; nothing is under way that uses it, as the caller says.
        unsafe {
            (driver.functions.mem_free)(self.device);
            if !self.host.is_null() {
                (driver.functions.mem_free_host)(self.host.cast());
            }
        }
    }
}

/// Which of `count` elements are the block of `rank`, of `ranks`: equal blocks, the last ones shorter.
fn block(count: usize, ranks: usize, rank: usize) -> Range<usize> {
    let length = count.div_ceil(ranks);
    (rank * length).min(count)..((rank + 1) * length).min(count)
}

/// What the host does on a part.
struct Fold {
    kernel: Kernel,
    /// Of the first rank's elements, where the result goes.
    memory: *mut u8,
    /// Bytes from one rank's elements to the next one's.
    stride: usize,
    ranks: usize,
    count: usize,
}

/// `CUhostFn`
unsafe extern "C" fn fold_on_host(data: *mut c_void) {
    let _ = crate::thread::quietly(|| {
        // SAFETY: made by `Box::into_raw` for this call, which comes once.
        let fold = unsafe { Box::from_raw(data.cast::<Fold>()) };
        let _environment = Environment::standard();
        for rank in 1..fold.ranks {
            let (first, next) = (fold.memory, fold.memory.wrapping_add(rank * fold.stride));
            // SAFETY: `count` elements of each rank lie `stride` apart in memory that is the group's until its
            // operations are over.
            unsafe { (fold.kernel)(first, first, next, fold.count) };
        }
    });
}

impl Shared {
    /// Memory for what has no data, made when it is first needed; in the context.
    pub(super) fn mark(&self) -> Result<u64> {
        self.memory(&self.mark, ALIGNMENT, 0).map(|scratch| scratch.device)
    }

    /// Likewise, [`ROOM`] on each side.
    fn scratch(&self) -> Result<&Scratch> {
        self.memory(&self.scratch, ROOM, ROOM)
    }

    fn memory<'a>(
        &self,
        place: &'a OnceLock<Scratch>,
        device_bytes: usize,
        host_bytes: usize,
    ) -> Result<&'a Scratch> {
        if let Some(scratch) = place.get() {
            return Ok(scratch);
        }
        // Whoever launches is alone.
        let scratch = Scratch::new(self.context.driver, device_bytes, host_bytes)?;
        Ok(place.get_or_init(|| scratch))
    }

    /// A reduction by our kernels, on this stream.
    ///
    /// # Safety
    /// As for [`Shared::launch`].
    pub(super) unsafe fn staged(
        &self,
        collective: &Collective,
        reduction: Reduction,
        stream: StreamHandle,
        patience: &mut Patience,
        needs: &Needs,
    ) -> Result<()> {
        let Collective { verb, dtype, count, input, output, .. } = *collective;
        let (ranks, size) = (self.member.ranks.len(), dtype.size());
        let most = ROOM / ranks / ALIGNMENT * ALIGNMENT / size;
        if most == 0 {
            fail!(Unsupported, "{} of {ranks} ranks: too many to stage", verb.name());
        }
        let scatters = verb == Verb::SumScatter;
        let own = count / ranks;
        let (all, step) = if scatters { (own, most) } else { (count, most * ranks) };
        let kernel = kernel(reduction, dtype);
        for start in (0..all).step_by(step) {
            let part = step.min(all - start);
            // Elements of the caller's that go to a rank.
            let to = |rank| match scatters {
                true => rank * own + start..rank * own + start + part,
                false => {
                    let block = block(part, ranks, rank);
                    start + block.start..start + block.end
                }
            };
            let at = |rank: usize| input.wrapping_add(to(rank).start * size);
            let length = to(self.rank).len();
            let stride = (length * size).next_multiple_of(ALIGNMENT);
            // SAFETY: blocks lie within the caller's buffers and within our memory.
            unsafe {
                // step 0: every rank's block from all ranks
                let device = self.scratch()?.device as *mut u8;
                let sends =
                    self.others().map(|rank| Transfer::Send(at(rank), to(rank).len() * size, rank));
                let recvs = self.others().map(|rank| {
                    let into = device.wrapping_add(rank * stride);
                    Transfer::Recv(into, length * size, rank)
                });
                self.transfer(sends.chain(recvs), stream, patience, needs)?;
                let mine = device.wrapping_add(self.rank * stride);
                self.copy(at(self.rank), mine, length * size, stream)?;
                // step 1: reduced on the host, in the order of ranks
                self.reduce_on_host(kernel, stride, length, size, stream)?;
                // step 2: to all, or only where it belongs
                if scatters {
                    let into = output.wrapping_add(start * size);
                    self.copy(device, into, length * size, stream)?;
                    continue;
                }
                let sends = self.others().map(|rank| Transfer::Send(device, length * size, rank));
                let recvs = self.others().map(|rank| {
                    let into = output.wrapping_add(to(rank).start * size);
                    Transfer::Recv(into, to(rank).len() * size, rank)
                });
                self.transfer(sends.chain(recvs), stream, patience, needs)?;
                let into = output.wrapping_add(to(self.rank).start * size);
                self.copy(device, into, length * size, stream)?;
            }
        }
        Ok(())
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        let own = self.rank;
        (0..self.member.ranks.len()).filter(move |rank| *rank != own)
    }

    /// Brings what all ranks gave to the host, reduces it there, and brings the result back.
    unsafe fn reduce_on_host(
        &self,
        kernel: Kernel,
        stride: usize,
        count: usize,
        size: usize,
        stream: StreamHandle,
    ) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let ranks = self.member.ranks.len();
        let (driver, scratch) = (self.context.driver, self.scratch()?);
        let device = scratch.device as *mut u8;
        // SAFETY: `stride` bytes of each rank fit on both sides, as `staged` sees to.
        unsafe { self.copy(device, scratch.host, ranks * stride, stream)? };
        let fold = Fold { kernel, memory: scratch.host, stride, ranks, count };
        let data = Box::into_raw(Box::new(fold));
        // SAFETY: the function takes the box, which nobody else uses.
        let code: c_int =
            unsafe { (driver.functions.launch_host_func)(stream.raw(), fold_on_host, data.cast()) };
        if let Err(e) = driver.check("cuLaunchHostFunc", code) {
            // SAFETY: the driver did not take it.
            drop(unsafe { Box::from_raw(data) });
            return Err(e);
        }
        // SAFETY: as above.
        unsafe { self.copy(scratch.host, device, count * size, stream) }
    }

    /// Copies on the stream, wherever both sides are.
    unsafe fn copy(
        &self,
        from: *const u8,
        into: *mut u8,
        bytes: usize,
        stream: StreamHandle,
    ) -> Result<()> {
        if bytes == 0 || ptr::eq(from, into) {
            return Ok(());
        }
        let driver = self.context.driver;
        // SAFETY: the caller vouches for the memory; addresses tell the driver whose it is.
        let code = unsafe {
            (driver.functions.memcpy_async)(into as u64, from as u64, bytes, stream.raw())
        };
        driver.check("cuMemcpyAsync", code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;

    #[test]
    fn blocks_make_up_the_part() {
        for ranks in 1..9 {
            for count in 0..40 {
                let all: Vec<usize> =
                    (0..ranks).flat_map(|rank| block(count, ranks, rank)).collect();
                assert_eq!(all, (0..count).collect::<Vec<_>>());
                let longest = (0..ranks).map(|rank| block(count, ranks, rank).len()).max();
                assert_eq!(longest, Some(block(count, ranks, 0).len()));
            }
        }
    }

    #[test]
    fn the_host_folds_in_the_order_of_ranks() {
        let mut memory = [7i16, -3, 0, 100, 2, 0, -50, 8, 0];
        let fold = Fold {
            kernel: kernel(Reduction::Max, Dtype::Int16),
            memory: memory.as_mut_ptr().cast(),
            stride: 6,
            ranks: 3,
            count: 2,
        };
        // SAFETY: 2 elements of each of 3 ranks, 6 bytes apart; the box is taken.
        unsafe { fold_on_host(Box::into_raw(Box::new(fold)).cast()) };
        assert_eq!(memory[..2], [100, 8]);
    }
}
