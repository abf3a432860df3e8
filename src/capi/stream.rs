//! Streams: queues of operations.

use std::ffi::c_void;

use super::{Handle, guard, guard_value, mlxd_status};
use crate::cuda;
use crate::error::{Result, fail};
use crate::stream::{Stream, Worker};

/// A queue of operations that run in order on a thread of their own, while the caller goes on. Any
/// thread may use it. In a forked child, the streams of the parent are invalid arguments.
pub struct mlxd_stream {
    _private: [u8; 0],
}

impl mlxd_stream {
    /// The stream of a handle; `None` for NULL.
    ///
    /// # Safety
    /// `stream` is NULL, or a handle that was not freed.
    pub(super) unsafe fn get<'a>(stream: *const mlxd_stream) -> Result<Option<&'a Stream>> {
        if stream.is_null() {
            return Ok(None);
        }
        // SAFETY: handles of streams are made by `mlxd_stream_new` only.
        unsafe { Handle::<Stream>::get(stream.cast(), "stream") }.map(Some)
    }
}

/// A new, empty stream with a thread, to be freed with mlxd_stream_free(). Operations of any groups
/// may be put on it. Any thread; never blocks.
///
/// NULL on error:
///
/// - MLXD_ERROR_SYSTEM: no thread could be started.
#[unsafe(no_mangle)]
pub extern "C" fn mlxd_stream_new() -> *mut mlxd_stream {
    guard_value(std::ptr::null_mut(), || Ok(Handle::new(Stream::Queue(Worker::new()?))?.cast()))
}

/// A stream that stands for a cudaStream_t (or CUstream, which is the same), which the caller owns and keeps
/// alive for as long; 0 is CUDA's legacy default stream. For groups on nccl, and those of one process on
/// "none". To be freed with mlxd_stream_free(). Any thread; never blocks, but opens the CUDA driver if
/// nobody has.
///
/// An operation that is put on it is enqueued like a kernel: the call returns as soon as it is on the CUDA
/// stream, it runs after the work that was put there before, and work that is put there later sees its
/// output, without any synchronize. The buffers are the library's until then. What goes wrong later is
/// returned by mlxd_stream_synchronize(), and by every later call on the group, whose failure also lets go
/// of what it has on the stream, with undefined contents. A call may wait for other ranks the first time
/// that it needs a connection to them, and where 128 operations of the group are under way. Operations of a
/// group run in the order in which they were called, also if they are on different streams. The stream must
/// not be one that is being captured into a graph.
///
/// NULL on error:
///
/// - MLXD_ERROR_UNAVAILABLE: no CUDA driver or device is here.
/// - MLXD_ERROR_INVALID_ARGUMENT: the driver does not know the stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_stream_from_cuda(cuda_stream: *mut c_void) -> *mut mlxd_stream {
    guard_value(std::ptr::null_mut(), || {
        // SAFETY: the header asks for a stream of CUDA's that lives as long as this one.
        let stream = unsafe { cuda::Stream::new(cuda_stream) }?;
        Ok(Handle::new(Stream::Cuda(stream))?.cast())
    })
}

/// Waits until every operation that was put on the stream before has run. Returns, and clears, the
/// first failure among those since the last call. After a success, the buffers of these operations
/// are the caller's again and their results complete; after a failure the buffers are the caller's
/// too, their contents undefined. Blocks as long as the operations do, which have their timeouts.
/// Any thread; of several that wait, one is told the failure.
///
/// - MLXD_ERROR_INVALID_ARGUMENT: NULL handle, or one of the process that forked this one.
/// - MLXD_ERROR_TIMEOUT, MLXD_ERROR_PEER_LOST, MLXD_ERROR_ABORTED, MLXD_ERROR_MISMATCH,
///   MLXD_ERROR_SYSTEM, MLXD_ERROR_BACKEND: what an operation returned, as for mlxd_all_sum().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_stream_synchronize(stream: *mut mlxd_stream) -> mlxd_status {
    // SAFETY: the header asks for a handle or NULL.
    guard(|| match unsafe { mlxd_stream::get(stream) }? {
        Some(stream) => stream.synchronize(),
        None => fail!(InvalidArgument, "stream is NULL"),
    })
}

/// Waits for what is queued, then frees the stream, once; failures that nobody asked for are gone.
/// NULL, or a stream of the process that forked this one: does nothing. Any thread, while no other
/// is in a call with this stream; blocks as long as the queued operations do. Leaves
/// mlxd_last_status() as it is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlxd_stream_free(stream: *mut mlxd_stream) {
    // SAFETY: the header asks for a handle that is not used again, or NULL; handles of streams are
    // made by `mlxd_stream_new` only.
    let _ = crate::thread::quietly(|| unsafe { Handle::<Stream>::free(stream.cast()) });
}
