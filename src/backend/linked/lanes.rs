//! Lanes: the connections to another rank, made when they are first needed.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::Linked;
use super::fabric::{Fabric, Lane, Rings};
use crate::collective::links::{Links, Way};
use crate::control::{LaneKey, Purpose, World};
use crate::error::Result;
use crate::transport::Link;
use crate::transport::late::{Arrival, LateLink};
use crate::wait::{Deadline, Wake};

/// All connections to a peer for one purpose.
pub type Lanes = Vec<Box<dyn Link>>;

/// A lane that a peer calls.
struct Call {
    world: Arc<World>,
    key: LaneKey,
    /// Woken when it may be there.
    wake: Arc<Wake>,
    fabric: Arc<dyn Fabric>,
    /// Until it is there.
    lane: Option<Lane>,
}

impl Arrival for Call {
    fn look(&mut self) -> Result<Option<Box<dyn Link>>> {
        // First: what comes after the look wakes again.
        self.wake.clear();
        let stream = self.world.take_lane(self.key).map_err(|e| {
            let name = self.lane.as_ref().map_or("nobody", |lane| &lane.name);
            e.at(format_args!("no connection from {name}"))
        })?;
        let Some(stream) = stream else { return Ok(None) };
        self.lane.take().map(|lane| self.fabric.link(stream, lane)).transpose()
    }

    fn bell(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Linked {
    /// Connects those of `peers` that are not: the lower rank calls.
    pub(super) fn connect(
        &self,
        links: &mut Links,
        peers: &[usize],
        deadline: Deadline,
    ) -> Result<()> {
        for &peer in peers {
            if !links.has(peer, Way::Out) {
                let lanes = match peer > self.rank {
                    true => self.call(peer, Purpose::Collective, deadline)?,
                    false => self.await_call(peer, Purpose::Collective)?,
                };
                links.add(peer, &[Way::Out, Way::In], lanes);
            }
        }
        Ok(())
    }

    /// All lanes to a peer, called from here: messages go one way only, from here.
    pub(super) fn call(&self, peer: usize, purpose: Purpose, deadline: Deadline) -> Result<Lanes> {
        let to = self.member.ranks[peer];
        (0..self.fabric.lanes())
            .map(|number| {
                let key = self.key(self.rank, purpose, number);
                if !self.world.has_lines {
                    return self.direct_link(key, self.lane(peer, purpose, number, Way::Out));
                }
                let stream = self
                    .world
                    .call_peer(key, to, &self.member.health, deadline)
                    .map_err(|e| e.at(format_args!("no connection to rank {peer}")))?;
                self.fabric.link(stream, self.lane(peer, purpose, number, Way::Out))
            })
            .collect()
    }

    /// All lanes that a peer calls, sooner or later: messages go one way only, to here.
    pub(super) fn await_call(&self, peer: usize, purpose: Purpose) -> Result<Lanes> {
        (0..self.fabric.lanes())
            .map(|number| {
                let key = self.key(peer, purpose, number);
                if !self.world.has_lines {
                    return self.direct_link(key, self.lane(peer, purpose, number, Way::In));
                }
                let wake = self.world.expect_lane(key)?;
                let (world, fabric) = ((**self.world).clone(), Arc::clone(&self.fabric));
                let lane = Some(self.lane(peer, purpose, number, Way::In));
                let call = Call { world, key, wake, fabric, lane };
                Ok(Box::new(LateLink::new(Box::new(call))) as Box<dyn Link>)
            })
            .collect()
    }

    /// A link without a lane.
    fn direct_link(&self, key: LaneKey, lane: Lane) -> Result<Box<dyn Link>> {
        // A group that has just failed has closed its links, and must not open them again.
        self.member.health.check()?;
        self.fabric.direct_link(key, lane)
    }

    fn key(&self, from: usize, purpose: Purpose, number: usize) -> LaneKey {
        let (group, from) = (self.member.group, self.member.ranks[from]);
        LaneKey { group, from, purpose, lane: number as u16 }
    }

    /// A lane to a peer: for messages one way, else both.
    fn lane(&self, peer: usize, purpose: Purpose, number: usize, messages: Way) -> Lane {
        let goes = |way| purpose != Purpose::Message || messages == way;
        Lane {
            peer: self.member.ranks[peer],
            name: self.name_of(peer),
            number,
            sends: goes(Way::Out),
            receives: goes(Way::In),
            rings: self.rings(peer, purpose, number, (goes(Way::Out), goes(Way::In))),
        }
    }

    /// The shared memory for a lane to a peer of this host, for the ways that bytes go.
    fn rings(
        &self,
        peer: usize,
        purpose: Purpose,
        number: usize,
        (sends, receives): (bool, bool),
    ) -> Option<Rings> {
        let node = self.node.as_ref()?;
        let out = node.ring(purpose, self.rank, peer, number)?;
        let input = node.ring(purpose, peer, self.rank, number)?;
        let (out, input) = (sends.then_some(out), receives.then_some(input));
        Some(Rings { segment: node.segment(), out, input })
    }
}
