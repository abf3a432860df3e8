//! The line on a terminal that tells how far the work is.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::operation::Shape;

/// Time between two changes of the line: seen as movement, and rare beside what is timed.
const INTERVAL: Duration = Duration::from_millis(100);

/// What a call costs before its first byte, in bytes that could move meanwhile: makes the estimated
/// end fit small sizes too (about 10 us at 6 GB/s).
const CALL_COST: usize = 64 << 10;

/// Shown by rank 0 alone, and only where stderr is a terminal.
pub struct Progress {
    bar: Option<ProgressBar>,
    name: String,
    cost: u64,
    done: u64,
    next: Instant,
}

/// What so many calls of a shape cost, in the line's own measure.
pub fn cost(shape: &Shape, calls: usize) -> u64 {
    (calls as u64).saturating_mul((shape.bytes() + CALL_COST) as u64)
}

impl Progress {
    /// A line for work of this cost.
    pub fn new(shown: bool, total: u64) -> Progress {
        let bar = (shown && stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style =
                ProgressStyle::with_template("{bar:20} {percent:>3} %, eta {eta}: {wide_msg}");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Progress { bar, name: String::new(), cost: 0, done: 0, next: Instant::now() }
    }

    /// The calls that follow are of this shape.
    pub fn begin(&mut self, shape: &Shape) {
        if self.bar.is_some() {
            (self.name, self.cost) = (shape.name(), cost(shape, 1));
        }
    }

    /// Call number `number` of `calls` is done, at `now`.
    pub fn step(&mut self, number: usize, calls: usize, now: Instant) {
        let Some(bar) = &self.bar else {
            return;
        };
        self.done += self.cost;
        if now >= self.next {
            bar.set_message(format!("{}, call {number} of {calls}", self.name));
            bar.set_position(self.done);
            self.next = now + INTERVAL;
        }
    }

    /// Prints something while the line is away.
    pub fn aside<R>(&self, print: impl FnOnce() -> R) -> R {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
