//! What a device has to register memory of callers with: how that is wished, and what was found out.

use std::sync::{Arc, OnceLock};

use super::prices::Prices;
use super::registrations::Registrations;
use crate::config::Registration;

/// 64 KiB: what is less goes in one message, most of which is not the copy.
const LEAST: usize = 64 << 10;
/// 4 KiB, where all is registered that can be: less is always copied.
const LEAST_OF_ALL: usize = 4 << 10;

/// How memory of callers is registered with a device.
pub struct Lender {
    pub(super) registrations: Arc<Registrations>,
    /// What its device is called there.
    pub(super) owner: u64,
    pub(super) mode: Registration,
    /// Whether it may be.
    pub(super) allowed: OnceLock<bool>,
    /// `None` within: it cannot be registered at all.
    pub(super) prices: OnceLock<Option<Prices>>,
}

impl Lender {
    /// As is wished; `None` if it never is.
    pub fn new(registrations: &Arc<Registrations>, mode: Registration) -> Option<Lender> {
        if mode == Registration::Never {
            return None;
        }
        let (registrations, allowed) = (registrations.clone(), OnceLock::new());
        let (owner, prices) = (registrations.owner(), OnceLock::new());
        Some(Lender { registrations, owner, mode, allowed, prices })
    }

    /// Bytes of the least memory that is registered.
    pub fn least(&self) -> usize {
        if self.mode == Registration::Always { LEAST_OF_ALL } else { LEAST }
    }

    /// Undoes what is kept of any and not in use.
    pub fn make_room(&self) {
        self.registrations.make_room();
    }

    /// Undoes all that is kept of it: true if its device may be closed.
    pub fn end(self) -> bool {
        self.registrations.forget(self.owner)
    }
}
