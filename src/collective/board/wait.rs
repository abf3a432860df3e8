//! How a rank waits at the board: it looks for a while, gives its core away if others need it, then
//! sleeps.

use std::time::{Duration, Instant};

use crate::collective::drive::{ALONE, Patience, SPIN};
use crate::error::{Result, fail};
use crate::health::Health;
use crate::transport::board::Board;

/// Looks between two glances at the clock: about 2 us.
const LOOKS: u32 = 64;
/// How often a rank that shares its core gives it away before it sleeps. (all_sum of 4 B on 4 ranks and
/// 2 cores: asleep at once 9 to 11 us, after 20 times 3.5 us.)
const YIELDS: u32 = 20;
/// 50 ms: how long it sleeps at most before it looks whether the group has failed.
const NAP: Duration = Duration::from_millis(50);

/// What a wait has to know.
pub struct Waiting<'a> {
    /// How long without progress.
    pub limit: Option<Duration>,
    /// Whether every rank of this host has a core of its own.
    pub spin: bool,
    /// Ends every wait when it fails.
    pub health: &'a Health,
    /// Called now and then during a long wait.
    pub notify: &'a dyn Fn(),
    /// Whether a rank has said goodbye.
    pub has_left: &'a dyn Fn(usize) -> bool,
}

impl Waiting<'_> {
    /// Waits until `ready`, which `peer`'s row decides; `what` says what for. Calls `ring` before it
    /// waits for long.
    pub fn until(
        &self,
        board: &Board,
        peer: usize,
        ready: impl Fn() -> bool,
        ring: impl FnOnce(),
        what: impl Fn() -> String,
    ) -> Result<()> {
        if ready() || (self.spin && looks(&ready)) {
            return Ok(());
        }
        ring();
        if self.look(&ready) {
            return Ok(());
        }
        let mut patience = Patience::new(self.limit, self.notify);
        loop {
            self.health.check()?;
            // What it posted before it left is still there.
            if (self.has_left)(peer) && !ready() {
                fail!(PeerLost, "rank {peer} has left; {}", what());
            }
            let left = patience.next().left().unwrap_or(NAP);
            board.bell(peer).sleep(&ready, left.min(NAP));
            if ready() {
                return Ok(());
            }
            patience.wears_off(&what)?;
        }
    }

    /// Looks for as long as that is cheaper than sleeping.
    fn look(&self, ready: &impl Fn() -> bool) -> bool {
        if !self.spin {
            return (0..YIELDS).any(|_| {
                std::thread::yield_now();
                ready()
            });
        }
        let begin = Instant::now();
        loop {
            if looks(ready) {
                return true;
            }
            let waited = begin.elapsed();
            if waited >= SPIN {
                return false;
            }
            if waited >= ALONE {
                std::thread::yield_now();
            }
        }
    }
}

/// Looks a number of times.
fn looks(ready: &impl Fn() -> bool) -> bool {
    (0..LOOKS).any(|_| {
        std::hint::spin_loop();
        ready()
    })
}
