//! The kernels compiled for AVX2 and AVX-512, and by hand the sums of the half types.
//!
//! Not used: AVX512_BF16, whose conversion takes subnormals for zero and so gives other bytes, and
//! AVX512_FP16, which few CPUs have. The sum of float16 works in 256 bits at both levels.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m256i, _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T0, _mm_prefetch, _mm256_add_ps, _mm256_and_si256,
    _mm256_blend_epi16, _mm256_blendv_epi8, _mm256_castps_si256, _mm256_castsi256_ps,
    _mm256_castsi256_si128, _mm256_cmpgt_epi16, _mm256_cvtph_ps, _mm256_cvtps_ph,
    _mm256_extracti128_si256, _mm256_set_m128i, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_setzero_si256, _mm256_slli_epi32, _mm256_srli_epi32, _mm256_sub_epi16, _mm256_xor_si256,
};

use super::element::{CANONICAL_NAN, Element};
use super::portable::{compile_for, no_fetch, run};
use super::{Compiled, Kernel, Reduction};

/// Whether [`Avx2`], [`float16_sum`] and [`bfloat16_sum`] may run.
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

/// What the sums by hand take in one turn: a cache line, 32 halves.
type Line = [__m256i; 2];

/// 1 KiB: so far ahead of the line in work the next is asked for. These sums compute so much per line
/// that the CPU itself does not look far enough ahead (bench: kernels; 64 MiB of bfloat16 in three
/// quarters of the time).
const AHEAD: usize = 1024;

#[inline(always)]
fn fetch(line: *const u8) {
    // SAFETY: every x86-64 CPU has the instruction; prefetching is no access, at any address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(AHEAD).cast()) }
}

/// The sum of float16, which may run where [`has_avx2`]. Written by hand: the compiler does not
/// make F16C of the portable conversion.
///
/// # Safety
/// As [`Kernel`], on a CPU that [`has_avx2`].
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn float16_sum(out: *mut u8, a: *const u8, b: *const u8, count: usize) {
    let magnitude = _mm256_set1_epi16(0x7fff);
    let infinity = _mm256_set1_epi16(0x7c00);
    let canonical_nan = _mm256_set1_epi16(0x7e00);
    let sum = |a: __m256i, b: __m256i| {
        let (a_low, b_low) = (_mm256_castsi256_si128(a), _mm256_castsi256_si128(b));
        let low = _mm256_add_ps(_mm256_cvtph_ps(a_low), _mm256_cvtph_ps(b_low));
        let (a_high, b_high) = (_mm256_extracti128_si256::<1>(a), _mm256_extracti128_si256::<1>(b));
        let high = _mm256_add_ps(_mm256_cvtph_ps(a_high), _mm256_cvtph_ps(b_high));
        let rounded = _mm256_set_m128i(
            _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(high),
            _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(low),
        );
        // Rounding keeps a NaN one.
        let is_nan = _mm256_cmpgt_epi16(_mm256_and_si256(rounded, magnitude), infinity);
        _mm256_blendv_epi8(rounded, canonical_nan, is_nan)
    };
    let sums = |a: Line, b: Line| [sum(a[0], b[0]), sum(a[1], b[1])];
    // SAFETY: the caller's contract is that of a kernel; any bits are a line.
    unsafe { run(out, a, b, count * size_of::<u16>(), fetch, sums) }
}

/// The sum of bfloat16, which may run where [`has_avx2`]. Written by hand: the compiler rounds in
/// 32 bits, half as many at once.
///
/// # Safety
/// As [`Kernel`], on a CPU that [`has_avx2`].
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn bfloat16_sum(out: *mut u8, a: *const u8, b: *const u8, count: usize) {
    // In each 32 bits, which hold two elements.
    const ODD_HALVES: i32 = 0b1010_1010;
    let high_half = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    let zero = _mm256_setzero_si256();
    let one = _mm256_set1_epi16(1);
    let middle = _mm256_set1_epi16(i16::MIN);
    let magnitude = _mm256_set1_epi16(0x7fff);
    let infinity = _mm256_set1_epi16(0x7f80);
    let canonical_nan = _mm256_set1_epi16((CANONICAL_NAN >> 16) as i16);
    let widen_low = |pairs: __m256i| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs));
    let widen_high = |pairs: __m256i| _mm256_castsi256_ps(_mm256_and_si256(pairs, high_half));
    let sum = |a: __m256i, b: __m256i| {
        let low = _mm256_castps_si256(_mm256_add_ps(widen_low(a), widen_low(b)));
        let high = _mm256_castps_si256(_mm256_add_ps(widen_high(a), widen_high(b)));
        // Of every sum the half that stays, in the place of its element, and the half that goes.
        let stays = _mm256_blend_epi16::<ODD_HALVES>(_mm256_srli_epi32::<16>(low), high);
        let goes = _mm256_blend_epi16::<ODD_HALVES>(low, _mm256_slli_epi32::<16>(high));
        // -1, to be taken away, if what goes is above its middle, or on it and what stays odd.
        let odd = _mm256_and_si256(stays, one);
        let above_middle = _mm256_xor_si256(goes, middle);
        let carry = _mm256_cmpgt_epi16(above_middle, _mm256_sub_epi16(zero, odd));
        let rounded = _mm256_sub_epi16(stays, carry);
        // A NaN that an addition gives is quiet: the half that stays tells it from infinity.
        let is_nan = _mm256_cmpgt_epi16(_mm256_and_si256(stays, magnitude), infinity);
        _mm256_blendv_epi8(rounded, canonical_nan, is_nan)
    };
    let sums = |a: Line, b: Line| [sum(a[0], b[0]), sum(a[1], b[1])];
    // SAFETY: the caller's contract is that of a kernel; any bits are a line.
    unsafe { run(out, a, b, count * size_of::<u16>(), fetch, sums) }
}
