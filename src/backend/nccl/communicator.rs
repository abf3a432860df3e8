//! A communicator: nonblocking, used by one call at a time, and ended exactly once.

use std::ffi::{c_int, c_uint};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cudarc::nccl::sys::{ncclComm_t, ncclConfig_t, ncclUniqueId};
use parking_lot::{Mutex, MutexGuard};

use super::library::{Functions, Library, Progress};
use crate::cuda::pause;
use crate::error::{Error, Result, Status, fail};
use crate::wait::Deadline;

/// `NCCL_CONFIG_UNDEF_INT`: leave it to NCCL.
const UNDEFINED: c_int = c_int::MIN;
/// What NCCL knows a configuration by.
const MAGIC: c_uint = 0xcafe_beef;
/// Whose layout it has: later versions fill in what came later.
const LAYOUT: c_uint = 21800;

/// 10 ms: how often one that waits for another's call looks whether the communicator is ended meanwhile.
const LOOK: Duration = Duration::from_millis(10);

/// Bytes of a unique id.
pub const ID_BYTES: usize = 128;

/// What the ranks of a group use to find each other.
pub fn unique_id(library: &Library) -> Result<[u8; ID_BYTES]> {
    let mut id = ncclUniqueId { internal: [0; ID_BYTES] };
    // SAFETY: NCCL writes 128 bytes of ours.
    let code = unsafe { (library.functions.get_unique_id)(&mut id) };
    library.progress("ncclGetUniqueId", code, ptr::null_mut())?;
    Ok(id.internal.map(|byte| byte as u8))
}

#[derive(Debug)]
struct Raw(ncclComm_t);

// SAFETY: a communicator may be used by any thread, one at a time.
unsafe impl Send for Raw {}

/// A communicator, until it is ended.
#[derive(Debug)]
pub struct Communicator {
    library: Arc<Library>,
    raw: Mutex<Option<Raw>>,
    /// Set before it is aborted: what ends from then on may have been cut short.
    aborted: AtomicBool,
    /// Set before it is aborted or destroyed: nobody waits for that.
    ending: AtomicBool,
}

impl Communicator {
    /// Begins to connect the ranks that have this id; in the device's context. Also if that fails, there may be
    /// something to abort.
    pub fn join(
        library: Arc<Library>,
        id: &[u8; ID_BYTES],
        rank: usize,
        size: usize,
    ) -> (Communicator, Result<()>) {
        let mut config = ncclConfig_t {
            size: size_of::<ncclConfig_t>(),
            magic: MAGIC,
            version: LAYOUT,
            blocking: 0,
            cgaClusterSize: UNDEFINED,
            minCTAs: UNDEFINED,
            maxCTAs: UNDEFINED,
            netName: ptr::null(),
            splitShare: UNDEFINED,
        };
        let id = ncclUniqueId { internal: id.map(|byte| byte as _) };
        let mut raw: ncclComm_t = ptr::null_mut();
        let (rank, size) = (rank as c_int, size as c_int);
        // SAFETY: NCCL copies the id and the configuration, and writes a pointer of ours.
        let code = unsafe {
            (library.functions.comm_init_rank_config)(&mut raw, size, id, rank, &mut config)
        };
        let communicator = Communicator {
            raw: Mutex::new((!raw.is_null()).then_some(Raw(raw))),
            aborted: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            library,
        };
        let begun = match communicator.library.progress("ncclCommInitRankConfig", code, raw) {
            Ok(_) if raw.is_null() => {
                Err(Error::new(Status::Backend, "ncclCommInitRankConfig made nothing"))
            }
            begun => begun.map(drop),
        };
        (communicator, begun)
    }

    /// The communicator, for one at a time; not behind its end, which NCCL may take any time for.
    fn lock(&self) -> Result<MutexGuard<'_, Option<Raw>>> {
        while !self.ending.load(Ordering::SeqCst) {
            if let Some(raw) = self.raw.try_lock_for(LOOK) {
                return Ok(raw);
            }
        }
        Err(gone())
    }

    /// Makes one call of NCCL's, or one group of them.
    pub fn call(
        &self,
        what: &str,
        body: impl FnOnce(&Functions, ncclComm_t) -> c_int,
    ) -> Result<Progress> {
        let raw = self.lock()?;
        let Some(Raw(comm)) = &*raw else { return Err(gone()) };
        let code = body(&self.library.functions, *comm);
        self.library.progress(what, code, *comm)
    }

    /// Whether what was called is done; what went wrong meanwhile, on whatever rank.
    pub fn state(&self) -> Result<Progress> {
        self.state_of(&*self.lock()?)
    }

    /// The same; `None` while another thread is in a call.
    pub fn state_now(&self) -> Option<Result<Progress>> {
        match self.ending.load(Ordering::SeqCst) {
            true => Some(Err(gone())),
            false => self.raw.try_lock().map(|raw| self.state_of(&raw)),
        }
    }

    fn state_of(&self, raw: &Option<Raw>) -> Result<Progress> {
        let Some(Raw(comm)) = raw else { return Err(gone()) };
        let mut state: c_int = 0;
        // SAFETY: the communicator is there while the lock is held; NCCL writes an int of ours.
        let code = unsafe { (self.library.functions.comm_get_async_error)(*comm, &mut state) };
        self.library.progress("ncclCommGetAsyncError", code, *comm)?;
        self.library.progress("NCCL", state, *comm)
    }

    /// Whether what ends now may have been cut short.
    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }

    /// Whether it has ended.
    pub fn is_gone(&self) -> bool {
        self.raw.try_lock().is_some_and(|raw| raw.is_none())
    }

    /// Ends it at once, and what is under way in it on the device; the first time only. NCCL waits for its own
    /// threads, and for what they wait for on the device: for a thread that has nobody waiting for it.
    pub fn abort(&self) {
        self.aborted.store(true, Ordering::SeqCst);
        self.ending.store(true, Ordering::SeqCst);
        let mut raw = self.raw.lock();
        if let Some(Raw(comm)) = raw.take() {
            // SAFETY: taken, so nobody else uses it, nor will.
            let code = unsafe { (self.library.functions.comm_abort)(comm) };
            if let Err(e) = self.library.progress("ncclCommAbort", code, ptr::null_mut()) {
                log::warn!("nccl: {e}");
            }
        }
    }

    /// Ends it in good order, when nothing is under way in it: what is on its way to others arrives.
    /// Aborts it if that takes longer than `limit`, which it does where other ranks of the machine do not end
    /// theirs. Leaves it as it is once the process `is_over`.
    pub fn finish(&self, limit: Duration, is_over: impl Fn() -> bool) {
        match self.flush(limit, &is_over) {
            Ok(()) => {}
            Err(_) if is_over() => return,
            Err(e) => {
                log::debug!("nccl: {e}");
                return self.abort();
            }
        }
        self.ending.store(true, Ordering::SeqCst);
        let mut raw = self.raw.lock();
        if let Some(Raw(comm)) = raw.take() {
            // SAFETY: likewise.
            let code = unsafe { (self.library.functions.comm_destroy)(comm) };
            if let Err(e) = self.library.progress("ncclCommDestroy", code, ptr::null_mut()) {
                log::warn!("nccl: {e}");
            }
        }
    }

    fn flush(&self, limit: Duration, is_over: impl Fn() -> bool) -> Result<()> {
        let (deadline, since) = (Deadline::after(Some(limit)), Instant::now());
        // SAFETY: the communicator is there, and is not used for anything else after this.
        let mut progress =
            self.call("ncclCommFinalize", |f, comm| unsafe { (f.comm_finalize)(comm) })?;
        while progress == Progress::UnderWay {
            if deadline.passed() || is_over() {
                fail!(Timeout, "ncclCommFinalize has not ended in {} ms", limit.as_millis());
            }
            pause(since, false);
            progress = self.state()?;
        }
        Ok(())
    }
}

/// What is said of a communicator that has ended, if nobody knows better.
fn gone() -> Error {
    Error::new(Status::Aborted, "the communicator was aborted")
}
