//! What sum, max and min mean for each element type: branch-free code on lanes, the same at every
//! level.

use std::ops::BitXor;

/// The reductions of one element type.
pub trait Element {
    /// The bits of one element: max and min move them and never recompute them.
    type Lane: Copy + BitXor<Output = Self::Lane> + From<bool>;
    /// What one step of a sum works on: an element, two of them, or half of one. Every bit pattern
    /// is a value of this type.
    type SumLane: Copy;

    fn sum(a: Self::SumLane, b: Self::SumLane) -> Self::SumLane;
    fn max(a: Self::Lane, b: Self::Lane) -> Self::Lane;
    fn min(a: Self::Lane, b: Self::Lane) -> Self::Lane;
}

/// One byte, 0 or 1.
pub struct Bool;

impl Element for Bool {
    type Lane = u8;
    type SumLane = u8;

    #[inline(always)]
    fn sum(a: u8, b: u8) -> u8 {
        a | b
    }

    #[inline(always)]
    fn max(a: u8, b: u8) -> u8 {
        a | b
    }

    #[inline(always)]
    fn min(a: u8, b: u8) -> u8 {
        a & b
    }
}

macro_rules! integers {
    ($($integer:ty),*) => {$(
        impl Element for $integer {
            type Lane = $integer;
            type SumLane = $integer;

            #[inline(always)]
            fn sum(a: $integer, b: $integer) -> $integer {
                a.wrapping_add(b)
            }

            #[inline(always)]
            fn max(a: $integer, b: $integer) -> $integer {
                Ord::max(a, b)
            }

            #[inline(always)]
            fn min(a: $integer, b: $integer) -> $integer {
                Ord::min(a, b)
            }
        }
    )*};
}

integers!(i8, i16, i32, i64, u8, u16, u32, u64);

/// Max and min of a float type, by its bits: -0 below +0, `a` if it is NaN, else `b` if that is.
macro_rules! float_max_and_min {
    ($bits:ty, $signed:ty, $is_nan:expr) => {
        #[inline(always)]
        fn max(a: $bits, b: $bits) -> $bits {
            let is_nan = $is_nan;
            // As integers they order as floats do, but the other way round where both are negative.
            let (x, y) = (a as $signed, b as $signed);
            let a_is_above = (x > y) ^ ((x & y) < 0);
            if is_nan(a) | (a_is_above & !is_nan(b)) { a } else { b }
        }

        #[inline(always)]
        fn min(a: $bits, b: $bits) -> $bits {
            let is_nan = $is_nan;
            let (x, y) = (a as $signed, b as $signed);
            let a_is_below = (x < y) ^ ((x & y) < 0);
            if is_nan(a) | (a_is_below & !is_nan(b)) { a } else { b }
        }
    };
}

/// The NaN that a float32 sum gives; its upper half is that of bfloat16.
pub const CANONICAL_NAN: u32 = 0x7fc0_0000;

macro_rules! floats {
    ($($float:ty, $bits:ty, $signed:ty, $canonical_nan:expr);*) => {$(
        impl Element for $float {
            type Lane = $bits;
            type SumLane = $float;

            #[inline(always)]
            fn sum(a: $float, b: $float) -> $float {
                let sum = a + b;
                if sum.is_nan() { <$float>::from_bits($canonical_nan) } else { sum }
            }

            float_max_and_min!($bits, $signed, |bits| <$float>::from_bits(bits).is_nan());
        }
    )*};
}

floats!(f32, u32, i32, CANONICAL_NAN; f64, u64, i64, 0x7ff8_0000_0000_0000);

/// Two binary32: real part, imaginary part.
pub struct Complex64;

impl Element for Complex64 {
    type Lane = u64;
    type SumLane = f32;

    #[inline(always)]
    fn sum(a: f32, b: f32) -> f32 {
        f32::sum(a, b)
    }

    #[inline(always)]
    fn max(a: u64, b: u64) -> u64 {
        Complex64::first_nan_or(a, b, Complex64::greater(a, b))
    }

    #[inline(always)]
    fn min(a: u64, b: u64) -> u64 {
        Complex64::first_nan_or(a, b, Complex64::greater(b, a))
    }
}

impl Complex64 {
    /// The bits of the real and of the imaginary part, in this order in memory.
    #[inline(always)]
    fn parts(bits: u64) -> (u32, u32) {
        let (low, high) = (bits as u32, (bits >> 32) as u32);
        if cfg!(target_endian = "little") { (low, high) } else { (high, low) }
    }

    /// Whether `a` is above `b`: by value, real part first; where all of that is equal by the signs
    /// of the zeros, real part first. Of no meaning if a part is NaN.
    #[inline(always)]
    fn greater(a: u64, b: u64) -> bool {
        let ((a_real, a_imaginary), (b_real, b_imaginary)) =
            (Complex64::parts(a), Complex64::parts(b));
        // Equal floats with different bits are zeros; as integers -0 is i32::MIN and +0 is 0.
        let by_signs = (a_real as i32 > b_real as i32)
            | ((a_real == b_real) & (a_imaginary as i32 > b_imaginary as i32));
        let (x, y) = (f32::from_bits(a_imaginary), f32::from_bits(b_imaginary));
        let by_imaginary = (x > y) | ((x == y) & by_signs);
        let (x, y) = (f32::from_bits(a_real), f32::from_bits(b_real));
        (x > y) | ((x == y) & by_imaginary)
    }

    /// `a` if a part of it is NaN, else `b` if a part of it is, else `a` or `b` as told.
    #[inline(always)]
    fn first_nan_or(a: u64, b: u64, a_is_it: bool) -> u64 {
        let is_nan = |bits: u64| {
            let (real, imaginary) = Complex64::parts(bits);
            f32::from_bits(real).is_nan() | f32::from_bits(imaginary).is_nan()
        };
        if is_nan(a) | (a_is_it & !is_nan(b)) { a } else { b }
    }
}

/// A half type. A sum lane holds two elements: both are widened and rounded in the 32 bits where
/// they lie, without moving between lanes. Max and min never leave the 16 bits.
macro_rules! halves {
    ($($half:ident, $infinity:literal);*) => {$(
        impl Element for $half {
            type Lane = u16;
            type SumLane = u32;

            #[inline(always)]
            fn sum(a: u32, b: u32) -> u32 {
                let low = f32::sum($half::widen_low(a), $half::widen_low(b));
                let high = f32::sum($half::widen_high(a), $half::widen_high(b));
                $half::round(low) | ($half::round(high) << 16)
            }

            float_max_and_min!(u16, i16, |bits: u16| (bits & 0x7fff) as i16 > $infinity);
        }
    )*};
}

halves!(Float16, 0x7c00; Bfloat16, 0x7f80);

/// The upper half of a binary32.
pub struct Bfloat16;

impl Bfloat16 {
    #[inline(always)]
    fn widen_low(pair: u32) -> f32 {
        f32::from_bits(pair << 16)
    }

    #[inline(always)]
    fn widen_high(pair: u32) -> f32 {
        f32::from_bits(pair & 0xffff_0000)
    }

    /// To nearest, ties to even. A NaN must be the canonical one, whose low half is 0.
    #[inline(always)]
    fn round(value: f32) -> u32 {
        let bits = value.to_bits();
        // Carries into the upper half if the lower is above its middle, or on it and the upper odd.
        bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16
    }
}

/// IEEE 754 binary16.
pub struct Float16;

impl Float16 {
    /// What the exponent field of a float32 has more than that of a float16 of the same value.
    const REBIAS: u32 = (127 - 15) << 23;
    /// 2^-14 as float32: the smallest float16 that is not subnormal.
    const SMALLEST_NORMAL: u32 = (127 - 14) << 23;

    #[inline(always)]
    fn widen_low(pair: u32) -> f32 {
        Float16::widen(pair & 0xffff)
    }

    #[inline(always)]
    fn widen_high(pair: u32) -> f32 {
        Float16::widen(pair >> 16)
    }

    #[inline(always)]
    fn widen(half: u32) -> f32 {
        let sign = (half & 0x8000) << 16;
        let magnitude = (half & 0x7fff) << 13;
        let normal = magnitude + Float16::REBIAS;
        // The fraction below the leading one of 2^-14, and that one taken away again: no operand of
        // this is a float32 subnormal, which the caller's thread may have set to be taken for 0.
        let subnormal = f32::from_bits(magnitude | Float16::SMALLEST_NORMAL)
            - f32::from_bits(Float16::SMALLEST_NORMAL);
        let bits = if magnitude < 0x0400 << 13 { subnormal.to_bits() } else { normal };
        let all_exponent = if magnitude >= 0x7c00 << 13 { 0x7f80_0000 } else { 0 };
        f32::from_bits(bits | all_exponent | sign)
    }

    /// To nearest, ties to even. A NaN must be the canonical one.
    #[inline(always)]
    fn round(value: f32) -> u32 {
        let sign = (value.to_bits() >> 16) & 0x8000;
        let magnitude = value.to_bits() & 0x7fff_ffff;
        // A float32 in [0.5, 1) counts in steps of 2^-24, as float16 does below 2^-14: adding 0.5
        // rounds, and leaves the count in the low bits.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits() & 0x07ff;
        // Carries if the 13 bits that go are above their middle, or on it and the rest odd; from
        // 65520 on, half a step above the greatest float16, the carry makes infinity.
        let odd = (magnitude >> 13) & 1;
        let normal = magnitude.wrapping_sub(Float16::REBIAS).wrapping_add(0x0fff + odd) >> 13;
        let infinity_or_nan = if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
        let bits = if magnitude < Float16::SMALLEST_NORMAL { subnormal } else { normal };
        let bits = if magnitude >= (127 + 16) << 23 { infinity_or_nan } else { bits };
        bits | sign
    }
}
