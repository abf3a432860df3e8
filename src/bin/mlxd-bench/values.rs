//! What ranks put into their buffers, and what must come out: closed forms, exact in every type.
//!
//! A value is a small whole number; its element repeats after [`PERIOD`] elements, so that buffers
//! are filled and compared at the speed of memory. The period is a prime: bytes that went to the
//! place of another block or part are found out.

use mlxd::dtype::Dtype;
use mlxd::reduce::Reduction;

/// Elements after which the values repeat.
pub const PERIOD: usize = 1021;

/// The largest whole number up to which bfloat16, the coarsest type, holds all.
const EXACT: usize = 256;

/// The values of one operation on a group.
#[derive(Clone, Copy, Debug)]
pub struct Values {
    /// The element type.
    pub dtype: Dtype,
    /// The size of the group.
    pub ranks: usize,
    /// Whether sums over all ranks must be exact too.
    pub summed: bool,
}

/// Whose elements a stretch of a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// What this rank put in.
    Rank(usize),
    /// What all ranks put in, reduced.
    All(Reduction),
}

impl Values {
    /// What a rank puts into this element: 0..=30, or as much as keeps sums exact.
    fn input(&self, rank: usize, index: usize) -> u64 {
        let index = index % PERIOD;
        if self.dtype == Dtype::Bool {
            // Even places are rarely true and odd ones rarely false, so that neither *or* nor *and*
            // of several ranks is the same everywhere.
            let rare = (index / 2 + rank * 5).is_multiple_of(17);
            return u64::from(index.is_multiple_of(2) == rare);
        }
        if self.summed && rank >= EXACT {
            return 0;
        }
        let greatest = if self.summed { (EXACT / self.ranks).clamp(1, 30) } else { 30 };
        ((index * 7 + index / 31 + rank * 13) % (greatest + 1)) as u64
    }

    /// The value of an element from this source.
    fn value(&self, source: Source, index: usize) -> u64 {
        let mut all = (0..self.ranks).map(|rank| self.input(rank, index));
        let value = match source {
            Source::Rank(rank) => return self.input(rank, index),
            Source::All(Reduction::Sum) if self.dtype == Dtype::Bool => all.max(),
            Source::All(Reduction::Sum) => Some(all.by_ref().sum()),
            Source::All(Reduction::Max) => all.max(),
            Source::All(Reduction::Min) => all.min(),
        };
        value.unwrap_or(0)
    }

    /// One period of elements from this source, the first being that of `first`.
    pub fn period(&self, source: Source, first: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PERIOD * self.dtype.size());
        for index in first..first + PERIOD {
            push(&mut bytes, self.dtype, self.value(source, index));
        }
        bytes
    }
}

/// Appends a value, at most [`EXACT`], as an element; integers wrap, as the library's sums do.
fn push(bytes: &mut Vec<u8>, dtype: Dtype, value: u64) {
    let float = value as f32;
    match dtype {
        Dtype::Bool => bytes.push(u8::from(value != 0)),
        Dtype::Int8 | Dtype::Uint8 => bytes.push(value as u8),
        Dtype::Int16 | Dtype::Uint16 => bytes.extend((value as u16).to_ne_bytes()),
        Dtype::Int32 | Dtype::Uint32 => bytes.extend((value as u32).to_ne_bytes()),
        Dtype::Int64 | Dtype::Uint64 => bytes.extend(value.to_ne_bytes()),
        Dtype::Float16 => bytes.extend(half_bits(value).to_ne_bytes()),
        Dtype::Bfloat16 => bytes.extend(((float.to_bits() >> 16) as u16).to_ne_bytes()),
        Dtype::Float32 => bytes.extend(float.to_ne_bytes()),
        Dtype::Float64 => bytes.extend((value as f64).to_ne_bytes()),
        Dtype::Complex64 => {
            // The imaginary part is a multiple of the real one: sums stay sums.
            bytes.extend(float.to_ne_bytes());
            bytes.extend((3.0 * float).to_ne_bytes());
        }
    }
}

/// The bits of a binary16 that equals this whole number, at most 2047.
fn half_bits(value: u64) -> u16 {
    match value.checked_ilog2() {
        None => 0,
        // The leading one is not stored; the exponent's bias is 15.
        Some(exponent) => {
            ((u64::from(exponent) + 15) << 10 | (value << (10 - exponent) & 0x3ff)) as u16
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_exact() {
        for (value, bits) in
            [(0, 0), (1, 0x3c00), (2, 0x4000), (3, 0x4200), (30, 0x4f80), (256, 0x5c00)]
        {
            assert_eq!(half_bits(value), bits, "{value}");
        }
    }

    #[test]
    fn sums_stay_exact_in_every_type() {
        for ranks in [1, 2, 3, 9, 100, 256, 1000] {
            let values = Values { dtype: Dtype::Bfloat16, ranks, summed: true };
            let sums = (0..PERIOD).map(|at| values.value(Source::All(Reduction::Sum), at));
            assert!(sums.max().is_some_and(|sum| sum <= EXACT as u64), "{ranks} ranks");
        }
    }

    #[test]
    fn values_differ_between_ranks_and_elements() {
        for dtype in Dtype::ALL {
            let values = Values { dtype, ranks: 4, summed: true };
            let periods: Vec<Vec<u8>> =
                (0..4).map(|rank| values.period(Source::Rank(rank), 0)).collect();
            for rank in 0..4 {
                assert_eq!(periods[rank].len(), PERIOD * dtype.size());
                assert!((0..rank).all(|other| periods[rank] != periods[other]));
                // Moved by one, by a block of 1024, by a line.
                for by in [1, 3, 1024, 64] {
                    assert_ne!(periods[rank], values.period(Source::Rank(rank), by), "{dtype:?}");
                }
            }
            let reduced = |op| values.period(Source::All(op), 0);
            assert_ne!(reduced(Reduction::Max), reduced(Reduction::Min));
        }
    }
}
