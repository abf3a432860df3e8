//! Which MPI operation a reduction is: MPI's own for the sums that its algorithms are tuned for, else one
//! that calls our kernels.
//!
//! MPI knows no half types, adds complex numbers without a rule for NaN and orders them not at all,
//! and its max and min of floats may lose a NaN. Some versions get integers wrong, too: sums of 8 and
//! 16 bits saturate in Open MPI 4.1.4 (with AVX), max and min of unsigned ones go by the sign in MPICH
//! 4.0.2. So MPI's own are the sums of 32 and 64 bits alone. (Where several ranks contribute NaNs
//! that differ, such a sum may be another NaN on each rank: an addition returns one of its operands.)

use std::ffi::{c_int, c_void};

use super::abi::{Datatype, Op, UserFunction};
use super::functions::Functions;
use super::library::Library;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::reduce::environment::Environment;
use crate::reduce::{Reduction, kernel};

/// The operation for every reduction and type.
#[derive(Debug)]
pub struct Operations {
    all: [[Op; 14]; 3],
    /// Those that were made here, and are freed before MPI ends.
    ours: Vec<Op>,
}

impl Operations {
    /// Makes those that MPI lacks.
    pub fn make(library: &Library) -> Result<Operations> {
        let mut operations = Operations { all: [[library.abi.sum; 14]; 3], ours: Vec::new() };
        for reduction in Reduction::ALL {
            for dtype in Dtype::ALL {
                let op = match function(reduction, dtype) {
                    None => library.abi.sum,
                    Some(function) => {
                        let mut op = Op(0);
                        // Commutative, whatever NaNs there are: see `commutative_extreme`.
                        // SAFETY: `function` lives as long as the library, and `op` is ours.
                        let code = unsafe { (library.functions.op_create)(function, 1, &mut op) };
                        library.check("MPI_Op_create", code)?;
                        operations.ours.push(op);
                        op
                    }
                };
                operations.all[reduction as usize][dtype as usize] = op;
            }
        }
        Ok(operations)
    }

    /// The operation for this reduction of elements of this type.
    pub fn get(&self, reduction: Reduction, dtype: Dtype) -> Op {
        self.all[reduction as usize][dtype as usize]
    }

    /// Frees what was made; MPI is still there, and nothing uses the operations any more.
    pub fn free(&self, functions: &Functions) {
        for op in &self.ours {
            let mut op = *op;
            // SAFETY: made by MPI_Op_create; freed once, since MPI ends next. A failure changes
            // nothing for anybody.
            unsafe { (functions.op_free)(&mut op) };
        }
    }
}

/// Our function; `None` where MPI's own sum will do. MPI gives a function no argument of the user's, so
/// there is one for each.
fn function(reduction: Reduction, dtype: Dtype) -> Option<UserFunction> {
    /// `Reduction as usize`, for arguments of types.
    const SUM: usize = Reduction::Sum as usize;
    const MAX: usize = Reduction::Max as usize;
    const MIN: usize = Reduction::Min as usize;
    macro_rules! of_each_dtype {
        ($function:ident, $reduction:ident, $($dtype:ident)*) => {
            match dtype {
                $(Dtype::$dtype => $function::<$reduction, { Dtype::$dtype as usize }>,)*
            }
        };
    }
    macro_rules! of_dtype {
        ($function:ident, $reduction:ident) => {
            of_each_dtype!(
                $function, $reduction,
                Bool Int8 Int16 Int32 Int64 Uint8 Uint16 Uint32 Uint64
                Float16 Bfloat16 Float32 Float64 Complex64
            )
        };
    }
    let function: UserFunction = match (reduction, has_nan(dtype)) {
        (Reduction::Sum, _) if is_left_to_mpi(dtype) => return None,
        (Reduction::Sum, _) => of_dtype!(reduce, SUM),
        (Reduction::Max, false) => of_dtype!(reduce, MAX),
        (Reduction::Min, false) => of_dtype!(reduce, MIN),
        (Reduction::Max, true) => of_dtype!(commutative_extreme, MAX),
        (Reduction::Min, true) => of_dtype!(commutative_extreme, MIN),
    };
    Some(function)
}

/// Whether MPI's own sum is used.
fn is_left_to_mpi(dtype: Dtype) -> bool {
    matches!(
        dtype,
        Dtype::Int32
            | Dtype::Uint32
            | Dtype::Float32
            | Dtype::Int64
            | Dtype::Uint64
            | Dtype::Float64
    )
}

fn has_nan(dtype: Dtype) -> bool {
    matches!(
        dtype,
        Dtype::Float16 | Dtype::Bfloat16 | Dtype::Float32 | Dtype::Float64 | Dtype::Complex64
    )
}

/// `MPI_User_function`: `in_out[i] = input[i] op in_out[i]`. The kernels' sums, and max and min of what
/// has no NaN, do not depend on the order of the operands.
unsafe extern "C" fn reduce<const REDUCTION: usize, const DTYPE: usize>(
    input: *const c_void,
    in_out: *mut c_void,
    count: *const c_int,
    _datatype: *const Datatype,
) {
    // On whichever thread of the program is in MPI.
    let _environment = Environment::standard();
    // SAFETY: MPI passes a pointer to the count.
    let count = usize::try_from(unsafe { *count }).unwrap_or(0);
    let reduce = kernel(Reduction::ALL[REDUCTION], Dtype::ALL[DTYPE]);
    // SAFETY: MPI passes `count` elements on both sides, which do not overlap.
    unsafe { reduce(in_out.cast(), input.cast(), in_out.cast_const().cast(), count) };
}

/// 512 bytes: what is reduced at once, well within the innermost cache.
const STRIP: usize = 512;

/// `MPI_User_function`: the greater or the smaller of both, in a way that does not depend on their
/// order. A kernel takes the first of two NaNs; ranks that reduce in different orders would keep
/// different ones. So it runs in both orders, and what differs then (two NaNs) is decided by the
/// greater bits.
unsafe extern "C" fn commutative_extreme<const REDUCTION: usize, const DTYPE: usize>(
    input: *const c_void,
    in_out: *mut c_void,
    count: *const c_int,
    _datatype: *const Datatype,
) {
    let _environment = Environment::standard();
    let dtype = Dtype::ALL[DTYPE];
    let (extreme, by_bits) =
        (kernel(Reduction::ALL[REDUCTION], dtype), kernel(Reduction::Max, bits(dtype)));
    let size = dtype.size();
    // SAFETY: MPI passes a pointer to the count.
    let count = usize::try_from(unsafe { *count }).unwrap_or(0);
    let (a, b) = (input.cast::<u8>(), in_out.cast::<u8>());
    let mut other = [0u64; STRIP / 8];
    let other: *mut u8 = other.as_mut_ptr().cast();
    let mut done = 0;
    while done < count {
        let now = (count - done).min(STRIP / size);
        // SAFETY: MPI passes `count` elements on both sides, which do not overlap; `other` has room
        // for a strip. Bits are as many bytes as the elements that they are.
        unsafe {
            let (a, b) = (a.add(done * size), b.add(done * size));
            extreme(other, b, a, now);
            extreme(b, a, b, now);
            by_bits(b, b, other, now);
        }
        done += now;
    }
}

/// The unsigned integer of a type's size.
fn bits(dtype: Dtype) -> Dtype {
    match dtype.size() {
        1 => Dtype::Uint8,
        2 => Dtype::Uint16,
        4 => Dtype::Uint32,
        _ => Dtype::Uint64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(function: UserFunction, a: &[u32], b: &[u32]) -> Vec<u32> {
        let mut out = b.to_vec();
        let count = a.len() as c_int;
        let datatype = Datatype(0);
        // SAFETY: both have `count` elements of 4 bytes.
        unsafe { function(a.as_ptr().cast(), out.as_mut_ptr().cast(), &count, &datatype) };
        out
    }

    #[test]
    fn extremes_commute_whatever_the_nans() {
        let (quiet, payload, negative) = (0x7fc0_0000, 0x7fc0_1234, 0xffc0_0001u32);
        let numbers =
            [1.5f32.to_bits(), (-2f32).to_bits(), 0, 0x8000_0000, quiet, payload, negative];
        let pairs: Vec<(u32, u32)> = numbers
            .iter()
            .flat_map(|a| numbers.iter().map(|b| (*a, *b)))
            .cycle()
            .take(700)
            .collect();
        let (a, b): (Vec<u32>, Vec<u32>) = pairs.iter().copied().unzip();
        for reduction in [Reduction::Max, Reduction::Min] {
            let function = function(reduction, Dtype::Float32).unwrap();
            let (one, other) = (apply(function, &a, &b), apply(function, &b, &a));
            assert_eq!(one, other);
            for ((a, b), out) in pairs.iter().zip(one) {
                let (x, y) = (f32::from_bits(*a), f32::from_bits(*b));
                let out_value = f32::from_bits(out);
                if x.is_nan() || y.is_nan() {
                    assert!(out_value.is_nan());
                } else if reduction == Reduction::Max {
                    assert_eq!(out_value, x.max(y));
                } else {
                    assert_eq!(out_value, x.min(y));
                }
            }
        }
    }

    #[test]
    fn only_wide_sums_are_left_to_mpi() {
        for reduction in Reduction::ALL {
            for dtype in Dtype::ALL {
                let wide = dtype.size() >= 4 && dtype != Dtype::Complex64;
                let ours = function(reduction, dtype).is_some();
                assert_eq!(ours, reduction != Reduction::Sum || !wide, "{reduction:?} {dtype:?}");
            }
        }
    }
}
