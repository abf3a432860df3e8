//! Copies within the device's reach: the collectives of a group of one rank.

use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Instant;

use super::context::Context;
use super::driver::Driver;
use super::event::{Event, Events};
use super::handle::StreamHandle;
use super::memory::{Kind, device_of, kind_of};
use super::stream::{Pending, Stream, pause};
use crate::error::Result;

/// A copy that is under way.
struct Copy {
    end: Event,
    outcome: OnceLock<Result<()>>,
}

impl Copy {
    fn wait(&self) -> Result<()> {
        let _relaxed = self.end.relaxed();
        let since = Instant::now();
        loop {
            if let Some(outcome) = self.look() {
                return outcome;
            }
            pause(since, false);
        }
    }
}

impl Pending for Copy {
    fn look(&self) -> Option<Result<()>> {
        if self.outcome.get().is_none() {
            let outcome = self.end.outcome()?;
            return Some(self.outcome.get_or_init(|| outcome).clone());
        }
        self.outcome.get().cloned()
    }

    fn is_known(&self) -> bool {
        self.look().is_some()
    }
}

/// Copies, ordered after the legacy default stream, and returns when that is done.
///
/// # Safety
/// Both sides have so many bytes, within the device's reach or the host's, and do not overlap unless they
/// are the same.
pub unsafe fn copy(
    driver: &'static Driver,
    input: *const u8,
    output: *mut u8,
    bytes: usize,
) -> Result<()> {
    let is_known = |pointer| kind_of(driver, pointer) != Kind::Host;
    let pointer = if is_known(input) { input } else { output.cast_const() };
    let events = Events::new(Arc::new(device_of(driver, pointer)?));
    // SAFETY: as this function's contract says.
    let copy = unsafe { start(&events, StreamHandle::LEGACY, input, output, bytes)? };
    copy.wait()
}

/// Returns when the legacy default stream of this thread's context, if it has one, has come to where it is.
pub fn catch_up(driver: &'static Driver) -> Result<()> {
    let Some(context) = Context::current(driver)? else { return Ok(()) };
    let (events, nothing) = (Events::new(Arc::new(context)), std::ptr::null());
    // SAFETY: nothing is copied.
    let copy = unsafe { start(&events, StreamHandle::LEGACY, nothing, nothing.cast_mut(), 0)? };
    copy.wait()
}

/// Puts a copy on a stream.
///
/// # Safety
/// As for [`copy`], until the stream has come to it.
pub unsafe fn copy_on(
    stream: &Stream,
    input: *const u8,
    output: *mut u8,
    bytes: usize,
) -> Result<()> {
    // SAFETY: as this function's contract says.
    let copy = unsafe { start(&stream.events()?, stream.handle, input, output, bytes)? };
    stream.push(Arc::new(copy));
    Ok(())
}

unsafe fn start(
    events: &Arc<Events>,
    stream: StreamHandle,
    input: *const u8,
    output: *mut u8,
    bytes: usize,
) -> Result<Copy> {
    let driver = events.context.driver;
    let _inside = events.context.enter()?;
    stream.refuse_capture(driver)?;
    if !std::ptr::eq(input, output) {
        // SAFETY: as for `copy`; addresses tell the driver whose memory they are.
        let code = unsafe {
            (driver.functions.memcpy_async)(output as u64, input as u64, bytes, stream.raw())
        };
        driver.check("cuMemcpyAsync", code)?;
    }
    let end = events.record(stream)?;
    Ok(Copy { end, outcome: OnceLock::new() })
}
