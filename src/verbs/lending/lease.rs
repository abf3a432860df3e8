//! Memory of a caller that a device sends from where it is.

use std::sync::Arc;

use super::forks::children_keep_what_is_registered;
use super::lender::Lender;
use super::measuring::measure;
use super::registrations::{Registrar, Wish};
use super::span::Span;
use super::table::Region;
use crate::config::Registration;
use crate::error::Result;
use crate::verbs::abi::ibv_sge;
use crate::verbs::device::Device;
use crate::verbs::memory::Registered;

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
        let prices = self.lender.prices.get_or_init(|| match measure(self.device) {
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

impl Lender {
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
