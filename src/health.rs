//! Whether a group still works: its first failure, and the wake-up of all who wait in it.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::wait::Wake;

/// Told of the first failure, by the thread that found it, which may hold locks: must not block.
pub type Witness = Box<dyn FnOnce(&Error) + Send>;

/// Healthy until [`Health::fail`]; the first cause stays for good.
pub struct Health {
    end: OnceLock<End>,
    wake: Wake,
    /// Until it is told.
    witness: Mutex<Option<Witness>>,
}

struct End {
    cause: Error,
    /// Whether it was closed rather than failed.
    orderly: bool,
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Health({:?})", self.check())
    }
}

impl Health {
    /// A healthy one.
    pub fn new() -> Result<Health> {
        Ok(Health { end: OnceLock::new(), wake: Wake::new()?, witness: Mutex::default() })
    }

    /// The cause, if it has failed.
    pub fn check(&self) -> Result<()> {
        self.end.get().map_or(Ok(()), |end| Err(end.cause.clone()))
    }

    /// Fails it, and wakes those who wait on its descriptor; true if this was the first cause.
    pub fn fail(&self, cause: Error) -> bool {
        self.end(End { cause, orderly: false })
    }

    /// The same for an end in good order, which no witness is told of.
    pub fn close(&self, cause: Error) {
        self.end(End { cause, orderly: true });
    }

    fn end(&self, end: End) -> bool {
        let first = self.end.set(end).is_ok();
        if first {
            // Before anybody wakes: what they are in is what the witness is to see.
            let witness = self.witness.lock().take();
            if let Some(witness) = witness {
                self.tell(witness);
            }
        }
        self.wake.wake();
        first
    }

    /// Tells `witness` of the first failure: later, or now if it has failed already.
    pub fn on_failure(&self, witness: Witness) {
        let mut place = self.witness.lock();
        if self.end.get().is_none() {
            *place = Some(witness);
            return;
        }
        drop(place);
        self.tell(witness);
    }

    fn tell(&self, witness: Witness) {
        if let Some(End { cause, orderly: false }) = self.end.get() {
            witness(cause);
        }
    }
}

impl AsFd for Health {
    /// Ready to read from the first failure on.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
