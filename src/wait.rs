//! Sleeping until a descriptor is ready, somebody wakes us, or a deadline passes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::error::{Error, Result};

/// A point in time, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// No deadline.
    pub const NEVER: Deadline = Deadline(None);

    /// This far from now; `None` is never.
    pub fn after(limit: Option<Duration>) -> Deadline {
        Deadline(limit.and_then(|limit| Instant::now().checked_add(limit)))
    }

    /// Whether it has passed.
    pub fn passed(self) -> bool {
        self.0.is_some_and(|at| Instant::now() >= at)
    }

    /// Time left; `None` is for ever.
    pub fn left(self) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// The earlier of the two.
    pub fn or(self, other: Deadline) -> Deadline {
        match (self.0, other.0) {
            (Some(a), Some(b)) => Deadline(Some(a.min(b))),
            (a, b) => Deadline(a.or(b)),
        }
    }

    /// The instant, for waits on a condition variable; `None` is never.
    pub fn instant(self) -> Option<Instant> {
        self.0
    }
}

/// A descriptor that is ready to read once somebody has called [`Wake::wake`].
#[derive(Debug)]
pub struct Wake(OwnedFd);

impl Wake {
    /// A quiet one.
    pub fn new() -> Result<Wake> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map(Wake)
            .map_err(|e| Error::system("eventfd", e))
    }

    /// Makes it ready.
    pub fn wake(&self) {
        // The counter is at its limit only if it is ready already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes it quiet again.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// `fd` as something to wait for; an error or a hang-up counts as ready in any case.
pub fn interest<'a>(fd: BorrowedFd<'a>, read: bool, write: bool) -> PollFd<'a> {
    let mut events = PollFlags::empty();
    events.set(PollFlags::IN, read);
    events.set(PollFlags::OUT, write);
    PollFd::from_borrowed_fd(fd, events)
}

/// Sleeps until one of `fds` is ready (true) or the deadline passes (false).
pub fn wait(fds: &mut [PollFd<'_>], deadline: Deadline) -> Result<bool> {
    loop {
        let timeout = deadline.left().map(|left| Timespec {
            tv_sec: left.as_secs().min(i32::MAX as u64) as i64,
            tv_nsec: left.subsec_nanos().into(),
        });
        match poll(fds, timeout.as_ref()) {
            Ok(0) if deadline.passed() => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(Error::system("poll", e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_is_seen_until_cleared() {
        let wake = Wake::new().unwrap();
        let now = Deadline::after(Some(Duration::ZERO));
        assert!(!wait(&mut [interest(wake.as_fd(), true, false)], now).unwrap());
        wake.wake();
        wake.wake();
        assert!(wait(&mut [interest(wake.as_fd(), true, false)], Deadline::NEVER).unwrap());
        wake.clear();
        assert!(!wait(&mut [interest(wake.as_fd(), true, false)], now).unwrap());
    }

    #[test]
    fn the_earlier_deadline_wins() {
        let soon = Deadline::after(Some(Duration::from_millis(1)));
        let late = Deadline::after(Some(Duration::from_secs(1000)));
        assert_eq!(soon.or(late), soon);
        assert_eq!(Deadline::NEVER.or(late), late);
        assert_eq!(Deadline::NEVER.left(), None);
        assert!(!Deadline::NEVER.passed());
    }
}
