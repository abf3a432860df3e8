//! The warden: a thread of each group that looks after what is under way on the device while nobody is in a
//! call: it sees to limits, fails the group where NCCL says that something is wrong, aborts the communicator
//! of a group that has failed, which ends what is stuck on the device, and ends that of one that is done.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::Shared;
use super::communicator::Communicator;
use super::staged::Memory;
use super::work::Work;
use crate::cuda::{Context, Pending};
use crate::error::Result;
use crate::wait::{Deadline, interest, wait};

/// 10 ms: how late a limit may be noticed. A look costs a microsecond for each operation that is under way.
const TICK: Duration = Duration::from_millis(10);
/// 1 s without work, and the warden sleeps until it is woken, which costs a system call.
const REST: Duration = Duration::from_secs(1);
/// How long what a group has sent may take to arrive before its end: where a world is left, and where a
/// group is freed, for which nobody waits.
const FLUSH: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(30)];
/// How long the end of the process waits for calls of the vendor's libraries that are under way.
const LAST_CALL: Duration = Duration::from_millis(500);

/// The wardens of one process.
#[derive(Default)]
pub struct Wardens {
    groups: Mutex<Vec<Weak<Shared>>>,
    /// The process ends: the driver may be gone soon, and is not called any more.
    ending: AtomicBool,
    /// Memory of groups that are gone.
    pub(super) memory: Mutex<Vec<Memory>>,
    /// Read by whoever calls the vendor's libraries from a thread of ours.
    calls: RwLock<()>,
}

/// Starts a group's warden.
pub fn start(shared: &Arc<Shared>) -> Result<()> {
    let group = shared.clone();
    crate::thread::spawn("mlxd-nccl", move || {
        while let Err(e) = crate::thread::quietly(|| group.watch_over()) {
            group.fail_now(e);
            std::thread::sleep(TICK);
        }
        if group.wardens.is_over() {
            // What it holds of the driver's is not given back any more.
            std::mem::forget(group);
        }
    })?;
    let mut groups = shared.wardens.groups.lock();
    groups.retain(|group| group.strong_count() > 0);
    groups.push(Arc::downgrade(shared));
    Ok(())
}

impl Wardens {
    /// Waits until the groups that were freed are gone, and the communicators of those that were left have
    /// ended. `for_good` if the process ends next.
    pub fn settle(&self, limit: Duration, for_good: bool) {
        let deadline = Deadline::after(Some(limit));
        let groups = self.groups.lock().clone();
        // What was freed says goodbye when it goes, perhaps here.
        let goes_on = |group: &Weak<Shared>| {
            group.upgrade().is_some_and(|group| {
                let left = group.leaving.load(Ordering::SeqCst) && !group.comm.is_gone();
                left || group.closing.load(Ordering::SeqCst)
            })
        };
        while groups.iter().any(goes_on) && !deadline.passed() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if for_good {
            self.ending.store(true, Ordering::SeqCst);
            // Never given back: what is in a call now ends it, or ends with the process.
            std::mem::forget(self.calls.try_write_for(LAST_CALL));
            groups.iter().filter_map(Weak::upgrade).for_each(|group| group.world.leave());
        }
    }

    /// Aborts the communicator of a group that did not come up; returns when that is done, or takes too long.
    pub(super) fn abandon(self: &Arc<Self>, comm: &Arc<Communicator>, context: &Arc<Context>) {
        if comm.is_gone() {
            return;
        }
        let (wardens, comm, context) = (self.clone(), comm.clone(), context.clone());
        let (under_way, end) = mpsc::channel::<()>();
        let started = crate::thread::spawn("mlxd-nccl", move || {
            let Some(_calls) = wardens.may_call() else { return };
            let _inside = context.enter().inspect_err(|e| log::warn!("nccl: {e}"));
            comm.abort();
            drop(under_way);
        });
        let limit = super::RELEASE;
        match started {
            Err(e) => log::warn!("nccl: a communicator is left as it is: {e}"),
            Ok(_) if end.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) => {
                log::warn!("nccl: ncclCommAbort has not ended in {} ms", limit.as_millis());
            }
            Ok(_) => {}
        }
    }

    /// Keeps the process from ending while this thread is in the vendor's libraries; `None` if it ends.
    fn may_call(&self) -> Option<RwLockReadGuard<'_, ()>> {
        let calls = self.calls.try_read()?;
        (!self.is_over()).then_some(calls)
    }

    /// Whether the process ends.
    fn is_over(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }
}

impl Shared {
    /// Looks after this work from now on.
    pub(super) fn watch(&self, work: Arc<Work>) {
        let mut pending = self.pending.lock();
        pending.add(work);
        if std::mem::take(&mut pending.parked) {
            self.wake.wake();
        }
    }

    /// Until the group is not used any more.
    fn watch_over(&self) {
        let (mut last_work, mut failed) = (Instant::now(), false);
        while !self.closing.load(Ordering::SeqCst) {
            let work = self.next_look(&mut last_work, failed);
            let Some(_calls) = self.wardens.may_call() else { return };
            let _inside = self.context.enter().inspect_err(|e| log::warn!("nccl: {e}"));
            failed = self.see_to_the_end(work.is_empty());
            self.look_at(&work);
        }
        let Some(_calls) = self.wardens.may_call() else { return };
        let _inside = self.context.enter().inspect_err(|e| log::warn!("nccl: {e}"));
        self.close();
    }

    /// Sleeps until the next look is due, or the group fails unless it has: what there is to look at then.
    fn next_look(&self, last_work: &mut Instant, failed: bool) -> Vec<Arc<Work>> {
        let mut pending = self.pending.lock();
        if !pending.work.is_empty() {
            *last_work = Instant::now();
        }
        pending.parked = last_work.elapsed() >= REST;
        let limit = if pending.parked { None } else { Some(TICK) };
        drop(pending);
        let mut fds = vec![interest(self.wake.as_fd(), true, false)];
        // Once it has failed that is no news.
        if !failed {
            fds.push(interest(self.member.health.as_fd(), true, false));
        }
        if let Err(e) = wait(&mut fds, Deadline::after(limit)) {
            log::warn!("nccl: {e}");
            std::thread::sleep(TICK);
        }
        self.wake.clear();
        let mut pending = self.pending.lock();
        pending.parked = false;
        pending.work.clone()
    }

    /// Ends the communicator of a group that has failed or is left: whether it is one.
    fn see_to_the_end(&self, idle: bool) -> bool {
        if self.member.health.check().is_ok() {
            return false;
        }
        self.failed_at.get_or_init(Instant::now);
        match idle && self.leaving.load(Ordering::SeqCst) {
            true => self.comm.finish(FLUSH[0], || self.wardens.is_over()),
            false => self.comm.abort(),
        }
        true
    }

    /// Sees what became of work, and to its limits.
    fn look_at(&self, work: &[Arc<Work>]) {
        for one in work {
            if one.look().is_none()
                && self.member.health.check().is_ok()
                && let Err(e) = one.attend(self)
            {
                self.failed(e);
            }
        }
        if work.iter().any(|one| one.is_known()) {
            self.pending.lock().prune();
        }
        if !work.is_empty()
            && !self.comm.is_gone()
            && let Some(Err(e)) = self.comm.state_now()
        {
            self.failed(e);
        }
    }

    /// The group's end. What the device could not be made to let go of is left to it.
    fn close(&self) {
        let work = self.pending.lock().work.clone();
        if work.is_empty() && self.member.health.check().is_ok() {
            self.comm.finish(FLUSH[1], || self.wardens.is_over());
        } else {
            self.comm.abort();
        }
        let deadline = Deadline::after(Some(super::RELEASE));
        while work.iter().any(|one| one.look().is_none())
            && !deadline.passed()
            && !self.wardens.is_over()
        {
            std::thread::sleep(TICK);
        }
        let stuck = deadline.passed() || self.gave_up.load(Ordering::SeqCst);
        if self.wardens.is_over() || stuck {
            return;
        }
        let functions = &self.context.driver.functions;
        // SAFETY: a stream of ours, on which nothing is under way, and which nobody uses any more.
        let code = unsafe { (functions.stream_destroy)(self.stream.raw()) };
        if let Err(e) = self.context.driver.check("cuStreamDestroy", code) {
            log::warn!("nccl: {e}");
        }
        self.give_back_memory();
    }
}
