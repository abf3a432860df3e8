//! What all rounds together came to: whether they go where they should.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A number of something.
pub struct Count(&'static str, AtomicUsize);

impl Count {
    const fn of(what: &'static str) -> Count {
        Count(what, AtomicUsize::new(0))
    }

    pub fn add(&self, more: usize) {
        self.1.fetch_add(more, Ordering::Relaxed);
    }
}

pub static ROUNDS: Count = Count::of("rounds");
/// Operations of one rank whose bytes were right.
pub static RIGHT: Count = Count::of("operations with the right bytes");
/// Of those, after a group of the rank had failed.
pub static AFTER: Count = Count::of("of them after a failure in another group");
pub static KILLED: Count = Count::of("ranks killed");
pub static NO_WORLD: Count = Count::of("starts that failed with them");
pub static FAILED: Count = Count::of("groups of a rank that failed with them");
/// Made on one rank, while the split failed on another.
pub static ABANDONED: Count = Count::of("groups that a split made on some of their ranks only");

pub fn print() {
    for Count(what, number) in [&ROUNDS, &RIGHT, &AFTER, &KILLED, &NO_WORLD, &FAILED, &ABANDONED] {
        println!("{:>9} {what}", number.load(Ordering::Relaxed));
    }
}
