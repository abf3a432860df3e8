//! A stream that the caller owns, and what of ours is under way on it.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::CUcontext;
use parking_lot::Mutex;

use super::context::Context;
use super::driver::{Driver, open};
use super::event::Events;
use super::handle::StreamHandle;
use crate::error::{Error, Result, Status, fail};

/// Work on a stream.
pub trait Pending: Send + Sync {
    /// What it came to, once that is known; looks now.
    fn look(&self) -> Option<Result<()>>;

    /// Whether that is known already, without a look.
    fn is_known(&self) -> bool;
}

/// A stream that the caller owns.
pub struct Stream {
    /// As the driver knows it.
    pub handle: StreamHandle,
    driver: &'static Driver,
    /// Where it belongs; `None` for a default stream, which belongs wherever a call is made.
    context: Option<usize>,
    work: Mutex<Work>,
    /// Those of the context in which it was last used.
    events: Mutex<Option<Arc<Events>>>,
}

#[derive(Default)]
struct Work {
    pending: VecDeque<Arc<dyn Pending>>,
    failure: Option<Error>,
}

impl Work {
    /// Lets go of what is known.
    fn prune(&mut self) {
        while let Some(first) = self.pending.front()
            && first.is_known()
        {
            if let (Some(Err(e)), None) = (first.look(), &self.failure) {
                self.failure = Some(e);
            }
            self.pending.pop_front();
        }
    }
}

/// `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD`: default streams by another name.
const LEGACY: usize = 1;
const PER_THREAD: usize = 2;

impl Stream {
    /// Stands for this `cudaStream_t`.
    ///
    /// # Safety
    /// It is one of CUDA's, or 0 or 1 for the legacy default stream, and lives as long as this does.
    pub unsafe fn new(raw: *mut c_void) -> Result<Stream> {
        let driver = open()?;
        let handle = match raw as usize {
            0 | LEGACY => StreamHandle::LEGACY,
            PER_THREAD => fail!(
                InvalidArgument,
                "cudaStreamPerThread is another stream on each thread, and NCCL has threads of its own: make a \
                 stream (cudaStreamCreate)"
            ),
            _ => StreamHandle::new(raw.cast()),
        };
        let mut context: CUcontext = ptr::null_mut();
        if handle != StreamHandle::LEGACY {
            // SAFETY: the caller vouches for the stream.
            let code = unsafe { (driver.functions.stream_get_ctx)(handle.raw(), &mut context) };
            driver.check("cuStreamGetCtx", code).map_err(|e| {
                Error::new(Status::InvalidArgument, format!("this is no CUDA stream: {e}"))
            })?;
        }
        let context = (!context.is_null()).then_some(context as usize);
        let (work, events) = (Mutex::default(), Mutex::default());
        Ok(Stream { handle, driver, context, work, events })
    }

    /// The driver.
    pub fn driver(&self) -> &'static Driver {
        self.driver
    }

    /// Refuses a stream of another context; a default stream is that of this thread's.
    pub fn belongs_to(&self, context: &Context) -> Result<()> {
        let raw = match self.context {
            Some(raw) => raw as CUcontext,
            None => Context::current_raw(self.driver)?,
        };
        if context.is(raw) || raw.is_null() {
            return Ok(());
        }
        fail!(
            InvalidArgument,
            "the stream belongs to another CUDA context than the group, which is on device {}",
            context.device
        )
    }

    /// Events of its context, or of this thread's current one for a default stream.
    pub(super) fn events(&self) -> Result<Arc<Events>> {
        let raw = match self.context {
            Some(raw) => raw as CUcontext,
            None => Context::current_raw(self.driver)?,
        };
        let mut known = self.events.lock();
        if let Some(events) = known.as_ref().filter(|events| events.context.is(raw)) {
            return Ok(events.clone());
        }
        let context = match raw.is_null() {
            true => Context::primary(self.driver, 0)?,
            // SAFETY: the caller keeps the stream or the current context, and so this one.
            false => unsafe { Context::borrowed(self.driver, raw, 0) },
        };
        Ok(known.insert(Events::new(Arc::new(context))).clone())
    }

    /// Remembers work that was put on it.
    pub fn push(&self, work: Arc<dyn Pending>) {
        let mut all = self.work.lock();
        all.prune();
        all.pending.push_back(work);
    }

    /// Waits until all of our work that was put here so far is done; returns, and clears, the first failure.
    /// The operations have deadlines of their own.
    pub fn synchronize(&self) -> Result<()> {
        let all: Vec<_> = self.work.lock().pending.iter().cloned().collect();
        let _relaxed = self.driver.relaxed();
        for work in all {
            let since = Instant::now();
            while work.look().is_none() {
                pause(since, true);
            }
        }
        let mut work = self.work.lock();
        work.prune();
        work.failure.take().map_or(Ok(()), Err)
    }
}

impl Drop for Stream {
    /// Waits for what is under way.
    fn drop(&mut self) {
        let _ = self.synchronize();
    }
}

/// 50 us: about what an operation of few bytes takes on a device; a sleep takes as long.
const SPIN: Duration = Duration::from_micros(50);
/// 1 ms: the longest sleep between two looks.
const NAP: Duration = Duration::from_millis(1);

/// What a thread does between two looks at work that it has waited for since then: `spin` if it has a core
/// of its own.
pub fn pause(since: Instant, spin: bool) {
    let waited = since.elapsed();
    match waited < SPIN {
        true if spin => std::hint::spin_loop(),
        true => std::thread::yield_now(),
        // A tenth of the wait: late by that at most.
        false => std::thread::sleep((waited / 10).min(NAP)),
    }
}
