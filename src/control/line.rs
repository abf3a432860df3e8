//! A line as the control thread looks after it: heard, kept from falling silent, and missed when it does.

use std::os::fd::AsFd;
use std::sync::Weak;
use std::time::{Duration, Instant};

use rustix::event::PollFd;

use super::channel::Channel;
use super::commands::WorldKey;
use super::message::Message;
use super::world::World;
use crate::error::{Error, Status};
use crate::wait::{Deadline, interest};

/// How long a peer that was told goodbye may take to close its end.
const FAREWELL: Duration = Duration::from_secs(2);

/// The control connection with one rank of one world.
pub struct Line {
    world: Weak<World>,
    /// Which world; it may be gone already.
    pub key: WorldKey,
    /// The rank.
    pub peer: usize,
    channel: Channel,
    heard: Instant,
    spoke: Instant,
    /// Set once goodbye was said: when to stop waiting for the peer to close.
    leaving: Option<Deadline>,
}

impl Drop for Line {
    fn drop(&mut self) {
        // Also where a forked child still has the descriptor; what was written arrives before it.
        let _ = rustix::net::shutdown(&self.channel, rustix::net::Shutdown::Write);
    }
}

impl Line {
    /// One over this connection.
    pub fn new(world: Weak<World>, key: WorldKey, peer: usize, mut channel: Channel) -> Line {
        let now = Instant::now();
        if let Some(world) = world.upgrade() {
            channel.peer = world.name_of(peer);
        }
        Line { world, key, peer, channel, heard: now, spoke: now, leaving: None }
    }

    /// Tells the rank.
    pub fn tell(&mut self, message: &Message) {
        self.spoke = Instant::now();
        // A connection that cannot be written to is noticed when it is read.
        if let Err(e) = self.channel.tell(message) {
            log::debug!("{e}");
        }
    }

    /// When something is due even if nothing comes.
    pub fn next_duty(&self) -> Deadline {
        if let Some(leaving) = self.leaving {
            return leaving;
        }
        let Some(world) = self.world.upgrade() else {
            return Deadline::NEVER;
        };
        let left = |limit: Duration, since: Instant| limit.saturating_sub(since.elapsed());
        let ping = world.ping.map(|limit| left(limit, self.spoke));
        let lost = world.peer_timeout.map(|limit| left(limit, self.heard));
        Deadline::after(ping).or(Deadline::after(lost))
    }

    /// What to wait for.
    pub fn interest(&self) -> PollFd<'_> {
        interest(self.channel.as_fd(), true, self.channel.has_output())
    }

    /// Says goodbye; the line is let go of soon after.
    pub fn leave(&mut self) {
        self.tell(&Message::Bye);
        self.leaving.get_or_insert(Deadline::after(Some(FAREWELL)));
    }

    /// Hears what came and does what is due; false once the line is of no more use.
    pub fn attend(&mut self) -> bool {
        let heard = loop {
            match self.channel.flush().and_then(|()| self.channel.hear()) {
                Ok(None) => break Ok(()),
                Ok(Some(Message::Bye)) => {
                    if let Some(world) = self.world.upgrade() {
                        world.left(self.peer);
                    }
                    return false;
                }
                Ok(Some(message)) => {
                    self.heard = Instant::now();
                    if let Some(world) = self.world.upgrade() {
                        world.heard(self.peer, message);
                    }
                }
                Err(e) => break Err(e),
            }
        };
        if let Some(leaving) = self.leaving {
            return heard.is_ok() && !leaving.passed();
        }
        let Some(world) = self.world.upgrade() else {
            return heard.is_ok();
        };
        let lost = match (heard, world.peer_timeout) {
            (Err(e), _) => e,
            (Ok(()), Some(limit)) if self.heard.elapsed() > limit => Error::new(
                Status::PeerLost,
                format!("{} was silent for {} ms", self.channel.peer, limit.as_millis()),
            ),
            (Ok(()), _) => {
                if world.ping.is_some_and(|limit| self.spoke.elapsed() >= limit) {
                    self.tell(&Message::Ping);
                }
                return true;
            }
        };
        world.line_lost(self.peer, lost);
        false
    }
}
