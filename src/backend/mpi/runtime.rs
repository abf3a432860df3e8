//! The MPI of this process, once it is initialised: who may call it, and its end.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::abi::Comm;
use super::caller::{Caller, Lingering};
use super::functions::Functions;
use super::library::Library;
use super::news::News;
use super::reductions::Operations;
use super::turns::Turns;
use crate::error::{Error, Result, Status, fail};
use crate::wait::Deadline;

/// How long the end of MPI waits for calls that are under way in other threads.
pub(super) const FAREWELL: Duration = Duration::from_secs(1);
/// How long it waits for the other ranks once a world has failed: then one of them may never come.
const LAST_MEETING: Duration = Duration::from_secs(30);

/// Which threads may call MPI.
#[derive(Debug)]
pub(super) enum Threads {
    /// All: MPI_THREAD_MULTIPLE was granted.
    All,
    /// One of ours, which calls for the others.
    Ours,
    /// The one that initialised MPI, which the program did.
    Main,
}

/// MPI, initialised.
#[derive(Debug)]
pub struct Runtime {
    /// Its library.
    pub library: Arc<Library>,
    /// Our operations.
    pub operations: Operations,
    /// What ranks tell each other beside the program's calls.
    pub news: News,
    /// This process's rank among all that were started together.
    pub rank: usize,
    /// How many these are.
    pub size: usize,
    threads: Threads,
    /// The thread that initialised MPI and will end it; `None` where that is the program's affair.
    caller: Option<Caller>,
    /// Held by who is in MPI, taken for its end.
    gate: RwLock<()>,
    closing: AtomicBool,
    /// Set once a rank may never come to the end: a world has failed, or somebody waited in vain.
    spoiled: AtomicBool,
    /// Calls that have outlasted their limit, in which a thread still is.
    lingering: Lingering,
    /// Held by the start that is under way.
    pub(super) starting: Mutex<()>,
    /// Set once a start has left a call under way, which the next start of another rank would meet:
    /// the process's.
    pub(super) out_of_step: Arc<OnceLock<Error>>,
    groups: AtomicU32,
    /// The order of splits, where one thread makes all calls.
    pub(super) turns: Turns,
}

impl Runtime {
    /// The MPI that is initialised now, and who may call it.
    pub(super) fn new(
        library: Arc<Library>,
        threads: Threads,
        caller: Option<Caller>,
        out_of_step: Arc<OnceLock<Error>>,
    ) -> Result<Runtime> {
        let lingering = caller.as_ref().map(Caller::lingering).unwrap_or_default();
        let look_around = || {
            let functions = &library.functions;
            let (mut rank, mut size) = (0, 0);
            // SAFETY: MPI is initialised, this thread may call it, and both results are ours.
            unsafe {
                let world = library.abi.comm_world;
                library.check("MPI_Comm_rank", (functions.comm_rank)(world, &mut rank))?;
                library.check("MPI_Comm_size", (functions.comm_size)(world, &mut size))?;
            }
            Ok((rank, size, Operations::make(&library)?))
        };
        let (rank, size, operations) = match &caller {
            Some(caller) => caller.run(look_around)??,
            None => look_around()?,
        };
        Ok(Runtime {
            library,
            operations,
            news: News::default(),
            rank: rank as usize,
            size: size as usize,
            threads,
            caller,
            gate: RwLock::new(()),
            closing: AtomicBool::new(false),
            spoiled: AtomicBool::new(false),
            lingering,
            starting: Mutex::default(),
            out_of_step,
            groups: AtomicU32::new(0),
            turns: Turns::default(),
        })
    }

    /// A number for a group that this rank leads.
    pub fn next_group_number(&self) -> u32 {
        self.groups.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Keeps MPI from ending until what is returned is dropped.
    pub fn enter(&self) -> Result<RwLockReadGuard<'_, ()>> {
        let gone = || Error::new(Status::Aborted, "mlxd_finalize was called");
        if self.closing.load(Ordering::Acquire) {
            return Err(gone());
        }
        if self.caller.is_none() && self.is_over() {
            fail!(Aborted, "the program has called MPI_Finalize");
        }
        // Several threads hold it at once; only the end takes it for itself.
        self.gate.try_read_recursive().ok_or_else(gone)
    }

    /// Whether calls may be left to block: not where one thread makes them for all.
    pub fn may_block(&self) -> bool {
        !matches!(self.threads, Threads::Ours)
    }

    /// Whether this thread may call MPI, which is there.
    fn may_call(&self) -> bool {
        !matches!(self.threads, Threads::Main) || is_main_thread(&self.library)
    }

    /// Refuses what this thread, or a stream's, may not call.
    pub fn accepts(&self, streamed: bool) -> Result<()> {
        if !matches!(self.threads, Threads::Main) {
            return Ok(());
        }
        // Then nothing is asked of MPI, and the call says so.
        if self.closing.load(Ordering::Acquire) || self.is_over() {
            return Ok(());
        }
        if !streamed && self.may_call() {
            return Ok(());
        }
        let who = if streamed { "a stream's thread" } else { "another thread" };
        fail!(
            Unsupported,
            "the program initialised MPI below MPI_THREAD_MULTIPLE: only the thread that did so may \
             call, without a stream, and this would be {who}; ask MPI_Init_thread for \
             MPI_THREAD_MULTIPLE, or leave the initialisation to mlxd_init"
        )
    }

    /// A thread for one call within a limit, where each thread makes its own calls: it may never come
    /// back from it.
    pub fn helper(&self, limit: Option<Duration>) -> Result<Option<Caller>> {
        match (&self.threads, limit) {
            (Threads::All, Some(_)) => Caller::start(&self.lingering).map(Some),
            _ => Ok(None),
        }
    }

    /// Makes a call that MPI gives no limit, within one: on that thread, or on the one that makes all
    /// calls. After the limit it stays under way. The program's main thread, where that alone may call,
    /// makes it itself, and has no limit.
    pub fn call_within<T: Send + 'static>(
        self: &Arc<Self>,
        what: &str,
        helper: Option<&Caller>,
        limit: Option<Duration>,
        body: impl FnOnce(&Functions) -> (c_int, T) + Send + 'static,
    ) -> Result<T> {
        let runtime = self.clone();
        let body = move || body(&runtime.library.functions);
        let ours = || matches!(self.threads, Threads::Ours).then_some(self.caller.as_ref())?;
        let outcome = match helper.or_else(ours) {
            Some(caller) => caller.run_within(limit, body)?,
            None => Some(body()),
        };
        let Some((code, result)) = outcome else {
            let limit = limit.unwrap_or_default().as_millis();
            fail!(Timeout, "{what} has not ended after {limit} ms");
        };
        self.library.check(what, code).map(|()| result)
    }

    /// Makes a call of MPI, on the thread that may: its error in MPI's words.
    pub fn call(&self, what: &str, body: impl FnOnce(&Functions) -> c_int) -> Result<()> {
        self.library.check(what, self.code(body)?)
    }

    /// The same, with the code as it is.
    pub fn code(&self, body: impl FnOnce(&Functions) -> c_int) -> Result<c_int> {
        let never = || Error::new(Status::Internal, "a deadline that never passes has passed");
        self.code_by(Deadline::NEVER, body)?.ok_or_else(never)
    }

    /// The same; `None` where the call has not been made when the deadline passes, since another keeps
    /// the thread that makes all.
    pub fn code_by(
        &self,
        deadline: Deadline,
        body: impl FnOnce(&Functions) -> c_int,
    ) -> Result<Option<c_int>> {
        match (&self.threads, &self.caller) {
            (Threads::Ours, Some(caller)) => {
                caller.run_by(deadline, || body(&self.library.functions))
            }
            _ => Ok(Some(body(&self.library.functions))),
        }
    }

    /// Frees a communicator that nothing is under way on. It stays, at no harm, where this thread
    /// may not call, or where MPI ends next. A program's own MPI lives on after our part in it.
    pub fn free(&self, mut comm: Comm) {
        let inside = self.gate.try_read_recursive();
        let ending = inside.is_none() || self.closing.load(Ordering::Acquire);
        if (ending && self.is_ours()) || self.is_over() || !self.may_call() {
            return;
        }
        // SAFETY: a communicator of ours, freed once.
        if let Err(e) = self.call("MPI_Comm_free", |f| unsafe { (f.comm_free)(&mut comm) }) {
            log::warn!("mpi: {e}");
        }
    }

    /// Whether the program has ended MPI under us.
    fn is_over(&self) -> bool {
        let mut over: c_int = 0;
        // SAFETY: MPI allows this at any time, from any thread.
        unsafe { (self.library.functions.finalized)(&mut over) };
        over != 0
    }

    /// A rank may never come to the end.
    pub fn spoil(&self) {
        self.spoiled.store(true, Ordering::Release);
    }

    /// Whether we initialised MPI.
    pub(super) fn is_ours(&self) -> bool {
        self.caller.is_some()
    }

    pub(super) fn end(self: &Arc<Self>) {
        self.closing.store(true, Ordering::Release);
        // An operation that never ends would keep the process: then the launcher sees it die.
        let alone = self.gate.try_write_for(FAREWELL);
        if alone.is_none() || self.lingering.is_any() {
            log::warn!("mpi: operations are under way in other threads, so MPI is left as it is");
            return;
        }
        // After its end MPI allows no question but that.
        if self.is_over() {
            return;
        }
        if !self.is_ours() && !self.may_call() {
            return;
        }
        let Some(caller) = &self.caller else {
            self.operations.free(&self.library.functions);
            self.news.free(&self.library.functions);
            return;
        };
        let runtime = self.clone();
        let end = move || {
            let functions = &runtime.library.functions;
            runtime.operations.free(functions);
            runtime.news.free(functions);
            // MPI itself waits here until all ranks have come, without a limit: a rank that went
            // earlier would take the others' messages with it.
            // SAFETY: we initialised MPI, nobody is in it, and nobody gets in any more.
            unsafe { (functions.finalize)() }
        };
        let limit = self.spoiled.load(Ordering::Acquire).then_some(LAST_MEETING);
        match caller.run_within(limit, end) {
            Ok(Some(code)) => {
                if let Err(e) = self.library.check("MPI_Finalize", code) {
                    log::warn!("mpi: {e}");
                }
            }
            // The process ends without it, which tells the launcher.
            Ok(None) => log::warn!("mpi: not all ranks came to MPI_Finalize"),
            Err(e) => log::warn!("mpi: {e}"),
        }
    }
}

/// Whether this thread initialised MPI.
pub(super) fn is_main_thread(library: &Library) -> bool {
    let mut main: c_int = 0;
    // SAFETY: MPI allows this from any thread while it is initialised.
    let code = unsafe { (library.functions.is_thread_main)(&mut main) };
    code == super::abi::SUCCESS && main != 0
}
