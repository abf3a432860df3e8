//! A thread that makes calls for others: MPI below MPI_THREAD_MULTIPLE wants them all from one.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::{Error, Result, Status};
use crate::thread::quietly;

type Job = Box<dyn FnOnce() + Send>;

/// The way to the thread; the thread ends with it.
#[derive(Debug)]
pub struct Caller(Mutex<Sender<Job>>);

/// What is handed to the thread while its owner waits.
struct Lent<T>(T);

// SAFETY: the owner neither touches nor drops what it lent until the thread is done with it.
unsafe impl<T> Send for Lent<T> {}

impl<T> Lent<T> {
    fn take(self) -> T {
        self.0
    }
}

impl Caller {
    /// Starts the thread.
    pub fn start() -> Result<Caller> {
        let (sender, receiver): (Sender<Job>, Receiver<Job>) = channel();
        // It ends when the sender is dropped, and is not waited for: it has nothing left to do then.
        drop(crate::thread::spawn("mlxd-mpi", move || receiver.iter().for_each(|job| job()))?);
        Ok(Caller(Mutex::new(sender)))
    }

    /// Runs `body` on the thread, and waits for it: bodies are short, or MPI gives no limit.
    pub fn run<T>(&self, body: impl FnOnce() -> T) -> Result<T> {
        let (done, outcome) = channel();
        let lent = Lent((body, done));
        let job: Box<dyn FnOnce() + Send + '_> = Box::new(move || {
            let (body, done) = lent.take();
            // Nobody hears it only if the owner is gone, which waits.
            let _ = done.send(Lent(quietly(body)));
        });
        // SAFETY: the job does not outlive this call, which waits until it has run or was dropped:
        // either drops the sender inside.
        let job = unsafe { std::mem::transmute::<Box<dyn FnOnce() + Send + '_>, Job>(job) };
        let gone = || Error::new(Status::Internal, "the thread that calls MPI is gone");
        self.0.lock().send(job).map_err(|_| gone())?;
        outcome.recv().map_err(|_| gone())?.take()
    }
}

impl Caller {
    /// The same with a limit: `None` once it has passed, while the body goes on.
    pub fn run_within<T: Send + 'static>(
        &self,
        limit: Option<Duration>,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Option<T>> {
        let Some(limit) = limit else { return self.run(body).map(Some) };
        let (done, outcome) = channel();
        let job: Job = Box::new(move || {
            // Nobody hears it after the limit.
            let _ = done.send(quietly(body));
        });
        let gone = || Error::new(Status::Internal, "the thread that calls MPI is gone");
        self.0.lock().send(job).map_err(|_| gone())?;
        match outcome.recv_timeout(limit) {
            Ok(result) => result.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_run_on_one_thread_and_give_back() {
        let caller = Caller::start().unwrap();
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
}
