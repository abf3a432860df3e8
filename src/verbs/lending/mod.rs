//! Memory of callers, registered so that the device sends from where it is.
//!
//! A registration that is there for one call costs more than the copy that it saves, unless the call sends
//! much. One that is *kept* for the calls that follow costs little, but must not outlive its memory: a
//! program that unmaps memory and maps other memory at the same address would send pages that are not its
//! own any more. So memory is kept only where the kernel tells when it goes (`guard.rs`), and only memory
//! that cannot go in another way: private memory without a file.
//!
//! - `table.rs`, `sightings.rs`: what is registered, and what was seen before.
//! - `registrations.rs`: the table of a process, and the threads that see to it.
//! - `prices.rs`, `forks.rs`: what it costs here, and whether it may be done at all.

mod forks;
mod guard;
mod prices;
mod registrations;
mod sightings;
mod table;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

pub use registrations::{Registrations, Wish};

use super::abi::ibv_sge;
use super::device::Device;
use super::memory::Registered;
use crate::config::Registration;
use crate::error::Result;
use forks::children_keep_what_is_registered;
use prices::Prices;
use registrations::Registrar;
use table::{Region, Span};

/// 64 KiB: what is less goes in one message, most of which is not the copy.
const LEAST: usize = 64 << 10;
/// 4 KiB, where all is registered that can be: less is always copied.
const LEAST_OF_ALL: usize = 4 << 10;

/// How memory of callers is registered with a device.
pub struct Lender {
    registrations: Arc<Registrations>,
    owner: u64,
    mode: Registration,
    /// Whether it may be.
    allowed: OnceLock<bool>,
    /// `None` within: it cannot be registered at all.
    prices: OnceLock<Option<Prices>>,
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

    /// Whether memory may be registered with its device.
    fn is_allowed(&self, device: &Device) -> bool {
        *self.allowed.get_or_init(|| match children_keep_what_is_registered(device) {
            Ok(true) => true,
            Ok(false) => {
                log::info!(
                    "callers' memory is copied: forked children would lack what is registered \
                     (that takes Linux 5.12 and rdma-core 35, and that nobody calls ibv_fork_init)"
                );
                false
            }
            Err(e) => {
                log::info!("callers' memory is copied: {e}");
                false
            }
        })
    }

    fn least(&self) -> usize {
        if self.mode == Registration::Always { LEAST_OF_ALL } else { LEAST }
    }

    /// Undoes what is kept of any and not in use.
    pub(super) fn make_room(&self) {
        self.registrations.make_room();
    }

    /// Undoes all that is kept of it: true if its device may be closed.
    pub(super) fn end(self) -> bool {
        self.registrations.forget(self.owner)
    }
}

/// Registered memory of a caller, as long as this is there.
#[derive(Clone)]
pub struct Lease {
    // In this order.
    region: Arc<Region>,
    _device: Arc<Device>,
}

impl Lease {
    /// These bytes for a work request, if they are within.
    pub fn piece(&self, from: *const u8, len: usize) -> Option<ibv_sge> {
        let (start, span) = (from as usize, &self.region.span);
        let within = span.start <= start && start.checked_add(len)? <= span.end;
        let (addr, length) = (start as u64, u32::try_from(len).ok()?);
        within.then_some(ibv_sge { addr, length, lkey: self.region.lkey })
    }
}

/// A device as one that registers.
struct OnDevice<'a> {
    device: &'a Arc<Device>,
    lender: &'a Lender,
}

impl Registrar for OnDevice<'_> {
    fn owner(&self) -> u64 {
        self.lender.owner
    }

    fn register(&self, span: &Span) -> Result<Region> {
        let registered = Registered::new(self.device, span.start as *mut u8, span.len())?;
        let (span, lkey) = (span.clone(), registered.lkey());
        Ok(Region { span, lkey, registered: Box::new(registered) })
    }

    fn pays(&self, wish: &Wish) -> bool {
        if self.keeps_at_once() {
            return true;
        }
        let prices = self.lender.prices.get_or_init(|| match Prices::measure(self.device) {
            Ok(prices) => {
                log::info!(
                    "{}: to register memory takes {:.1} us and {:.1} us per MiB, to copy it {:.1} us \
                     per MiB",
                    self.device.name,
                    prices.base / 1e3,
                    prices.per_byte * 1048.576,
                    prices.copy * 1048.576
                );
                Some(prices)
            }
            Err(e) => {
                log::info!("callers' memory is copied: {e}");
                None
            }
        });
        prices.is_some_and(|prices| prices.pays(wish.span.len(), wish.sent))
    }

    fn keeps_at_once(&self) -> bool {
        self.lender.mode == Registration::Always
    }
}

impl Device {
    /// Memory of a caller for a call, registered, if that is worth it.
    pub fn lend(self: &Arc<Device>, wish: &Wish) -> Option<Lease> {
        let lender = self.lender.as_ref().filter(|lender| wish.span.len() >= lender.least())?;
        if !lender.is_allowed(self) {
            return None;
        }
        let registrar = OnDevice { device: self, lender };
        let region = lender.registrations.lend(&registrar, wish)?;
        Some(Lease { region, _device: self.clone() })
    }
}
