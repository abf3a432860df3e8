//! The registrations of a process, and the threads that see to them.
//!
//! A program's thread may wait for our reading of an event in the middle of its allocator, with the lock of
//! that held: `free` gives memory back. So
//! - nobody who has the table locked allocates, frees or calls libibverbs, which does both;
//! - the thread that reads events never does so at all: what has gone is only marked, and another thread
//!   undoes it, without the lock;
//! - whoever has the table locked is not interrupted by signals, in whose handlers programs do anything.
//!
//! Then the thread that reads events waits for nothing but the table's lock, and who has that waits for
//! nobody: so every event is read.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{Timespec, poll};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use super::guard::{Event, Guard, Sort, page_size, pages, sort};
use super::sightings::Known;
use super::span::Span;
use super::table::{Region, Removed, Table};
use crate::error::{Error, Result, Status, fail};
use crate::wait::{Deadline, Wake, interest};

/// Looks at a span that is kept while memory is being unmapped; each change takes the time that a thread
/// needs to wake up.
const LOOKS: usize = 20;
/// Between looks at threads that are to end.
const TICK: Duration = Duration::from_millis(1);
/// How long a thread may take to start.
const START: Duration = Duration::from_secs(5);
/// 1 GiB: more is copied, since to register it takes so long that nothing else may wait for it.
const MOST: usize = 1 << 30;
/// How long a device waits for what was registered on it to be undone; then it is never closed.
const UNDOING: Duration = Duration::from_secs(10);

/// What a call wants to have registered.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The memory.
    pub span: Span,
    /// How many bytes it sends of it.
    pub sent: u64,
    /// Its number.
    pub call: u64,
}

/// Who registers.
pub trait Registrar {
    /// Its number.
    fn owner(&self) -> u64;

    /// Registers a span. Never called with the table locked.
    fn register(&self, span: &Span) -> Result<Region>;

    /// Whether that pays for this call alone.
    fn pays(&self, wish: &Wish) -> bool;

    /// Whether what can be kept is kept at once.
    fn keeps_at_once(&self) -> bool;
}

/// All of a process.
#[derive(Default)]
pub struct Registrations {
    // Not parking_lot's: its locks allocate, when a thread first waits for one.
    inner: Mutex<Inner>,
    /// Told when there is something to undo, when it was undone, and at the end.
    changed: Condvar,
    /// Whoever starts or ends the threads.
    starting: parking_lot::Mutex<()>,
    owners: AtomicU64,
    complained: AtomicBool,
}

#[derive(Default)]
struct Inner {
    table: Table,
    watch: Watch,
    /// Threads that are undoing what they took out of the table.
    undoing: usize,
}

/// Whether the kernel tells of memory that goes.
#[derive(Default)]
enum Watch {
    #[default]
    Untried,
    Refused,
    By(Arc<Watcher>),
}

/// What the two threads share.
struct Watcher {
    guard: Guard,
    stop: Wake,
    /// Set with the table locked: nothing is kept any more.
    over: AtomicBool,
    /// Threads that have not ended.
    threads: AtomicUsize,
    /// Whether events are read.
    listens: AtomicBool,
}

impl Inner {
    fn guard(&self) -> Option<&Guard> {
        match &self.watch {
            Watch::By(watcher) => Some(&watcher.guard),
            _ => None,
        }
    }
}

/// The table, locked, in a thread that no signal interrupts.
struct Locked<'a> {
    // In this order.
    inner: MutexGuard<'a, Inner>,
    _signals: Held,
}

/// The signals that this thread takes, which it does not until this is dropped.
struct Held(libc::sigset_t);

impl Held {
    fn new() -> Held {
        let mut old = MaybeUninit::<libc::sigset_t>::uninit();
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: both sets are valid for writes, and each is initialised before it is read.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr());
            Held(old.assume_init())
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: the mask that was there before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

impl Registrations {
    /// A number for another owner.
    pub fn owner(&self) -> u64 {
        self.owners.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn lock(&self) -> Locked<'_> {
        let signals = Held::new();
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { inner, _signals: signals }
    }

    /// A region for a call that holds what it wishes for, if it is worth it.
    pub fn lend(self: &Arc<Self>, registrar: &dyn Registrar, wish: &Wish) -> Option<Arc<Region>> {
        if wish.span.len() > MOST {
            return None;
        }
        let known = match self.find(registrar.owner(), wish) {
            Ok(region) => return Some(region),
            Err(known) => known.filter(|known| *known != Known::Refused)?,
        };
        let now = registrar.pays(wish);
        let wanted = known == Known::Returning || (now && registrar.keeps_at_once());
        // Whoever needs a guard first asks for it.
        let watcher = if wanted { self.watcher() } else { None };
        if watcher.is_none() && !now {
            return None;
        }
        self.make(registrar, wish, watcher.as_deref(), now)
    }

    /// The region that is there already; else what is known of the span, if it may be registered now.
    fn find(&self, owner: u64, wish: &Wish) -> std::result::Result<Arc<Region>, Option<Known>> {
        for _ in 0..LOOKS {
            let mut locked = self.lock();
            let found = locked.inner.table.find(owner, &wish.span, wish.call);
            let quiet = || locked.inner.guard().is_some_and(Guard::is_quiet);
            match found {
                None => {
                    return Err(Some(
                        locked.inner.table.sightings.count(owner, &wish.span, wish.call),
                    ));
                }
                Some((region, kept)) if !kept || quiet() => return Ok(region),
                Some((region, _)) => {
                    // In this order: it may be the last to have it by then.
                    drop(locked);
                    drop(region);
                    std::thread::yield_now();
                }
            }
        }
        Err(None)
    }

    /// Registers what is wished for: to be kept, where there is a guard; else, and where it cannot be kept,
    /// for this call, if that is worth it `now`.
    fn make(
        &self,
        registrar: &dyn Registrar,
        wish: &Wish,
        watcher: Option<&Watcher>,
        now: bool,
    ) -> Option<Arc<Region>> {
        let (owner, budget) = (registrar.owner(), budget());
        let span = if watcher.is_some() { pages(&wish.span) } else { wish.span.clone() };
        let mut removed = Removed::default();
        let mut locked = self.lock();
        let table = &mut locked.inner.table;
        let checked = table.sightings.is_checked(owner, &wish.span);
        let place = table.reserve(owner, &span, wish.call, watcher.is_some(), budget, &mut removed);
        self.undo(locked, removed);
        let place = place?;
        // Watched first: what goes while it is registered is told of.
        let watched = watcher.is_some_and(|watcher| watcher.guard.watch(&span).is_ok());
        let sort = if checked && !watched { Sort::Shared } else { sort(&span) };
        let may_keep = watched && sort == Sort::Private;
        let outcome = match sort {
            Sort::File => Err(Error::new(Status::Unavailable, "memory of a file's is copied")),
            _ if may_keep || now => registrar.register(&span).map(|region| Some(Arc::new(region))),
            _ => Ok(None),
        };
        let region = outcome.as_ref().ok().and_then(Option::as_ref);
        let mut locked = self.lock();
        // Else an event that tells of what was there before comes later, and would be taken for this.
        let quiet = |s: &Watcher| !s.over.load(Ordering::Relaxed) && s.guard.is_quiet();
        let keep = may_keep && watcher.is_some_and(quiet);
        let table = &mut locked.inner.table;
        let in_vain = table.fill(place, region, keep);
        // What another userfaultfd watches is none of ours.
        if let (true, Some(watcher)) = (in_vain && watched, watcher) {
            table.parts_without(span, &mut |part| watcher.guard.unwatch(&part));
        }
        if watcher.is_some() && !may_keep {
            table.sightings.let_pass(owner, &wish.span);
        }
        if sort != Sort::File {
            table.sightings.note_checked(owner, &wish.span);
        }
        let news = outcome.is_err() && table.sightings.refuse(owner, &wish.span);
        drop(locked);
        if let (true, Err(e)) = (news, &outcome) {
            match self.complained.swap(true, Ordering::Relaxed) {
                false => log::info!("memory that cannot be registered is copied: {e}"),
                true => log::debug!("{e}"),
            }
        }
        outcome.ok().flatten()
    }

    /// Undoes what was taken out of the table.
    fn undo(&self, mut locked: Locked<'_>, removed: Removed) {
        if removed.is_empty() {
            return;
        }
        locked.inner.undoing += 1;
        if let Some(guard) = locked.inner.guard() {
            locked.inner.table.unwatched(&removed, |part| guard.unwatch(&part));
        }
        drop(locked);
        drop(removed);
        self.lock().inner.undoing -= 1;
        self.changed.notify_all();
    }

    /// Undoes all that is kept for an owner, and waits until what others are undoing is undone: true if
    /// the owner may end.
    pub fn forget(&self, owner: u64) -> bool {
        let mut removed = Removed::default();
        let mut locked = self.lock();
        locked.inner.table.remove(true, Some(owner), &mut removed);
        self.undo(locked, removed);
        let deadline = Deadline::after(Some(UNDOING));
        while self.lock().inner.undoing > 0 {
            if deadline.passed() {
                return false;
            }
            std::thread::sleep(TICK);
        }
        true
    }

    /// Undoes all that is kept and not in use: where something else needs the limit on locked memory.
    pub fn make_room(&self) {
        let mut removed = Removed::default();
        let mut locked = self.lock();
        locked.inner.table.remove(true, None, &mut removed);
        self.undo(locked, removed);
    }

    /// Undoes all that is kept, and ends the threads: at the end of all groups.
    pub fn settle(&self, deadline: Deadline) {
        // Threads that are being started at this moment stay.
        let starting = self.starting.try_lock_for(deadline.left().unwrap_or(START));
        let mut removed = Removed::default();
        let mut locked = self.lock();
        locked.inner.table.remove(true, None, &mut removed);
        if starting.is_none() {
            return self.undo(locked, removed);
        }
        let watcher = match &locked.inner.watch {
            Watch::By(watcher) => Some(watcher.clone()),
            _ => None,
        };
        if let Some(watcher) = &watcher {
            // With the table locked, as always: its threads look and sleep under the lock.
            watcher.over.store(true, Ordering::Relaxed);
        }
        self.undo(locked, removed);
        let Some(watcher) = watcher else { return };
        let before = std::mem::take(&mut self.lock().inner.watch);
        self.changed.notify_all();
        watcher.stop.wake();
        while watcher.threads.load(Ordering::Acquire) > 0 && !deadline.passed() {
            std::thread::sleep(TICK);
        }
        drop(before);
    }

    /// The guard and its threads, made when they are first needed; `None` where there can be none.
    fn watcher(self: &Arc<Self>) -> Option<Arc<Watcher>> {
        let _starting = self.starting.lock();
        match &self.lock().inner.watch {
            Watch::By(watcher) => return Some(watcher.clone()),
            Watch::Refused => return None,
            Watch::Untried => {}
        }
        let started = self.start();
        if let Err(e) = &started {
            log::info!("registered memory is not kept: the kernel does not tell when it goes: {e}");
        }
        let watcher = started.ok();
        self.lock().inner.watch = watcher.clone().map_or(Watch::Refused, Watch::By);
        watcher
    }

    fn start(self: &Arc<Self>) -> Result<Arc<Watcher>> {
        let guard = Guard::new().map_err(|e| Error::system("userfaultfd", e))?;
        let (over, threads, listens) = Default::default();
        let watcher = Arc::new(Watcher { guard, stop: Wake::new()?, over, threads, listens });
        for (name, body) in
            [("mlxd-watch", Self::listen as fn(&Self, &Watcher)), ("mlxd-unpin", Self::reap)]
        {
            let (this, theirs) = (self.clone(), watcher.clone());
            watcher.threads.fetch_add(1, Ordering::Relaxed);
            let started = crate::thread::spawn(name, move || {
                // After a panic as well: who unmaps watched memory relies on it.
                while crate::thread::quietly(|| body(&this, &theirs)).is_err() {}
                theirs.threads.fetch_sub(1, Ordering::Release);
            });
            if let Err(e) = started {
                // The first of them ends, if it was started.
                self.stop(&watcher);
                return Err(e);
            }
        }
        let deadline = Deadline::after(Some(START));
        while !watcher.listens.load(Ordering::Acquire) {
            if deadline.passed() {
                self.stop(&watcher);
                fail!(System, "a thread did not start in time");
            }
            std::thread::sleep(TICK);
        }
        Ok(watcher)
    }

    /// Has threads end that never had anything to do.
    fn stop(&self, watcher: &Watcher) {
        let locked = self.lock();
        watcher.over.store(true, Ordering::Relaxed);
        drop(locked);
        self.changed.notify_all();
        watcher.stop.wake();
    }

    /// Hears what the kernel tells, until the end. Allocates nothing.
    fn listen(&self, watcher: &Watcher) {
        // From here on; nothing is watched before.
        watcher.listens.store(true, Ordering::Release);
        loop {
            let over = watcher.over.load(Ordering::Relaxed);
            let (guard, stop) = (watcher.guard.as_fd(), watcher.stop.as_fd());
            let mut fds = [interest(guard, true, false), interest(stop, !over, false)];
            let tick = Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos().into() };
            // Whatever comes of it, there is nothing better to do than to look.
            let _ = poll(&mut fds, over.then_some(&tick));
            // This thread takes no signals.
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let (mut invalidated, table) = (false, &mut inner.table);
            watcher.guard.read(|event| match event {
                Event::Unmapped(span) => invalidated |= table.invalidate(&span, true),
                Event::Emptied(span) => invalidated |= table.invalidate(&span, false),
                Event::Moved(from, to) => {
                    invalidated |= table.invalidate(&from, false);
                    invalidated |= table.invalidate(&to, false);
                    table.parts_without(to, &mut |part| watcher.guard.unwatch(&part));
                }
            });
            // Whoever still waits for an event must not wait in vain.
            let last = over && !inner.table.is_making() && watcher.guard.is_quiet();
            drop(inner);
            if invalidated {
                self.changed.notify_all();
            }
            if last {
                return;
            }
        }
    }

    /// Undoes what was invalidated, until the end.
    fn reap(&self, watcher: &Watcher) {
        loop {
            let mut removed = Removed::default();
            let Locked { mut inner, _signals } = self.lock();
            inner.table.remove(false, None, &mut removed);
            while removed.is_empty() {
                if watcher.over.load(Ordering::Relaxed) {
                    return;
                }
                inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
                inner.table.remove(false, None, &mut removed);
            }
            self.undo(Locked { inner, _signals }, removed);
        }
    }
}

/// Bytes that may be registered at once: half of what the process may lock, so that buffers of worlds to
/// come have the other; of one that may lock all, a quarter of the memory.
fn budget() -> usize {
    let limit = getrlimit(Resource::Memlock).current;
    let may_lock_all =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    match limit {
        Some(bytes) if !may_lock_all => usize::try_from(bytes / 2).unwrap_or(usize::MAX),
        _ => {
            // SAFETY: it asks for a number.
            let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
            usize::try_from(pages).unwrap_or(0).saturating_mul(page_size()) / 4
        }
    }
}
