//! Sleeping until another process of this host has changed shared memory: a futex with a count of
//! those who sleep, so that nobody who changes something makes a system call in vain.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, fence};
use std::time::Duration;

use rustix::thread::futex::{self, Flags};

/// In shared memory; all zeros at first. One process rings it, others sleep at it.
#[repr(C)]
pub struct Bell {
    rung: AtomicU32,
    sleepers: AtomicU32,
}

impl Bell {
    /// Wakes all who sleep; to be called after each change that somebody may wait for.
    pub fn ring(&self) {
        // Either this sees the sleeper, or the sleeper sees the change: each writes first, then reads
        // what the other wrote, with a fence in between.
        fence(SeqCst);
        if self.sleepers.load(Relaxed) != 0 {
            self.rung.fetch_add(1, SeqCst);
            // Fails only for an address that is not mapped.
            let _ = futex::wake(&self.rung, Flags::empty(), i32::MAX as u32);
        }
    }

    /// Sleeps until the bell rings or the time has passed, unless `ready` is true already. May wake
    /// for no reason. (One who is killed asleep is counted for ever: that costs system calls, no more.)
    pub fn sleep(&self, ready: impl Fn() -> bool, limit: Duration) {
        self.sleepers.fetch_add(1, SeqCst);
        let rung = self.rung.load(SeqCst);
        fence(SeqCst);
        if !ready() {
            let limit = futex::Timespec {
                tv_sec: limit.as_secs() as i64,
                tv_nsec: limit.subsec_nanos().into(),
            };
            // Rung meanwhile, interrupted, or too late: whoever sleeps here looks again anyway.
            let _ = futex::wait(&self.rung, Flags::empty(), rung, Some(&limit));
        }
        self.sleepers.fetch_sub(1, SeqCst);
    }
}
