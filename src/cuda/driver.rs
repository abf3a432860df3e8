//! The CUDA driver: how it is found, its functions, and what its codes mean.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys::{CUcontext, CUdevice, CUdeviceptr, CUevent, CUstream};

use crate::dynamic::{self, table};
use crate::error::{Error, Result, Status, fail};
use crate::recorder;

table! {
    /// The driver's functions.
    Functions {
        init = "cuInit"(c_uint);
        device_get_count = "cuDeviceGetCount"(*mut c_int);
        device_get = "cuDeviceGet"(*mut CUdevice, c_int);
        device_get_name = "cuDeviceGetName"(*mut c_char, c_int, CUdevice);
        primary_ctx_retain = "cuDevicePrimaryCtxRetain"(*mut CUcontext, CUdevice);
        ctx_get_current = "cuCtxGetCurrent"(*mut CUcontext);
        ctx_set_current = "cuCtxSetCurrent"(CUcontext);
        ctx_push_current = "cuCtxPushCurrent_v2"(CUcontext);
        ctx_pop_current = "cuCtxPopCurrent_v2"(*mut CUcontext);
        ctx_get_device = "cuCtxGetDevice"(*mut CUdevice);
        pointer_get_attributes = "cuPointerGetAttributes"(
            c_uint, *mut c_int, *mut *mut c_void, CUdeviceptr
        );
        mem_alloc = "cuMemAlloc_v2"(*mut CUdeviceptr, usize);
        mem_free = "cuMemFree_v2"(CUdeviceptr);
        mem_host_alloc = "cuMemHostAlloc"(*mut *mut c_void, usize, c_uint);
        memcpy_async = "cuMemcpyAsync"(CUdeviceptr, CUdeviceptr, usize, CUstream);
        stream_create = "cuStreamCreate"(*mut CUstream, c_uint);
        stream_destroy = "cuStreamDestroy_v2"(CUstream);
        stream_wait_event = "cuStreamWaitEvent"(CUstream, CUevent, c_uint);
        stream_is_capturing = "cuStreamIsCapturing"(CUstream, *mut c_int);
        exchange_capture_mode = "cuThreadExchangeStreamCaptureMode"(*mut c_int);
        stream_get_ctx = "cuStreamGetCtx"(CUstream, *mut CUcontext);
        event_create = "cuEventCreate"(*mut CUevent, c_uint);
        event_destroy = "cuEventDestroy_v2"(CUevent);
        event_record = "cuEventRecord"(CUevent, CUstream);
        event_query = "cuEventQuery"(CUevent);
        launch_host_func = "cuLaunchHostFunc"(
            CUstream, unsafe extern "C" fn(*mut c_void), *mut c_void
        );
        get_error_name = "cuGetErrorName"(c_int, *mut *const c_char);
        get_error_string = "cuGetErrorString"(c_int, *mut *const c_char);
    }
}

/// `CUDA_SUCCESS`
const SUCCESS: c_int = 0;
/// `CUDA_ERROR_NOT_READY`
const NOT_READY: c_int = 600;
/// `CUDA_ERROR_DEINITIALIZED`
const DEINITIALIZED: c_int = 4;

/// `CU_STREAM_CAPTURE_MODE_RELAXED`
const RELAXED: c_int = 2;

/// As the driver's package names its library, and as a link to it may be named.
const NAMES: [&CStr; 2] = [c"libcuda.so.1", c"libcuda.so"];

/// The opened driver.
#[derive(Debug)]
pub struct Driver {
    /// Its functions.
    pub functions: Functions,
    /// The process that opened it.
    process: u32,
}

static DRIVER: OnceLock<Driver> = OnceLock::new();

/// The driver, opened now or before, with a device; else why there is none.
pub fn open() -> Result<&'static Driver> {
    let driver = match loaded() {
        Some(driver) if driver.process != std::process::id() => fail!(
            Unavailable,
            "CUDA was opened by the process that forked this one, and cannot be used in both"
        ),
        Some(driver) => driver,
        None => match load(0) {
            Some(driver) => keep(driver?),
            None => fail!(
                Unavailable,
                "no CUDA driver: neither libcuda.so.1 nor libcuda.so can be opened ({})",
                dynamic::last_error()
            ),
        },
    };
    // SAFETY: may be called by any thread, again too.
    driver.available("cuInit", unsafe { (driver.functions.init)(0) })?;
    if driver.devices()? == 0 {
        fail!(Unavailable, "the CUDA driver sees no device (CUDA_VISIBLE_DEVICES?)");
    }
    Ok(driver)
}

/// The driver, if it was found in this process before.
pub fn loaded() -> Option<&'static Driver> {
    DRIVER.get()
}

/// The driver, if the program has opened it, too. Costs two loads and a look at the coarse clock: the loader
/// is asked once in a tick of it, which the driver's own start takes much longer than, and looks for the
/// driver only if it has loaded something since.
pub fn present() -> Option<&'static Driver> {
    static LOOKED: AtomicU64 = AtomicU64::new(0);
    static LOADS: AtomicU64 = AtomicU64::new(0);
    if let Some(driver) = DRIVER.get() {
        // A forked child has the library, but not the driver: its memory is the host's.
        return (driver.process == std::process::id()).then_some(driver);
    }
    let now = recorder::now();
    if LOOKED.load(Ordering::Relaxed) == now {
        return None;
    }
    LOOKED.store(now, Ordering::Relaxed);
    let loads = dynamic::loads();
    if LOADS.load(Ordering::Relaxed) == loads {
        return None;
    }
    let driver = load(libc::RTLD_NOLOAD).and_then(Result::ok).map(keep);
    LOADS.store(loads, Ordering::Relaxed);
    driver
}

fn keep(driver: Driver) -> &'static Driver {
    DRIVER.get_or_init(|| driver)
}

fn load(flags: c_int) -> Option<Result<Driver>> {
    let library = NAMES.iter().find_map(|name| dynamic::open(name, flags))?;
    // SAFETY: the driver's interface fixes what functions of these names take and return.
    Some(match unsafe { Functions::load(library) } {
        Ok(functions) => Ok(Driver { functions, process: std::process::id() }),
        Err(symbol) => Err(Error::new(
            Status::Unavailable,
            format!("the CUDA driver is too old: libcuda.so.1 lacks {symbol}"),
        )),
    })
}

impl Driver {
    /// What the code of a call comes to.
    pub fn check(&self, what: &str, code: c_int) -> Result<()> {
        if code == SUCCESS {
            return Ok(());
        }
        fail!(Backend, "{what}: {}", self.text_of(code))
    }

    /// The same where a failure says that there is nothing to use.
    fn available(&self, what: &str, code: c_int) -> Result<()> {
        if code == SUCCESS {
            return Ok(());
        }
        fail!(Unavailable, "no CUDA device can be used: {what}: {}", self.text_of(code))
    }

    /// Whether what a query asks for is done.
    pub fn is_done(&self, what: &str, code: c_int) -> Result<bool> {
        match code {
            // CUDA has ended, since the process does: nobody will know.
            NOT_READY | DEINITIALIZED => Ok(false),
            code => self.check(what, code).map(|()| true),
        }
    }

    /// What the code of a query comes to; `None` while what it asks for is under way. Fails once CUDA has ended.
    pub fn outcome(&self, what: &str, code: c_int) -> Option<Result<()>> {
        match code {
            NOT_READY => None,
            DEINITIALIZED => {
                let why = format!("{what}: CUDA has ended, since the process does");
                Some(Err(Error::new(Status::Aborted, why)))
            }
            code => Some(self.check(what, code)),
        }
    }

    /// A code in the driver's words: `CUDA_ERROR_INVALID_VALUE (1): invalid argument`.
    fn text_of(&self, code: c_int) -> String {
        type Get = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;
        let ask = |get: Get| {
            let mut text = ptr::null();
            // SAFETY: the driver gives a string of its own, for good, or an error.
            unsafe {
                let known = get(code, &mut text) == SUCCESS && !text.is_null();
                known.then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        };
        let name = ask(self.functions.get_error_name).unwrap_or_else(|| "unknown code".to_owned());
        match ask(self.functions.get_error_string) {
            Some(text) => format!("{name} ({code}): {text}"),
            None => format!("{name} ({code})"),
        }
    }

    /// Lets this thread make any call until what is returned is dropped, also while another thread of the
    /// program captures a stream into a graph: a query would otherwise fail, and spoil the capture.
    pub fn relaxed(&'static self) -> Relaxed {
        let mut mode = RELAXED;
        // SAFETY: the driver exchanges an int of ours for this thread's.
        let code = unsafe { (self.functions.exchange_capture_mode)(&mut mode) };
        Relaxed { driver: self, before: (code == SUCCESS).then_some(mode) }
    }

    /// How many devices this process may use.
    pub fn devices(&self) -> Result<usize> {
        let mut count: c_int = 0;
        // SAFETY: the driver is initialised, and writes an int of ours.
        let code = unsafe { (self.functions.device_get_count)(&mut count) };
        self.available("cuDeviceGetCount", code)?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// What a device is called.
    pub fn name_of(&self, device: CUdevice) -> String {
        let mut text = [0u8; 256];
        // SAFETY: the buffer is as long as is said.
        let code = unsafe {
            (self.functions.device_get_name)(text.as_mut_ptr().cast(), text.len() as c_int, device)
        };
        let name = CStr::from_bytes_until_nul(&text).map(CStr::to_string_lossy);
        match (code, name) {
            (SUCCESS, Ok(name)) => name.into_owned(),
            _ => "a device".to_owned(),
        }
    }
}

/// While this thread may make any call.
#[derive(Debug)]
pub struct Relaxed {
    driver: &'static Driver,
    before: Option<c_int>,
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        if let Some(mut mode) = self.before {
            // SAFETY: as in `relaxed`; what comes back is what was set there.
            unsafe { (self.driver.functions.exchange_capture_mode)(&mut mode) };
        }
    }
}
