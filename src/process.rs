//! What belongs to one process: its control thread and its worlds. A forked child has its own.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::backend::{mpi, nccl};
use crate::control::Reactor;
use crate::error::{Error, Result};
use crate::group::Group;
use crate::recorder::archive::Writing;
use crate::registry::Registry;
use crate::verbs::lending::Registrations;
use crate::wait::Deadline;

/// How long goodbye may take when the process ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// The state of this process.
pub struct Process {
    /// Differs between a process and its forked children: handles remember theirs.
    pub generation: u64,
    /// The way to the control thread.
    pub reactor: Arc<Reactor>,
    /// Worlds by backend.
    pub registry: Registry,
    /// The MPI of this process.
    pub mpi: mpi::Place,
    /// Those who look after groups on nccl.
    pub wardens: Arc<nccl::Wardens>,
    /// What is registered of callers' memory with RDMA devices.
    pub registrations: Arc<Registrations>,
    /// Files of the flight recorder that are being written.
    pub writing: Arc<Writing>,
    /// Every group that may still be in use.
    groups: Mutex<Vec<Weak<Group>>>,
}

/// Counts forks that were noticed; copied into children.
static GENERATION: AtomicU64 = AtomicU64::new(0);
/// The state of the newest process in this line of forks, never freed: a child must not touch what
/// its parent's threads may have been changing.
static CURRENT: AtomicPtr<Process> = AtomicPtr::new(std::ptr::null_mut());
/// Keeps two threads from making the state at once. (A fork in the middle of that leaves it locked
/// in the child, which then is told so.)
static MAKING: Mutex<()> = Mutex::new(());

/// A word that the kernel zeroes in a forked child.
fn mark() -> Result<&'static AtomicU64> {
    static MARK: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());
    let mut mark = MARK.load(Ordering::Acquire);
    if mark.is_null() {
        let page = page_wiped_on_fork()?;
        // No lock, which a fork might leave locked: of two threads, one has made its page in vain.
        mark = match MARK.compare_exchange(mark, page, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => page,
            Err(first) => {
                // SAFETY: mapped above, and known to nobody else.
                let _ = unsafe { munmap(page.cast(), PAGE) };
                first
            }
        };
    }
    // SAFETY: a mapping of a page: aligned, zeroed at first, never unmapped.
    Ok(unsafe { &*mark })
}

/// Of memory: the least that can be mapped.
const PAGE: usize = 4096;

fn page_wiped_on_fork() -> Result<*mut AtomicU64> {
    // SAFETY: a new private mapping of one page, at no fixed address, is advised and kept.
    let page = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            PAGE,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
        .and_then(|page| madvise(page, PAGE, Advice::LinuxWipeOnFork).map(|()| page))
    };
    page.map(|page| page.cast()).map_err(|e| Error::system("a page that is wiped on fork", e))
}

/// This process's state.
pub fn current() -> Result<&'static Process> {
    let mark = mark()?;
    if mark.load(Ordering::Acquire) == 0 {
        let Some(_making) = MAKING.try_lock_for(FAREWELL) else {
            crate::error::fail!(System, "the process was forked while its first group was made");
        };
        if mark.load(Ordering::Acquire) == 0 {
            let process = Process {
                generation: GENERATION.fetch_add(1, Ordering::Relaxed) + 1,
                reactor: Reactor::new()?,
                registry: Registry::default(),
                mpi: mpi::Place::default(),
                wardens: Arc::default(),
                registrations: Arc::default(),
                writing: Arc::default(),
                groups: Mutex::default(),
            };
            let generation = process.generation;
            CURRENT.store(Box::into_raw(Box::new(process)), Ordering::Release);
            mark.store(generation, Ordering::Release);
        }
    }
    // SAFETY: the mark is set after a state was stored, and states are never freed.
    Ok(unsafe { &*CURRENT.load(Ordering::Acquire) })
}

impl Process {
    /// Remembers a group for [`Process::finalize`], also when the process ends normally.
    pub fn adopt(&self, group: Group) -> Arc<Group> {
        static AT_EXIT: AtomicBool = AtomicBool::new(false);
        end_at_exit(&AT_EXIT);
        let group = Arc::new(group);
        let mut groups = self.groups.lock();
        groups.retain(|group| group.strong_count() > 0);
        groups.push(Arc::downgrade(&group));
        group
    }

    /// Ends everything before the libraries that were loaded by now end, should the process do so: what is
    /// registered last runs first.
    pub fn end_before_cuda(&self) {
        static AT_EXIT: AtomicBool = AtomicBool::new(false);
        end_at_exit(&AT_EXIT);
    }

    /// Says goodbye to all peers; every group answers ABORTED from now on.
    pub fn finalize(&self) {
        self.end(false);
    }

    /// The same; `for_good` if the process ends next.
    fn end(&self, for_good: bool) {
        self.registry.clear();
        let deadline = Instant::now() + FAREWELL;
        let groups = std::mem::take(&mut *self.groups.lock());
        let groups: Vec<Arc<Group>> = groups.iter().filter_map(Weak::upgrade).collect();
        groups.iter().for_each(|group| group.finalize());
        // A communicator that ends tells its peers, too; a driver that is gone must not be called.
        self.wardens.settle(FAREWELL, for_good);
        // A call that is still under way keeps what it has.
        self.registrations.settle(Deadline::after(Some(FAREWELL)));
        // Also for worlds whose last handle was freed a moment ago.
        self.reactor.settle(FAREWELL);
        self.writing.settle(deadline);
        // Last: MPI waits here for the other ranks, which may take their time.
        self.mpi.end();
    }
}

/// Has a normal end of the process end everything here, the first time.
fn end_at_exit(known: &AtomicBool) {
    if known.swap(true, Ordering::Relaxed) {
        return;
    }
    // SAFETY: `at_exit` is a function without arguments that does not unwind, in a library that stays
    // loaded. Without the hook, peers see this rank die rather than leave.
    if unsafe { libc::atexit(at_exit) } != 0 {
        log::warn!("no exit hook: mlxd_finalize says goodbye, a normal exit does not");
    }
}

extern "C" fn at_exit() {
    // Nothing to do in a child that only inherited the hook.
    let alive = mark().is_ok_and(|mark| mark.load(Ordering::Acquire) != 0);
    if alive {
        // A bug here must not keep the process from ending.
        let _ = crate::thread::quietly(|| current().map(|process| process.end(true)));
    }
}
