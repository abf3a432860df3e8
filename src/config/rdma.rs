//! What the user asks of RDMA verbs: `MLXD_RDMA_*`.

use std::fmt;
use std::str::FromStr;

use super::{Settings, named, parse};
use crate::error::{Result, fail};

/// The service that a queue pair gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueuePairType {
    /// Reliable connection: what is lost on the way is sent again.
    Rc,
    /// Unreliable connection: what is lost is lost. All that Thunderbolt has.
    Uc,
}

impl FromStr for QueuePairType {
    type Err = ();

    fn from_str(name: &str) -> std::result::Result<QueuePairType, ()> {
        named([QueuePairType::Rc, QueuePairType::Uc], name)
    }
}

impl fmt::Display for QueuePairType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QueuePairType::Rc => "rc",
            QueuePairType::Uc => "uc",
        })
    }
}

/// Whether the caller's memory is registered with devices, so that it is sent without a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Registration {
    /// Where that takes less time than the copy.
    #[default]
    Auto,
    /// Wherever it can be.
    Always,
    /// Nowhere.
    Never,
}

impl FromStr for Registration {
    type Err = ();

    fn from_str(name: &str) -> std::result::Result<Registration, ()> {
        named([Registration::Auto, Registration::Always, Registration::Never], name)
    }
}

impl fmt::Display for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Registration::Auto => "auto",
            Registration::Always => "always",
            Registration::Never => "never",
        })
    }
}

impl Settings {
    pub(super) fn queue_pair(&self) -> Result<Option<QueuePairType>> {
        self.parsed("MLXD_RDMA_QP", "rc or uc")
    }

    pub(super) fn gid_index(&self) -> Result<Option<u8>> {
        self.parsed("MLXD_RDMA_GID_INDEX", "a place in the port's table of GIDs, from 0 to 255")
    }

    pub(super) fn rdma_port(&self) -> Result<Option<u8>> {
        self.up_to("MLXD_RDMA_PORT", 1, 255, "a port of the device, from 1 to 255")
    }

    pub(super) fn registration(&self) -> Result<Registration> {
        Ok(self.parsed("MLXD_RDMA_REGISTER", "auto, always or never")?.unwrap_or_default())
    }

    pub(super) fn service_level(&self) -> Result<u8> {
        let level =
            self.up_to("MLXD_RDMA_SERVICE_LEVEL", 0, 15, "a service level, from 0 to 15")?;
        Ok(level.unwrap_or(0))
    }

    pub(super) fn traffic_class(&self) -> Result<u8> {
        let expected = "a traffic class, from 0 to 255";
        Ok(self.parsed("MLXD_RDMA_TRAFFIC_CLASS", expected)?.unwrap_or(0))
    }

    pub(super) fn pkey_index(&self) -> Result<u16> {
        let expected = "a place in the port's table of partition keys, from 0 to 65535";
        Ok(self.parsed("MLXD_RDMA_PKEY_INDEX", expected)?.unwrap_or(0))
    }

    fn parsed<T: FromStr>(&self, name: &'static str, expected: &str) -> Result<Option<T>> {
        self.find(&[name]).map(|found| parse(&found, expected)).transpose()
    }

    fn up_to(&self, name: &'static str, first: u8, last: u8, expected: &str) -> Result<Option<u8>> {
        let Some(found) = self.find(&[name]) else {
            return Ok(None);
        };
        match parse(&found, expected)? {
            number if (first..=last).contains(&number) => Ok(Some(number)),
            _ => fail!(Config, "{found} is not {expected}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Status};

    fn with(name: &str, value: &str) -> Settings {
        let mut settings = Settings::default();
        settings.set(name, value).unwrap();
        settings
    }

    /// That `read` takes these values of a setting, and refuses those, with its value and what it may be.
    fn check<T: fmt::Debug + PartialEq>(
        name: &str,
        read: impl Fn(&Settings) -> Result<T>,
        good: impl IntoIterator<Item = (&'static str, T)>,
        bad: &[&str],
        expected: &str,
    ) {
        for (value, meaning) in good {
            assert_eq!(read(&with(name, value)), Ok(meaning), "{name}={value}");
        }
        for value in bad {
            let message = format!("{name}={value:?} is not {expected}");
            assert_eq!(read(&with(name, value)), Err(Error::new(Status::Config, message)));
        }
    }

    #[test]
    fn types_of_queue_pairs() {
        let good = [("rc", Some(QueuePairType::Rc)), (" uc ", Some(QueuePairType::Uc)), ("", None)];
        check("MLXD_RDMA_QP", Settings::queue_pair, good, &["ud", "RC", "0"], "rc or uc");
    }

    #[test]
    fn ports_and_addresses() {
        let good = [("1", Some(1)), ("255", Some(255)), ("", None)];
        let expected = "a port of the device, from 1 to 255";
        check("MLXD_RDMA_PORT", Settings::rdma_port, good, &["0", "256", "-1", "eth0"], expected);
        let good = [("0", Some(0)), ("255", Some(255)), ("", None)];
        let expected = "a place in the port's table of GIDs, from 0 to 255";
        let bad = ["256", "-1", "first"];
        check("MLXD_RDMA_GID_INDEX", Settings::gid_index, good, &bad, expected);
    }

    #[test]
    fn registrations() {
        let good = [
            ("", Registration::Auto),
            ("auto", Registration::Auto),
            ("always", Registration::Always),
            ("never", Registration::Never),
        ];
        let bad = ["1", "Always", "off"];
        let expected = "auto, always or never";
        check("MLXD_RDMA_REGISTER", Settings::registration, good, &bad, expected);
    }

    #[test]
    fn how_packets_are_marked() {
        let good = [("", 0), ("0", 0), ("15", 15)];
        let expected = "a service level, from 0 to 15";
        let bad = ["16", "-1", "256", "high"];
        check("MLXD_RDMA_SERVICE_LEVEL", Settings::service_level, good, &bad, expected);
        let good = [("", 0), ("106", 106), ("255", 255)];
        let expected = "a traffic class, from 0 to 255";
        let bad = ["256", "-1", "0x6a", "af41"];
        check("MLXD_RDMA_TRAFFIC_CLASS", Settings::traffic_class, good, &bad, expected);
        let good = [("", 0), ("1", 1), ("65535", 65535)];
        let expected = "a place in the port's table of partition keys, from 0 to 65535";
        let bad = ["65536", "-1", "0xffff"];
        check("MLXD_RDMA_PKEY_INDEX", Settings::pkey_index, good, &bad, expected);
    }
}
