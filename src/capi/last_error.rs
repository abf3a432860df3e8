//! What this thread's last call came to.

use std::cell::RefCell;
use std::ffi::{CString, c_char};

use super::mlxd_status;
use crate::error::{Error, Status};

struct Last {
    status: Status,
    /// `None` is the empty string.
    message: Option<CString>,
}

thread_local! {
    static LAST: RefCell<Last> = const { RefCell::new(Last { status: Status::Ok, message: None }) };
}

/// Remembers a failure, or a success.
pub(super) fn remember(error: Option<Error>) {
    // While the thread's own data is torn down there is nobody left to ask.
    let _ = LAST.try_with(|last| {
        let mut last = last.borrow_mut();
        *last = match error {
            None => Last { status: Status::Ok, message: None },
            Some(e) => {
                Last { status: e.status, message: CString::new(e.message.replace('\0', "?")).ok() }
            }
        };
    });
}

/// A sentence about this thread's last fallible call: what was wrong, where, and what would be
/// right; or "" if that call succeeded.
///
/// Every function of this header sets it but mlxd_last_error(), mlxd_last_status(),
/// mlxd_status_name(), mlxd_dtype_size(), mlxd_version() and those that free. An operation that was
/// put on a stream tells its failure to the thread that calls mlxd_stream_synchronize().
///
/// Never NULL. The library owns the string; it is valid until this thread's next call of a function
/// that sets it. Any thread, about itself; never blocks.
#[unsafe(no_mangle)]
pub extern "C" fn mlxd_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().message.as_ref().map_or(c"".as_ptr(), |m| m.as_ptr()))
        .unwrap_or(c"".as_ptr())
}

/// The status of this thread's last fallible call, as mlxd_last_error() describes it; MLXD_OK after
/// a success. For the functions that return a handle, a rank or a truth. Any thread; never blocks.
#[unsafe(no_mangle)]
pub extern "C" fn mlxd_last_status() -> mlxd_status {
    LAST.try_with(|last| last.borrow().status as mlxd_status).unwrap_or(Status::Ok as mlxd_status)
}
