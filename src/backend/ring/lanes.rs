//! Lanes: the connections to another rank, made when they are first needed.

use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;

use super::Ring;
use crate::collective::links::{Links, Way};
use crate::control::{LaneKey, Purpose};
use crate::error::Result;
use crate::transport::Link;
use crate::transport::checked::CheckedLink;
use crate::transport::late::LateLink;
use crate::transport::segment::Segment;
use crate::transport::shm::ShmLink;
use crate::transport::tcp::TcpLink;
use crate::wait::Deadline;

/// All connections to a peer for one purpose.
pub type Lanes = Vec<Box<dyn Link>>;

impl Ring {
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
        (0..self.world.lanes())
            .map(|lane| {
                let key = self.key(self.rank, purpose, lane);
                let stream = self
                    .world
                    .call_peer(key, to, &self.member.health, deadline)
                    .map_err(|e| e.at(format_args!("no connection to rank {peer}")))?;
                let rings = self.rings(peer, purpose, lane, Way::Out);
                link(stream, self.name_of(peer), rings, self.checksums)
            })
            .collect()
    }

    /// All lanes that a peer calls, sooner or later: messages go one way only, to here.
    pub(super) fn await_call(&self, peer: usize, purpose: Purpose) -> Result<Lanes> {
        (0..self.world.lanes())
            .map(|lane| {
                let key = self.key(peer, purpose, lane);
                let wake = self.world.expect_lane(key)?;
                let (world, name) = (Arc::clone(&self.world), self.name_of(peer));
                let (mut rings, checksums) =
                    (self.rings(peer, purpose, lane, Way::In), self.checksums);
                let arrive = move || {
                    let stream = world.take_lane(key);
                    let stream =
                        stream.map_err(|e| e.at(format_args!("no connection from {name}")));
                    let link = |stream| link(stream, name.clone(), rings.take(), checksums);
                    stream?.map(link).transpose()
                };
                Ok(Box::new(LateLink::new(Box::new(arrive), wake)) as Box<dyn Link>)
            })
            .collect()
    }

    fn key(&self, from: usize, purpose: Purpose, lane: usize) -> LaneKey {
        let (group, from) = (self.member.group, self.member.ranks[from]);
        LaneKey { group, from, purpose, lane: lane as u16 }
    }

    /// The shared memory for a lane to a peer of this host: for messages one way, else both.
    fn rings(&self, peer: usize, purpose: Purpose, lane: usize, messages: Way) -> Option<Rings> {
        let node = self.node.as_ref()?;
        let out = node.ring(purpose, self.rank, peer, lane)?;
        let input = node.ring(purpose, peer, self.rank, lane)?;
        let goes = |way| purpose != Purpose::Message || messages == way;
        let (out, input) = (goes(Way::Out).then_some(out), goes(Way::In).then_some(input));
        Some(Rings { segment: node.segment(), out, input })
    }
}

/// A lane's part of the segment.
struct Rings {
    segment: Arc<Segment>,
    out: Option<Range<usize>>,
    input: Option<Range<usize>>,
}

/// A lane over shared memory where there is some, else over the connection, with checksums or without.
fn link(
    stream: TcpStream,
    peer: String,
    rings: Option<Rings>,
    checksums: bool,
) -> Result<Box<dyn Link>> {
    Ok(match rings {
        Some(Rings { segment, out, input }) => {
            Box::new(ShmLink::new(stream, peer, segment, out, input)?)
        }
        None if checksums => Box::new(CheckedLink::new(TcpLink::new(stream, peer.clone())?, peer)),
        None => Box::new(TcpLink::new(stream, peer)?),
    })
}
