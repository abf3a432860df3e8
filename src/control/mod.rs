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
//!
//! From the top down; each file knows only those below it:
//!
//! - `lineless`, `start`, `entry`, `meeting`, `gathering`: how a world comes up.
//! - `reactor`, `event_loop`, `line`, `greeting`: the control thread, and what it looks after.
//! - `seat`, `hearing`, `groups`, `failure`, `lines`, `lanes`, `records`, `sharing`: what a world does, by topic.
//! - `world`, `state`, `member`: what a world is, what changes in it, and its groups.
//! - `commands`: the way to the control thread; `mailbox`, `listener`, `dial`, `channel`, `exchange`: to other ranks.
//! - `message`, `handshake`, `host`, `user`, `wording`: what ranks say, prove, and tell of where they are.
//! - `lookup`, `interfaces`, `cores`: what this machine knows of names, its own addresses and its processors.

mod channel;
mod commands;
mod cores;
mod dial;
mod entry;
mod event_loop;
mod exchange;
mod failure;
mod gathering;
mod greeting;
mod groups;
mod handshake;
mod hearing;
mod host;
mod interfaces;
mod lanes;
mod line;
mod lineless;
mod lines;
mod listener;
mod lookup;
mod mailbox;
mod meeting;
mod member;
mod message;
mod reactor;
mod records;
mod seat;
mod sharing;
mod start;
mod state;
mod user;
mod wording;
mod world;

pub use exchange::{Exchange, REPORT_BYTES, Report};
pub use handshake::{LaneKey, Purpose};
pub use lineless::{Started, decline_by_all_gather, start_by_all_gather};
pub use member::Member;
pub use message::Topic;
pub use reactor::Reactor;
pub use seat::Seat;
pub use start::start;
pub use world::World;
