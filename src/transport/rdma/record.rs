//! What the ends of a wire tell each other on its control channel.

use crate::error::{Error, Result, Status, fail};

/// Bytes of a [`Record`] that travels: with its message's header less than goes inside a request.
pub const RECORD_BYTES: usize = 216;
/// The group of a failure that is the wire's: all groups.
pub const EVERY_GROUP: u64 = u64::MAX;
/// Where the sentence of a failure begins.
const SENTENCE: usize = 32;
/// Credits of a channel for which there is no room.
const NO_ROOM: u32 = u32::MAX;

/// What a channel is called at both ends, before they know each other's number of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    /// The group it belongs to.
    pub group: u64,
    /// Which of the two ranks would call, had they to connect for it.
    pub from: u32,
    /// What for.
    pub purpose: u8,
    /// Which of several.
    pub lane: u16,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The sender has opened its end of a channel.
    Open {
        /// Which.
        name: Name,
        /// Its number and how many messages it takes; `None` if it has no room for it.
        end: Option<(u32, usize)>,
    },
    /// The sender never opens its end of a channel: it has let go of the group.
    Gone {
        /// The receiver's number of it.
        number: u32,
    },
    /// A group has failed on the sender.
    Fail {
        /// Which.
        group: u64,
        /// Why; a long sentence loses its end.
        cause: Error,
    },
    /// Nothing: that it comes shows that those before it have.
    Probe,
}

impl Record {
    /// As it travels: kind, purpose, lane, from, group, number or status, credits or length, spare,
    /// sentence (little endian).
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        match self {
            Record::Open { name, end } => {
                let (number, credits) =
                    end.map_or((0, NO_ROOM), |(number, credits)| (number, credits as u32));
                (bytes[0], bytes[1]) = (1, name.purpose);
                bytes[2..4].copy_from_slice(&name.lane.to_le_bytes());
                bytes[4..8].copy_from_slice(&name.from.to_le_bytes());
                bytes[8..16].copy_from_slice(&name.group.to_le_bytes());
                bytes[16..20].copy_from_slice(&number.to_le_bytes());
                bytes[20..24].copy_from_slice(&credits.to_le_bytes());
            }
            Record::Gone { number } => {
                bytes[0] = 2;
                bytes[16..20].copy_from_slice(&number.to_le_bytes());
            }
            Record::Probe => bytes[0] = 3,
            Record::Fail { group, cause } => {
                let Error { status, message } = cause;
                let most = message.len().min(RECORD_BYTES - SENTENCE);
                let len = (0..=most).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
                bytes[0] = 4;
                bytes[8..16].copy_from_slice(&group.to_le_bytes());
                bytes[16..20].copy_from_slice(&(*status as u32).to_le_bytes());
                bytes[20..24].copy_from_slice(&(len as u32).to_le_bytes());
                bytes[SENTENCE..SENTENCE + len].copy_from_slice(&message.as_bytes()[..len]);
            }
        }
        bytes
    }

    /// The inverse.
    pub fn decode(bytes: &[u8; RECORD_BYTES]) -> Result<Record> {
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let group = u64::from_le_bytes(std::array::from_fn(|i| bytes[8 + i]));
        let number = word(16);
        Ok(match bytes[0] {
            1 => Record::Open {
                name: Name {
                    group,
                    from: word(4),
                    purpose: bytes[1],
                    lane: u16::from_le_bytes([bytes[2], bytes[3]]),
                },
                end: match word(20) {
                    NO_ROOM => None,
                    credits => Some((number, credits as usize)),
                },
            },
            2 => Record::Gone { number },
            3 => Record::Probe,
            4 => {
                let status = Status::ALL.get(number as usize).copied().unwrap_or(Status::Internal);
                let sentence = bytes[SENTENCE..].get(..word(20) as usize).unwrap_or_default();
                let message = String::from_utf8_lossy(sentence).into_owned();
                Record::Fail { group, cause: Error { status, message } }
            }
            other => fail!(Internal, "a record of the unknown kind {other}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_travel() {
        let name = Name { group: 1 << 40 | 7, from: 3, purpose: 4, lane: 500 };
        for record in [
            Record::Open { name, end: Some((u32::MAX, 8)) },
            Record::Open { name, end: Some((1, 0)) },
            Record::Open { name, end: None },
            Record::Gone { number: 77 },
            Record::Probe,
            Record::Fail { group: 9, cause: Error::new(Status::Aborted, "enough") },
        ] {
            assert_eq!(Record::decode(&record.encode()), Ok(record));
        }
        let cause = Error::new(Status::Timeout, "ä".repeat(500));
        let Ok(Record::Fail { group: 9, cause: told }) =
            Record::decode(&Record::Fail { group: 9, cause: cause.clone() }.encode())
        else {
            panic!("another record");
        };
        assert_eq!((told.status, told.message.len()), (cause.status, RECORD_BYTES - SENTENCE));
        assert!(Record::decode(&[0; RECORD_BYTES]).is_err());
    }
}
