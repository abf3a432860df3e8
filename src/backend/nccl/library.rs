//! The NCCL library: where it is looked for, its functions, and what its codes mean.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ops::Deref;
use std::sync::Arc;

use cudarc::driver::sys::CUstream;
use cudarc::nccl::sys::{ncclComm_t, ncclConfig_t, ncclUniqueId};

use crate::config::NcclLibrary;
use crate::cuda::{self, Driver};
use crate::dynamic::{self, Handle, table};
use crate::error::{Error, Result, Status, fail};
use crate::per_process::PerProcess;

table! {
    /// NCCL's functions.
    Functions {
        get_version = "ncclGetVersion"(*mut c_int);
        get_unique_id = "ncclGetUniqueId"(*mut ncclUniqueId);
        comm_init_rank_config = "ncclCommInitRankConfig"(
            *mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut ncclConfig_t
        );
        comm_finalize = "ncclCommFinalize"(ncclComm_t);
        comm_destroy = "ncclCommDestroy"(ncclComm_t);
        comm_abort = "ncclCommAbort"(ncclComm_t);
        comm_get_async_error = "ncclCommGetAsyncError"(ncclComm_t, *mut c_int);
        all_reduce = "ncclAllReduce"(
            *const c_void, *mut c_void, usize, c_int, c_int, ncclComm_t, CUstream
        );
        all_gather = "ncclAllGather"(
            *const c_void, *mut c_void, usize, c_int, ncclComm_t, CUstream
        );
        reduce_scatter = "ncclReduceScatter"(
            *const c_void, *mut c_void, usize, c_int, c_int, ncclComm_t, CUstream
        );
        broadcast = "ncclBroadcast"(
            *const c_void, *mut c_void, usize, c_int, c_int, ncclComm_t, CUstream
        );
        send = "ncclSend"(*const c_void, usize, c_int, c_int, ncclComm_t, CUstream);
        recv = "ncclRecv"(*mut c_void, usize, c_int, c_int, ncclComm_t, CUstream);
        group_start = "ncclGroupStart"();
        group_end = "ncclGroupEnd"();
    }
}

/// `ncclGetErrorString`
type ErrorString = unsafe extern "C" fn(c_int) -> *const c_char;
/// `ncclGetLastError`
type LastError = unsafe extern "C" fn(ncclComm_t) -> *const c_char;

/// `ncclSuccess`
pub const SUCCESS: c_int = 0;
/// `ncclInProgress`
pub const IN_PROGRESS: c_int = 7;

/// As NVIDIA's packages name it, and as a link to it may be named.
const NAMES: [&CStr; 2] = [c"libnccl.so.2", c"libnccl.so"];
/// 2.18: its nonblocking communicators are complete, and its configuration is laid out as ours.
const OLDEST: c_int = 21800;

/// How far a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Done.
    Done,
    /// NCCL goes on with it on a thread of its own.
    UnderWay,
}

/// An opened library, and the driver that it needs.
#[derive(Debug)]
pub struct Library {
    /// The driver, which has a device.
    pub driver: &'static Driver,
    loaded: Loaded,
}

impl Deref for Library {
    type Target = Loaded;

    fn deref(&self) -> &Loaded {
        &self.loaded
    }
}

/// An opened library.
#[derive(Debug)]
pub struct Loaded {
    /// How it was found: a file name.
    pub name: String,
    /// `2.28.9`
    pub version: String,
    /// Its functions.
    pub functions: Functions,
    error_string: ErrorString,
    last_error: LastError,
}

/// The library that these settings ask for, opened now or before, if there is a device for it.
pub fn open(settings: &NcclLibrary) -> Result<Arc<Library>> {
    static OPENED: PerProcess<Vec<(NcclLibrary, Arc<Library>)>> = PerProcess::new(Vec::new());
    // The driver's start takes seconds.
    let mut opened = OPENED.lock("opening NCCL and the CUDA driver")?;
    if let Some((_, library)) = opened.iter().find(|(known, _)| known == settings) {
        return Ok(library.clone());
    }
    // Whoever lacks both is to learn that at once.
    let found = search(settings).and_then(|(handle, name)| Loaded::new(handle, name));
    let (loaded, driver) = match (found, cuda::open()) {
        (Ok(loaded), Ok(driver)) => (loaded, driver),
        (Err(one), Err(other)) => {
            let message = format!("{}; {}", one.message, other.message);
            return Err(Error { message, ..one });
        }
        (Err(e), _) | (_, Err(e)) => return Err(e),
    };
    let library = Arc::new(Library { driver, loaded });
    log::info!("nccl: {} ({})", library.name, library.version);
    opened.push((settings.clone(), library.clone()));
    Ok(library)
}

fn search(settings: &NcclLibrary) -> Result<(Handle, String)> {
    if let Some(name) = &settings.file {
        let Ok(file) = CString::new(name.as_str()) else {
            fail!(Config, "MLXD_NCCL_LIBNAME={name:?} has a NUL in it");
        };
        return match dynamic::open(&file, 0) {
            Some(handle) => Ok((handle, name.clone())),
            None => fail!(
                Unavailable,
                "MLXD_NCCL_LIBNAME={name:?} cannot be opened: {}",
                dynamic::last_error()
            ),
        };
    }
    // One that the program uses itself is the one to use.
    for flags in [libc::RTLD_NOLOAD, 0] {
        for name in NAMES {
            if let Some(handle) = dynamic::open(name, flags) {
                return Ok((handle, name.to_string_lossy().into_owned()));
            }
        }
    }
    fail!(
        Unavailable,
        "no NCCL found: looked for libnccl.so.2 and libnccl.so in the loader's search path \
         (LD_LIBRARY_PATH, ld.so.cache); install NCCL, or name the file with MLXD_NCCL_LIBNAME"
    )
}

impl Loaded {
    fn new(handle: Handle, name: String) -> Result<Loaded> {
        let lacks = |symbol: &str| {
            let message = format!(
                "{name} is no NCCL that can be used: it lacks {symbol}; 2.18 or later is needed"
            );
            Error::new(Status::Unavailable, message)
        };
        let find = |symbol: &'static CStr| {
            handle.find(symbol).ok_or_else(|| lacks(&symbol.to_string_lossy()))
        };
        let version = version(&find)?;
        if version < OLDEST {
            fail!(
                Unavailable,
                "{name} is NCCL {}, but 2.18 or later is needed",
                version_text(version)
            );
        }
        // SAFETY: NCCL's interface fixes what functions of these names take and return.
        let functions = unsafe { Functions::load(handle) }.map_err(lacks)?;
        let (error_string, last_error) = (find(c"ncclGetErrorString")?, find(c"ncclGetLastError")?);
        Ok(Loaded {
            version: version_text(version),
            functions,
            // SAFETY: likewise.
            error_string: unsafe { std::mem::transmute::<*mut c_void, ErrorString>(error_string) },
            // SAFETY: likewise.
            last_error: unsafe { std::mem::transmute::<*mut c_void, LastError>(last_error) },
            name,
        })
    }

    /// What the code of a call comes to.
    pub fn progress(&self, what: &str, code: c_int, comm: ncclComm_t) -> Result<Progress> {
        match code {
            SUCCESS => Ok(Progress::Done),
            IN_PROGRESS => Ok(Progress::UnderWay),
            code => fail!(Backend, "{what}: {}", self.text_of(code, comm)),
        }
    }

    /// A code in NCCL's words, and what it adds.
    fn text_of(&self, code: c_int, comm: ncclComm_t) -> String {
        let read = |text: *const c_char| match text.is_null() {
            true => String::new(),
            // SAFETY: NCCL gives a string of its own, which stays until its next failure.
            false => unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned(),
        };
        // SAFETY: any number may be asked for.
        let text = read(unsafe { (self.error_string)(code) });
        // SAFETY: the communicator is ignored, and may be NULL.
        let more = read(unsafe { (self.last_error)(comm) });
        match more.is_empty() {
            true => format!("{text} (code {code})"),
            false => format!("{text} (code {code}): {more}"),
        }
    }
}

/// The library's number for itself: 21800 is 2.18.0.
fn version(find: &impl Fn(&'static CStr) -> Result<*mut c_void>) -> Result<c_int> {
    type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
    let address = find(c"ncclGetVersion")?;
    let mut version: c_int = 0;
    // SAFETY: NCCL has declared it so from its first version on; it writes an int of ours.
    let code = unsafe { std::mem::transmute::<*mut c_void, GetVersion>(address)(&mut version) };
    if code != SUCCESS {
        fail!(Unavailable, "ncclGetVersion returned {code}");
    }
    Ok(version)
}

/// Until 2.8 the minor version had one digit less.
fn version_text(version: c_int) -> String {
    let (major, rest) = match version < 10_000 {
        true => (version / 1000, version % 1000),
        false => (version / 10_000, version % 10_000),
    };
    format!("{major}.{}.{}", rest / 100, rest % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_nccl_writes_them() {
        assert_eq!(version_text(21800), "2.18.0");
        assert_eq!(version_text(22809), "2.28.9");
        assert_eq!(version_text(2708), "2.7.8");
        assert_eq!(version_text(21703), "2.17.3");
    }
}
