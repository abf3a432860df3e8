//! A device's context, in which calls are made.

use std::ffi::c_int;
use std::ptr;

use cudarc::driver::sys::{CUcontext, CUdevice};
use parking_lot::Mutex;

use super::driver::{Driver, Relaxed};
use crate::error::{Result, fail};

/// A context of a device: the one that the caller had, or the device's primary one.
#[derive(Debug)]
pub struct Context {
    /// The driver that made it.
    pub driver: &'static Driver,
    /// The device's number, of those that this process may use.
    pub device: c_int,
    raw: CUcontext,
}

// SAFETY: a context may be made current on any thread.
unsafe impl Send for Context {}
// SAFETY: likewise, on several at once.
unsafe impl Sync for Context {}

/// A context that is held.
struct Held(CUcontext);

// SAFETY: a context may be made current on any thread.
unsafe impl Send for Held {}

impl Context {
    /// This thread's current context, if it has one.
    pub fn current(driver: &'static Driver) -> Result<Option<Context>> {
        let raw = Context::current_raw(driver)?;
        if raw.is_null() {
            return Ok(None);
        }
        let mut device: CUdevice = 0;
        // SAFETY: there is a current context.
        let code = unsafe { (driver.functions.ctx_get_device)(&mut device) };
        driver.check("cuCtxGetDevice", code)?;
        Ok(Some(Context { driver, device, raw }))
    }

    /// A device's primary context, which is also the CUDA runtime's. Held once and for good, as by the runtime:
    /// the program may have memory there.
    pub fn primary(driver: &'static Driver, number: usize) -> Result<Context> {
        static HELD: Mutex<Vec<(CUdevice, Held)>> = Mutex::new(Vec::new());
        let (mut device, mut raw): (CUdevice, CUcontext) = (0, ptr::null_mut());
        let Ok(number) = c_int::try_from(number) else {
            fail!(InvalidArgument, "there is no device {number}");
        };
        // SAFETY: the driver writes an int of ours.
        let code = unsafe { (driver.functions.device_get)(&mut device, number) };
        driver.check("cuDeviceGet", code)?;
        let mut held = HELD.lock();
        if let Some((_, Held(raw))) = held.iter().find(|(known, _)| *known == device) {
            return Ok(Context { driver, device, raw: *raw });
        }
        // SAFETY: the driver writes a pointer of ours.
        let code = unsafe { (driver.functions.primary_ctx_retain)(&mut raw, device) };
        driver.check("cuDevicePrimaryCtxRetain", code)?;
        held.push((device, Held(raw)));
        Ok(Context { driver, device, raw })
    }

    /// The context of somebody else's memory or stream, borrowed.
    ///
    /// # Safety
    /// It is one of the driver's, and outlives its use here.
    pub unsafe fn borrowed(driver: &'static Driver, raw: CUcontext, device: c_int) -> Context {
        Context { driver, device, raw }
    }

    /// This thread's current context as the driver knows it; NULL if it has none.
    pub fn current_raw(driver: &Driver) -> Result<CUcontext> {
        let mut raw: CUcontext = ptr::null_mut();
        // SAFETY: the driver writes a pointer of ours.
        driver.check("cuCtxGetCurrent", unsafe { (driver.functions.ctx_get_current)(&mut raw) })?;
        Ok(raw)
    }

    /// Whether it is this one.
    pub fn is(&self, raw: CUcontext) -> bool {
        self.raw == raw
    }

    /// Whether both are the same.
    pub fn is_same(&self, other: &Context) -> bool {
        self.raw == other.raw
    }

    /// Makes it this thread's current one for good.
    pub fn make_current(&self) -> Result<()> {
        // SAFETY: the context is alive.
        let code = unsafe { (self.driver.functions.ctx_set_current)(self.raw) };
        self.driver.check("cuCtxSetCurrent", code)
    }

    /// Makes it this thread's current one until what is returned is dropped.
    pub fn enter(&self) -> Result<Entered<'_>> {
        let driver = self.driver;
        if Context::current_raw(driver)? == self.raw {
            return Ok(Entered { context: self, pushed: false, _relaxed: driver.relaxed() });
        }
        // SAFETY: the context is alive.
        let code = unsafe { (driver.functions.ctx_push_current)(self.raw) };
        driver.check("cuCtxPushCurrent", code)?;
        Ok(Entered { context: self, pushed: true, _relaxed: driver.relaxed() })
    }
}

/// While a context is this thread's current one.
#[derive(Debug)]
pub struct Entered<'a> {
    context: &'a Context,
    pushed: bool,
    _relaxed: Relaxed,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if self.pushed {
            let mut popped: CUcontext = ptr::null_mut();
            // SAFETY: pushed by `enter` on this thread: a guard of a reference does not move elsewhere
            // while it is used.
            unsafe { (self.context.driver.functions.ctx_pop_current)(&mut popped) };
        }
    }
}
