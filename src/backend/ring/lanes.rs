//! Lanes: the connections to another rank, made when they are first needed.

use std::net::TcpStream;
use std::sync::Arc;

use super::Ring;
use crate::collective::links::{Links, Way};
use crate::control::{LaneKey, Purpose};
use crate::error::Result;
use crate::transport::Link;
use crate::transport::late::LateLink;
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

    /// All lanes to a peer, called from here.
    pub(super) fn call(&self, peer: usize, purpose: Purpose, deadline: Deadline) -> Result<Lanes> {
        let to = self.member.ranks[peer];
        (0..self.world.lanes() as u16)
            .map(|lane| {
                let key =
                    LaneKey { group: self.member.group, from: self.world.rank, purpose, lane };
                let stream = self
                    .world
                    .call_peer(key, to, &self.member.health, deadline)
                    .map_err(|e| e.at(format_args!("no connection to rank {peer}")))?;
                tcp(stream, self.name_of(peer))
            })
            .collect()
    }

    /// All lanes that a peer calls, sooner or later.
    pub(super) fn await_call(&self, peer: usize, purpose: Purpose) -> Result<Lanes> {
        let from = self.member.ranks[peer];
        (0..self.world.lanes() as u16)
            .map(|lane| {
                let key = LaneKey { group: self.member.group, from, purpose, lane };
                let wake = self.world.expect_lane(key)?;
                let (world, name) = (Arc::clone(&self.world), self.name_of(peer));
                let arrive = move || {
                    let stream = world.take_lane(key);
                    let stream =
                        stream.map_err(|e| e.at(format_args!("no connection from {name}")));
                    stream?.map(|stream| tcp(stream, name.clone())).transpose()
                };
                Ok(Box::new(LateLink::new(Box::new(arrive), wake)) as Box<dyn Link>)
            })
            .collect()
    }
}

fn tcp(stream: TcpStream, peer: String) -> Result<Box<dyn Link>> {
    Ok(Box::new(TcpLink::new(stream, peer)?))
}
