//! libibverbs: opened when it is first asked for, never closed.

use std::ffi::{CStr, c_void};

use parking_lot::Mutex;

use super::functions::Functions;
use crate::error::{Error, Result, Status, fail};

/// As distributions call it: with its version, and, with the development files, without.
const NAMES: [&CStr; 2] = [c"libibverbs.so.1", c"libibverbs.so"];

/// The library's functions. One that failed to open is looked for again the next time.
pub fn open() -> Result<&'static Functions> {
    static OPENED: Mutex<Option<&'static Functions>> = Mutex::new(None);
    let mut opened = OPENED.lock();
    if let Some(functions) = *opened {
        return Ok(functions);
    }
    let functions: &'static Functions = Box::leak(Box::new(load()?));
    *opened = Some(functions);
    Ok(functions)
}

fn load() -> Result<Functions> {
    let mut why = String::new();
    for name in NAMES {
        // SAFETY: a string that ends with NUL; what the file's constructors do is the user's choice.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // The first name is the one that is there, if any is.
            if why.is_empty() {
                why = last_error();
            }
            continue;
        }
        let name = name.to_string_lossy();
        let find = |symbol: &CStr| {
            // SAFETY: the handle came from dlopen and is never closed.
            match unsafe { libc::dlsym(handle, symbol.as_ptr()) } {
                address if address.is_null() => {
                    let symbol = symbol.to_string_lossy();
                    let why = format!("{name} lacks {symbol}: rdma-core is too old");
                    Err(Error::new(Status::Unavailable, why))
                }
                address => Ok::<*mut c_void, Error>(address),
            }
        };
        // SAFETY: libibverbs fixes what its functions of these names take and return.
        return unsafe { Functions::load(find) };
    }
    fail!(
        Unavailable,
        "no libibverbs found ({why}): install it (Debian: libibverbs1 and ibverbs-providers; \
         Fedora: libibverbs), or use another backend"
    )
}

/// What the loader says about the last failure.
fn last_error() -> String {
    // SAFETY: dlerror returns NULL or a string of this thread, copied before its next call.
    unsafe {
        let text = libc::dlerror();
        if text.is_null() {
            return "unknown reason".to_owned();
        }
        CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}
