//! What ranks put in, in closed form, and what must come of it: the header's contract once more, written
//! without a look at the library.

use std::sync::Arc;

use mlxd::capi::*;

use crate::program::Verb;
use crate::random::Random;

/// Element types by number: name and bytes.
const DTYPES: [(&str, usize); 14] = [
    ("bool", 1),
    ("int8", 1),
    ("int16", 2),
    ("int32", 4),
    ("int64", 8),
    ("uint8", 1),
    ("uint16", 2),
    ("uint32", 4),
    ("uint64", 8),
    ("float16", 2),
    ("bfloat16", 2),
    ("float32", 4),
    ("float64", 8),
    ("complex64", 8),
];

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dtype(pub mlxd_dtype);

impl Dtype {
    pub fn any(random: &mut Random) -> Dtype {
        Dtype(random.below(DTYPES.len()) as mlxd_dtype)
    }

    pub fn name(self) -> &'static str {
        DTYPES[self.0 as usize].0
    }

    pub fn size(self) -> usize {
        DTYPES[self.0 as usize].1
    }
}

/// What is asked of inputs: that every order of reduction gives the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// For sums: floats are integers whose partial sums are exact, or infinite.
    Addends,
    /// For the greatest and the least: some NaN, all with the same bytes, and no negative zero.
    Contestants,
    /// For what is only moved: any bits.
    Cargo,
}

/// Elements after which values repeat: a prime, so that no block or slot is a multiple of it.
const PERIOD: usize = 1009;

/// The values of one buffer.
#[derive(Clone, Debug)]
pub struct Values {
    pub dtype: Dtype,
    /// Of the elements before they repeat.
    bytes: Vec<u8>,
}

impl Values {
    /// What a rank puts in: of (`of`: seed, step, rank ...) and the index.
    pub fn input(of: &[u64], dtype: Dtype, content: Content) -> Values {
        let mut random = Random::new(of);
        let elements = (0..PERIOD).map(|index| element(dtype, content, index, random.next()));
        Values { dtype, bytes: elements.flat_map(|bits| to_bytes(dtype, bits)).collect() }
    }

    /// What is reduced from these.
    pub fn reduced(verb: Verb, inputs: &[Arc<Values>]) -> Values {
        let dtype = inputs[0].dtype;
        let reduce = |index| {
            let elements = inputs.iter().map(|input| from_bytes(input.element(index)));
            elements.reduce(|a, b| combine(verb, dtype, a, b)).unwrap()
        };
        let bytes = (0..PERIOD).flat_map(|index| to_bytes(dtype, reduce(index))).collect();
        Values { dtype, bytes }
    }

    fn element(&self, index: usize) -> &[u8] {
        &self.bytes[index % PERIOD * self.dtype.size()..][..self.dtype.size()]
    }

    /// Fills `out` with the elements from the `first` on.
    pub fn write(&self, first: usize, mut out: &mut [u8]) {
        let mut from = first % PERIOD * self.dtype.size();
        while !out.is_empty() {
            let (now, later) = out.split_at_mut(out.len().min(self.bytes.len() - from));
            now.copy_from_slice(&self.bytes[from..][..now.len()]);
            (out, from) = (later, 0);
        }
    }

    /// Says where `got` is not the elements from the `first` on.
    pub fn compare(&self, first: usize, got: &[u8]) -> Result<(), String> {
        let size = self.dtype.size();
        let (mut at, mut from) = (0, first % PERIOD * size);
        while at < got.len() {
            let length = (got.len() - at).min(self.bytes.len() - from);
            if got[at..][..length] != self.bytes[from..][..length] {
                break;
            }
            (at, from) = (at + length, 0);
        }
        let differs = |index: &usize| got[index * size..][..size] != *self.element(first + index);
        match (at / size..got.len() / size).find(differs) {
            None => Ok(()),
            Some(index) => {
                let wrong = (index..got.len() / size).filter(differs).count();
                let (got, right) = (&got[index * size..][..size], self.element(first + index));
                Err(format!(
                    "element {index} is {got:02x?}, not {right:02x?}; {wrong} are wrong of {}",
                    self.dtype.name()
                ))
            }
        }
    }
}

fn to_bytes(dtype: Dtype, bits: u64) -> impl Iterator<Item = u8> {
    bits.to_le_bytes().into_iter().take(dtype.size())
}

fn from_bytes(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}

/// The bits of one element; all ranks have the same index there.
fn element(dtype: Dtype, content: Content, index: usize, bits: u64) -> u64 {
    let integer = bits >> (64 - 8 * dtype.size());
    match (dtype.0, content) {
        (MLXD_BOOL, _) => bits & 1,
        (MLXD_COMPLEX64, Content::Addends) => {
            let part = |bits| number(Dtype(MLXD_FLOAT32), content, bits);
            part(bits) | part(bits.rotate_left(32)) << 32
        }
        (MLXD_COMPLEX64, Content::Contestants) => contestant(index, bits),
        (MLXD_FLOAT16.., Content::Addends | Content::Contestants) => number(dtype, content, bits),
        _ => integer,
    }
}

/// A complex number with many equals in its real part. One that is NaN in either part is the same on
/// all ranks.
fn contestant(index: usize, bits: u64) -> u64 {
    let float = |value: f64| encode(Dtype(MLXD_FLOAT32), value);
    let small = |bits: u64| float((bits % 5) as f64 - 2.0);
    match bits >> 56 {
        0..=2 if index.is_multiple_of(2) => float(f64::NAN) | small(index as u64) << 32,
        0..=2 => small(index as u64) | float(f64::NAN) << 32,
        _ => small(bits) | small(bits >> 20) << 32,
    }
}

/// A real number that the type has exactly, as it has all sums of 8 such addends.
fn number(dtype: Dtype, content: Content, bits: u64) -> u64 {
    let most: u64 = match dtype.0 {
        MLXD_FLOAT16 => 1 << 8,
        MLXD_BFLOAT16 => 1 << 5,
        MLXD_FLOAT32 => 1 << 20,
        _ => 1 << 49,
    };
    let integer = (bits % (2 * most)) as f64 - most as f64;
    let value = match (bits >> 56, content) {
        (0..=2, Content::Addends) => f64::INFINITY,
        (0..=2, _) => f64::NAN,
        (3, _) => f64::INFINITY,
        (4, Content::Contestants) => f64::NEG_INFINITY,
        (_, Content::Contestants) => integer / 4.0,
        _ => integer,
    };
    encode(dtype, value)
}

/// The bits of a number that the type has, as a zero, a normal number, an infinity or a NaN.
fn encode(dtype: Dtype, value: f64) -> u64 {
    let single = (value as f32).to_bits();
    match dtype.0 {
        MLXD_FLOAT64 => value.to_bits(),
        MLXD_FLOAT32 => single.into(),
        MLXD_BFLOAT16 => (single >> 16).into(),
        _ => {
            let sign = single >> 16 & 0x8000;
            let fraction = single >> 13 & 0x3ff;
            let magnitude = match single >> 23 & 0xff {
                0 => 0,
                255 => 0x7c00 | fraction,
                exponent => (exponent - 112) << 10 | fraction,
            };
            (sign | magnitude).into()
        }
    }
}

/// The number of bits that `encode` made.
fn decode(dtype: Dtype, bits: u64) -> f64 {
    match dtype.0 {
        MLXD_FLOAT64 => f64::from_bits(bits),
        MLXD_FLOAT32 => f32::from_bits(bits as u32).into(),
        MLXD_BFLOAT16 => f32::from_bits((bits as u32) << 16).into(),
        _ => {
            let (sign, fraction) = ((bits as u32 & 0x8000) << 16, (bits as u32 & 0x3ff) << 13);
            let exponent = match bits as u32 >> 10 & 0x1f {
                0 => 0,
                31 => 255,
                exponent => exponent + 112,
            };
            f32::from_bits(sign | exponent << 23 | fraction).into()
        }
    }
}

/// The bits of `a` and `b` reduced.
fn combine(verb: Verb, dtype: Dtype, a: u64, b: u64) -> u64 {
    let unused = 64 - 8 * dtype.size() as u32;
    let of_pair = |less: bool| if less == (verb == Verb::AllMin) { a } else { b };
    let adds = verb.is_sum();
    match dtype.0 {
        MLXD_BOOL if verb == Verb::AllMin => a & b,
        MLXD_BOOL => a | b,
        MLXD_COMPLEX64 => {
            let parts = |bits: u64| [bits as u32, (bits >> 32) as u32].map(f32::from_bits);
            let ([x, xi], [y, yi]) = (parts(a), parts(b));
            match () {
                () if adds => u64::from((x + y).to_bits()) | u64::from((xi + yi).to_bits()) << 32,
                () if x.is_nan() || xi.is_nan() => a,
                () if y.is_nan() || yi.is_nan() => b,
                () => of_pair((x, xi) < (y, yi)),
            }
        }
        MLXD_FLOAT16.. => {
            let (x, y) = (decode(dtype, a), decode(dtype, b));
            match () {
                () if adds => encode(dtype, x + y),
                () if x.is_nan() => a,
                () if y.is_nan() => b,
                () => of_pair(x < y),
            }
        }
        _ if adds => a.wrapping_add(b) << unused >> unused,
        MLXD_INT8..=MLXD_INT64 => of_pair(((a << unused) as i64) < (b << unused) as i64),
        _ => of_pair(a < b),
    }
}
