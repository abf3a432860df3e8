//! The ring backend: links over TCP, and over shared memory between ranks of one host.

use std::net::TcpStream;
use std::sync::Arc;

use super::linked::{Fabric, Lane, Linked, Rings, segment_bytes};
use crate::config::{RingStart, Topology};
use crate::control::{self, Member, Reactor};
use crate::error::Result;
use crate::transport::Link;
use crate::transport::checked::CheckedLink;
use crate::transport::shm::ShmLink;
use crate::transport::tcp::TcpLink;

/// Starts a world, of two ranks at least.
pub fn start(plan: &RingStart, reactor: &Arc<Reactor>) -> Result<Linked> {
    let member = Member::of_world(plan.size)?;
    let (world, segment) = control::start(plan, reactor, member.clone(), segment_bytes)?;
    let fabric = Sockets { lanes: world.lanes(), checksums: plan.checksums };
    Linked::start(world, member, segment, Arc::new(fabric))
}

/// The lanes themselves; beside them shared memory.
struct Sockets {
    lanes: usize,
    /// Whether what goes over TCP carries checksums.
    checksums: bool,
}

impl Fabric for Sockets {
    fn name(&self) -> &'static str {
        "ring"
    }

    fn lanes(&self) -> usize {
        self.lanes
    }

    fn topology(&self, _ranks: &[usize]) -> Topology {
        Topology::Mesh
    }

    fn link(&self, stream: TcpStream, lane: Lane) -> Result<Box<dyn Link>> {
        let peer = lane.name;
        Ok(match lane.rings {
            Some(Rings { segment, out, input }) => {
                Box::new(ShmLink::new(stream, peer, segment, out, input)?)
            }
            None if self.checksums => {
                Box::new(CheckedLink::new(TcpLink::new(stream, peer.clone())?, peer))
            }
            None => Box::new(TcpLink::new(stream, peer)?),
        })
    }
}
