//! Reduction kernels: `out[i] = a[i] op b[i]`, by reduction and element type.
//!
//! Words: a *lane* is what one operation works on (an element, part of one, or several); a *level*
//! is a set of instructions for which every kernel is compiled.
//!
//! - `element.rs`: what the reductions of each type mean, once, as branch-free code on lanes.
//! - `portable.rs`: the loop over lanes, and the kernels for what every CPU of the target has.
//! - `x86.rs`: the same kernels compiled for AVX2 and AVX-512, and by hand the sums of the half types.
//!
//! Every level gives the same bytes. NaN is what could tell levels apart, because which payload
//! comes out of NaN + NaN depends on the order in which the compiler put the operands. So:
//! - a sum that is NaN is the positive quiet NaN without payload: `0x7fc00000` for float32;
//! - max and min give one of their operands, bit for bit: `a` if it is NaN, else `b` if that is.
//!
//! Max and min put -0 below +0: the order of the operands matters to them only where both are NaN.
//! Complex numbers that differ in nothing but signs of zeros order by these, the real part's first.

mod element;
pub mod environment;
mod portable;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::dtype::Dtype;
use element::{Bfloat16, Bool, Complex64, Element, Float16};

/// How two elements become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// `a + b`; integers wrap; *or* for bool.
    Sum,
    /// The greater; NaN wins; *or* for bool.
    Max,
    /// The smaller; NaN wins; *and* for bool.
    Min,
}

impl Reduction {
    /// Every reduction.
    pub const ALL: [Reduction; 3] = [Reduction::Sum, Reduction::Max, Reduction::Min];
}

/// Computes `out[i] = a[i] op b[i]` for `count` elements.
///
/// # Safety
/// `a` and `b` are readable and `out` is writable for `count` elements; none needs to be aligned.
/// `out` may equal `a` or `b` or both; any other overlap of `out` with them is not allowed. With a
/// `count` of 0 the pointers may be null.
pub type Kernel = unsafe fn(out: *mut u8, a: *const u8, b: *const u8, count: usize);

/// A set of instructions for which the kernels are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// AVX-512 F, BW, DQ and VL, and all of [`Level::Avx2`].
    Avx512,
    /// AVX2 and F16C.
    Avx2,
    /// What every CPU of the target has: SSE2 on x86-64, NEON on aarch64.
    Portable,
}

impl Level {
    /// Every level, the fastest first.
    pub const ALL: [Level; 3] = [Level::Avx512, Level::Avx2, Level::Portable];

    /// The levels that this CPU supports, the fastest first, [`Level::Portable`] always the last.
    pub fn available() -> impl Iterator<Item = Level> {
        Level::ALL.into_iter().filter(|level| level.is_available())
    }

    /// Whether this CPU has the instructions, and the operating system keeps their registers.
    /// std asks the CPU once per process.
    pub fn is_available(self) -> bool {
        match self {
            Level::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => x86::has_avx2(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => x86::has_avx512(),
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 | Level::Avx512 => false,
        }
    }
}

/// The fastest kernel for this CPU.
pub fn kernel(reduction: Reduction, dtype: Dtype) -> Kernel {
    Level::available()
        .find_map(|level| kernel_at(level, reduction, dtype))
        .unwrap_or_else(|| select::<portable::Portable>(reduction, dtype))
}

/// The kernel of one level; `None` if this CPU does not support the level.
pub fn kernel_at(level: Level, reduction: Reduction, dtype: Dtype) -> Option<Kernel> {
    if !level.is_available() {
        return None;
    }
    match level {
        Level::Portable => Some(select::<portable::Portable>(reduction, dtype)),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 if (reduction, dtype) == (Reduction::Sum, Dtype::Float16) => {
            Some(x86::float16_sum)
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 if (reduction, dtype) == (Reduction::Sum, Dtype::Bfloat16) => {
            Some(x86::bfloat16_sum)
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => Some(select::<x86::Avx2>(reduction, dtype)),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => Some(select::<x86::Avx512>(reduction, dtype)),
        #[cfg(not(target_arch = "x86_64"))]
        Level::Avx2 | Level::Avx512 => None,
    }
}

/// The kernels of one level.
trait Compiled {
    /// The kernel for elements `E`; sound to call where the level is available.
    fn kernel<E: Element>(reduction: Reduction) -> Kernel;
}

fn select<C: Compiled>(reduction: Reduction, dtype: Dtype) -> Kernel {
    match dtype {
        Dtype::Bool => C::kernel::<Bool>(reduction),
        Dtype::Int8 => C::kernel::<i8>(reduction),
        Dtype::Int16 => C::kernel::<i16>(reduction),
        Dtype::Int32 => C::kernel::<i32>(reduction),
        Dtype::Int64 => C::kernel::<i64>(reduction),
        Dtype::Uint8 => C::kernel::<u8>(reduction),
        Dtype::Uint16 => C::kernel::<u16>(reduction),
        Dtype::Uint32 => C::kernel::<u32>(reduction),
        Dtype::Uint64 => C::kernel::<u64>(reduction),
        Dtype::Float16 => C::kernel::<Float16>(reduction),
        Dtype::Bfloat16 => C::kernel::<Bfloat16>(reduction),
        Dtype::Float32 => C::kernel::<f32>(reduction),
        Dtype::Float64 => C::kernel::<f64>(reduction),
        Dtype::Complex64 => C::kernel::<Complex64>(reduction),
    }
}
