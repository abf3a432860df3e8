//! How MPI comes up in this process, once: by the program or by us, and which threads may call it then.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use super::caller::{Caller, Lingering};
use super::library::{self, Library};
use super::runtime::{FAREWELL, Runtime, Threads, is_main_thread};
use crate::config::MpiSettings;
use crate::error::{Error, Result, fail};
use crate::wait::Deadline;

/// The place of a process's runtime.
#[derive(Debug, Default)]
pub struct Place {
    state: Mutex<State>,
    /// What left a start's call under way, if one did.
    out_of_step: Arc<OnceLock<Error>>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Untouched,
    Running(Arc<Runtime>),
    /// MPI is initialised, but of no use, for this reason.
    Failed(Arc<Runtime>, Error),
    /// Initialising MPI failed for this reason, and perhaps has not ended yet.
    Lost(Error),
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
    /// The runtime, started by the deadline if there is none. `generation` tells this process from
    /// those that it was forked from.
    pub fn runtime(
        &self,
        generation: u64,
        settings: &MpiSettings,
        deadline: Deadline,
    ) -> Result<Arc<Runtime>> {
        let limit = deadline.left().unwrap_or(Duration::MAX);
        let Some(mut state) = self.state.try_lock_for(limit) else {
            fail!(
                Timeout,
                "a start in another thread has not ended in time (MLXD_CONNECT_TIMEOUT_MS)"
            );
        };
        match &*state {
            State::Running(runtime) => return Ok(runtime.clone()),
            State::Failed(_, cause) | State::Lost(cause) => fail!(
                Unsupported,
                "the first start on MPI in this process failed, and there cannot be another: {cause}"
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
        let (threads, caller) = match before(&library)? {
            Before::Initialised => (threads_of_program(&library)?, None),
            Before::Untouched => {
                let caller = Caller::start(&Lingering::default())?;
                let threads = initialise(&library, &caller, deadline);
                let lost = |cause: &Error| *state = State::Lost(cause.clone());
                (threads.inspect_err(lost)?, Some(caller))
            }
        };
        let ours = caller.is_some();
        let runtime = Runtime::new(library, threads, caller, self.out_of_step.clone());
        if let (Err(cause), true) = (&runtime, ours) {
            *state = State::Lost(cause.clone());
        }
        let mut runtime = runtime?;
        let outcome = runtime.meet(settings, deadline);
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
        let Some(mut state) = self.state.try_lock_for(FAREWELL) else { return };
        if let State::Running(runtime) | State::Failed(runtime, _) = &*state {
            runtime.end();
            // A program's own MPI goes on.
            *state = if runtime.is_ours() { State::Ended } else { State::Untouched };
        }
    }
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

/// Initialises MPI, on a thread of ours that will end it: who initialises MPI must also do that. MPI
/// itself waits here for all ranks, for ever, and the thread with it.
fn initialise(library: &Arc<Library>, caller: &Caller, deadline: Deadline) -> Result<Threads> {
    let opened = library.clone();
    let initialise = move || {
        let (functions, abi) = (&opened.functions, &opened.abi);
        let mut level: c_int = 0;
        let none = std::ptr::null_mut();
        // SAFETY: MPI was not initialised yet, and takes NULL for the program's arguments.
        let code =
            unsafe { (functions.init_thread)(none, none.cast(), abi.thread_multiple, &mut level) };
        opened.check("MPI_Init_thread", code)?;
        // SAFETY: the world and a handler of this MPI, which is initialised.
        let code = unsafe { (functions.comm_set_errhandler)(abi.comm_world, abi.errors_return) };
        opened.check("MPI_Comm_set_errhandler", code)?;
        Ok::<_, Error>(level)
    };
    let Some(level) = caller.run_within(deadline.left(), initialise)? else {
        fail!(
            Timeout,
            "MPI_Init_thread has not ended in time (MLXD_CONNECT_TIMEOUT_MS): it waits for all \
             ranks that the launcher started, and not all of them have called it"
        );
    };
    if level? >= library.abi.thread_multiple {
        return Ok(Threads::All);
    }
    log::info!("mpi: threads take turns: MPI grants less than MPI_THREAD_MULTIPLE");
    Ok(Threads::Ours)
}
