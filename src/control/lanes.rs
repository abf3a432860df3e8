//! Lanes: connections for a group's data, called from here or let in.

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::dial::Caller;
use super::handshake::{Hello, LaneKey, Purpose};
use super::lookup::resolve;
use super::world::World;
use crate::error::Result;
use crate::health::Health;
use crate::wait::{Deadline, Wake};

impl World {
    /// A lane to `peer`, called from here.
    pub fn call_peer(
        &self,
        key: LaneKey,
        peer: usize,
        health: &Health,
        deadline: Deadline,
    ) -> Result<TcpStream> {
        self.shared.lock().check_presence(peer)?;
        let lane = usize::from(key.lane) % self.addresses[peer].len();
        let hello = self.hello(key.purpose, key.group, peer, key.lane);
        let deadline = deadline.or(Deadline::after(self.connect_timeout));
        let addresses = resolve(&self.addresses[peer][lane], deadline, Some(health))?;
        let caller =
            Caller { secret: self.secret.as_deref(), deadline, stop: Some(health.as_fd()) };
        let channel = caller.call_and_enter(&addresses, &hello);
        health.check()?;
        channel?.into_stream()
    }

    /// Asks to be woken when a lane that the other rank calls is there, or never will be.
    pub fn expect_lane(&self, key: LaneKey) -> Result<Arc<Wake>> {
        let wake = Arc::new(Wake::new()?);
        // It may have come already.
        wake.wake();
        self.shared.lock().expected.insert(key, wake.clone());
        Ok(wake)
    }

    /// A lane that the other rank called, if it is there.
    pub fn take_lane(&self, key: LaneKey) -> Result<Option<TcpStream>> {
        let mut shared = self.shared.lock();
        if let Some(stream) = shared.arrived.remove(&key) {
            shared.expected.remove(&key);
            return Ok(Some(stream));
        }
        shared.check_presence(key.from).map(|()| None)
    }

    /// A lane has come in.
    pub fn deliver(&self, key: LaneKey, stream: TcpStream) {
        let mut shared = self.shared.lock();
        if shared.forgotten.contains_key(&key.group) || self.gone.load(Ordering::Relaxed) {
            // Closed: that is how the caller learns it.
            return;
        }
        shared.arrived.insert(key, stream);
        if let Some(wake) = shared.expected.remove(&key) {
            wake.wake();
        }
    }

    /// How this rank opens a connection to another of its world.
    pub(super) fn hello(&self, purpose: Purpose, group: u64, peer: usize, lane: u16) -> Hello {
        Hello {
            purpose,
            lane,
            world: self.id,
            group,
            from: self.rank as u32,
            to: peer as u32,
            size: self.size as u32,
            nonce: [0; 16],
        }
    }
}
