//! Threads of the library's own: named, with every signal blocked, silent when they panic.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::thread::{Builder, JoinHandle};

use crate::error::{Error, Result, Status};

thread_local! {
    /// Whether this thread is running code of the library, whose panics are caught and reported.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Starts a thread; signals sent to the process are left to the threads of the program.
pub fn spawn<F>(name: &str, body: F) -> Result<JoinHandle<()>>
where
    F: FnOnce() + Send + 'static,
{
    let mut old = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are valid for writes, and sigfillset initialises `all` before it is read.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr());
    }
    // A new thread inherits the mask of the one that starts it.
    let started = Builder::new().name(name.to_owned()).spawn(move || {
        let _ = quietly(body);
    });
    // SAFETY: pthread_sigmask above initialised `old`; it fails only for an unknown first argument.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, old.as_ptr(), std::ptr::null_mut()) };
    started.map_err(|e| Error::system(format_args!("cannot start the thread {name}"), e))
}

/// Runs `body`; a panic in it prints nothing and becomes an error.
pub fn quietly<T>(body: impl FnOnce() -> T) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if INSIDE.get() {
                log::error!("{info}");
            } else {
                others(info);
            }
        }));
    });
    let before = INSIDE.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(body));
    INSIDE.set(before);
    outcome.map_err(|payload| {
        let what = payload
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "unknown".to_owned());
        Error::new(Status::Internal, format!("a bug in libmlxd (please report it): panic: {what}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error() {
        let error = quietly(|| panic!("seven {}", 7)).unwrap_err();
        assert_eq!(error.status, Status::Internal);
        assert!(error.message.contains("seven 7"), "{error}");
        assert_eq!(quietly(|| 5).unwrap(), 5);
    }
}
