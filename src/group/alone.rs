//! Collectives of one rank: copies, on the host, on a device or between the two.

use super::{Group, Reach};
use crate::backend::Collective;
use crate::call::Verb;
use crate::cuda;
use crate::error::Result;

impl Group {
    /// A collective of one rank.
    pub(super) unsafe fn copy(&self, collective: &Collective) -> Result<()> {
        self.health.check()?;
        let Some((input, output, bytes)) = moved(collective) else {
            return match (self.reach, cuda::present()) {
                // As with others: what was put on the default stream is done.
                (Reach::Device(_), Some(driver)) => cuda::catch_up(driver),
                _ => Ok(()),
            };
        };
        if let Some(driver) = self.driver_for(input, output) {
            // SAFETY: as for `submit`; both have so many bytes, and may be the same.
            return unsafe { cuda::copy(driver, input, output, bytes) };
        }
        // SAFETY: likewise.
        unsafe { std::ptr::copy(input, output, bytes) };
        Ok(())
    }

    /// The same on a CUDA stream, which reaches host memory, too.
    pub(super) unsafe fn copy_on(
        &self,
        stream: &cuda::Stream,
        collective: &Collective,
    ) -> Result<()> {
        self.health.check()?;
        match moved(collective) {
            // SAFETY: as for `submit`; both have so many bytes, and may be the same.
            Some((input, output, bytes)) => unsafe { cuda::copy_on(stream, input, output, bytes) },
            None => Ok(()),
        }
    }

    /// The driver, if it takes that to copy from one to the other.
    fn driver_for(&self, input: *const u8, output: *const u8) -> Option<&'static cuda::Driver> {
        let driver = if self.reach == Reach::Host { None } else { cuda::present() }?;
        // On a device also between pinned buffers, so that the default stream's order counts.
        let is_far = |pointer| match cuda::kind_of(driver, pointer) {
            cuda::Kind::Device(_) | cuda::Kind::Managed => true,
            cuda::Kind::Pinned => self.reach != Reach::Both,
            cuda::Kind::Host => false,
        };
        (is_far(input) || is_far(output)).then_some(driver)
    }
}

/// What a collective of one rank moves, and how many bytes; a broadcast to where it is.
fn moved(collective: &Collective) -> Option<(*const u8, *mut u8, usize)> {
    let Collective { verb, dtype, count, input, output, .. } = *collective;
    let input = if verb == Verb::Broadcast { output.cast_const() } else { input };
    (count > 0).then(|| (input, output, count * dtype.size()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{alone, collective};
    use super::*;

    #[test]
    fn one_rank_copies() {
        let (input, mut output) = ([1i32, 2, 3], [0i32; 3]);
        for verb in [Verb::AllSum, Verb::AllGather, Verb::SumScatter, Verb::AllToAll] {
            output.fill(0);
            let request = collective(verb, input.as_ptr().cast(), output.as_mut_ptr().cast(), 3);
            // SAFETY: both arrays have 3 elements.
            unsafe { alone().submit(request, None) }.unwrap();
            assert_eq!(output, input);
        }
    }
}
