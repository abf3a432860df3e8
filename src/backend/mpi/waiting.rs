//! Waiting for a nonblocking call of MPI, with an eye on the deadline and on the group's health.

use std::ffi::c_int;
use std::time::Duration;

use super::Mpi;
use super::abi::{MessageStatus, Request, SUCCESS};
use super::functions::Functions;
use super::runtime::Runtime;
use crate::backend::Limits;
use crate::error::{Result, fail};
use crate::wait::Deadline;

/// How an operation waits.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// In MPI's blocking calls, which are the tuned ones, on the caller's memory: MPI gives no limit.
    Blocking,
    /// In nonblocking calls on memory of ours, each at most this long: a failure may leave them
    /// under way.
    Bounded(Option<Duration>),
}

/// MPI moves only when it is asked: this often at once, before anything else is looked at.
const TESTS: usize = 20;
/// How often the core is offered to others before this thread sleeps: some milliseconds in all.
const YIELDS: usize = 2000;
/// 50 us: about the shortest sleep that a timer gives. Each step of an algorithm may wait this long.
const NAP: Duration = Duration::from_micros(50);

impl Runtime {
    /// Waits until a request is complete: its error code; `None` if the deadline passes. `look` is
    /// asked now and then, and ends the wait with its error. Both leave the request under way.
    pub fn await_request(
        &self,
        request: &mut Request,
        status: &mut MessageStatus,
        deadline: Deadline,
        mut look: impl FnMut() -> Result<()>,
    ) -> Result<Option<c_int>> {
        for round in 0usize.. {
            let mut complete: c_int = 0;
            let code = self.code_by(deadline, |f| {
                let mut code = SUCCESS;
                for _ in 0..TESTS {
                    // SAFETY: a request of a nonblocking call whose memory is still there.
                    code = unsafe { (f.test)(request, &mut complete, status) };
                    if complete != 0 || code != SUCCESS {
                        break;
                    }
                }
                code
            })?;
            let Some(code) = code else { break };
            if complete != 0 || code != SUCCESS {
                return Ok(Some(code));
            }
            look()?;
            if deadline.passed() {
                break;
            }
            match round < YIELDS {
                true => std::thread::yield_now(),
                false => std::thread::sleep(NAP),
            }
        }
        Ok(None)
    }
}

impl Mpi {
    /// How to wait where `limit` is this operation's.
    pub(super) fn way(&self, limits: Limits, limit: Option<Duration>) -> Way {
        // A limit on one kind of operation makes all of them such that an abort ends them.
        let bounded = limits.operation.is_some() || limits.recv.is_some();
        match bounded || !self.runtime.may_block() {
            true => Way::Bounded(limit),
            false => Way::Blocking,
        }
    }

    /// Starts a nonblocking call and waits for it.
    pub(super) fn complete(
        &self,
        what: &str,
        limit: Option<Duration>,
        start: impl FnOnce(&Functions, *mut Request) -> c_int,
    ) -> Result<()> {
        let mut request = Request(0);
        self.runtime.call(what, |f| start(f, &mut request))?;
        let code = self.finish(what, limit, &mut request, &mut MessageStatus::default())?;
        self.runtime.library.check(what, code)
    }

    /// Waits for a request: its error code. After an error it is still under way.
    pub(super) fn finish(
        &self,
        what: &str,
        limit: Option<Duration>,
        request: &mut Request,
        status: &mut MessageStatus,
    ) -> Result<c_int> {
        let look = || {
            self.runtime.listen();
            self.health.check()
        };
        match self.runtime.await_request(request, status, Deadline::after(limit), look)? {
            Some(code) => Ok(code),
            None => fail!(
                Timeout,
                "{what} has not ended after {} ms",
                limit.unwrap_or_default().as_millis()
            ),
        }
    }
}
