//! Collectives: each is MPI's own, on parts that MPI can count.
//!
//! A reduction or a broadcast is cut anywhere. What has a block for each rank is cut only where a
//! block is larger than a part, and then made of simpler calls, since MPI has no place for the gaps.

use std::ffi::{c_int, c_void};
use std::ops::Range;

use super::Mpi;
use super::abi::{Datatype, Op};
use super::messages::copy;
use super::staging::Staging;
use super::waiting::Way;
use crate::backend::{Collective, Limits};
use crate::call::Verb;
use crate::error::{Result, fail};
use crate::reduce::Reduction;

/// A collective as MPI is asked for it.
#[derive(Clone, Copy)]
struct Task {
    input: *const u8,
    output: *mut u8,
    /// Elements in `input`.
    count: usize,
    /// Bytes of an element.
    size: usize,
    datatype: Datatype,
    way: Way,
}

/// A blocking call, or the nonblocking one of the same name and a wait for it.
macro_rules! meet {
    ($mpi:ident, $way:expr, $name:literal, $blocking:ident, $nonblocking:ident($($argument:expr),*)) => {
        match $way {
            // SAFETY: the task's memory is as its call says until it has run; what is not done when
            // a bounded wait fails has memory of ours, which is kept.
            Way::Blocking => $mpi.runtime.call($name, |f| unsafe { (f.$blocking)($($argument),*) }),
            Way::Bounded(limit) => $mpi.complete($name, limit, |f, request| unsafe {
                // SAFETY: likewise.
                (f.$nonblocking)($($argument,)* request)
            }),
        }
    };
}

pub(super) use meet;

impl Mpi {
    /// Runs a collective.
    ///
    /// # Safety
    /// As for [`Backend::run`](crate::backend::Backend::run).
    pub(super) unsafe fn collective(
        &self,
        sequence: u64,
        collective: &Collective,
        limits: Limits,
    ) -> Result<()> {
        let way = self.way(limits, limits.operation);
        if self.check {
            self.agree(collective.call(sequence), way)?;
        }
        if collective.verb == Verb::Barrier {
            return meet!(self, way, "MPI_Barrier", barrier, ibarrier(self.comm));
        }
        if collective.count == 0 {
            return Ok(());
        }
        let size = collective.dtype.size();
        let task = Task {
            input: collective.input,
            output: collective.output,
            count: collective.count,
            size,
            datatype: self.runtime.library.abi.datatype(collective.dtype),
            way,
        };
        // MPI's own operations take elements to lie at multiples of their size.
        let aligned = [task.input as usize, task.output as usize].iter().all(|at| at % size == 0);
        if aligned && matches!(way, Way::Blocking) {
            // SAFETY: the caller vouches for the memory.
            return unsafe { self.execute(collective, &task) };
        }
        // SAFETY: likewise.
        unsafe { self.staged(collective, task) }
    }

    /// The same on memory of ours, which is kept for good if a failure leaves MPI at work on it.
    unsafe fn staged(&self, collective: &Collective, mut task: Task) -> Result<()> {
        let (ranks, bytes) = (self.ranks.len(), task.count * task.size);
        let output_bytes = match collective.verb {
            Verb::AllGather | Verb::Split => bytes * ranks,
            Verb::SumScatter => bytes / ranks,
            _ => bytes,
        };
        let (mut input, mut output) = self.staging.lock().pop().unwrap_or_default();
        task.output = output.room(output_bytes)?;
        if collective.verb == Verb::Broadcast {
            if self.rank as i32 == collective.root {
                // SAFETY: the caller vouches for its memory, and ours is as large.
                unsafe { copy(collective.output, task.output, bytes) };
            }
        } else {
            let staged = input.room(bytes)?;
            // SAFETY: likewise.
            unsafe { copy(collective.input, staged, bytes) };
            task.input = staged;
        }
        // SAFETY: ours lives until the task is done, or for good.
        if let Err(e) = unsafe { self.execute(collective, &task) } {
            std::mem::forget((input, output));
            return Err(e);
        }
        if collective.verb != Verb::Broadcast || self.rank as i32 != collective.root {
            // SAFETY: as above.
            unsafe { copy(task.output, collective.output, output_bytes) };
        }
        self.staging.lock().push((input, output));
        Ok(())
    }

    unsafe fn execute(&self, collective: &Collective, task: &Task) -> Result<()> {
        let operation = |reduction| self.runtime.operations.get(reduction, collective.dtype);
        // SAFETY: the caller vouches for the memory.
        unsafe {
            match collective.verb {
                Verb::AllSum => self.all_reduce(task, operation(Reduction::Sum)),
                Verb::AllMax => self.all_reduce(task, operation(Reduction::Max)),
                Verb::AllMin => self.all_reduce(task, operation(Reduction::Min)),
                Verb::SumScatter => self.reduce_scatter(task, operation(Reduction::Sum)),
                Verb::AllGather | Verb::Split => self.all_gather(task),
                Verb::AllToAll => self.all_to_all(task),
                Verb::Broadcast => {
                    let all = 0..task.count * task.size;
                    self.broadcast(task, collective.root, all)
                }
                Verb::Barrier | Verb::Message => fail!(Internal, "no collective with memory"),
            }
        }
    }

    /// What MPI takes for "the input is where the output goes". The standard wants that of all ranks or
    /// none, and nobody here knows of the others; libraries take it from some, as the tests do.
    fn in_place(&self) -> *const c_void {
        self.runtime.library.abi.in_place as *const c_void
    }

    /// Ranges of bytes, each a part, that make up `all`.
    fn parts(&self, all: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let (end, part) = (all.end, self.part_bytes);
        all.step_by(part).map(move |start| start..end.min(start + part))
    }

    unsafe fn all_reduce(&self, task: &Task, op: Op) -> Result<()> {
        for part in self.parts(0..task.count * task.size) {
            let output = task.output.wrapping_add(part.start);
            let input: *const c_void = if std::ptr::eq(task.input, task.output) {
                self.in_place()
            } else {
                task.input.wrapping_add(part.start).cast()
            };
            let (to, count) = (output.cast(), (part.len() / task.size) as c_int);
            meet!(
                self,
                task.way,
                "MPI_Allreduce",
                allreduce,
                iallreduce(input, to, count, task.datatype, op, self.comm)
            )?;
        }
        Ok(())
    }

    unsafe fn broadcast(&self, task: &Task, root: i32, bytes: Range<usize>) -> Result<()> {
        for part in self.parts(bytes) {
            let at = task.output.wrapping_add(part.start).cast();
            let count = (part.len() / task.size) as c_int;
            meet!(
                self,
                task.way,
                "MPI_Bcast",
                bcast,
                ibcast(at, count, task.datatype, root, self.comm)
            )?;
        }
        Ok(())
    }

    unsafe fn all_gather(&self, task: &Task) -> Result<()> {
        let block = task.count * task.size;
        let own = task.output.wrapping_add(self.rank * block);
        let in_place = std::ptr::eq(task.input, own);
        // Of all ranks together: libraries multiply counts by ranks, in `int`.
        if block.saturating_mul(self.ranks.len()) <= self.part_bytes {
            let (input, to) =
                (if in_place { self.in_place() } else { task.input.cast() }, task.output.cast());
            let (count, datatype) = (task.count as c_int, task.datatype);
            return meet!(
                self,
                task.way,
                "MPI_Allgather",
                allgather,
                iallgather(input, count, datatype, to, count, datatype, self.comm)
            );
        }
        if !in_place {
            // SAFETY: the caller vouches for both blocks, which do not overlap.
            unsafe { copy(task.input, own, block) };
        }
        // Rank by rank, part by part: every rank's block goes to all.
        for root in 0..self.ranks.len() {
            let bytes = root * block..(root + 1) * block;
            // SAFETY: all blocks lie within the output.
            unsafe { self.broadcast(task, root as i32, bytes)? };
        }
        Ok(())
    }

    unsafe fn reduce_scatter(&self, task: &Task, op: Op) -> Result<()> {
        let block = task.count / self.ranks.len() * task.size;
        let own = task.input.wrapping_add(self.rank * block);
        let in_place = std::ptr::eq(own, task.output);
        if block.saturating_mul(self.ranks.len()) > self.part_bytes {
            // SAFETY: as for this function.
            return unsafe { self.reduce_blocks(task, op, block, in_place) };
        }
        // MPI's own in-place form puts the result at the beginning.
        let mut aside = Staging::default();
        let to: *mut u8 = if in_place { aside.room(block)? } else { task.output };
        let (input, output, count) = (task.input.cast(), to.cast(), (block / task.size) as c_int);
        let outcome = meet!(
            self,
            task.way,
            "MPI_Reduce_scatter_block",
            reduce_scatter_block,
            ireduce_scatter_block(input, output, count, task.datatype, op, self.comm)
        );
        // A bounded wait has its output aside already: never in place.
        outcome?;
        if in_place {
            // SAFETY: both have a block, and `aside` is ours.
            unsafe { copy(to, task.output, block) };
        }
        Ok(())
    }

    /// Rank by rank, part by part: every rank's block is reduced where it belongs.
    unsafe fn reduce_blocks(
        &self,
        task: &Task,
        op: Op,
        block: usize,
        in_place: bool,
    ) -> Result<()> {
        for root in 0..self.ranks.len() {
            for part in self.parts(0..block) {
                let here = root == self.rank;
                let input: *const c_void = if here && in_place {
                    self.in_place()
                } else {
                    task.input.wrapping_add(root * block + part.start).cast()
                };
                let output: *mut c_void = match here {
                    true => task.output.wrapping_add(part.start).cast(),
                    false => std::ptr::null_mut(),
                };
                let (count, root) = ((part.len() / task.size) as c_int, root as c_int);
                meet!(
                    self,
                    task.way,
                    "MPI_Reduce",
                    reduce,
                    ireduce(input, output, count, task.datatype, op, root, self.comm)
                )?;
            }
        }
        Ok(())
    }

    unsafe fn all_to_all(&self, task: &Task) -> Result<()> {
        let ranks = self.ranks.len();
        let block = task.count / ranks * task.size;
        let exchange = |input: *const u8, output: *mut u8, bytes: usize| {
            let (input, output) = (input.cast(), output.cast());
            let (count, datatype) = ((bytes / task.size) as c_int, task.datatype);
            meet!(
                self,
                task.way,
                "MPI_Alltoall",
                alltoall,
                ialltoall(input, count, datatype, output, count, datatype, self.comm)
            )
        };
        if block.saturating_mul(ranks) <= self.part_bytes {
            return exchange(task.input, task.output, block);
        }
        // A slice of every block at a time, packed together.
        let slice = (self.part_bytes / ranks / ALIGNMENT).max(1) * ALIGNMENT;
        let (mut packed, mut arrived) = (Staging::default(), Staging::default());
        let (packed_at, arrived_at) = (packed.room(slice * ranks)?, arrived.room(slice * ranks)?);
        for start in (0..block).step_by(slice) {
            let bytes = slice.min(block - start);
            for rank in 0..ranks {
                let from = task.input.wrapping_add(rank * block + start);
                // SAFETY: within the input and within the packed slices.
                unsafe { copy(from, packed_at.wrapping_add(rank * bytes), bytes) };
            }
            if let Err(e) = exchange(packed_at, arrived_at, bytes) {
                // Perhaps still under way.
                std::mem::forget((packed, arrived));
                return Err(e);
            }
            for rank in 0..ranks {
                let to = task.output.wrapping_add(rank * block + start);
                // SAFETY: likewise, and within the output.
                unsafe { copy(arrived_at.wrapping_add(rank * bytes), to, bytes) };
            }
        }
        Ok(())
    }
}

/// 16 bytes: slices end between elements of every type.
const ALIGNMENT: usize = 16;
