//! A lock and what it keeps, of one process: a forked child begins with nothing, and does not wait for a thread of its
//! parent's, which is not there to let go of it.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::error::{Result, fail};

/// 50 us of giving the core away: longer than what is not slow is held.
const YIELD: Duration = Duration::from_micros(50);
/// 1 ms: between two looks while somebody does what is slow, such as to open a library.
const NAP: Duration = Duration::from_millis(1);

/// A value that each process has for itself, used by one thread at a time.
pub struct PerProcess<T> {
    /// The process whose thread holds it; 0 if nobody does. This is the lock: who is named here finds the mutex free.
    holder: AtomicU32,
    kept: Mutex<Kept<T>>,
}

struct Kept<T> {
    /// Whose value it is.
    process: u32,
    value: T,
}

/// While it is held.
pub struct Held<'a, T> {
    // In this order: a child that finds nobody named finds the mutex free.
    kept: MutexGuard<'a, Kept<T>>,
    _named: Named<'a>,
}

struct Named<'a>(&'a AtomicU32);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

impl<T: Default> PerProcess<T> {
    /// Nobody's yet; `value` only takes the place of one.
    pub const fn new(value: T) -> PerProcess<T> {
        PerProcess { holder: AtomicU32::new(0), kept: Mutex::new(Kept { process: 0, value }) }
    }

    /// Waits for other threads of this process, as long as they are busy; fails in a child that was forked while a
    /// thread of its parent's was `busy`: "opening NCCL".
    pub fn lock(&self, busy: &str) -> Result<Held<'_, T>> {
        let (process, since) = (std::process::id(), Instant::now());
        while let Err(holder) =
            self.holder.compare_exchange(0, process, Ordering::Acquire, Ordering::Relaxed)
        {
            if holder != process {
                fail!(
                    System,
                    "this process was forked while another thread was {busy}, and cannot do so any more: fork \
                     before that"
                );
            }
            match since.elapsed() < YIELD {
                true => std::thread::yield_now(),
                false => std::thread::sleep(NAP),
            }
        }
        let named = Named(&self.holder);
        let mut kept = self.kept.lock();
        if kept.process != process {
            // What a parent had is not to be ended here.
            std::mem::forget(std::mem::take(&mut kept.value));
            kept.process = process;
        }
        Ok(Held { kept, _named: named })
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.kept.value
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.kept.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    /// Whether `check` holds in a forked child, within a minute.
    fn holds_in_a_child(check: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child only runs the check, and ends without running anything of its parent's.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            // SAFETY: a limit, then the end.
            unsafe {
                libc::alarm(60);
                libc::_exit(if check() { 0 } else { 1 });
            }
        }
        let mut status = 0;
        // SAFETY: the status is written to an int of ours.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        status == 0
    }

    #[test]
    fn a_child_begins_with_nothing_and_leaves_its_parents_alone() {
        static VALUE: PerProcess<Vec<i32>> = PerProcess::new(Vec::new());
        VALUE.lock("at it").unwrap().push(1);
        assert!(holds_in_a_child(|| {
            let first = VALUE.lock("at it").is_ok_and(|mut value| {
                let was_empty = value.is_empty();
                value.push(2);
                was_empty
            });
            first && VALUE.lock("at it").is_ok_and(|value| *value == [2])
        }));
        assert_eq!(*VALUE.lock("at it").unwrap(), [1]);
    }

    #[test]
    fn a_child_does_not_wait_for_a_thread_that_it_does_not_have() {
        static VALUE: PerProcess<i32> = PerProcess::new(0);
        let held = VALUE.lock("at it").unwrap();
        assert!(holds_in_a_child(|| {
            let refused = |error: &crate::error::Error| {
                error.status == Status::System && error.message.contains("was at it")
            };
            // Again and again.
            (0..2).all(|_| VALUE.lock("at it").as_ref().err().is_some_and(refused))
        }));
        drop(held);
        assert!(holds_in_a_child(|| VALUE.lock("at it").is_ok()));
    }

    #[test]
    fn threads_take_turns() {
        static VALUE: PerProcess<u32> = PerProcess::new(0);
        let count = || {
            for _ in 0..500 {
                let mut value = VALUE.lock("at it").unwrap();
                let before = *value;
                std::thread::yield_now();
                *value = before + 1;
            }
        };
        std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(count))));
        assert_eq!(*VALUE.lock("at it").unwrap(), 1500);
    }
}
