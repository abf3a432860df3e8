//! How each reduction of each type is done: NCCL knows no bool, no 16-bit integers, no complex numbers.

use std::ffi::c_int;

use cudarc::nccl::sys::{ncclDataType_t, ncclRedOp_t};

use crate::dtype::Dtype;
use crate::reduce::Reduction;

/// How a reduction is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// By NCCL, on so many of its elements for each of ours.
    Nccl {
        /// `ncclDataType_t`
        dtype: c_int,
        /// `ncclRedOp_t`
        op: c_int,
        /// NCCL's elements in one of ours.
        parts: usize,
    },
    /// By our kernels, in memory of the host: see `staged.rs`.
    Staged,
}

/// `ncclUint8`: what moves without arithmetic goes as bytes.
pub const BYTE: c_int = ncclDataType_t::ncclUint8 as c_int;
/// `ncclMax`
pub const MAX: c_int = ncclRedOp_t::ncclMax as c_int;

/// The way that is exact, and the shortest.
pub fn route(reduction: Reduction, dtype: Dtype) -> Route {
    let op = match reduction {
        Reduction::Sum => ncclRedOp_t::ncclSum,
        Reduction::Max => ncclRedOp_t::ncclMax,
        Reduction::Min => ncclRedOp_t::ncclMin,
    } as c_int;
    let nccl = |dtype: ncclDataType_t| Route::Nccl { dtype: dtype as c_int, op, parts: 1 };
    match dtype {
        Dtype::Int8 => nccl(ncclDataType_t::ncclInt8),
        Dtype::Uint8 => nccl(ncclDataType_t::ncclUint8),
        Dtype::Int32 => nccl(ncclDataType_t::ncclInt32),
        Dtype::Uint32 => nccl(ncclDataType_t::ncclUint32),
        Dtype::Int64 => nccl(ncclDataType_t::ncclInt64),
        Dtype::Uint64 => nccl(ncclDataType_t::ncclUint64),
        Dtype::Float16 => nccl(ncclDataType_t::ncclFloat16),
        Dtype::Bfloat16 => nccl(ncclDataType_t::ncclBfloat16),
        Dtype::Float32 => nccl(ncclDataType_t::ncclFloat32),
        Dtype::Float64 => nccl(ncclDataType_t::ncclFloat64),
        // Bytes 0 and 1: *or* is the greater, *and* the smaller.
        Dtype::Bool if reduction == Reduction::Min => nccl(ncclDataType_t::ncclUint8),
        Dtype::Bool => Route::Nccl { dtype: BYTE, op: MAX, parts: 1 },
        // Real and imaginary parts add up by themselves.
        Dtype::Complex64 if reduction == Reduction::Sum => {
            Route::Nccl { dtype: ncclDataType_t::ncclFloat32 as c_int, op, parts: 2 }
        }
        Dtype::Complex64 | Dtype::Int16 | Dtype::Uint16 => Route::Staged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reduction_has_a_route() {
        let staged: Vec<_> = Reduction::ALL
            .into_iter()
            .flat_map(|reduction| Dtype::ALL.map(|dtype| (reduction, dtype)))
            .filter(|(reduction, dtype)| route(*reduction, *dtype) == Route::Staged)
            .collect();
        assert_eq!(staged.len(), 3 * 2 + 2, "{staged:?}");
        for (reduction, dtype) in staged {
            let exact = dtype != Dtype::Complex64 || reduction != Reduction::Sum;
            assert!(exact && dtype.size() != 4, "{reduction:?} {dtype:?}");
        }
    }

    #[test]
    fn nccl_elements_make_up_ours() {
        // Sizes by ncclDataType_t.
        let sizes = [1, 1, 4, 4, 8, 8, 2, 4, 8, 2];
        for (reduction, ours) in
            Reduction::ALL.into_iter().flat_map(|r| Dtype::ALL.map(|dtype| (r, dtype)))
        {
            if let Route::Nccl { dtype, parts, .. } = route(reduction, ours) {
                assert_eq!(sizes[dtype as usize] * parts, ours.size(), "{reduction:?} {ours:?}");
            }
        }
    }
}
