//! Groups over links between processes: their collectives, messages, splits and ends. What the links are
//! made of is the [`Fabric`]'s affair: the backends on links differ in nothing else.

mod collectives;
mod fabric;
mod lanes;
mod messages;
mod node;

pub use fabric::{Fabric, Lane, Rings};
pub use node::bytes as segment_bytes;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::{Backend, Limits, Operation, split};
use crate::collective::board::Runner;
use crate::collective::engine::Engine;
use crate::collective::links::{Links, Way};
use crate::config::Topology;
use crate::control::{Member, Seat};
use crate::error::{Error, Result, Status};
use crate::health::Health;
use crate::recorder::document::Identity;
use crate::transport::segment::Segment;
use crate::wait::Deadline;
use lanes::Lanes;
use node::Node;

/// How long a broken link waits for the control plane to say why: a failed group's links are closed
/// just after its ranks were told the cause.
const WHY: Duration = Duration::from_secs(1);

/// The same where only links tell, whose ends come one after the other: a channel's, then the wire's.
const GOODBYE: Duration = Duration::from_millis(200);
/// Between two looks meanwhile.
const PAUSE: Duration = Duration::from_millis(2);

/// What a group's collectives run on.
enum Ground {
    /// All ranks share a host.
    Board(Runner),
    /// They do not.
    Links(Box<Engine>, Links),
}

/// A group over shared memory and links.
pub struct Linked {
    world: Arc<Seat>,
    member: Member,
    rank: usize,
    /// The group's ranks on this host, if this one is not alone there.
    node: Option<Node>,
    /// Whether every rank of this machine has a core of its own.
    spin: bool,
    /// Which of its ranks reach each other best.
    topology: Topology,
    /// One collective at a time.
    ground: Mutex<Ground>,
    /// Lanes for messages, while none is under way: by peer and way.
    lanes: Mutex<HashMap<(usize, Way), Lanes>>,
    /// Engines for messages, while they are not in use.
    engines: Mutex<Vec<Engine>>,
    /// Whether the others were told that it has failed, where no line does.
    told: AtomicBool,
    /// What links are made of; after those that are there.
    fabric: Arc<dyn Fabric>,
}

impl Linked {
    /// A world that has come up, and the segment that this rank shares with its host. Connects the
    /// neighbours at once, so that a start tells of a lane that does not work; the other ranks, like all
    /// ranks of parts of the world, are connected when they are first needed.
    pub fn start(
        world: Seat,
        member: Member,
        segment: Option<Segment>,
        fabric: Arc<dyn Fabric>,
    ) -> Result<Linked> {
        let (rank, size) = (world.rank, world.size);
        let linked = Linked::new(Arc::new(world), member, segment, fabric);
        let mut neighbours = vec![(rank + 1) % size, (rank + size - 1) % size];
        neighbours.dedup();
        for peer in neighbours {
            let Ground::Links(_, links) = &mut *linked.ground.lock() else { break };
            let connected = linked.connect(links, &[peer], Deadline::NEVER);
            // One that has left already will be missed when it is needed.
            if let Err(e) = connected
                && !(e.status == Status::PeerLost && linked.has_left(peer))
            {
                return Err(linked.failed(e, Some(peer)));
            }
        }
        Ok(linked)
    }

    fn new(
        world: Arc<Seat>,
        member: Member,
        segment: Option<Segment>,
        fabric: Arc<dyn Fabric>,
    ) -> Linked {
        let rank = member.ranks.iter().position(|rank| *rank == world.rank).unwrap_or(0);
        let (size, lanes) = (member.ranks.len(), fabric.lanes());
        let node = segment.map(|segment| Node::new(segment, world.node(&member), lanes));
        let ground = match node.as_ref().and_then(|node| node.board(rank, size)) {
            Some(board) => Ground::Board(Runner::new(board)),
            None => Ground::Links(Box::default(), Links::new(lanes)),
        };
        Linked {
            spin: world.has_core_each,
            topology: fabric.topology(&member.ranks),
            world,
            member,
            rank,
            node,
            ground: Mutex::new(ground),
            lanes: Mutex::default(),
            engines: Mutex::default(),
            told: AtomicBool::new(false),
            fabric,
        }
    }

    /// `rank 1 (10.0.0.2:5001)`
    fn name_of(&self, peer: usize) -> String {
        self.world.name_as(peer, self.member.ranks[peer])
    }

    /// Whether a rank that does not answer any more has left in good order; waits a moment for it, or
    /// for another cause, to be known.
    fn has_left(&self, peer: usize) -> bool {
        if !self.world.has_lines {
            return self.says_goodbye(peer);
        }
        self.world.has_left(self.member.ranks[peer], &self.member.health, WHY)
    }

    /// Fails the group with this error, or what caused it, and returns that. The links are closed
    /// after that, so that the other ranks learn the cause before they see its consequence.
    fn broken(&self, error: Error, engine: &Engine, links: &mut Links) -> Error {
        let error = self.failed(error, engine.broke_with());
        links.close();
        error
    }

    /// What a split failed with, given the failure of its new group. A rank that is lost is lost to
    /// both, and has another number there.
    fn not_made(&self, error: Error) -> Error {
        if error.status == Status::PeerLost {
            // Only waits for that.
            self.has_left(self.rank);
        }
        self.member.health.check().err().unwrap_or(error.at("the new group"))
    }

    /// Fails the group with this error, or what caused it, and returns that. `peer` is the rank that
    /// it has to do with, if it is one.
    fn failed(&self, mut error: Error, peer: Option<usize>) -> Error {
        // This rank itself has not left: without a peer that only waits for another cause.
        let peer = peer.unwrap_or(self.rank);
        if error.status == Status::PeerLost && self.has_left(peer) {
            error.message = format!("{} has left, but is still needed", self.name_of(peer));
        }
        self.fail(&error);
        self.member.health.check().err().unwrap_or(error)
    }

    /// The same where only links tell.
    fn says_goodbye(&self, peer: usize) -> bool {
        let deadline = Deadline::after(Some(GOODBYE));
        loop {
            // A rank that is lost is known to be after that. A failure may come after what it ended.
            self.look_around();
            if peer == self.rank || self.member.health.check().is_err() {
                break;
            }
            if self.fabric.has_left(self.member.ranks[peer]) {
                return true;
            }
            if deadline.passed() {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        false
    }

    /// Tells the others of groups that a split has not made here, where no line does.
    fn tell_unmade(&self) {
        for (group, ranks, cause) in self.world.take_unmade() {
            self.fabric.tell_failure(group, &ranks, &cause);
            self.fabric.forget(group, &ranks);
        }
    }

    /// For who has waited for a while: whether another rank has failed the group, or is gone, where no
    /// line tells.
    fn look_around(&self) {
        if !self.world.has_lines
            && let Err(e) = self.fabric.watch(self.member.group, &self.member.ranks)
        {
            self.fail(&e);
        }
    }

    /// Closes the links that nobody uses just now; whoever does finds that the group has failed.
    fn close_links(&self) {
        if let Some(mut ground) = self.ground.try_lock()
            && let Ground::Links(_, links) = &mut *ground
        {
            links.close();
        }
        self.lanes.lock().clear();
    }
}

impl Backend for Linked {
    fn name(&self) -> &'static str {
        self.fabric.name()
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.member.ranks.len()
    }

    fn identity(&self) -> Identity {
        Identity {
            world: self.world.id,
            group: self.member.group,
            backend: self.name(),
            rank: self.rank,
            ranks: self.member.ranks.clone(),
        }
    }

    fn health(&self) -> &Health {
        &self.member.health
    }

    unsafe fn run(&self, operation: &Operation, limits: Limits) -> Result<()> {
        self.member.health.check()?;
        // SAFETY: the caller vouches for the operation's memory.
        unsafe {
            match operation {
                Operation::Collective { sequence, collective } => {
                    self.collective(collective.call(*sequence), collective, limits)
                }
                Operation::Exchange { dtype, send, recv } => {
                    self.exchange(*dtype, *send, *recv, limits)
                }
            }
        }
    }

    fn split(
        &self,
        color: i32,
        key: i32,
        sequence: u64,
        limits: Limits,
    ) -> Result<Option<Box<dyn Backend>>> {
        let (world, of) = (&self.world, &self.member);
        let made = split::enter(self, world, of, (color, key), sequence, limits);
        let Some(member) = made.inspect_err(|_| self.tell_unmade())? else {
            return Ok(None);
        };
        let node = self.world.node(&member);
        let (bytes, deadline) = (node::bytes(node.len()), Deadline::after(limits.operation));
        let shared = self.world.share(&member, self.health(), bytes, deadline);
        let (segment, outcome) = match shared {
            Ok(segment) => (segment, Ok(())),
            Err(e) => (None, Err(e)),
        };
        let part = Linked::new(self.world.clone(), member, segment, self.fabric.clone());
        // Without it the group fails: its ranks must not go different ways.
        outcome.map_err(|e| self.not_made(part.failed(e, node.first().copied())))?;
        Ok(Some(Box::new(part)))
    }

    fn fail(&self, cause: &Error) {
        self.world.fail_group(self.member.group, cause, true);
        if self.world.has_lines {
            return;
        }
        // Where the others have no lines, that is how they notice. That calls end because this rank has left
        // is its own affair.
        if !self.world.has_gone()
            && let (Err(first), false) =
                (self.member.health.check(), self.told.swap(true, Ordering::Relaxed))
        {
            self.fabric.tell_failure(self.member.group, &self.member.ranks, &first);
        }
        self.close_links();
    }

    fn leave(&self) {
        self.world.leave();
        // Operations that are under way have been woken; what they use is closed once they are gone.
        if let Some(mut ground) = self.ground.try_lock_for(WHY)
            && let Ground::Links(_, links) = &mut *ground
        {
            links.close();
        }
        self.lanes.lock().clear();
        self.fabric.leave();
    }
}

impl Drop for Linked {
    fn drop(&mut self) {
        self.world.forget(self.member.group);
        if !self.world.has_lines {
            self.fabric.forget(self.member.group, &self.member.ranks);
        }
    }
}
