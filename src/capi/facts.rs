//! Constants, and what is known without a group.

use std::ffi::c_char;

use crate::dtype::Dtype;
use crate::error::Status;

/// What a call came to: one of the MLXD_OK and MLXD_ERROR_ constants. Numbers never change meaning.
pub type mlxd_status = i32;

/// An element type: one of the MLXD_ constants named after types. 14 and above are reserved.
pub type mlxd_dtype = i32;

/// C's `bool` as it comes from callers in any language: whatever is not zero is true.
pub type mlxd_truth = u8;

/// Success.
pub const MLXD_OK: mlxd_status = 0;
/// An argument is wrong; nothing was done, and the group works on.
pub const MLXD_ERROR_INVALID_ARGUMENT: mlxd_status = 1;
/// The request is right, but this backend or build cannot fulfil it.
pub const MLXD_ERROR_UNSUPPORTED: mlxd_status = 2;
/// The backend's library or device is not on this machine.
pub const MLXD_ERROR_UNAVAILABLE: mlxd_status = 3;
/// Rank, hostfile and the like are missing or malformed, or ranks were started with different ones.
pub const MLXD_ERROR_CONFIG: mlxd_status = 4;
/// A deadline passed: of the start, or of an operation without progress.
pub const MLXD_ERROR_TIMEOUT: mlxd_status = 5;
/// Another rank died, left while it was still needed, or fell silent.
pub const MLXD_ERROR_PEER_LOST: mlxd_status = 6;
/// mlxd_group_abort() was called on some rank, or mlxd_finalize() on this one.
pub const MLXD_ERROR_ABORTED: mlxd_status = 7;
/// Ranks called different operations, counts, dtypes or roots.
pub const MLXD_ERROR_MISMATCH: mlxd_status = 8;
/// A peer does not know MLXD_SECRET.
pub const MLXD_ERROR_AUTH: mlxd_status = 9;
/// A call to the operating system failed, or the network changed what it carried: a checksum was wrong.
pub const MLXD_ERROR_SYSTEM: mlxd_status = 10;
/// MPI, CUDA, NCCL or verbs reported an error.
pub const MLXD_ERROR_BACKEND: mlxd_status = 11;
/// A bug in this library. Any call that can fail could return it, so that none lists it.
pub const MLXD_ERROR_INTERNAL: mlxd_status = 12;

/// One byte, 0 or 1. Sum and max are *or*, min is *and*.
pub const MLXD_BOOL: mlxd_dtype = 0;
/// int8_t. Sums of integers wrap.
pub const MLXD_INT8: mlxd_dtype = 1;
/// int16_t
pub const MLXD_INT16: mlxd_dtype = 2;
/// int32_t
pub const MLXD_INT32: mlxd_dtype = 3;
/// int64_t
pub const MLXD_INT64: mlxd_dtype = 4;
/// uint8_t
pub const MLXD_UINT8: mlxd_dtype = 5;
/// uint16_t
pub const MLXD_UINT16: mlxd_dtype = 6;
/// uint32_t
pub const MLXD_UINT32: mlxd_dtype = 7;
/// uint64_t
pub const MLXD_UINT64: mlxd_dtype = 8;
/// IEEE 754 binary16. Added in binary32 and rounded where contributions meet.
pub const MLXD_FLOAT16: mlxd_dtype = 9;
/// The upper half of a binary32. Added in binary32 and rounded where contributions meet.
pub const MLXD_BFLOAT16: mlxd_dtype = 10;
/// float. NaN wins in max and min, for all floating types.
pub const MLXD_FLOAT32: mlxd_dtype = 11;
/// double
pub const MLXD_FLOAT64: mlxd_dtype = 12;
/// Two floats: real part, imaginary part. Compared by real part, then imaginary part.
pub const MLXD_COMPLEX64: mlxd_dtype = 13;

/// The name of a status, such as "MLXD_ERROR_TIMEOUT"; "MLXD_ERROR_UNKNOWN" for a number that is
/// none. Never NULL; the library owns the string for good. Any thread; never blocks.
#[unsafe(no_mangle)]
pub extern "C" fn mlxd_status_name(status: mlxd_status) -> *const c_char {
    let known = usize::try_from(status).ok().and_then(|number| Status::ALL.get(number));
    let name = known.map_or(c"MLXD_ERROR_UNKNOWN", |status| status.name());
    name.as_ptr()
}

/// Bytes of one element of this type; 0 for an unknown one. Any thread; never blocks.
#[unsafe(no_mangle)]
pub extern "C" fn mlxd_dtype_size(dtype: mlxd_dtype) -> usize {
    Dtype::from_number(dtype).map_or(0, Dtype::size)
}

/// The version of the library that is loaded, such as "0.1.0"; the header's own is in
/// MLXD_VERSION_MAJOR, MLXD_VERSION_MINOR and MLXD_VERSION_PATCH. Never NULL; the library owns the
/// string for good. Any thread; never blocks.
#[unsafe(no_mangle)]
pub extern "C" fn mlxd_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_the_numbers_of_the_types() {
        let statuses = [
            MLXD_OK,
            MLXD_ERROR_INVALID_ARGUMENT,
            MLXD_ERROR_UNSUPPORTED,
            MLXD_ERROR_UNAVAILABLE,
            MLXD_ERROR_CONFIG,
            MLXD_ERROR_TIMEOUT,
            MLXD_ERROR_PEER_LOST,
            MLXD_ERROR_ABORTED,
            MLXD_ERROR_MISMATCH,
            MLXD_ERROR_AUTH,
            MLXD_ERROR_SYSTEM,
            MLXD_ERROR_BACKEND,
            MLXD_ERROR_INTERNAL,
        ];
        for (number, status) in Status::ALL.into_iter().enumerate() {
            assert_eq!(statuses[number], status as mlxd_status);
            assert_eq!(number, status as usize);
        }
        let dtypes = [
            MLXD_BOOL,
            MLXD_INT8,
            MLXD_INT16,
            MLXD_INT32,
            MLXD_INT64,
            MLXD_UINT8,
            MLXD_UINT16,
            MLXD_UINT32,
            MLXD_UINT64,
            MLXD_FLOAT16,
            MLXD_BFLOAT16,
            MLXD_FLOAT32,
            MLXD_FLOAT64,
            MLXD_COMPLEX64,
        ];
        for dtype in Dtype::ALL {
            assert_eq!(dtypes[dtype as usize], dtype as mlxd_dtype);
        }
    }
}
