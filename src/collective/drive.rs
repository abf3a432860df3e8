//! Runs an engine to its end: sleeps while nothing can move, and knows when to stop waiting.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::engine::{Advance, Engine};
use super::links::Links;
use crate::error::{Result, fail};
use crate::health::Health;
use crate::reduce::environment::Environment;
use crate::wait::{Deadline, interest, wait};

/// 100 ms without progress: long against any delay of a healthy network, short for a person. Then
/// the other ranks are told what this one waits in, so that a wrong call is found wherever it is.
const FIRST_NOTICE: Duration = Duration::from_millis(100);
/// Between later notices.
const NEXT_NOTICE: Duration = Duration::from_secs(1);

/// 50 us: an answer from another core comes sooner, and is missed by the 5 us or more that going to
/// sleep and waking up take; longer waits are worth a sleep. Where ranks share cores, each look gives
/// the core away: all_sum of 4 B on 4 ranks and 2 cores took 88 us, against 131 us asleep at once;
/// 256 KiB 458 us against 940 us. Twice or four times as long made no difference.
pub const SPIN: Duration = Duration::from_micros(50);
/// 5 us: who does not answer by then may be waiting for this very core, which other work on this machine
/// can keep it from leaving. From then on it is offered the core between looks: with as many other
/// processes as cores, all_sum of 4 B on 2 ranks at the board took 15 us, without that 70 us.
pub const ALONE: Duration = Duration::from_micros(5);

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
        let (deadline, notice) = (Deadline::NEVER, Deadline::NEVER);
        let mut patience = Patience { limit, deadline, notice, notify };
        patience.renew();
        patience
    }

    /// There was progress.
    pub fn renew(&mut self) {
        self.deadline = Deadline::after(self.limit);
        self.notice = Deadline::after(Some(FIRST_NOTICE));
    }

    /// When it ends if there is no progress.
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// How long to sleep at most.
    pub fn next(&self) -> Deadline {
        self.deadline.or(self.notice)
    }

    /// Called when nothing has moved: whether the others were told so just now, or the error of having
    /// waited too long, `what` for.
    pub fn wears_off(&mut self, what: impl FnOnce() -> String) -> Result<bool> {
        let notice = self.notice.passed();
        if notice {
            (self.notify)();
            self.notice = Deadline::after(Some(NEXT_NOTICE));
        }
        match self.limit {
            Some(limit) if self.deadline.passed() => {
                fail!(Timeout, "no progress for {} ms; {}", limit.as_millis(), what())
            }
            _ => Ok(notice),
        }
    }
}

/// Runs what `engine` was prepared for; `spin` if this rank has a core of its own. After an error the links are of no more use, and must be
/// closed before the job's memory goes.
///
/// # Safety
/// As for [`Engine::advance`], until this returns `Ok` or the links are closed.
pub unsafe fn drive(
    engine: &mut Engine,
    links: &mut Links,
    health: &Health,
    patience: &mut Patience<'_>,
    spin: bool,
) -> Result<()> {
    let _environment = Environment::standard();
    // When nothing moved for the first time since something did.
    let mut stuck: Option<Instant> = None;
    let mut slept = true;
    loop {
        // SAFETY: as this function's contract says.
        match unsafe { engine.advance(links)? } {
            Advance::Done => return Ok(()),
            Advance::Moved => {
                (stuck, slept) = (None, false);
                health.check()?;
                continue;
            }
            Advance::Stuck => health.check()?,
        }
        let waited = stuck.get_or_insert_with(Instant::now).elapsed();
        if waited < SPIN {
            match spin && waited < ALONE {
                true => std::hint::spin_loop(),
                false => std::thread::yield_now(),
            }
            continue;
        }
        // The clock is read once per sleep, not once per step.
        if !std::mem::replace(&mut slept, true) {
            patience.renew();
        }
        if patience.wears_off(|| engine.waits_for())? {
            engine.links().iter().for_each(|number| links.get_mut(*number).stir());
        }
        let mut fds = Vec::with_capacity(1 + engine.links().len());
        fds.push(interest(health.as_fd(), true, false));
        for number in engine.links() {
            // One that waits for nothing would still be reported when it is closed, without end.
            if let Some(waiting) = links.get(*number).interest().filter(|i| i.read || i.write) {
                fds.push(interest(waiting.fd, waiting.read, waiting.write));
            }
        }
        wait(&mut fds, patience.next())?;
    }
}
