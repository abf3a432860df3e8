//! What changes while a world goes on: who is there, which groups there are, and what was told.

use std::collections::{HashMap, VecDeque};
use std::net::TcpStream;
use std::sync::Arc;

use super::handshake::{LaneKey, Purpose};
use super::member::Member;
use super::message::Topic;
use crate::error::{Error, Result, fail};
use crate::transport::segment::SegmentId;
use crate::wait::Wake;

/// Whether a rank can be talked to.
#[derive(Clone, Debug)]
pub(super) enum Presence {
    /// Not connected yet.
    Coming,
    /// Connected.
    Here,
    /// Said goodbye.
    Left,
    /// Gone without a word.
    Lost(String),
}

/// What a rank was told of a group's segment.
#[derive(Debug)]
pub struct News {
    /// Which group.
    pub group: u64,
    /// The rank of the world that made it.
    pub from: usize,
    /// Which it is, or why there is none.
    pub segment: Result<SegmentId>,
}

/// What others told, until it is asked for: by group, topic and rank of the world.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) told: HashMap<(u64, Topic, usize), Vec<u8>>,
}

impl Records {
    /// Drops what was told of a group.
    pub(super) fn forget(&mut self, group: u64) {
        self.told.retain(|(of, _, _), _| *of != group);
    }
}

/// What changes while the world goes on.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) presence: Vec<Presence>,
    /// Ranks that are ready, and whether they share their host's memory.
    pub(super) ready: HashMap<usize, bool>,
    pub(super) go: bool,
    /// Per rank its host's number: at first those that may share memory have the same, from `go`
    /// on those that do.
    pub(super) hosts: Vec<u32>,
    /// What others told of segments.
    pub(super) news: VecDeque<News>,
    pub(super) groups: HashMap<u64, Member>,
    pub(super) early_failures: VecDeque<(u64, Error)>,
    /// Groups that were not made here, their ranks and why, where there are no lines to tell.
    pub(super) unmade: Vec<(u64, Vec<usize>, Error)>,
    pub(super) arrived: HashMap<LaneKey, TcpStream>,
    /// Who waits for which lane.
    pub(super) expected: HashMap<LaneKey, Arc<Wake>>,
    /// What others told of groups, until it is asked for.
    pub(super) records: Records,
    /// Groups that this rank has let go of, and how many collectives it had begun in each.
    pub(super) forgotten: HashMap<u64, u64>,
    /// How many groups this rank has given a number.
    pub(super) next_group: u32,
}

/// Failures kept for groups that this rank has not made yet.
const EARLY_FAILURES: usize = 64;

impl Shared {
    /// That of a world whose groups are still to come.
    pub(super) fn new(presence: Vec<Presence>, hosts: Vec<u32>) -> Shared {
        Shared {
            presence,
            ready: HashMap::new(),
            go: false,
            hosts,
            news: VecDeque::new(),
            groups: HashMap::new(),
            early_failures: VecDeque::new(),
            unmade: Vec::new(),
            arrived: HashMap::new(),
            expected: HashMap::new(),
            records: Records::default(),
            forgotten: HashMap::new(),
            next_group: 0,
        }
    }

    /// Whether a lane for messages from `from` is waited for that has not come.
    pub(super) fn expects_message(&self, group: u64, from: usize) -> bool {
        let lane =
            |key: &LaneKey| (key.group, key.from, key.purpose) == (group, from, Purpose::Message);
        self.expected.keys().any(lane)
    }

    /// Keeps what failed a group first until this rank makes it, if it ever does.
    pub(super) fn note_early_failure(&mut self, group: u64, cause: Error) {
        let known = self.early_failures.iter().any(|(other, _)| *other == group);
        if known || self.forgotten.contains_key(&group) {
            return;
        }
        if self.early_failures.len() == EARLY_FAILURES {
            self.early_failures.pop_front();
        }
        self.early_failures.push_back((group, cause));
    }

    /// Fails if a rank is not there any more.
    pub(super) fn check_presence(&self, rank: usize) -> Result<()> {
        match &self.presence[rank] {
            Presence::Left => fail!(PeerLost, "it has left"),
            Presence::Lost(cause) => fail!(PeerLost, "{cause}"),
            Presence::Coming | Presence::Here => Ok(()),
        }
    }
}
