//! Every exported function: checks pointers, guards against panics, delegates.
//!
//! `include/mlxd.h` is generated from the declarations and comments here; the comments are written
//! for those who read that header.
//! A `# Safety` heading would show there: "the header asks for" in a comment here means what they say.
#![allow(non_camel_case_types, clippy::missing_safety_doc)]

mod collective;
mod facts;
mod group;
mod last_error;
mod options;
mod start;
mod stream;

pub use collective::*;
pub use facts::*;
pub use group::*;
pub use last_error::*;
pub use options::*;
pub use start::*;
pub use stream::*;

use std::ffi::{CStr, c_char};

use crate::dtype::Dtype;
use crate::error::{Result, Status, fail};
use crate::process;

/// Runs a call: its status, which is this thread's last one from now on.
fn guard(body: impl FnOnce() -> Result<()>) -> mlxd_status {
    let outcome = crate::thread::quietly(body).unwrap_or_else(Err);
    let status = outcome.as_ref().map_or_else(|e| e.status, |()| Status::Ok);
    last_error::remember(outcome.err());
    status as mlxd_status
}

/// Runs a call that returns something: `otherwise` if it fails.
fn guard_value<T>(otherwise: T, body: impl FnOnce() -> Result<T>) -> T {
    let outcome = crate::thread::quietly(body).unwrap_or_else(Err);
    match outcome {
        Ok(value) => {
            last_error::remember(None);
            value
        }
        Err(e) => {
            last_error::remember(Some(e));
            otherwise
        }
    }
}

/// Something that a caller holds, and the process in which it was made.
pub struct Handle<T> {
    generation: u64,
    inner: T,
}

impl<T> Handle<T> {
    fn new(inner: T) -> Result<*mut Handle<T>> {
        let generation = process::current()?.generation;
        Ok(Box::into_raw(Box::new(Handle { generation, inner })))
    }

    /// What the handle holds.
    ///
    /// # Safety
    /// `handle` is NULL, or came from [`Handle::new`] and was not freed.
    unsafe fn get<'a>(handle: *const Handle<T>, name: &str) -> Result<&'a T> {
        // SAFETY: as this function's contract says.
        let Some(handle) = (unsafe { handle.as_ref() }) else {
            fail!(InvalidArgument, "{name} is NULL");
        };
        if handle.generation != process::current()?.generation {
            fail!(InvalidArgument, "this {name} belongs to the process that forked this one");
        }
        Ok(&handle.inner)
    }

    /// Drops the handle; NULL is nothing to drop. One of the process that forked this one is left
    /// as it is: what it holds is not ours.
    ///
    /// # Safety
    /// As for [`Handle::get`]; the handle is not used again.
    unsafe fn free(handle: *mut Handle<T>) -> Result<()> {
        // SAFETY: as this function's contract says.
        let Some(known) = (unsafe { handle.as_ref() }) else {
            return Ok(());
        };
        if known.generation == process::current()?.generation {
            // SAFETY: it came from Box::into_raw, and is not used again.
            drop(unsafe { Box::from_raw(handle) });
        }
        Ok(())
    }
}

/// A C string as text.
///
/// # Safety
/// `text` is NULL or a string that ends with a NUL.
unsafe fn text<'a>(text: *const c_char, name: &str) -> Result<&'a str> {
    if text.is_null() {
        fail!(InvalidArgument, "{name} is NULL");
    }
    // SAFETY: as this function's contract says.
    match unsafe { CStr::from_ptr(text) }.to_str() {
        Ok(text) => Ok(text),
        Err(e) => fail!(InvalidArgument, "{name} is not UTF-8: {e}"),
    }
}

fn dtype(number: mlxd_dtype) -> Result<Dtype> {
    match Dtype::from_number(number) {
        Some(dtype) => Ok(dtype),
        None => fail!(InvalidArgument, "unknown dtype {number}: they go from 0 to 13"),
    }
}
