//! Sleeping until another process of this host has changed shared memory: a futex with a count of
//! those who sleep, so that nobody who changes something makes a system call in vain.

use std::time::Duration;

#[cfg(all(loom, test))]
use loom::sync::atomic::{
    AtomicU32,
    Ordering::{Relaxed, SeqCst},
    fence,
};
#[cfg(not(all(loom, test)))]
use std::sync::atomic::{
    AtomicU32,
    Ordering::{Relaxed, SeqCst},
    fence,
};

#[cfg(all(loom, test))]
use under_loom::Futex;

/// In shared memory; all zeros at first. One process rings it, others sleep at it.
#[repr(C)]
pub struct Bell {
    rung: Futex,
    sleepers: AtomicU32,
}

impl Bell {
    /// Wakes all who sleep; to be called after each change that somebody may wait for.
    pub fn ring(&self) {
        // Either this sees the sleeper, or the sleeper sees the change: each writes first, then reads
        // what the other wrote, with a fence in between.
        fence(SeqCst);
        if self.sleepers.load(Relaxed) != 0 {
            self.rung.word.fetch_add(1, SeqCst);
            self.rung.wake();
        }
    }

    /// Sleeps until the bell rings or the time has passed, unless `ready` is true already. May wake
    /// for no reason. (One who is killed asleep is counted for ever: that costs system calls, no more.)
    pub fn sleep(&self, ready: impl Fn() -> bool, limit: Duration) {
        self.sleepers.fetch_add(1, SeqCst);
        let rung = self.rung.word.load(SeqCst);
        fence(SeqCst);
        if !ready() {
            self.rung.wait(rung, limit);
        }
        self.sleepers.fetch_sub(1, SeqCst);
    }
}

/// A word that one can sleep at until it changes.
#[cfg(not(all(loom, test)))]
#[repr(transparent)]
struct Futex {
    word: AtomicU32,
}

#[cfg(not(all(loom, test)))]
impl Futex {
    fn wake(&self) {
        use rustix::thread::futex::{Flags, wake};
        // Fails only for an address that is not mapped.
        let _ = wake(&self.word, Flags::empty(), i32::MAX as u32);
    }

    /// Returns at once if the word is not `known` any more.
    fn wait(&self, known: u32, limit: Duration) {
        use rustix::thread::futex::{Flags, Timespec, wait};
        let limit =
            Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
        // Rung meanwhile, interrupted, or too late: whoever sleeps here looks again anyway.
        let _ = wait(&self.word, Flags::empty(), known, Some(&limit));
    }
}

/// Every order in which threads can meet at a bell, and every value that they can see then.
#[cfg(all(loom, test))]
mod under_loom {
    use loom::sync::atomic::Ordering::{Acquire, Release};
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    use super::*;

    /// As the system's: it compares and falls asleep under a lock which whoever wakes takes as well.
    /// There is no limit in time, so that a wake-up that is lost is a deadlock, which loom reports.
    pub struct Futex {
        pub word: AtomicU32,
        queue: Mutex<()>,
        woken: Condvar,
    }

    impl Futex {
        pub fn wake(&self) {
            let _queue = self.queue.lock().unwrap();
            self.woken.notify_all();
        }

        pub fn wait(&self, known: u32, _limit: Duration) {
            let queue = self.queue.lock().unwrap();
            if self.word.load(SeqCst) == known {
                drop(self.woken.wait(queue).unwrap());
            }
        }
    }

    fn bell() -> Bell {
        let rung = Futex { word: AtomicU32::new(0), queue: Mutex::new(()), woken: Condvar::new() };
        Bell { rung, sleepers: AtomicU32::new(0) }
    }

    /// As a rank at a board waits for stamp after stamp.
    fn wait((bell, stamp): &(Bell, AtomicU32), last: u32) {
        for number in 1..=last {
            let ready = || stamp.load(Acquire) >= number;
            while !ready() {
                bell.sleep(ready, Duration::MAX);
            }
        }
    }

    /// One thread stores 1..=`last` and calls `tell` after each; `sleepers` others wait for each.
    fn explore(sleepers: usize, last: u32, tell: fn(&Bell)) {
        let mut model = loom::model::Builder::new();
        // loom's own advice: more show nothing new.
        model.preemption_bound = Some(3);
        model.check(move || {
            let shared = Arc::new((bell(), AtomicU32::new(0)));
            let threads: Vec<_> = (1..sleepers)
                .map(|_| {
                    let shared = shared.clone();
                    thread::spawn(move || wait(&shared, last))
                })
                .collect();
            let ringer = {
                let shared = shared.clone();
                thread::spawn(move || {
                    for number in 1..=last {
                        shared.1.store(number, Release);
                        tell(&shared.0);
                    }
                })
            };
            wait(&shared, last);
            for thread in threads.into_iter().chain([ringer]) {
                thread.join().unwrap();
            }
        });
    }

    #[test]
    fn a_sleeper_hears_every_ring() {
        explore(1, 2, Bell::ring);
    }

    #[test]
    fn all_sleepers_hear_a_ring() {
        explore(2, 1, Bell::ring);
    }

    /// What the fence in [`Bell::ring`] is for, and proof that a lost wake-up would be seen.
    #[test]
    #[should_panic(expected = "deadlock")]
    fn without_a_fence_a_ring_would_be_missed() {
        explore(1, 1, |bell| {
            if bell.sleepers.load(Relaxed) != 0 {
                bell.rung.word.fetch_add(1, SeqCst);
                bell.rung.wake();
            }
        });
    }
}
