//! What the kernels should give, one element at a time, written for clarity in another way than
//! they are: by comparing and by exact arithmetic in float64.

use std::cmp::Ordering;

use super::Reduction;
use crate::dtype::Dtype;

/// The bits of `a op b`, from the bits of `a` and `b`.
pub fn combine(reduction: Reduction, dtype: Dtype, a: u64, b: u64) -> u64 {
    macro_rules! integer {
        ($integer:ty) => {{
            let (a, b) = (a as $integer, b as $integer);
            (match reduction {
                Reduction::Sum => (a as i128 + b as i128) as $integer,
                Reduction::Max => std::cmp::max(a, b),
                Reduction::Min => std::cmp::min(a, b),
            }) as u64
        }};
    }
    match dtype {
        Dtype::Bool => match reduction {
            Reduction::Sum | Reduction::Max => u64::from(a == 1 || b == 1),
            Reduction::Min => u64::from(a == 1 && b == 1),
        },
        Dtype::Int8 => integer!(i8),
        Dtype::Int16 => integer!(i16),
        Dtype::Int32 => integer!(i32),
        Dtype::Int64 => integer!(i64),
        Dtype::Uint8 => integer!(u8),
        Dtype::Uint16 => integer!(u16),
        Dtype::Uint32 => integer!(u32),
        Dtype::Uint64 => integer!(u64),
        Dtype::Float16 => half(reduction, Half::FLOAT16, a as u16, b as u16),
        Dtype::Bfloat16 => half(reduction, Half::BFLOAT16, a as u16, b as u16),
        Dtype::Float32 => u64::from(float32(reduction, a as u32, b as u32)),
        Dtype::Float64 => {
            let (x, y) = (f64::from_bits(a), f64::from_bits(b));
            match reduction {
                Reduction::Sum if (x + y).is_nan() => 0x7ff8_0000_0000_0000,
                Reduction::Sum => (x + y).to_bits(),
                _ => extremum(reduction, a, b, [x.is_nan(), y.is_nan()], x.total_cmp(&y)),
            }
        }
        Dtype::Complex64 => complex64(reduction, a, b),
    }
}

/// The greater or the smaller of two that compare as told; NaN wins, `a` before `b`.
fn extremum(reduction: Reduction, a: u64, b: u64, nan: [bool; 2], a_to_b: Ordering) -> u64 {
    match (nan, reduction, a_to_b) {
        ([true, _], ..) => a,
        ([false, true], ..) => b,
        (_, Reduction::Max, Ordering::Greater) | (_, Reduction::Min, Ordering::Less) => a,
        _ => b,
    }
}

fn float32(reduction: Reduction, a: u32, b: u32) -> u32 {
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    match reduction {
        Reduction::Sum if (x + y).is_nan() => 0x7fc0_0000,
        Reduction::Sum => (x + y).to_bits(),
        _ => {
            let nan = [x.is_nan(), y.is_nan()];
            extremum(reduction, a.into(), b.into(), nan, x.total_cmp(&y)) as u32
        }
    }
}

fn complex64(reduction: Reduction, a: u64, b: u64) -> u64 {
    let parts = |bits: u64| -> [u32; 2] {
        let bytes = bits.to_ne_bytes();
        let part = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        [u32::from_ne_bytes(part(0)), u32::from_ne_bytes(part(4))]
    };
    let (a_parts, b_parts) = (parts(a), parts(b));
    if reduction == Reduction::Sum {
        let sum = [0, 1].map(|part| float32(Reduction::Sum, a_parts[part], b_parts[part]));
        let bytes = [sum[0].to_ne_bytes(), sum[1].to_ne_bytes()].concat();
        return u64::from_ne_bytes(bytes.try_into().expect("two parts of 4 bytes"));
    }
    let (x, y) = (a_parts.map(f32::from_bits), b_parts.map(f32::from_bits));
    let nan = [x, y].map(|value| value[0].is_nan() || value[1].is_nan());
    let by_value = x.partial_cmp(&y).unwrap_or(Ordering::Equal);
    let by_signs = x[0].total_cmp(&y[0]).then(x[1].total_cmp(&y[1]));
    extremum(reduction, a, b, nan, by_value.then(by_signs))
}

fn half(reduction: Reduction, half: Half, a: u16, b: u16) -> u64 {
    let (x, y) = (half.value(a), half.value(b));
    match reduction {
        // The sum in float32 as the kernels make it, then one rounding.
        Reduction::Sum => half.nearest(f64::from(x as f32 + y as f32)).into(),
        _ => {
            let nan = [x.is_nan(), y.is_nan()];
            extremum(reduction, a.into(), b.into(), nan, x.total_cmp(&y))
        }
    }
}

/// A format of one sign bit, an exponent and a fraction in 16 bits.
#[derive(Clone, Copy)]
pub struct Half {
    fraction_bits: i32,
    /// The exponent of the smallest number that is not subnormal.
    smallest: i32,
}

impl Half {
    pub const FLOAT16: Half = Half { fraction_bits: 10, smallest: -14 };
    pub const BFLOAT16: Half = Half { fraction_bits: 7, smallest: -126 };

    fn infinity(self) -> u16 {
        0x7fff >> self.fraction_bits << self.fraction_bits
    }

    /// One, the least above 0, the greatest, an infinity, and a signalling NaN with a payload.
    pub fn interesting(self) -> [u16; 5] {
        let (one, infinity) = (0x3fff >> self.fraction_bits << self.fraction_bits, self.infinity());
        [one, 0x0001, infinity - 1, infinity | 0x8000, infinity + 1]
    }

    fn value(self, bits: u16) -> f64 {
        let magnitude = i32::from(bits & 0x7fff);
        let (exponent, fraction) =
            (magnitude >> self.fraction_bits, magnitude % (1 << self.fraction_bits));
        let unsigned = if bits & 0x7fff > self.infinity() {
            f64::NAN
        } else if bits & 0x7fff == self.infinity() {
            f64::INFINITY
        } else if exponent == 0 {
            f64::from(fraction) * power(self.smallest - self.fraction_bits)
        } else {
            let significand = f64::from(fraction + (1 << self.fraction_bits));
            significand * power(self.smallest + exponent - 1 - self.fraction_bits)
        };
        if bits & 0x8000 == 0 { unsigned } else { -unsigned }
    }

    /// The bits of the number nearest to `value`, ties to even; the canonical NaN for a NaN.
    fn nearest(self, value: f64) -> u16 {
        if value.is_nan() {
            return self.infinity() | 1 << (self.fraction_bits - 1);
        }
        let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
        let magnitude = value.abs();
        let exponent = (((magnitude.to_bits() >> 52) as i32) - 1023).clamp(self.smallest, 1000);
        let steps = (magnitude / power(exponent - self.fraction_bits)).round_ties_even();
        let bits = f64::from((exponent - self.smallest) << self.fraction_bits) + steps;
        sign | bits.min(f64::from(self.infinity())) as u16
    }
}

/// 2 to this power.
fn power(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// Bit patterns that matter to a type: zeros, subnormals, ones, the greatest and the least,
/// infinities, and quiet and signalling NaNs of both signs with payloads.
pub fn special_bits(dtype: Dtype) -> Vec<u64> {
    let signed = |magnitudes: &[u64], sign: u64| -> Vec<u64> {
        magnitudes.iter().flat_map(|&bits| [bits, bits | sign]).collect()
    };
    match dtype {
        Dtype::Bool => vec![0, 1],
        Dtype::Float16 => {
            let halves =
                [0, 1, 0x3ff, 0x400, 0x3c00, 0x3c01, 0x7bff, 0x7c00, 0x7c01, 0x7e00, 0x7fff];
            signed(&halves, 1 << 15)
        }
        Dtype::Bfloat16 => {
            let halves = [0, 1, 0x7f, 0x80, 0x3f80, 0x3f81, 0x7f7f, 0x7f80, 0x7f81, 0x7fc0, 0x7fff];
            signed(&halves, 1 << 15)
        }
        Dtype::Float32 => signed(&float32_magnitudes(), 1 << 31),
        Dtype::Float64 => {
            let one = 1f64.to_bits();
            let infinity = f64::INFINITY.to_bits();
            let nan = f64::NAN.to_bits();
            let greatest = f64::MAX.to_bits();
            let least = f64::MIN_POSITIVE.to_bits();
            let all = [
                0,
                1,
                least - 1,
                least,
                one,
                one + 1,
                greatest,
                infinity,
                infinity + 5,
                nan,
                nan + 7,
            ];
            signed(&all, 1 << 63)
        }
        Dtype::Complex64 => {
            let parts = signed(&float32_magnitudes(), 1 << 31);
            parts
                .iter()
                .flat_map(|&real| {
                    [0, 1 << 31, 1.5f32.to_bits().into(), 0x7fc0_0003].map(|i: u64| real | i << 32)
                })
                .collect()
        }
        _ => {
            let top = 1u64 << (dtype.size() * 8 - 1);
            vec![0, 1, top - 1, top, top + 1, top | (top - 1)]
        }
    }
}

fn float32_magnitudes() -> [u64; 11] {
    let [one, infinity, nan, greatest, least] =
        [1.0, f32::INFINITY, f32::NAN, f32::MAX, f32::MIN_POSITIVE].map(|x| u64::from(x.to_bits()));
    [0, 1, least - 1, least, one, one + 1, greatest, infinity, infinity + 5, nan, nan + 7]
}
