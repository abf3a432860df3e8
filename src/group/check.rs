//! What is refused before anything is touched: arguments that no rank could run.

use std::ops::Range;

use super::{Group, Reach, Request};
use crate::backend::Collective;
use crate::call::Verb;
use crate::cuda::{self, Kind};
use crate::dtype::Dtype;
use crate::error::{Result, fail};

impl Group {
    /// Refuses what no rank could run; touches nothing.
    pub(super) fn check(&self, request: &Request) -> Result<()> {
        match *request {
            Request::Collective(collective) => self.check_collective(&collective),
            Request::Exchange { dtype, send, recv } => {
                let mut ranges = Vec::with_capacity(2);
                for (peer, count, memory, word) in send
                    .map(|s| (s.peer, s.count, s.memory, "input"))
                    .into_iter()
                    .chain(recv.map(|r| (r.peer, r.count, r.memory.cast_const(), "output")))
                {
                    self.check_peer(peer)?;
                    ranges.push(range(memory, count, 1, dtype, word)?);
                    self.check_memory(memory, count, word)?;
                }
                match ranges.as_slice() {
                    [a, b] if overlap(a, b) => fail!(InvalidArgument, "input and output overlap"),
                    _ => Ok(()),
                }
            }
        }
    }

    fn check_peer(&self, peer: i32) -> Result<()> {
        if self.size == 1 {
            fail!(InvalidArgument, "a group of one rank has nobody to exchange messages with");
        }
        self.check_rank(peer, "peer")?;
        if peer as usize == self.rank {
            fail!(InvalidArgument, "rank {peer} is this rank; messages go to another one");
        }
        Ok(())
    }

    fn check_rank(&self, rank: i32, word: &str) -> Result<()> {
        if usize::try_from(rank).is_ok_and(|rank| rank < self.size) {
            return Ok(());
        }
        fail!(InvalidArgument, "{word} {rank} is not a rank: they go from 0 to {}", self.size - 1)
    }

    /// Refuses memory that the group does not work on.
    fn check_memory(&self, memory: *const u8, count: usize, word: &str) -> Result<()> {
        if count == 0 || self.reach == Reach::Both {
            return Ok(());
        }
        // Without the driver in this process there is no memory of a device.
        let Some(driver) = cuda::present() else { return Ok(()) };
        let (kind, name) = (cuda::kind_of(driver, memory), self.name);
        match (self.reach, kind) {
            (Reach::Host, Kind::Device(_)) => fail!(
                InvalidArgument,
                "{word} is {kind}, but {name} works on host memory: copy it to the host, or start on nccl"
            ),
            (Reach::Device(_), Kind::Host) => fail!(
                InvalidArgument,
                "{word} is {kind}, but {name} works on memory of a CUDA device: copy it there \
                 (cudaMemcpy), or start on another backend"
            ),
            (Reach::Device(Some(own)), Kind::Device(device)) if own != device => fail!(
                InvalidArgument,
                "{word} is {kind}, but this group is on device {own}: allocate it there \
                 (cudaSetDevice({own}))"
            ),
            _ => Ok(()),
        }
    }

    /// Refuses what a device could not compute with: it stops for good at an address that does not fit.
    fn check_alignment(&self, memory: *const u8, dtype: Dtype, word: &str) -> Result<()> {
        let unit = if dtype == Dtype::Complex64 { 4 } else { dtype.size() };
        if matches!(self.reach, Reach::Device(_)) && !(memory as usize).is_multiple_of(unit) {
            fail!(
                InvalidArgument,
                "{word} is at {memory:?}, which {} does not take for {}: it must be a multiple of {unit}",
                self.name,
                dtype.name()
            );
        }
        Ok(())
    }

    fn check_collective(&self, collective: &Collective) -> Result<()> {
        let Collective { verb, dtype, count, root, input, output } = *collective;
        let (gathers, scatters) = (verb == Verb::AllGather, verb == Verb::SumScatter);
        match verb {
            Verb::Barrier => return Ok(()),
            Verb::Broadcast => {
                self.check_rank(root, "root")?;
                range(output, count, 1, dtype, "buffer")?;
                return self.check_memory(output, count, "buffer");
            }
            Verb::SumScatter | Verb::AllToAll if !count.is_multiple_of(self.size) => fail!(
                InvalidArgument,
                "count {count} is not a multiple of the {} ranks of the group",
                self.size
            ),
            _ => {}
        }
        let from = range(input, count, 1, dtype, "input")?;
        let into = match () {
            () if gathers => range(output, count, self.size, dtype, "output")?,
            () if scatters => range(output, count / self.size, 1, dtype, "output")?,
            () => range(output, count, 1, dtype, "output")?,
        };
        self.check_memory(input, count, "input")?;
        if !std::ptr::eq(input, output) {
            self.check_memory(output, count, "output")?;
        }
        if !matches!(verb, Verb::AllGather | Verb::AllToAll) {
            self.check_alignment(input, dtype, "input")?;
            self.check_alignment(output, dtype, "output")?;
        }
        if !overlap(&from, &into) {
            return Ok(());
        }
        let bytes = count * dtype.size();
        let (right, rule) = match verb {
            Verb::AllGather => (
                from.start == into.start + self.rank * bytes,
                "input may only be output + rank * count elements",
            ),
            Verb::SumScatter => (
                into.start == from.start + self.rank * (bytes / self.size),
                "output may only be input + rank * count / size elements",
            ),
            Verb::AllToAll => (false, "all_to_all needs two buffers"),
            _ => (from.start == into.start, "input may only be output itself"),
        };
        match right {
            true => Ok(()),
            false => fail!(InvalidArgument, "input and output overlap; {rule}"),
        }
    }
}

/// The addresses of `times * count` elements at `memory`.
fn range(
    memory: *const u8,
    count: usize,
    times: usize,
    dtype: Dtype,
    word: &str,
) -> Result<Range<usize>> {
    let bytes = count.checked_mul(times).and_then(|count| count.checked_mul(dtype.size()));
    let end = bytes.filter(|b| isize::try_from(*b).is_ok());
    let Some(end) = end.and_then(|bytes| (memory as usize).checked_add(bytes)) else {
        fail!(
            InvalidArgument,
            "{times} * {count} elements of {} are more than memory can hold",
            dtype.name()
        );
    };
    if count > 0 && memory.is_null() {
        fail!(InvalidArgument, "{word} is NULL, but there are {count} elements");
    }
    Ok(memory as usize..end)
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    !a.is_empty() && !b.is_empty() && a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::super::Side;
    use super::super::tests::{alone, collective};
    use super::*;
    use crate::error::Status;

    fn refused(request: Request) -> String {
        // SAFETY: a refused request touches nothing.
        let error = unsafe { alone().submit(request, None) }.unwrap_err();
        assert_eq!(error.status, Status::InvalidArgument);
        error.message
    }

    #[test]
    fn bad_arguments_are_named() {
        let mut memory = [0i32; 8];
        let at = memory.as_mut_ptr();
        let null = std::ptr::null_mut();
        assert!(refused(collective(Verb::AllSum, null, at.cast(), 3)).contains("input is NULL"));
        assert!(refused(collective(Verb::AllSum, at.cast(), null, 3)).contains("output is NULL"));
        let overlapping = at.wrapping_add(1).cast();
        assert!(refused(collective(Verb::AllSum, at.cast(), overlapping, 3)).contains("overlap"));
        let huge = usize::MAX / 2;
        assert!(
            refused(collective(Verb::AllSum, at.cast(), at.cast(), huge)).contains("more than")
        );
        let dtype = Dtype::Int32;
        let send = Some(Side { peer: 0, count: 1, memory: at.cast_const().cast() });
        let alone = refused(Request::Exchange { dtype, send, recv: None });
        assert!(alone.contains("one rank"), "{alone}");
    }
}
