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
use super::routes::{Route, route};
use super::work::{Needs, Patience};
use crate::backend::Collective;
use crate::call::Verb;
use crate::collective;
use crate::cuda::{Driver, StreamHandle};
use crate::error::{Result, fail};
use crate::reduce::environment::Environment;
use crate::reduce::{Kernel, Reduction, kernel};

/// 8 MiB on each side: large enough for full speed over PCIe, and kept as long as the group.
const ROOM: usize = 8 << 20;
/// 256 bytes: blocks begin where every type and every copy is at ease.
const ALIGNMENT: usize = 256;
/// Commands of a part: two groups of NCCL's, four copies, a host function, and what these need.
const COMMANDS: usize = 10;
/// 16 parts are put on the stream at once, 128 MiB: then the caller waits for them, since the device's queue is
/// not endless.
const AT_ONCE: usize = 16;

/// Memory of a group's own; operations use it one after the other, since they are ordered on the device.
/// Never freed, but used again by other groups: to free it would wait for all that is on the device.
#[derive(Debug)]
pub struct Memory {
    /// Whose context it is of.
    owner: i32,
    bytes: [usize; 2],
    /// On the device.
    device: u64,
    /// On the host, page-locked; NULL if there is none.
    host: *mut u8,
}

// SAFETY: addresses, used in the order of the group's operations.
unsafe impl Send for Memory {}
// SAFETY: likewise.
unsafe impl Sync for Memory {}

impl Memory {
    /// So many bytes on the device, and on the host; in the device's context.
    fn new(driver: &Driver, owner: i32, bytes: [usize; 2]) -> Result<Memory> {
        let (mut device, mut host): (u64, *mut c_void) = (0, ptr::null_mut());
        let functions = &driver.functions;
        // SAFETY: there is a current context, and the driver writes a word of ours.
        driver.check("cuMemAlloc", unsafe { (functions.mem_alloc)(&mut device, bytes[0]) })?;
        if bytes[1] > 0 {
            let flags: c_uint = 0;
            // SAFETY: likewise.
            let code = unsafe { (functions.mem_host_alloc)(&mut host, bytes[1], flags) };
            if let Err(e) = driver.check("cuMemHostAlloc", code) {
                // SAFETY: allocated above, used by nobody.
                unsafe { (functions.mem_free)(device) };
                return Err(e);
            }
        }
        Ok(Memory { owner, bytes, device, host: host.cast() })
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
        self.memory(&self.mark, [ALIGNMENT, 0]).map(|memory| memory.device)
    }

    /// Likewise, [`ROOM`] on each side.
    fn scratch(&self) -> Result<&Memory> {
        self.memory(&self.scratch, [ROOM, ROOM])
    }

    fn memory<'a>(&self, place: &'a OnceLock<Memory>, bytes: [usize; 2]) -> Result<&'a Memory> {
        if let Some(memory) = place.get() {
            return Ok(memory);
        }
        let owner = self.context.device;
        let mut spare = self.wardens.memory.lock();
        let fits = |memory: &Memory| memory.owner == owner && memory.bytes == bytes;
        let memory = match spare.iter().position(fits) {
            Some(at) => spare.swap_remove(at),
            None => Memory::new(self.context.driver, owner, bytes)?,
        };
        // Whoever launches is alone.
        Ok(place.get_or_init(|| memory))
    }

    /// Leaves the group's memory to others; nothing is under way that uses it.
    pub(super) fn give_back_memory(&self) {
        let own = [&self.mark, &self.scratch].into_iter().filter_map(|place| place.get());
        let own = own.map(|memory| Memory { ..*memory });
        self.wardens.memory.lock().extend(own);
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
        let (all, step) = self.parts(collective);
        if step == 0 {
            fail!(Unsupported, "{} of {ranks} ranks: too many to stage", verb.name());
        }
        let scatters = verb == Verb::SumScatter;
        let own = count / ranks;
        let kernel = kernel(reduction, dtype);
        for (number, start) in (0..all).step_by(step).enumerate() {
            if number > 0 && number.is_multiple_of(AT_ONCE) {
                self.catch_up(stream, patience, needs)?;
            }
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

    /// How many elements are cut into parts, and how many are in one.
    fn parts(&self, collective: &Collective) -> (usize, usize) {
        let ranks = self.member.ranks.len();
        let most = ROOM / ranks / ALIGNMENT * ALIGNMENT / collective.dtype.size();
        match collective.verb {
            Verb::SumScatter => (collective.count / ranks, most),
            _ => (collective.count, most * ranks),
        }
    }

    /// What a collective takes of the device's queue for what is done on the host.
    pub(super) fn staged_commands(&self, collective: &Collective) -> usize {
        let is_staged = collective::reduction(collective.verb)
            .is_some_and(|reduction| route(reduction, collective.dtype) == Route::Staged);
        let (all, step) = self.parts(collective);
        if is_staged { COMMANDS * all.div_ceil(step.max(1)).min(AT_ONCE) } else { 0 }
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
