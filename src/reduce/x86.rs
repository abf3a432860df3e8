//! The kernels compiled for AVX2 and AVX-512, and the sum of float16 by F16C.
//!
//! Not used: AVX512_BF16, whose conversion takes subnormals for zero and so gives other bytes, and
//! AVX512_FP16, which few CPUs have. The sum of float16 works in 256 bits at both levels.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m128i, _CMP_UNORD_Q, _MM_FROUND_TO_NEAREST_INT, _mm256_add_ps, _mm256_blendv_ps,
    _mm256_cmp_ps, _mm256_cvtph_ps, _mm256_cvtps_ph, _mm256_set1_ps,
};

use super::element::{CANONICAL_NAN, Element};
use super::portable::{compile_for, run};
use super::{Compiled, Kernel, Reduction};

/// Whether [`Avx2`] and [`float16_sum`] may run.
pub fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")
}

/// Whether [`Avx512`] may run, and all that [`has_avx2`] answers for.
pub fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// Kernels that may run where [`has_avx2`].
pub struct Avx2;
compile_for!(Avx2, "avx2");

/// Kernels that may run where [`has_avx512`].
pub struct Avx512;
compile_for!(Avx512, "avx512f,avx512bw,avx512dq,avx512vl");

/// The sum of float16, which may run where [`has_avx2`]. Written by hand: the compiler does not
/// make F16C of the portable conversion.
///
/// # Safety
/// As [`Kernel`], on a CPU that [`has_avx2`].
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn float16_sum(out: *mut u8, a: *const u8, b: *const u8, count: usize) {
    let canonical_nan = _mm256_set1_ps(f32::from_bits(CANONICAL_NAN));
    let sum = |a: __m128i, b: __m128i| {
        let sum = _mm256_add_ps(_mm256_cvtph_ps(a), _mm256_cvtph_ps(b));
        let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(sum, sum);
        let sum = _mm256_blendv_ps(sum, canonical_nan, is_nan);
        _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(sum)
    };
    // SAFETY: the caller's contract is that of a kernel; any bits are a __m128i.
    unsafe { run(out, a, b, count * size_of::<u16>(), sum) }
}
