//! A thread that makes calls for others: MPI below MPI_THREAD_MULTIPLE wants them all from one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::{Error, Result, Status, fail};
use crate::reduce::environment::Environment;
use crate::thread::quietly;
use crate::wait::Deadline;

type Job = Box<dyn FnOnce() + Send>;

/// 100 ms: how often who waits for the thread looks whether it is stuck.
const LOOK_UP: Duration = Duration::from_millis(100);

/// How many bodies have outlasted their limit and not ended.
#[derive(Clone, Debug, Default)]
pub struct Lingering(Arc<AtomicIsize>);

impl Lingering {
    /// Whether there is one.
    pub fn is_any(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }
}

/// The way to the thread; the thread ends with it.
#[derive(Debug)]
pub struct Caller {
    jobs: Mutex<Sender<Job>>,
    lingering: Lingering,
}

/// What the thread works on while its owner waits: the body, then what it gave.
struct Lent<T, F>(*mut (Option<F>, Option<Result<T>>));

// SAFETY: the owner neither touches nor drops what it lent until the thread is done with it.
unsafe impl<T, F> Send for Lent<T, F> {}

impl<T, F: FnOnce() -> T> Lent<T, F> {
    /// # Safety
    /// What is lent is there, and the owner waits.
    unsafe fn work(self) {
        // SAFETY: as this function's contract says.
        let (body, outcome) = unsafe { &mut *self.0 };
        *outcome = body.take().map(quietly);
    }
}

fn gone() -> Error {
    Error::new(Status::Internal, "the thread that calls MPI is gone")
}

impl Caller {
    /// Starts the thread. What it lingers in is counted there.
    pub fn start(lingering: &Lingering) -> Result<Caller> {
        let (sender, receiver): (Sender<Job>, Receiver<Job>) = channel();
        // It ends when the sender is dropped, and is not waited for: it has nothing left to do then.
        drop(crate::thread::spawn("mlxd-mpi", move || {
            // Threads begin with the settings of the one that made them.
            let _environment = Environment::standard();
            receiver.iter().for_each(|job| job());
        })?);
        Ok(Caller { jobs: Mutex::new(sender), lingering: lingering.clone() })
    }

    /// What counts what it lingers in.
    pub fn lingering(&self) -> Lingering {
        self.lingering.clone()
    }

    /// Runs `body` on the thread, and waits for it; fails where the thread is stuck in an earlier one.
    pub fn run<T>(&self, body: impl FnOnce() -> T) -> Result<T> {
        self.run_by(Deadline::NEVER, body)?.ok_or_else(gone)
    }

    /// The same, but `None` if the thread has not begun with it when the deadline passes: it never will.
    pub fn run_by<T, F: FnOnce() -> T>(&self, deadline: Deadline, body: F) -> Result<Option<T>> {
        let mut work = (Some(body), None);
        let lent = Lent(&raw mut work);
        // Set by the thread to begin, or by this one to give up: whoever is first.
        let claimed = Arc::new(AtomicBool::new(false));
        let (done, ended) = channel();
        let job: Box<dyn FnOnce() + Send + '_> = Box::new({
            let claimed = claimed.clone();
            move || {
                if !claimed.swap(true, Ordering::AcqRel) {
                    // SAFETY: the owner has not given up, and so waits until it hears.
                    unsafe { lent.work() };
                    // Nobody hears it only if the owner is gone, which waits.
                    let _ = done.send(());
                }
            }
        });
        // SAFETY: once this call has returned the job's claim is taken, and it touches nothing.
        let job = unsafe { std::mem::transmute::<Box<dyn FnOnce() + Send + '_>, Job>(job) };
        self.jobs.lock().send(job).map_err(|_| gone())?;
        loop {
            let begun = claimed.load(Ordering::Acquire);
            let left = deadline.left().filter(|_| !begun);
            match ended.recv_timeout(left.map_or(LOOK_UP, |left| left.min(LOOK_UP))) {
                Ok(()) => return work.1.unwrap_or_else(|| Err(gone())).map(Some),
                Err(RecvTimeoutError::Disconnected) => return Err(gone()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if deadline.passed() && !claimed.swap(true, Ordering::AcqRel) {
                return Ok(None);
            }
            if self.lingering.is_any() && !claimed.swap(true, Ordering::AcqRel) {
                fail!(
                    Backend,
                    "the one thread that may call MPI is in a call that has not ended in time"
                );
            }
        }
    }

    /// Runs `body` on the thread, and waits for it as long as the limit says: `None` once it has
    /// passed, while the body goes on.
    pub fn run_within<T: Send + 'static>(
        &self,
        limit: Option<Duration>,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Option<T>> {
        let Some(limit) = limit else { return self.run(body).map(Some) };
        let (done, outcome) = channel();
        let (lingering, settled) = (self.lingering(), Arc::new(AtomicBool::new(false)));
        let job: Job = Box::new({
            let settled = settled.clone();
            move || {
                // Nobody hears it after the limit.
                let _ = done.send(quietly(body));
                if settled.swap(true, Ordering::AcqRel) {
                    lingering.0.fetch_sub(1, Ordering::AcqRel);
                }
            }
        });
        self.jobs.lock().send(job).map_err(|_| gone())?;
        match outcome.recv_timeout(limit) {
            Ok(result) => result.map(Some),
            // It has ended just now.
            Err(RecvTimeoutError::Timeout) if settled.swap(true, Ordering::AcqRel) => {
                outcome.recv().map_err(|_| gone())?.map(Some)
            }
            Err(RecvTimeoutError::Timeout) => {
                self.lingering.0.fetch_add(1, Ordering::AcqRel);
                Ok(None)
            }
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_run_on_one_thread_and_give_back() {
        let caller = Caller::start(&Lingering::default()).unwrap();
        let number = 7;
        let first = caller.run(|| (number + 1, std::thread::current().id())).unwrap();
        let second = caller.run(|| std::thread::current().id()).unwrap();
        assert_eq!(first, (8, second));
        assert_ne!(second, std::thread::current().id());
        let failed = caller.run(|| panic!("no")).unwrap_err();
        assert_eq!(failed.status, Status::Internal);
        assert_eq!(caller.run(|| 5).unwrap(), 5);
        let soon = Some(Duration::from_millis(20));
        assert_eq!(caller.run_within(None, || 6).unwrap(), Some(6));
        let slow = || std::thread::sleep(Duration::from_millis(500));
        assert_eq!(caller.run_within(soon, slow).unwrap(), None);
    }

    #[test]
    fn nobody_waits_for_a_thread_that_is_stuck() {
        let caller = Caller::start(&Lingering::default()).unwrap();
        let (release, held) = channel::<()>();
        let soon = Some(Duration::from_millis(20));
        assert_eq!(caller.run_within(soon, move || held.recv().is_ok()).unwrap(), None);
        // What is lent stays untouched once its owner has given up.
        let mut touched = 0;
        let late = Deadline::after(Some(Duration::from_millis(1)));
        assert_eq!(caller.run_by(late, || touched += 1).unwrap(), None);
        assert_eq!(caller.run(|| touched += 1).unwrap_err().status, Status::Backend);
        release.send(()).unwrap();
        while caller.run(|| ()).is_err() {}
        assert_eq!(touched, 0);
        assert_eq!(caller.run(|| 5).unwrap(), 5);
    }
}
