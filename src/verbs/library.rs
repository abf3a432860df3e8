//! libibverbs: opened when it is first asked for, never closed.

use std::ffi::{CStr, c_uint};
use std::sync::OnceLock;

use super::abi::IBV_FORK_UNNEEDED;
use super::functions::Functions;
use crate::dynamic;
use crate::error::{Error, Result, Status, fail};
use crate::per_process::PerProcess;

/// As distributions call it: with its version, and, with the development files, without.
const NAMES: [&CStr; 2] = [c"libibverbs.so.1", c"libibverbs.so"];

/// The library's functions. One that failed to open is looked for again the next time.
pub fn open() -> Result<&'static Functions> {
    static OPENED: PerProcess<Option<&'static Functions>> = PerProcess::new(None);
    let mut opened = OPENED.lock("opening libibverbs")?;
    if let Some(functions) = *opened {
        return Ok(functions);
    }
    let functions: &'static Functions = Box::leak(Box::new(load()?));
    *opened = Some(functions);
    Ok(functions)
}

/// What libibverbs said of that.
static FORKS_NEED_NOTHING: OnceLock<bool> = OnceLock::new();

/// Whether the kernel by itself keeps a process and its registered memory together when it forks.
pub fn forks_need_nothing() -> bool {
    FORKS_NEED_NOTHING.get().is_some_and(|nothing| *nothing)
}

fn ask_about_forks(library: dynamic::Handle) -> bool {
    // Since rdma-core 35.
    let Some(address) = library.find(c"ibv_is_fork_initialized") else { return false };
    // SAFETY: libibverbs fixes what its function of this name takes, nothing, and returns: an enum.
    let ask: unsafe extern "C" fn() -> c_uint = unsafe { std::mem::transmute(address) };
    // SAFETY: it may be called at any time.
    unsafe { ask() == IBV_FORK_UNNEEDED }
}

fn load() -> Result<Functions> {
    let mut why = String::new();
    for name in NAMES {
        let Some(handle) = dynamic::open(name, 0) else {
            // The first name is the one that is there, if any is.
            if why.is_empty() {
                why = dynamic::last_error();
            }
            continue;
        };
        FORKS_NEED_NOTHING.get_or_init(|| ask_about_forks(handle));
        // SAFETY: libibverbs fixes what its functions of these names take and return.
        return unsafe { Functions::load(handle) }.map_err(|symbol| {
            let name = name.to_string_lossy();
            let why = format!("{name} lacks {symbol}: rdma-core is too old");
            Error::new(Status::Unavailable, why)
        });
    }
    fail!(
        Unavailable,
        "no libibverbs found ({why}): install it (Debian: libibverbs1 and ibverbs-providers; \
         Fedora: libibverbs), or use another backend"
    )
}
