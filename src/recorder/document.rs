//! What a flight recorder's file holds: one rank's view of one group, as JSON.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Queue, Record, Stamp, State, now};
use crate::call::Verb;
use crate::error::{Error, Result, Status};
use crate::order::{Count, Progress};

/// Tells these files from others.
pub const FORMAT: &str = "mlxd-flight-recorder";
/// Rises when a reader of older files would misunderstand a newer one.
pub const FORMAT_VERSION: u32 = 1;

/// A group as its ranks know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Which start it belongs to: the same number on all ranks, another for every start.
    pub world: u64,
    /// Which group of that start; 0 is the world.
    pub group: u64,
    /// The backend's name.
    pub backend: &'static str,
    /// This rank in the group.
    pub rank: usize,
    /// Per rank of the group its rank in the world.
    pub ranks: Vec<usize>,
}

/// One rank's view of one group. Times are of this host's clock, since 1970.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// [`FORMAT`]
    pub format: String,
    /// [`FORMAT_VERSION`]
    pub format_version: u32,
    /// The library's version.
    pub version: String,
    /// The start, in hexadecimal; of all its ranks the same.
    pub world: String,
    /// The group within the start, in hexadecimal; 0 is the world.
    pub group: String,
    /// What it runs on.
    pub backend: String,
    /// This rank in the group.
    pub rank: usize,
    /// Ranks in the group.
    pub size: usize,
    /// Per rank of the group its rank in the world.
    pub ranks: Vec<usize>,
    /// This host's name.
    pub host: String,
    /// This process.
    pub pid: u32,
    /// When this was so, in microseconds.
    pub written_us: u64,
    /// What failed the group, if anything did.
    pub failure: Option<Failure>,
    /// Operations that this rank ever called.
    pub called: u64,
    /// Collectives, splits among them.
    pub collectives: Tally,
    /// Sends to each rank that this one ever sent to.
    pub sends: Vec<PeerTally>,
    /// Receives from each rank that this one ever received from.
    pub recvs: Vec<PeerTally>,
    /// The last operations, and all that are pending, in the order of calls.
    pub operations: Vec<Entry>,
}

/// What failed a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// As in mlxd.h: `MLXD_ERROR_TIMEOUT`.
    pub status: String,
    /// The sentence.
    pub message: String,
    /// When this rank learned of it, in microseconds; unknown in a file that was asked for.
    pub at_us: Option<u64>,
}

/// How many operations of one kind there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Called.
    pub called: u64,
    /// Ended, from the first on.
    pub ended: u64,
}

/// How many messages there were with one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerTally {
    /// The other rank.
    pub peer: usize,
    /// Called.
    pub called: u64,
    /// Ended, from the first on.
    pub ended: u64,
}

/// One side of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// The other rank.
    pub peer: usize,
    /// Its place among the messages from the one rank to the other, counted from 0.
    pub sequence: u64,
    /// Elements.
    pub count: u64,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its place among all operations of the group on this rank, counted from 0.
    pub number: u64,
    /// As the calls are named: `all_sum`, `send_recv`.
    pub operation: String,
    /// Its place among the group's collectives, counted from 0; none for messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// The elements' type; none where there are no elements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// Elements of a collective.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// A broadcast's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<i32>,
    /// What is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send: Option<Side>,
    /// What is received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recv: Option<Side>,
    /// How far it is.
    pub state: State,
    /// When it was called, in milliseconds.
    pub called_ms: u64,
    /// When its turn came.
    pub started_ms: Option<u64>,
    /// When it ended.
    pub ended_ms: Option<u64>,
}

/// Since 1970; 0 for a clock that is set to before that.
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Document {
    /// How far this rank is, at this moment.
    pub fn new(identity: &Identity, progress: &Progress, failure: Option<Failure>) -> Document {
        let written = since_1970();
        // The coarse clock, which nobody sets, as the time of day.
        let offset = written.as_millis() as i64 - (now() / 1_000_000) as i64;
        let records = &progress.records;
        Document {
            format: FORMAT.to_owned(),
            format_version: FORMAT_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            world: format!("{:016x}", identity.world),
            group: format!("{:x}", identity.group),
            backend: identity.backend.to_owned(),
            rank: identity.rank,
            size: identity.ranks.len(),
            ranks: identity.ranks.clone(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid: std::process::id(),
            written_us: written.as_micros() as u64,
            failure,
            called: records.called,
            collectives: Tally {
                called: progress.collectives.given,
                ended: progress.collectives.done,
            },
            sends: tallies(&progress.sends),
            recvs: tallies(&progress.recvs),
            operations: records.records.iter().map(|record| entry(record, offset)).collect(),
        }
    }

    /// As text.
    pub fn text(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map(|text| text + "\n")
            .map_err(|e| Error::new(Status::Internal, format!("a record that is no JSON: {e}")))
    }
}

impl Failure {
    /// This cause.
    pub fn new(cause: &Error, at: Option<Duration>) -> Failure {
        Failure {
            status: cause.status.name().to_string_lossy().into_owned(),
            message: cause.message.clone(),
            at_us: at.map(|at| at.as_micros() as u64),
        }
    }
}

fn tallies(counts: &[Count]) -> Vec<PeerTally> {
    let tally =
        |(peer, count): (usize, &Count)| PeerTally { peer, called: count.given, ended: count.done };
    counts.iter().enumerate().map(tally).filter(|tally| tally.called > 0).collect()
}

/// `offset` is what makes the coarse clock's milliseconds those of the day.
fn entry(record: &Record, offset: i64) -> Entry {
    let operation = record.operation;
    let at = |stamp: Stamp| {
        (stamp != 0).then(|| ((stamp / 1_000_000) as i64).saturating_add(offset).max(0) as u64)
    };
    let side = |found: Option<(Queue, u64)>, count: usize| {
        let (Queue::SendsTo(peer) | Queue::RecvsFrom(peer), sequence) = found? else {
            return None;
        };
        Some(Side { peer, sequence, count: count as u64 })
    };
    let send = record.place(|queue| matches!(queue, Queue::SendsTo(_)));
    let recv = record.place(|queue| matches!(queue, Queue::RecvsFrom(_)));
    let name = match (operation.verb, send, recv) {
        (Verb::Message, Some(_), Some(_)) => "send_recv",
        (Verb::Message, Some(_), None) => "send",
        (Verb::Message, None, Some(_)) => "recv",
        (verb, ..) => verb.name(),
    };
    let is_message = operation.verb == Verb::Message;
    let has_elements = !matches!(operation.verb, Verb::Barrier | Verb::Split);
    Entry {
        number: record.number,
        operation: name.to_owned(),
        sequence: record.place(|queue| queue == Queue::Collectives).map(|(_, place)| place),
        dtype: has_elements.then(|| operation.dtype.name().to_owned()),
        count: (has_elements && !is_message).then_some(operation.count[0] as u64),
        root: (operation.root >= 0).then_some(operation.root),
        send: side(send, operation.count[0]),
        recv: side(recv, operation.count[1]),
        state: record.state,
        called_ms: at(record.called).unwrap_or_default(),
        started_ms: at(record.started),
        ended_ms: at(record.ended),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::health::Health;
    use crate::order::Order;
    use crate::recorder::Operation;

    #[test]
    fn a_document_says_what_was_called() {
        let (order, health) = (Order::default(), Health::new().unwrap());
        let operation = |verb, count| Operation { verb, dtype: Dtype::Int16, root: -1, count };
        let all = [Some(Queue::Collectives), None];
        let sum = order.next_turn(all, &operation(Verb::AllSum, [9, 0]), &health).unwrap();
        sum.end(Ok(())).unwrap();
        let root = Operation { root: 2, ..operation(Verb::Broadcast, [7, 0]) };
        order.next_turn(all, &root, &health).unwrap().end(Ok(())).unwrap();
        let ends = [Some(Queue::SendsTo(2)), Some(Queue::RecvsFrom(0))];
        let _both = order.next_turn(ends, &operation(Verb::Message, [3, 4]), &health).unwrap();
        order.ticket(all, &operation(Verb::Barrier, [0, 0]));
        let identity =
            Identity { world: 0xabc, group: 0, backend: "ring", rank: 1, ranks: vec![0, 1, 2] };
        let cause = Error::new(Status::Timeout, "too late");
        let failure = Failure::new(&cause, Some(Duration::from_micros(5)));
        let document = Document::new(&identity, &order.progress(), Some(failure));
        let again: Document = serde_json::from_str(&document.text().unwrap()).unwrap();
        assert_eq!(again, document);
        assert_eq!((document.world.as_str(), document.group.as_str()), ("0000000000000abc", "0"));
        assert_eq!((document.rank, document.size, document.called), (1, 3, 4));
        assert_eq!(document.failure.unwrap().status, "MLXD_ERROR_TIMEOUT");
        assert_eq!(document.collectives, Tally { called: 3, ended: 2 });
        assert_eq!(document.sends, [PeerTally { peer: 2, called: 1, ended: 0 }]);
        assert_eq!(document.recvs, [PeerTally { peer: 0, called: 1, ended: 0 }]);
        let [sum, broadcast, both, barrier] = document.operations.as_slice() else { panic!() };
        assert_eq!(
            (sum.operation.as_str(), sum.sequence, sum.count),
            ("all_sum", Some(0), Some(9))
        );
        assert_eq!((sum.dtype.as_deref(), sum.state), (Some("int16"), State::Done));
        assert_eq!((broadcast.root, broadcast.sequence), (Some(2), Some(1)));
        assert_eq!((both.operation.as_str(), both.sequence), ("send_recv", None));
        assert_eq!(both.send, Some(Side { peer: 2, sequence: 0, count: 3 }));
        assert_eq!(both.recv, Some(Side { peer: 0, sequence: 0, count: 4 }));
        assert_eq!((both.state, barrier.state), (State::Running, State::Queued));
        assert_eq!((barrier.dtype.as_deref(), barrier.count), (None, None));
        // Within the clock's coarseness: an operation ends neither before its start nor in the future.
        let ended = sum.ended_ms.unwrap();
        assert!(sum.called_ms <= ended && ended <= document.written_us / 1000 + 10);
    }
}
