//! Partitions: a port's table of keys says of which it is a member, and only members of one talk.

use std::fmt;

use crate::error::{Result, fail};

/// A port's membership of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionKey(pub u16);

impl PartitionKey {
    /// That of the partition which every port is in, where nobody has said otherwise.
    pub const DEFAULT: PartitionKey = PartitionKey(0xffff);

    /// A full member's key; a limited member talks to full ones alone.
    const FULL: u16 = 0x8000;

    /// Which partition it is of; 0 is none.
    pub fn partition(self) -> u16 {
        self.0 & !PartitionKey::FULL
    }

    /// Whether a port with this key talks to one with that.
    pub fn meets(self, other: PartitionKey) -> bool {
        self.partition() == other.partition() && (self.0 | other.0) & PartitionKey::FULL != 0
    }
}

impl fmt::Display for PartitionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let member = if self.0 & PartitionKey::FULL != 0 { "full" } else { "limited" };
        write!(f, "{:#06x} ({member} member)", self.0)
    }
}

/// The key at this place of a port's table of `length` entries, of which `entry` reads one.
pub fn choose_partition(
    port: u8,
    index: u16,
    length: u16,
    entry: impl Fn(u16) -> Option<PartitionKey>,
) -> Result<PartitionKey> {
    if length == 0 && index == 0 {
        // What has no table has no partitions.
        return Ok(PartitionKey::DEFAULT);
    }
    let used = |index: u16| entry(index).filter(|key| key.partition() != 0);
    if let Some(key) = (index < length).then(|| used(index)).flatten() {
        return Ok(key);
    }
    let known: Vec<String> =
        (0..length).filter_map(|index| used(index).map(|key| format!("{index}: {key}"))).collect();
    let known = match known.is_empty() {
        true => "no partition keys".to_owned(),
        false => format!("the partition keys {}", known.join(", ")),
    };
    let why = if index < length { "that entry is empty" } else { "its table ends before" };
    fail!(Config, "MLXD_RDMA_PKEY_INDEX={index}: {why}; port {port} has {known}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    #[test]
    fn members_of_a_partition_meet_unless_both_are_limited() {
        let [full, limited] = [PartitionKey(0x8123), PartitionKey(0x0123)];
        assert!(full.meets(full) && full.meets(limited) && limited.meets(full));
        assert!(!limited.meets(limited));
        assert!(!full.meets(PartitionKey::DEFAULT));
        assert_eq!(full.to_string(), "0x8123 (full member)");
        assert_eq!(limited.to_string(), "0x0123 (limited member)");
    }

    #[test]
    fn keys_are_chosen_by_their_place() {
        let table = [0xffff, 0, 0x8000, 0x0123];
        let entry = |at: u16| table.get(usize::from(at)).copied().map(PartitionKey);
        let choose = |index| choose_partition(1, index, 4, entry);
        assert_eq!(choose(0), Ok(PartitionKey::DEFAULT));
        assert_eq!(choose(3), Ok(PartitionKey(0x0123)));
        let known =
            "port 1 has the partition keys 0: 0xffff (full member), 3: 0x0123 (limited member)";
        for (index, why) in
            [(1, "that entry is empty"), (2, "that entry is empty"), (4, "its table ends before")]
        {
            let error = choose(index).unwrap_err();
            assert_eq!(error.status, Status::Config);
            let message = format!("MLXD_RDMA_PKEY_INDEX={index}: {why}; {known}");
            assert_eq!(error.message, message);
        }
    }

    #[test]
    fn tables_may_be_missing_or_unreadable() {
        let nothing = |_| None;
        assert_eq!(choose_partition(1, 0, 0, nothing), Ok(PartitionKey::DEFAULT));
        for (index, length) in [(1, 0), (0, 1)] {
            let error = choose_partition(2, index, length, nothing).unwrap_err().message;
            assert!(error.ends_with("port 2 has no partition keys"), "{error}");
        }
    }
}
