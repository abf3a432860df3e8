//! Whether a group still works: its first failure, and the wake-up of all who wait in it.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::wait::Wake;

/// Healthy until [`Health::fail`]; the first cause stays for good.
#[derive(Debug)]
pub struct Health {
    cause: OnceLock<Error>,
    wake: Wake,
}

impl Health {
    /// A healthy one.
    pub fn new() -> Result<Health> {
        Ok(Health { cause: OnceLock::new(), wake: Wake::new()? })
    }

    /// The cause, if it has failed.
    pub fn check(&self) -> Result<()> {
        self.cause.get().map_or(Ok(()), |cause| Err(cause.clone()))
    }

    /// Fails it, and wakes those who wait on its descriptor; true if this was the first cause.
    pub fn fail(&self, cause: Error) -> bool {
        let first = self.cause.set(cause).is_ok();
        self.wake.wake();
        first
    }
}

impl AsFd for Health {
    /// Ready to read from the first failure on.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
