//! Links over RDMA verbs: bytes go from registered buffers of one process into those of another, without
//! the system's help.
//!
//! A *wire* is one queue pair to one peer on one device. Queue pairs are few (Thunderbolt has 10), so a
//! world has one wire, or a few, to each peer, and all links to that peer share it: each link is a
//! *channel* of it. A *message* is what travels at once: a header, and at most [`PAYLOAD`] bytes of one
//! channel. A *credit* is the right to send one message of a channel; a *room* is a buffer to send from.
//!
//! No message ever meets an empty receive queue, where an unreliable connection would lose it silently,
//! even if nobody looks at the queue: a channel's messages that are under way, or have landed and not
//! been read, are bounded, and as many receives are posted before the channel is told of. Per direction
//! of a channel these are
//! - data messages: [`CREDITS`], each of which is given back only after its buffer was posted again;
//! - messages that only give credits back: 2. One gives back half of all credits or more, so that two
//!   unread ones have given back all, and a third would need data to have come by credits which the
//!   sender can only have had from the first two;
//! - the message that closes the channel: 1.
//!
//! And for a wire, the messages that say hello and goodbye, 2, and those of its control channel, which is
//! there from the start and never closed: [`CONTROL_CREDITS`] records each way, and 2 messages that give
//! their credits back, for the same reason as above. What has landed for a channel that nobody drives
//! stays where it is, at the cost of that channel's credits; others go on.
//!
//! Whoever drives a channel looks at the whole wire, under its lock, and hands what came to the channels
//! that it is for. Before a thread sleeps, it has the next completion wake it (*arms* the queue) and
//! looks once more. One that takes an event off the queue arms it again while others sleep; one that
//! finds something for a channel whose thread sleeps rings its bell.
//!
//! - `message.rs`: headers. `buffers.rs`: registered memory. `channel.rs`: what a wire keeps of one.
//! - `wire.rs`, `traffic.rs`, `service.rs`: a wire's life; what goes over it; what it does for channels.
//!   `introduction.rs`: how its ends meet.
//! - `greeting.rs`, `opening.rs`, `link.rs`: how the ends of a channel meet; the link over it.
//!   `approach.rs`: the same where there is no wire yet.
//! - `control.rs`, `record.rs`, `speaking.rs`: how they meet over the wire itself, and how it is found out
//!   that the other end is gone or something was lost.

mod approach;
mod buffers;
mod channel;
mod control;
mod greeting;
mod introduction;
mod lending;
#[cfg(test)]
mod lending_tests;
mod link;
mod message;
mod opening;
mod record;
mod service;
mod speaking;
#[cfg(test)]
mod tests;
mod traffic;
mod wire;

pub use approach::{Approach, Prospect};
pub use channel::Ways;
pub use introduction::{INTRODUCTION_BYTES, Introduction, NOBODY};
pub use opening::{Opening, open};
pub use record::Name;
pub use wire::{Registered, Stub, Wire};

use message::HEADER_BYTES;

/// 64 KiB: bytes of a buffer. What lands is reduced while it is in the cache (see `STAGING` in `tcp.rs`),
/// and the work for a message is small beside moving it, 5 us at 100 Gbit/s.
const BUFFER: usize = 64 << 10;
/// The most data of a message.
const PAYLOAD: usize = BUFFER - HEADER_BYTES;
/// Data messages under way on one direction of a channel: 512 KiB, more than 100 Gbit/s carry in the
/// 40 us that giving back credits may take.
const CREDITS: usize = 8;
/// Credits that are given back in a message of their own.
const CREDITS_DUE: usize = CREDITS / 2;
/// Messages that give credits back, unread: see above.
const CREDIT_MESSAGES: usize = CREDITS.div_ceil(CREDITS_DUE);
/// The number of the control channel at both ends.
const CONTROL: u32 = 0;
/// Records under way in one direction: with so many a wire and a group's channels to it, for collectives
/// and messages both ways, take 31 receives of the 32 that are there at first.
const CONTROL_CREDITS: usize = 4;
/// Credits for records that are given back in a message of their own.
const CONTROL_CREDITS_DUE: usize = CONTROL_CREDITS / 2;
/// Receives for what is of the wire and not of a channel that it opens.
const WIRE_RECEIVES: usize = 2 + CONTROL_CREDITS + CONTROL_CREDITS.div_ceil(CONTROL_CREDITS_DUE);
