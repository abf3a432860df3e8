//! A stream as the driver knows it, and whether it takes work now.

use std::ffi::c_int;
use std::ptr;

use cudarc::driver::sys::CUstream;

use super::driver::Driver;
use crate::error::{Result, fail};

/// `CUDA_ERROR_STREAM_CAPTURE_IMPLICIT`
const CAPTURE_IMPLICIT: c_int = 906;

/// A stream as the driver knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamHandle(CUstream);

// SAFETY: a stream may be used by any thread.
unsafe impl Send for StreamHandle {}
// SAFETY: likewise, by several at once: the driver has its locks.
unsafe impl Sync for StreamHandle {}

impl StreamHandle {
    /// The legacy default stream of the current context, which waits for other streams and is waited for.
    pub const LEGACY: StreamHandle = StreamHandle(ptr::null_mut());

    /// The one that the driver knows by this pointer.
    pub fn new(raw: CUstream) -> StreamHandle {
        StreamHandle(raw)
    }

    /// Refuses a stream that is being captured into a graph, or cannot be used while another is; in the
    /// context.
    pub fn refuse_capture(self, driver: &Driver) -> Result<()> {
        let mut status: c_int = 0;
        // SAFETY: the stream is its owner's, who keeps it; the driver writes an int of ours.
        let code = unsafe { (driver.functions.stream_is_capturing)(self.0, &mut status) };
        match (code, status) {
            (0, 0) => Ok(()),
            (0, _) => fail!(
                InvalidArgument,
                "the stream is being captured into a CUDA graph, which operations between ranks cannot be part of"
            ),
            (CAPTURE_IMPLICIT, _) => fail!(
                InvalidArgument,
                "another stream is being captured into a CUDA graph, and the default stream cannot be used meanwhile"
            ),
            (code, _) => driver.check("cuStreamIsCapturing", code),
        }
    }

    /// As the driver takes it.
    pub fn raw(self) -> CUstream {
        self.0
    }
}
