//! A stream: operations that run one after the other, on a thread of their own or on a CUDA stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::backend::Track;
use crate::cuda;
use crate::error::{Error, Result};

type Job = Box<dyn FnOnce() -> Result<()> + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// How many were ever put here, and how many of them have run.
    pushed: u64,
    run: u64,
    closed: bool,
    failure: Option<Error>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// Where operations are put that run while the caller goes on.
pub enum Stream {
    /// A queue of this library's.
    Queue(Worker),
    /// A stream of the caller's.
    Cuda(cuda::Stream),
}

impl Stream {
    /// What it asks of a backend.
    pub fn track(&self) -> Track<'_> {
        match self {
            Stream::Queue(_) => Track::Queue,
            Stream::Cuda(stream) => Track::Cuda(stream),
        }
    }

    /// Waits until everything that was put on it so far has run; returns, and clears, the first failure. The
    /// operations have deadlines of their own.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Stream::Queue(queue) => queue.synchronize(),
            Stream::Cuda(stream) => stream.synchronize(),
        }
    }
}

/// A queue and its thread.
pub struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// An empty one.
    pub fn new() -> Result<Worker> {
        let shared = Arc::new(Shared::default());
        let worker = shared.clone();
        let thread = crate::thread::spawn("mlxd-stream", move || worker.run())?;
        Ok(Worker { shared, thread: Some(thread) })
    }

    /// Queues a job.
    pub fn push(&self, job: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
        let mut queue = self.shared.queue.lock();
        queue.jobs.push_back(Box::new(job));
        queue.pushed += 1;
        drop(queue);
        self.shared.changed.notify_all();
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        let mut queue = self.shared.queue.lock();
        let pushed = queue.pushed;
        while queue.run < pushed {
            self.shared.changed.wait(&mut queue);
        }
        queue.failure.take().map_or(Ok(()), Err)
    }
}

impl Shared {
    fn run(&self) {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                let outcome = crate::thread::quietly(job).unwrap_or_else(Err);
                queue = self.queue.lock();
                queue.run += 1;
                if let (Err(e), None) = (outcome, &queue.failure) {
                    queue.failure = Some(e);
                }
                self.changed.notify_all();
            } else if queue.closed {
                return;
            } else {
                self.changed.wait(&mut queue);
            }
        }
    }
}

impl Drop for Worker {
    /// Waits for what is queued.
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic in a job was caught, so the thread ends without one.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;
    use std::time::Duration;

    #[test]
    fn jobs_run_in_order_and_the_first_failure_is_told_once() {
        let stream = Worker::new().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        for number in 0..5 {
            let seen = seen.clone();
            let job = move || {
                std::thread::sleep(Duration::from_millis(2));
                seen.lock().push(number);
                match number {
                    1 | 3 => Err(Error::new(Status::Timeout, format!("job {number}"))),
                    4 => panic!("job 4"),
                    _ => Ok(()),
                }
            };
            stream.push(job).unwrap();
        }
        assert_eq!(stream.synchronize().unwrap_err().message, "job 1");
        assert_eq!(*seen.lock(), [0, 1, 2, 3, 4]);
        stream.synchronize().unwrap();
    }

    #[test]
    fn dropping_waits() {
        let stream = Worker::new().unwrap();
        let done = Arc::new(Mutex::new(false));
        let flag = done.clone();
        let job = move || {
            std::thread::sleep(Duration::from_millis(20));
            *flag.lock() = true;
            Ok(())
        };
        stream.push(job).unwrap();
        drop(stream);
        assert!(*done.lock());
    }
}
