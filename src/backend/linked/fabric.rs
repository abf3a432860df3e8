//! What the ranks of a world are connected by: the one thing in which the backends that run on links
//! differ.

use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;

use crate::config::Topology;
use crate::control::LaneKey;
use crate::error::{Error, Result, fail};
use crate::transport::Link;
use crate::transport::segment::Segment;

/// Makes links of the lanes that the control plane brings.
pub trait Fabric: Send + Sync {
    /// The backend's name: `ring`.
    fn name(&self) -> &'static str;

    /// Connections that two ranks have for one purpose.
    fn lanes(&self) -> usize;

    /// Which ranks of a group of these ranks of the world reach each other best.
    fn topology(&self, ranks: &[usize]) -> Topology;

    /// A link to the rank at the other end of a lane.
    fn link(&self, stream: TcpStream, lane: Lane) -> Result<Box<dyn Link>>;

    /// The same for ranks that have no lanes: both ends make it under this key.
    fn direct_link(&self, _key: LaneKey, lane: Lane) -> Result<Box<dyn Link>> {
        fail!(Internal, "{} has no links to {} but over lanes", self.name(), lane.name)
    }

    /// A group of these ranks has failed here, of which nobody else tells the others.
    fn tell_failure(&self, _group: u64, _ranks: &[usize], _cause: &Error) {}

    /// For who waits in a group of these ranks, where only its links tell: what has failed it.
    fn watch(&self, _group: u64, _ranks: &[usize]) -> Result<()> {
        Ok(())
    }

    /// This rank has let go of a group of these ranks: links of it that others make lead nowhere.
    fn forget(&self, _group: u64, _ranks: &[usize]) {}

    /// Whether a rank has said goodbye, where only its links tell.
    fn has_left(&self, _peer: usize) -> bool {
        false
    }

    /// Ends what links share, once there are no links; other ranks have what was sent over them.
    fn leave(&self) {}
}

/// A connection to another rank for one purpose.
pub struct Lane {
    /// That rank, in the world.
    pub peer: usize,
    /// The same for messages: `rank 1 (10.0.0.2:5001)`.
    pub name: String,
    /// Which of several.
    pub number: usize,
    /// Whether anything will be sent over it.
    pub sends: bool,
    /// Whether anything will be received.
    pub receives: bool,
    /// The shared memory that there is for it.
    pub rings: Option<Rings>,
}

/// A lane's part of a segment.
pub struct Rings {
    /// The segment.
    pub segment: Arc<Segment>,
    /// Where bytes go to the peer, if any do.
    pub out: Option<Range<usize>>,
    /// Where they come from it.
    pub input: Option<Range<usize>>,
}
