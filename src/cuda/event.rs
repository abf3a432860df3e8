//! Events: marks in a stream, which tell when the work before them is done.

use std::ffi::c_int;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::CUevent;
use parking_lot::Mutex;

use super::context::Context;
use super::driver::Relaxed;
use super::handle::StreamHandle;
use crate::error::Result;

/// `CU_EVENT_DISABLE_TIMING`: the cheapest there is.
const NO_TIMING: u32 = 2;

/// Events of a context that are not in use.
#[derive(Debug)]
pub struct Events {
    /// Where they belong.
    pub context: Arc<Context>,
    free: Mutex<Vec<Raw>>,
}

#[derive(Debug)]
struct Raw(CUevent);

// SAFETY: an event may be used by any thread.
unsafe impl Send for Raw {}
// SAFETY: likewise, by several at once: the driver has its locks.
unsafe impl Sync for Raw {}

impl Events {
    /// None yet.
    pub fn new(context: Arc<Context>) -> Arc<Events> {
        Arc::new(Events { context, free: Mutex::default() })
    }

    /// Marks where `stream` is now; in the context.
    pub fn record(self: &Arc<Self>, stream: StreamHandle) -> Result<Event> {
        let driver = self.context.driver;
        let free = self.free.lock().pop();
        let raw = match free {
            Some(raw) => raw,
            None => {
                let mut raw: CUevent = ptr::null_mut();
                // SAFETY: the driver writes a pointer of ours.
                let code = unsafe { (driver.functions.event_create)(&mut raw, NO_TIMING) };
                driver.check("cuEventCreate", code)?;
                Raw(raw)
            }
        };
        let event = Event { raw: Some(raw), events: self.clone() };
        // SAFETY: the event is ours, and the stream its owner's, who keeps it.
        let code = unsafe { (driver.functions.event_record)(event.raw(), stream.raw()) };
        driver.check("cuEventRecord", code)?;
        Ok(event)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let Ok(_inside) = self.context.enter() else { return };
        for Raw(event) in self.free.get_mut().drain(..) {
            // SAFETY: made here, used by nobody any more.
            unsafe { (self.context.driver.functions.event_destroy)(event) };
        }
    }
}

/// A mark in a stream; may be used again once it is dropped.
#[derive(Debug)]
pub struct Event {
    raw: Option<Raw>,
    events: Arc<Events>,
}

impl Event {
    fn raw(&self) -> CUevent {
        self.raw.as_ref().map_or(ptr::null_mut(), |raw| raw.0)
    }

    /// See [`Driver::relaxed`](super::Driver::relaxed).
    pub fn relaxed(&self) -> Relaxed {
        self.events.context.driver.relaxed()
    }

    /// Whether the work before it is done.
    pub fn is_done(&self) -> Result<bool> {
        self.events.context.driver.is_done("cuEventQuery", self.query())
    }

    /// What the work before it came to, for one whose wait nothing else ends: fails once CUDA has ended. `None`
    /// while it is under way.
    pub fn outcome(&self) -> Option<Result<()>> {
        self.events.context.driver.outcome("cuEventQuery", self.query())
    }

    fn query(&self) -> c_int {
        // SAFETY: the event was recorded, and is not used again before it is dropped.
        unsafe { (self.events.context.driver.functions.event_query)(self.raw()) }
    }

    /// Lets `stream` go on only when the work before it is done; in the context.
    pub fn hold_up(&self, stream: StreamHandle) -> Result<()> {
        let driver = self.events.context.driver;
        // SAFETY: as in `query`; the stream is its owner's, who keeps it.
        let code = unsafe { (driver.functions.stream_wait_event)(stream.raw(), self.raw(), 0) };
        driver.check("cuStreamWaitEvent", code)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Some(raw) = self.raw.take() {
            self.events.free.lock().push(raw);
        }
    }
}
