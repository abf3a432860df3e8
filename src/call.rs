//! One call as the other ranks see it: what must agree between them, and the record of the last ones.

use std::collections::VecDeque;
use std::fmt;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::dtype::Dtype;
use crate::error::{Error, Status};

/// Which call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Verb {
    /// `mlxd_all_sum`
    AllSum = 1,
    /// `mlxd_all_max`
    AllMax = 2,
    /// `mlxd_all_min`
    AllMin = 3,
    /// `mlxd_all_gather`
    AllGather = 4,
    /// `mlxd_sum_scatter`
    SumScatter = 5,
    /// `mlxd_all_to_all`
    AllToAll = 6,
    /// `mlxd_broadcast`
    Broadcast = 7,
    /// `mlxd_barrier`
    Barrier = 8,
    /// `mlxd_group_split`
    Split = 9,
    /// `mlxd_send` on one side, `mlxd_recv` on the other; either may be half of `mlxd_send_recv`.
    Message = 10,
}

impl Verb {
    const ALL: [Verb; 10] = [
        Verb::AllSum,
        Verb::AllMax,
        Verb::AllMin,
        Verb::AllGather,
        Verb::SumScatter,
        Verb::AllToAll,
        Verb::Broadcast,
        Verb::Barrier,
        Verb::Split,
        Verb::Message,
    ];

    /// The name used in messages: `all_sum`.
    pub fn name(self) -> &'static str {
        match self {
            Verb::AllSum => "all_sum",
            Verb::AllMax => "all_max",
            Verb::AllMin => "all_min",
            Verb::AllGather => "all_gather",
            Verb::SumScatter => "sum_scatter",
            Verb::AllToAll => "all_to_all",
            Verb::Broadcast => "broadcast",
            Verb::Barrier => "barrier",
            Verb::Split => "split",
            Verb::Message => "message",
        }
    }
}

/// What must agree between the ranks that meet in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Its place in the order of calls: of the group's collectives, or of the messages from one
    /// rank to another.
    pub sequence: u64,
    /// Which call.
    pub verb: Verb,
    /// The element type's number.
    pub dtype: u8,
    /// The root's rank, -1 where there is none.
    pub root: i32,
    /// Elements in `input`.
    pub count: u64,
}

/// Bytes of a [`Call`] that travels.
const CALL_BYTES: usize = 32;
/// Bytes of a [`Header`].
pub const HEADER_BYTES: usize = 2 * CALL_BYTES;

/// Opens every call on a link: anything else there is not ours, or not in step.
const MAGIC: [u8; 4] = *b"call";

impl Call {
    /// As it travels, 32 bytes: magic, verb, dtype, 2 spare bytes, root, sequence, count (little endian).
    fn encode(&self) -> [u8; CALL_BYTES] {
        let mut bytes = [0; CALL_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4] = self.verb as u8;
        bytes[5] = self.dtype;
        bytes[8..12].copy_from_slice(&self.root.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.count.to_le_bytes());
        bytes
    }

    /// As it stands in shared memory.
    fn words(&self) -> [u64; 3] {
        let (verb, dtype) = (u64::from(self.verb as u8), u64::from(self.dtype));
        [self.sequence, self.count, verb | dtype << 8 | u64::from(self.root as u32) << 32]
    }

    /// The inverse; `None` if these words are no call.
    fn from_words([sequence, count, rest]: [u64; 3]) -> Option<Call> {
        let (verb, dtype) = (usize::from(rest as u8), (rest >> 8) as u8);
        Dtype::from_number(dtype.into())?;
        let verb = *Verb::ALL.get(verb.checked_sub(1)?)?;
        Some(Call { sequence, verb, dtype, root: (rest >> 32) as i32, count })
    }

    /// The inverse; `None` if these bytes are no call.
    fn decode(bytes: &[u8; CALL_BYTES]) -> Option<Call> {
        let word = |at: usize| -> Option<[u8; 8]> { bytes[at..at + 8].try_into().ok() };
        if bytes[0..4] != MAGIC || Dtype::from_number(bytes[5].into()).is_none() {
            return None;
        }
        Some(Call {
            verb: *Verb::ALL.get(usize::from(bytes[4]).checked_sub(1)?)?,
            dtype: bytes[5],
            root: i32::from_le_bytes(bytes[8..12].try_into().ok()?),
            sequence: u64::from_le_bytes(word(16)?),
            count: u64::from_le_bytes(word(24)?),
        })
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = Dtype::from_number(self.dtype.into()).map_or("unknown", Dtype::name);
        match self.verb {
            Verb::Barrier | Verb::Split => f.write_str(self.verb.name())?,
            verb => write!(f, "{} of {} {dtype}", verb.name(), self.count)?,
        }
        if self.root >= 0 {
            write!(f, " from root {}", self.root)?;
        }
        write!(f, " (number {} in order)", self.sequence)
    }
}

/// What travels in front of the data of a call: the call, and the one before it, so that ranks which
/// are not in the same call can say where they parted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The call.
    pub call: Call,
    /// The group's call before it. `None` for the first one and for messages.
    pub before: Option<Call>,
}

impl Header {
    /// As it travels: both calls, zeros for none.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..CALL_BYTES].copy_from_slice(&self.call.encode());
        if let Some(before) = self.before {
            bytes[CALL_BYTES..].copy_from_slice(&before.encode());
        }
        bytes
    }

    /// The inverse; `None` if these bytes are no header.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
        let (call, before) = bytes.split_first_chunk::<CALL_BYTES>()?;
        Some(Header { call: Call::decode(call)?, before: Call::decode(before.first_chunk()?) })
    }

    /// As it stands in shared memory: both calls, zeros for none.
    pub fn words(&self) -> [u64; 6] {
        let ([a, b, c], [d, e, f]) =
            (self.call.words(), self.before.map_or([0; 3], |before| before.words()));
        [a, b, c, d, e, f]
    }

    /// The inverse; `None` if these words are no header.
    pub fn from_words([a, b, c, d, e, f]: [u64; 6]) -> Option<Header> {
        let call = Call::from_words([a, b, c])?;
        Some(Header { call, before: Call::from_words([d, e, f]) })
    }

    /// What to say when `peer`'s header is not this rank's: the two calls with which they parted.
    pub fn mismatch(&self, rank: usize, peer: usize, theirs: &Header) -> Error {
        let mine = [Some(self.call), self.before];
        let others = [Some(theirs.call), theirs.before];
        let parted = mine.iter().flatten().find_map(|ours| {
            let same_place = |other: &&Call| other.sequence == ours.sequence && *other != ours;
            Some((ours, others.iter().flatten().find(same_place)?))
        });
        let (ours, other) = parted.unwrap_or((&self.call, &theirs.call));
        mismatch(rank, ours, peer, other)
    }
}

/// What to say when `peer`'s call is not the one that this rank is in.
pub fn mismatch(rank: usize, ours: &Call, peer: usize, theirs: &Call) -> Error {
    let message = if ours.verb == Verb::Message && theirs.verb == Verb::Message {
        format!(
            "rank {rank} receives a {ours}, rank {peer} sent a {theirs}; \
             sizes and types of a send and its receive must be equal"
        )
    } else {
        format!(
            "rank {rank} called {ours}, rank {peer} called {theirs}; \
             all ranks must make the same calls in the same order"
        )
    };
    Error::new(Status::Mismatch, message)
}

/// The collectives that a group last began, and what waiting peers said they are in.
#[derive(Debug, Default)]
pub struct CallLog(Mutex<Calls>);

#[derive(Debug, Default)]
struct Calls {
    /// In order, newest last.
    begun: VecDeque<Call>,
    /// Calls that a peer waits in and this rank has not reached.
    claims: Vec<(usize, Call)>,
}

/// How many calls are kept: a peer cannot wait in one that is further back than the few which need
/// nothing from it (broadcasts of a root, calls of no elements).
const KEPT: usize = 256;

impl CallLog {
    /// Records that this rank begins `call`: the call before it; and the peer's, if one is known to
    /// wait in another call of the same number.
    pub fn begin(&self, call: Call) -> (Option<Call>, Option<(usize, Call)>) {
        let mut calls = self.0.lock();
        let before = calls.begun.back().copied();
        if calls.begun.len() == KEPT {
            calls.begun.pop_front();
        }
        calls.begun.push_back(call);
        if calls.claims.is_empty() {
            return (before, None);
        }
        let wrong =
            calls.claims.iter().copied().find(|(_, c)| c.sequence == call.sequence && *c != call);
        calls.claims.retain(|(_, claimed)| claimed.sequence > call.sequence);
        (before, wrong)
    }

    /// How many were begun in all.
    pub fn begun(&self) -> u64 {
        self.0.lock().begun.back().map_or(0, |call| call.sequence + 1)
    }

    /// Records that `peer` waits in `claimed`; this rank's own call of that number, if it differs.
    pub fn claim(&self, peer: usize, claimed: Call) -> Option<Call> {
        let mut calls = self.0.lock();
        let newest = calls.begun.back().map(|call| call.sequence);
        if newest.is_none_or(|newest| newest < claimed.sequence) {
            calls.claims.retain(|(who, _)| *who != peer);
            calls.claims.push((peer, claimed));
            return None;
        }
        let ours = calls.begun.iter().copied().find(|call| call.sequence == claimed.sequence)?;
        (ours != claimed).then_some(ours)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(sequence: u64, count: u64) -> Call {
        Call { sequence, verb: Verb::AllSum, dtype: 11, root: -1, count }
    }

    #[test]
    fn calls_round_trip() {
        for verb in Verb::ALL {
            let call = Call { sequence: u64::MAX, verb, dtype: 13, root: -1, count: 1 << 40 };
            assert_eq!(Call::decode(&call.encode()), Some(call));
            for before in [None, Some(Call { sequence: 7, ..call })] {
                let header = Header { call, before };
                assert_eq!(Header::decode(&header.encode()), Some(header));
                assert_eq!(Header::from_words(header.words()), Some(header));
            }
        }
        assert_eq!(Call::decode(&[0; CALL_BYTES]), None);
        assert_eq!(Header::from_words([0; 6]), None);
        let mut unknown = call(0, 0).encode();
        unknown[4] = 77;
        assert_eq!(Call::decode(&unknown), None);
    }

    #[test]
    fn a_claim_is_compared_whoever_comes_first() {
        let log = CallLog::default();
        assert_eq!(log.begin(call(0, 5)), (None, None));
        assert_eq!(log.claim(1, call(0, 5)), None);
        assert_eq!(log.claim(1, call(0, 6)), Some(call(0, 5)));
        assert_eq!(log.claim(1, call(1, 6)), None);
        assert_eq!(log.begin(call(1, 7)), (Some(call(0, 5)), Some((1, call(1, 6)))));
        assert_eq!(log.claim(2, call(2, 8)), None);
        assert_eq!(log.begin(call(2, 8)), (Some(call(1, 7)), None));
    }

    #[test]
    fn a_mismatch_names_the_calls_where_ranks_parted() {
        let at = |sequence, count, before| Header {
            call: call(sequence, count),
            before: Some(call(sequence - 1, before)),
        };
        let says = |ours: Header, theirs: Header, one: &str, other: &str| {
            let message = ours.mismatch(0, 1, &theirs).message;
            assert!(message.contains(&format!("rank 0 called all_sum of {one} ")), "{message}");
            assert!(message.contains(&format!("rank 1 called all_sum of {other} ")), "{message}");
        };
        says(at(5, 50, 40), at(5, 51, 40), "50", "51");
        says(at(5, 50, 40), at(5, 50, 41), "40", "41");
        says(at(5, 50, 40), at(4, 41, 30), "40", "41");
        says(at(4, 41, 30), at(5, 50, 40), "41", "40");
        says(at(4, 40, 30), at(9, 90, 80), "40", "90");
    }
}
