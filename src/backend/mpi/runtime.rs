//! The MPI of this process: initialised once, by the program or by us; who may call it; its end.

use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::abi::{Comm, MessageStatus, Request};
use super::caller::Caller;
use super::functions::Functions;
use super::library::{self, Library};
use super::news::News;
use super::reductions::Operations;
use crate::config::MpiSettings;
use crate::error::{Error, Result, Status, fail};
use crate::wait::Deadline;

/// How long the end of MPI waits for calls that are under way in other threads.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long it waits for the other ranks once a world has failed: then one of them may never come.
const LAST_MEETING: Duration = Duration::from_secs(30);

/// Which threads may call MPI.
#[derive(Debug)]
enum Threads {
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
    /// Set once a world has failed.
    spoiled: AtomicBool,
    groups: AtomicU32,
}

/// The place of a process's runtime.
#[derive(Debug, Default)]
pub struct Place(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    Untouched,
    Running(Arc<Runtime>),
    /// MPI is initialised, but of no use, for this reason.
    Failed(Arc<Runtime>, Error),
    /// MPI cannot be initialised twice.
    Ended,
}

/// Which process, of a line of forks, met MPI first; 0 for none yet. Copied into children.
static OWNER: AtomicU64 = AtomicU64::new(0);

/// How much of a program MPI is already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Untouched,
    Initialised,
}

impl Place {
    /// The runtime, started if there is none. `generation` tells this process from those that it
    /// was forked from.
    pub fn runtime(&self, generation: u64, settings: &MpiSettings) -> Result<Arc<Runtime>> {
        let mut state = self.0.lock();
        match &*state {
            State::Running(runtime) => return Ok(runtime.clone()),
            State::Failed(_, cause) => fail!(
                Unsupported,
                "MPI cannot be started a second time in a process, and the first time failed: {cause}"
            ),
            State::Ended => fail!(
                Unsupported,
                "MPI was ended by mlxd_finalize, and MPI cannot be started a second time in a process"
            ),
            State::Untouched => {}
        }
        let owner = OWNER.load(Ordering::Acquire);
        if owner != 0 && owner != generation {
            fail!(Unsupported, "MPI belongs to the process that forked this one");
        }
        let library = library::open(settings)?;
        OWNER.store(generation, Ordering::Release);
        let mut runtime = Runtime::start(library)?;
        let outcome = runtime.meet(settings);
        let runtime = Arc::new(runtime);
        *state = match &outcome {
            Ok(()) => State::Running(runtime.clone()),
            Err(cause) => State::Failed(runtime.clone(), cause.clone()),
        };
        outcome.map(|()| runtime)
    }

    /// Ends MPI if we initialised it, once nobody is in it any more.
    pub fn end(&self) {
        // A start that is under way in another thread keeps it.
        let Some(mut state) = self.0.try_lock_for(FAREWELL) else { return };
        if let State::Running(runtime) | State::Failed(runtime, _) = &*state {
            runtime.end();
            // A program's own MPI goes on.
            let ours = runtime.caller.is_some();
            *state = if ours { State::Ended } else { State::Untouched };
        }
    }
}

impl Runtime {
    fn start(library: Arc<Library>) -> Result<Runtime> {
        let (threads, caller) = match before(&library)? {
            Before::Initialised => (threads_of_program(&library)?, None),
            Before::Untouched => initialise(&library)?,
        };
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
            groups: AtomicU32::new(0),
        })
    }

    /// Finds the other ranks, which must all have been started by one launcher.
    fn meet(&mut self, settings: &MpiSettings) -> Result<()> {
        self.check_size(settings)?;
        if self.size > 1 {
            let comm = self.duplicate_world(Deadline::after(settings.connect_timeout))?;
            self.news = News::on(comm);
        }
        Ok(())
    }

    /// A library of another family than the launcher gives each process a world of its own.
    fn check_size(&self, settings: &MpiSettings) -> Result<()> {
        let Some(launcher) = &settings.launcher else { return Ok(()) };
        if launcher.size.is_none_or(|size| size == self.size) {
            return Ok(());
        }
        fail!(
            Config,
            "the launcher says {}, but the MPI library {} ({}) sees {} rank{}: it is not the \
             launcher's own; name that one with MLX_MPI_LIBNAME, or use this library's mpirun",
            launcher.variable,
            self.library.name,
            self.library.version,
            self.size,
            if self.size == 1 { "" } else { "s" }
        )
    }

    /// A communicator of ours with all ranks, whose traffic mixes with nobody's.
    pub fn duplicate_world(&self, deadline: Deadline) -> Result<Comm> {
        let what = "MPI_Comm_idup";
        // On the heap, and left there if the deadline passes: MPI writes to it whenever it is done.
        let comm = Box::leak(Box::new(Comm(0)));
        let at: *mut Comm = comm;
        let mut request = Request(0);
        let world = self.library.abi.comm_world;
        // SAFETY: MPI is initialised; the communicator stays until it is written.
        self.call(what, |f| unsafe { (f.comm_idup)(world, at, &mut request) })?;
        let mut status = MessageStatus::default();
        match self.await_request(&mut request, &mut status, deadline, || Ok(()))? {
            Some(code) => self.library.check(what, code)?,
            None => return Err(self.somebody_is_late()),
        }
        // SAFETY: the request is complete, so MPI is done with it; it came from Box::leak.
        let comm = *unsafe { Box::from_raw(at) };
        let errors_return = self.library.abi.errors_return;
        // SAFETY: a communicator and a handler of this MPI.
        self.call("MPI_Comm_set_errhandler", |f| unsafe {
            (f.comm_set_errhandler)(comm, errors_return)
        })?;
        Ok(comm)
    }

    /// What to say when a start takes too long.
    pub fn somebody_is_late(&self) -> Error {
        let message = format!(
            "not all {} ranks that were started together called mlxd_init in time \
             (MLXD_CONNECT_TIMEOUT_MS)",
            self.size
        );
        Error::new(Status::Timeout, message)
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

    /// Refuses what this thread, or a stream's, may not call.
    pub fn accepts(&self, streamed: bool) -> Result<()> {
        if !matches!(self.threads, Threads::Main) {
            return Ok(());
        }
        // Then nothing is asked of MPI, and the call says so.
        if self.closing.load(Ordering::Acquire) || self.is_over() {
            return Ok(());
        }
        if !streamed && is_main_thread(&self.library) {
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

    /// Makes a call of MPI, on the thread that may: its error in MPI's words.
    pub fn call(&self, what: &str, body: impl FnOnce(&Functions) -> c_int) -> Result<()> {
        self.library.check(what, self.code(body)?)
    }

    /// The same, with the code as it is.
    pub fn code(&self, body: impl FnOnce(&Functions) -> c_int) -> Result<c_int> {
        match (&self.threads, &self.caller) {
            (Threads::Ours, Some(caller)) => caller.run(|| body(&self.library.functions)),
            _ => Ok(body(&self.library.functions)),
        }
    }

    /// Frees a communicator that nothing is under way on. It stays, at no harm, where this thread
    /// may not call.
    pub fn free(&self, mut comm: Comm) {
        let Ok(_inside) = self.enter() else { return };
        if self.is_over() || self.accepts(false).is_err() {
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

    /// A world has failed: its ranks may not all come to the end.
    pub fn spoil(&self) {
        self.spoiled.store(true, Ordering::Release);
    }

    fn end(self: &Arc<Self>) {
        self.closing.store(true, Ordering::Release);
        // An operation that never ends would keep the process: then the launcher sees it die.
        let Some(_alone) = self.gate.try_write_for(FAREWELL) else {
            log::warn!("mpi: operations are under way in other threads, so MPI is not finalised");
            return;
        };
        let own_thread = self.caller.is_some() || is_main_thread(&self.library);
        if self.is_over() || !(own_thread || matches!(self.threads, Threads::All)) {
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
fn is_main_thread(library: &Library) -> bool {
    let mut main: c_int = 0;
    // SAFETY: MPI allows this from any thread while it is initialised.
    let code = unsafe { (library.functions.is_thread_main)(&mut main) };
    code == super::abi::SUCCESS && main != 0
}

/// Whether MPI is there already; an error if it was there and is no more.
fn before(library: &Library) -> Result<Before> {
    let (mut initialised, mut finalised): (c_int, c_int) = (0, 0);
    // SAFETY: MPI allows both at any time, from any thread.
    unsafe {
        library.check("MPI_Initialized", (library.functions.initialized)(&mut initialised))?;
        library.check("MPI_Finalized", (library.functions.finalized)(&mut finalised))?;
    }
    match (initialised != 0, finalised != 0) {
        (_, true) => fail!(Unsupported, "the program has called MPI_Finalize already"),
        (true, false) => Ok(Before::Initialised),
        (false, false) => Ok(Before::Untouched),
    }
}

/// Who may call an MPI that the program initialised.
fn threads_of_program(library: &Library) -> Result<Threads> {
    let mut level: c_int = 0;
    // SAFETY: MPI is initialised, and allows this from any thread.
    let code = unsafe { (library.functions.query_thread)(&mut level) };
    library.check("MPI_Query_thread", code)?;
    if level >= library.abi.thread_multiple {
        return Ok(Threads::All);
    }
    if !is_main_thread(library) {
        fail!(
            Unsupported,
            "the program initialised MPI below MPI_THREAD_MULTIPLE: only the thread that did so may \
             call mlxd_init; ask MPI_Init_thread for MPI_THREAD_MULTIPLE"
        );
    }
    Ok(Threads::Main)
}

/// Initialises MPI, on a thread of ours that will end it: who initialises MPI must also do that.
fn initialise(library: &Library) -> Result<(Threads, Option<Caller>)> {
    let caller = Caller::start()?;
    let (functions, abi) = (&library.functions, &library.abi);
    let level = caller.run(|| {
        let mut level: c_int = 0;
        let none = std::ptr::null_mut();
        // SAFETY: MPI was not initialised yet, and takes NULL for the program's arguments.
        let code =
            unsafe { (functions.init_thread)(none, none.cast(), abi.thread_multiple, &mut level) };
        library.check("MPI_Init_thread", code)?;
        // SAFETY: the world and a handler of this MPI, which is initialised.
        let code = unsafe { (functions.comm_set_errhandler)(abi.comm_world, abi.errors_return) };
        library.check("MPI_Comm_set_errhandler", code)?;
        Ok::<_, Error>(level)
    })??;
    let all = level >= abi.thread_multiple;
    if !all {
        log::info!("mpi: threads take turns: MPI grants less than MPI_THREAD_MULTIPLE");
    }
    Ok((if all { Threads::All } else { Threads::Ours }, Some(caller)))
}
