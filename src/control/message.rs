//! What ranks tell each other over the control plane, as JSON.

use serde::{Deserialize, Serialize};

use super::host::Place;
use crate::call::Call;
use crate::config::Address;
use crate::error::{Error, Result, Status};
use crate::transport::segment::SegmentId;

/// One message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Message {
    /// Rank 0 is told where the sender listens, and the settings that must agree.
    Join {
        /// One per connection.
        addresses: Vec<Address>,
        /// As `name=value`, in order of names.
        settings: Vec<String>,
        /// How long others may stay silent for the sender, in milliseconds; 0 for ever.
        patience: u64,
        /// Where the sender is.
        place: Place,
    },
    /// Rank 0 tells those who came who is still missing.
    Waiting {
        /// Ranks that have not come yet.
        missing: Vec<usize>,
    },
    /// Rank 0 tells that all have come.
    World {
        /// Minted for this start.
        id: u64,
        /// Per rank where it listens.
        addresses: Vec<Vec<Address>>,
        /// The least of all ranks' patience, in milliseconds; 0 if none has a limit.
        patience: u64,
        /// Per rank where it is.
        places: Vec<Place>,
    },
    /// The handshake is done: the connection is what it was made for.
    Welcome,
    /// The connection is turned away.
    Refused(Error),
    /// The sender has its connection to every other rank.
    Ready {
        /// Whether it shares memory with the other ranks of its host.
        shares: bool,
    },
    /// Rank 0 tells that all are ready.
    Go {
        /// Per rank the number of its host: ranks with the same one share memory.
        hosts: Vec<u32>,
    },
    /// The sender has left a group's segment in the receiver's mailbox, or could not.
    Shared {
        /// Which group.
        group: u64,
        /// Which segment, or why there is none.
        segment: Result<SegmentId>,
    },
    /// Nothing else was sent for a while.
    Ping,
    /// A group has failed on the sender.
    Fail {
        /// Which group.
        group: u64,
        /// Why.
        cause: Error,
    },
    /// The sender has lost a rank.
    Lost {
        /// Its rank in the world.
        rank: usize,
        /// Why.
        cause: Error,
    },
    /// The sender has waited in an operation for a while.
    Stalled {
        /// Which group.
        group: u64,
        /// The group that was split to make it; itself for the world.
        parent: u64,
        /// What it waits for.
        wait: Wait,
    },
    /// The receiver waits in vain in a group that the sender has no part in, or no more.
    Absent {
        /// Which group.
        group: u64,
        /// What the receiver said that it waits for.
        wait: Wait,
        /// Why in vain.
        cause: Error,
    },
    /// The sender's part of what some ranks of a group tell each other.
    Record {
        /// Which group.
        group: u64,
        /// What it is about.
        topic: Topic,
        /// What the sender says.
        bytes: Vec<u8>,
    },
    /// The sender leaves in good order.
    Bye,
}

/// What a rank waits for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Wait {
    /// The others in this collective.
    Collective(Call),
    /// A message with the rank that it tells so.
    Message {
        /// Whether the lane for it is there.
        connected: bool,
    },
}

/// What a record is about: no two of a rank in a group are about the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Topic {
    /// How the group's ranks find each other.
    Start,
    /// That this rank has found the others.
    Ready,
    /// What this rank gives to the split that has this place among the collectives.
    Split(u64),
    /// Which collective it calls at this place.
    Call(u64),
    /// Which message it sends to the receiver at this place.
    Send(u64),
    /// Which message it receives from the receiver at this place.
    Recv(u64),
}

impl Message {
    /// As it travels.
    pub fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self)
            .map_err(|e| Error::new(Status::Internal, format!("cannot write {self:?}: {e}")))
    }

    /// The inverse.
    pub fn decode(bytes: &[u8]) -> Result<Message> {
        serde_json::from_slice(bytes)
            .map_err(|e| Error::new(Status::Config, format!("not a message of this library: {e}")))
    }
}
