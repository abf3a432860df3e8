//! One group as the control plane knows it.

use std::sync::Arc;

use crate::call::CallLog;
use crate::error::Result;
use crate::health::Health;

/// This rank's part in a group, as the control plane knows it.
#[derive(Clone, Debug)]
pub struct Member {
    /// The group's id, the same on all its ranks; 0 is the world.
    pub group: u64,
    /// The group that was split to make it; the world is its own.
    pub parent: u64,
    /// Per rank of the group its rank in the world.
    pub ranks: Vec<usize>,
    /// Failed when the group does.
    pub health: Arc<Health>,
    /// What this rank has called.
    pub calls: Arc<CallLog>,
}

impl Member {
    /// That of a new group, made of `parent`.
    pub fn new(group: u64, parent: u64, ranks: Vec<usize>) -> Result<Member> {
        Ok(Member {
            group,
            parent,
            ranks,
            health: Arc::new(Health::new()?),
            calls: Arc::new(CallLog::default()),
        })
    }

    /// That of a new world of so many ranks.
    pub fn of_world(size: usize) -> Result<Member> {
        Member::new(0, 0, (0..size).collect())
    }

    /// The number within the group of a rank of the world.
    pub(super) fn rank_of(&self, world_rank: usize) -> Option<usize> {
        self.ranks.iter().position(|rank| *rank == world_rank)
    }
}
