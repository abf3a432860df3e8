//! Runs an engine to its end: sleeps while nothing can move, and knows when to stop waiting.

use std::os::fd::AsFd;
use std::time::Duration;

use super::engine::{Advance, Engine};
use super::links::Links;
use crate::error::{Result, fail};
use crate::health::Health;
use crate::wait::{Deadline, interest, wait};

/// 100 ms without progress: long against any delay of a healthy network, short for a person. Then
/// the other ranks are told what this one waits in, so that a wrong call is found wherever it is.
const FIRST_NOTICE: Duration = Duration::from_millis(100);
/// Between later notices.
const NEXT_NOTICE: Duration = Duration::from_secs(1);

/// How long one operation may wait, and whom it tells.
pub struct Patience<'a> {
    limit: Option<Duration>,
    deadline: Deadline,
    notice: Deadline,
    notify: &'a dyn Fn(),
}

impl<'a> Patience<'a> {
    /// For `limit` after the last progress; `notify` is called now and then while there is none.
    pub fn new(limit: Option<Duration>, notify: &'a dyn Fn()) -> Patience<'a> {
        let mut patience =
            Patience { limit, deadline: Deadline::NEVER, notice: Deadline::NEVER, notify };
        patience.renew();
        patience
    }

    /// There was progress.
    pub fn renew(&mut self) {
        self.deadline = Deadline::after(self.limit);
        self.notice = Deadline::after(Some(FIRST_NOTICE));
    }

    /// How long to sleep at most.
    pub fn next(&self) -> Deadline {
        self.deadline.or(self.notice)
    }

    /// Called when nothing has moved: the error of having waited too long, `what` for.
    pub fn wears_off(&mut self, what: impl FnOnce() -> String) -> Result<()> {
        if self.notice.passed() {
            (self.notify)();
            self.notice = Deadline::after(Some(NEXT_NOTICE));
        }
        match self.limit {
            Some(limit) if self.deadline.passed() => {
                fail!(Timeout, "no progress for {} ms; {}", limit.as_millis(), what())
            }
            _ => Ok(()),
        }
    }
}

/// Runs what `engine` was prepared for. After an error the links are of no more use, and must be
/// closed before the job's memory goes.
///
/// # Safety
/// As for [`Engine::advance`], until this returns `Ok` or the links are closed.
pub unsafe fn drive(
    engine: &mut Engine,
    links: &mut Links,
    health: &Health,
    patience: &mut Patience<'_>,
) -> Result<()> {
    let mut rested = true;
    loop {
        // SAFETY: as this function's contract says.
        match unsafe { engine.advance(links)? } {
            Advance::Done => return Ok(()),
            Advance::Moved => {
                rested = false;
                continue;
            }
            Advance::Stuck => {}
        }
        // The clock is read once per sleep, not once per step.
        if !std::mem::replace(&mut rested, true) {
            patience.renew();
        }
        health.check()?;
        patience.wears_off(|| engine.waits_for())?;
        let mut fds = Vec::with_capacity(1 + engine.links().len());
        fds.push(interest(health.as_fd(), true, false));
        for number in engine.links() {
            if let Some(waiting) = links.get(*number).interest() {
                fds.push(interest(waiting.fd, waiting.read, waiting.write));
            }
        }
        wait(&mut fds, patience.next())?;
    }
}
