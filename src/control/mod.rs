//! The control plane of a world: how its ranks find each other, notice that one is gone, tell each
//! other of failures, and connect for a group's data whenever a link is first needed.
//!
//! Words: a *world* is one start of a number of ranks. Every two ranks of it keep one control
//! connection, a *line*, for as long as both are there; so each rank sees for itself that another
//! has died, and no rank is needed for the others to talk. Data goes over *lanes*, connections that
//! belong to one group. The process's control thread (`reactor`) serves all lines and lets all
//! connections in; whoever needs a lane calls for it from its own thread.
//!
//! A *host* is where ranks can share memory. The ranks of a group on one host are a *node*; its lowest
//! rank makes their *segment* and leaves the descriptor in each other's *mailbox*.

mod channel;
mod cores;
mod dial;
mod entry;
mod exchange;
mod failure;
mod gathering;
mod greeting;
mod handshake;
mod host;
mod interfaces;
mod lanes;
mod lineless;
mod lines;
mod listener;
mod mailbox;
mod meeting;
mod message;
mod reactor;
mod records;
mod sharing;
mod start;
mod world;

pub use exchange::{Exchange, REPORT_BYTES, Report};
pub use handshake::Purpose;
pub use lanes::LaneKey;
pub use lineless::{Started, decline_by_all_gather, start_by_all_gather};
pub use reactor::Reactor;
pub use records::Topic;
pub use start::start;
pub use world::{Member, Seat, World};

use crate::config::Address;
