//! The loop over lanes, and the kernels for what every CPU of the target has.

use std::mem::MaybeUninit;

use super::element::Element;
use super::{Compiled, Kernel, Reduction};

/// Applies `apply` to the lanes of `bytes` bytes. Of a last lane that the bytes fill only in part,
/// the rest is zero bytes and not stored. `fetch` is told where each whole lane of an input is,
/// before it is read.
///
/// # Safety
/// As [`Kernel`], for `bytes` bytes; every bit pattern is a value of `Lane`.
#[inline(always)]
pub unsafe fn run<Lane: Copy>(
    out: *mut u8,
    a: *const u8,
    b: *const u8,
    bytes: usize,
    fetch: impl Fn(*const u8),
    apply: impl Fn(Lane, Lane) -> Lane,
) {
    let lanes = bytes / size_of::<Lane>();
    let whole = lanes * size_of::<Lane>();
    // SAFETY: the caller vouches for `bytes` bytes at each pointer, and that `out` overlaps an
    // input only where it equals it; the end is apart from the lanes before it.
    unsafe {
        if whole < bytes {
            run_end(out.add(whole), a.add(whole), b.add(whole), bytes - whole, &apply);
        }
        // One loop for each way in which `out` may lie: the compiler makes vector code only of a
        // loop that reads nothing which it wrote in an earlier turn, and sees that from the names.
        let same = out.cast_const();
        match (same == a, same == b) {
            (false, false) => run_lanes(out, a, b, lanes, fetch, apply),
            (true, false) => run_lanes(out, same, b, lanes, fetch, apply),
            (false, true) => run_lanes(out, a, same, lanes, fetch, apply),
            (true, true) => run_lanes(out, same, same, lanes, fetch, apply),
        }
    }
}

/// Applies `apply` to `lanes` whole lanes.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn run_lanes<Lane: Copy>(
    out: *mut u8,
    a: *const u8,
    b: *const u8,
    lanes: usize,
    fetch: impl Fn(*const u8),
    apply: impl Fn(Lane, Lane) -> Lane,
) {
    let (out, a, b) = (out.cast::<Lane>(), a.cast::<Lane>(), b.cast::<Lane>());
    for lane in 0..lanes {
        // SAFETY: lane < lanes, for which the caller vouches.
        unsafe {
            let (a, b) = (a.add(lane), b.add(lane));
            fetch(a.cast());
            fetch(b.cast());
            let result = apply(a.read_unaligned(), b.read_unaligned());
            out.add(lane).write_unaligned(result);
        }
    }
}

/// Applies `apply` to one lane of which only the first `bytes` bytes are there.
///
/// # Safety
/// As [`run`], for fewer bytes than a lane has.
#[inline(always)]
unsafe fn run_end<Lane: Copy>(
    out: *mut u8,
    a: *const u8,
    b: *const u8,
    bytes: usize,
    apply: impl Fn(Lane, Lane) -> Lane,
) {
    let mut last = [MaybeUninit::<Lane>::zeroed(); 2];
    // SAFETY: the copies stay within the caller's ranges and the local lanes, which are apart; all
    // bytes of the lanes are initialised, and every bit pattern is a lane.
    unsafe {
        a.copy_to_nonoverlapping(last[0].as_mut_ptr().cast(), bytes);
        b.copy_to_nonoverlapping(last[1].as_mut_ptr().cast(), bytes);
        let result = apply(last[0].assume_init(), last[1].assume_init());
        out.copy_from_nonoverlapping((&raw const result).cast(), bytes);
    }
}

/// Leaves it to the CPU to see what is read next, which it does well where little is computed.
pub fn no_fetch(_lane: *const u8) {}

/// Implements [`Compiled`] for a level by functions that are compiled for its features.
///
/// Max and min pass through an *exclusive or* with a 0 that the compiler cannot know to be 0: of
/// `*b = if a > *b { a } else { *b }` it would make a store under a mask, which some CPUs do slowly
/// (Zen 3: at a third of the speed).
macro_rules! compile_for {
    ($level:ident $(, $features:literal)?) => {
        impl Compiled for $level {
            fn kernel<E: Element>(reduction: Reduction) -> Kernel {
                $(#[target_feature(enable = $features)])?
                unsafe fn sum<E: Element>(out: *mut u8, a: *const u8, b: *const u8, count: usize) {
                    // SAFETY: the caller's contract is that of a kernel.
                    unsafe { run(out, a, b, count * size_of::<E::Lane>(), no_fetch, E::sum) }
                }

                $(#[target_feature(enable = $features)])?
                unsafe fn max<E: Element>(out: *mut u8, a: *const u8, b: *const u8, count: usize) {
                    let zero = E::Lane::from(std::hint::black_box(false));
                    let max = |a, b| E::max(a, b) ^ zero;
                    // SAFETY: the caller's contract is that of a kernel.
                    unsafe { run(out, a, b, count * size_of::<E::Lane>(), no_fetch, max) }
                }

                $(#[target_feature(enable = $features)])?
                unsafe fn min<E: Element>(out: *mut u8, a: *const u8, b: *const u8, count: usize) {
                    let zero = E::Lane::from(std::hint::black_box(false));
                    let min = |a, b| E::min(a, b) ^ zero;
                    // SAFETY: the caller's contract is that of a kernel.
                    unsafe { run(out, a, b, count * size_of::<E::Lane>(), no_fetch, min) }
                }

                match reduction {
                    Reduction::Sum => sum::<E>,
                    Reduction::Max => max::<E>,
                    Reduction::Min => min::<E>,
                }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use compile_for;

/// Kernels for what every CPU of the target has.
pub struct Portable;
compile_for!(Portable);
