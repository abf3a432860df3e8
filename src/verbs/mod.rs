//! libibverbs, as much of it as is used here: safe handles that own each other in the order in which
//! they must end.
//!
//! - `abi.rs`, `functions.rs`, `library.rs`: what the header declares; the library, opened at run time.
//! - `device.rs`, `address.rs`, `partition.rs`: a device and the port of it that is used; by which address
//!   it is reached; to whom it talks.
//! - `memory.rs`, `queue_pair.rs`, `tally.rs`: registered memory; a queue pair with its completion queues;
//!   how many of them there are. `posting.rs`: how requests are handed to it.
//! - `lending/`: memory of callers, registered for a call or for those that follow.

pub mod abi;
pub mod address;
pub mod device;
pub mod functions;
pub mod lending;
mod library;
pub mod memory;
pub mod partition;
pub mod posting;
pub mod queue_pair;
mod tally;

pub use library::open;
