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
//! - `prices.rs`, `measuring.rs`, `forks.rs`: what it costs here, and whether it may be done at all.
//! - `lender.rs`, `lease.rs`: what a device has for it; what a call gets.

mod forks;
mod guard;
mod lease;
pub(super) mod lender;
mod measuring;
mod prices;
mod registrations;
mod sightings;
mod span;
mod table;
#[cfg(test)]
mod tests;

pub use lease::Lease;
pub use lender::Lender;
pub use registrations::{Registrations, Wish};
