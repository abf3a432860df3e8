//! Which group, among all that the processes of one launcher have.

use serde::{Deserialize, Serialize};

/// Which group: the start's number and the group's number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GroupId {
    /// The start's number.
    pub world: u64,
    /// The group's; 0 is the whole world.
    pub group: u64,
}

impl GroupId {
    /// What starts take turns by, beside splits of groups: no world has this number.
    pub const STARTS: GroupId = GroupId { world: 0, group: 0 };
}
