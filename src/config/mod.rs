//! Settings: the only reader of the environment.
//!
//! A setting is looked up in the caller's options first, then in the environment. Where several
//! names mean the same, `MLXD_` comes before `MLX_`, before torchrun's names. An empty value counts
//! as not set.

mod address;
mod devices;
mod hostfile;
mod jaccl;
mod mpi;
mod nccl;
mod rdma;
mod start;

pub use address::Address;
pub use devices::{Devices, Topology};
pub use hostfile::Hostfile;
pub use jaccl::JacclStart;
pub use mpi::{MpiLauncher, MpiSettings};
pub use nccl::{NcclLibrary, NcclStart};
pub use rdma::{QueuePairType, Registration};
pub use start::{Meeting, RingStart, Transport};

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Result, fail};

/// Every setting that [`Settings::set`] takes, each named like its environment variable.
const NAMES: &[&str] = &[
    "JACCL_COORDINATOR",
    "JACCL_IBV_DEVICES",
    "JACCL_RANK",
    "JACCL_RING",
    "JOB_COMPLETION_INDEX",
    "MASTER_ADDR",
    "MASTER_PORT",
    "MLXD_BIND",
    "MLXD_CHECK",
    "MLXD_CHECKSUM",
    "MLXD_CONNECT_TIMEOUT_MS",
    "MLXD_COORDINATOR",
    "MLXD_FLIGHT_RECORDER",
    "MLXD_HOST_ID",
    "MLXD_LOG",
    "MLXD_MPI_PART_BYTES",
    "MLXD_NCCL_LIBNAME",
    "MLXD_PEER_TIMEOUT_MS",
    "MLXD_RANK",
    "MLXD_RDMA_GID_INDEX",
    "MLXD_RDMA_PKEY_INDEX",
    "MLXD_RDMA_PORT",
    "MLXD_RDMA_QP",
    "MLXD_RDMA_REGISTER",
    "MLXD_RDMA_SERVICE_LEVEL",
    "MLXD_RDMA_TRAFFIC_CLASS",
    "MLXD_RECV_TIMEOUT_MS",
    "MLXD_SECRET",
    "MLXD_TIMEOUT_MS",
    "MLXD_TRANSPORT",
    "MLXD_WORLD_SIZE",
    "MLX_HOSTFILE",
    "MLX_IBV_DEVICES",
    "MLX_JACCL_COORDINATOR",
    "MLX_JACCL_RING",
    "MLX_MPI_LIBNAME",
    "MLX_NCCL_TIMEOUT",
    "MLX_RANK",
    "MLX_RING_VERBOSE",
    "MLX_WORLD_SIZE",
    "NCCL_HOST_IP",
    "NCCL_PORT",
    "RANK",
    "TORCHELASTIC_USE_AGENT_STORE",
    "WORLD_SIZE",
];

/// A caller's own way to gather `bytes` bytes from every rank: 0 on success.
pub type AllGatherFn = unsafe extern "C" fn(
    user_data: *mut c_void,
    src: *const c_void,
    dst: *mut c_void,
    bytes: usize,
) -> i32;

/// A caller's all-gather with its data.
#[derive(Clone, Copy, Debug)]
pub struct AllGather {
    /// The function.
    pub function: AllGatherFn,
    /// Its first argument.
    pub user_data: *mut c_void,
}

/// The caller's options over the environment.
#[derive(Clone, Default)]
pub struct Settings {
    options: BTreeMap<&'static str, String>,
    all_gather: Option<AllGather>,
}

/// A setting that was found: its name and value.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    name: &'static str,
    value: String,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A secret is never shown: only numbers, names and addresses pass through here.
        write!(f, "{}={:?}", self.name, self.value)
    }
}

/// Where a setting may come from, first one first.
#[derive(Clone, Copy)]
enum Source {
    Options,
    Environment,
}

impl Settings {
    /// Sets an option, which wins over the environment.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let Ok(at) = NAMES.binary_search(&name) else {
            fail!(InvalidArgument, "unknown setting {name:?}; settings are named like {NAMES:?}");
        };
        self.options.insert(NAMES[at], value.to_owned());
        Ok(())
    }

    /// Sets the caller's own all-gather.
    pub fn set_all_gather(&mut self, all_gather: AllGather) {
        self.all_gather = Some(all_gather);
    }

    fn look_up(&self, source: Source, name: &'static str) -> Option<Found> {
        let value = match source {
            Source::Options => self.options.get(name).cloned(),
            // An option hides the variable of its name, even where the option is empty.
            Source::Environment if self.options.contains_key(name) => None,
            // A value that is not UTF-8 fails where it is parsed.
            Source::Environment => std::env::var_os(name).map(|v| v.to_string_lossy().into_owned()),
        };
        value.filter(|v| !v.is_empty()).map(|value| Found { name, value })
    }

    /// The first of these names that is set: any option before any variable.
    fn find(&self, names: &[&'static str]) -> Option<Found> {
        [Source::Options, Source::Environment]
            .into_iter()
            .find_map(|source| names.iter().find_map(|name| self.look_up(source, name)))
    }

    /// A variable that is no setting: what a launcher tells the processes it starts.
    fn variable(&self, name: &'static str) -> Option<Found> {
        self.look_up(Source::Environment, name)
    }

    fn text(&self, name: &'static str) -> Option<String> {
        self.find(&[name]).map(|found| found.value)
    }

    fn milliseconds(&self, name: &'static str, default: u64) -> Result<Option<Duration>> {
        let value = match self.find(&[name]) {
            Some(found) => parse::<u64>(&found, "a number of milliseconds, 0 for no limit")?,
            None => default,
        };
        Ok((value > 0).then(|| Duration::from_millis(value)))
    }

    /// Whether a setting that is off by default is on.
    fn switch(&self, name: &'static str) -> Result<bool> {
        match self.find(&[name]) {
            None => Ok(false),
            Some(found) => match found.value.trim() {
                "0" => Ok(false),
                "1" => Ok(true),
                _ => fail!(Config, "{found} is not 1 or 0, for on or off"),
            },
        }
    }

    /// How long the whole start may take.
    pub fn connect_timeout(&self) -> Result<Option<Duration>> {
        self.milliseconds("MLXD_CONNECT_TIMEOUT_MS", 60_000)
    }

    /// How long one operation may go without progress.
    pub fn timeout(&self) -> Result<Option<Duration>> {
        self.milliseconds("MLXD_TIMEOUT_MS", 600_000)
    }

    /// How long a receive waits for its message.
    pub fn recv_timeout(&self) -> Result<Option<Duration>> {
        self.milliseconds("MLXD_RECV_TIMEOUT_MS", 0)
    }

    /// How long a peer may stay silent before it counts as lost.
    pub fn peer_timeout(&self) -> Result<Option<Duration>> {
        self.milliseconds("MLXD_PEER_TIMEOUT_MS", 20_000)
    }

    /// What peers must know before they may join.
    pub fn secret(&self) -> Option<String> {
        self.text("MLXD_SECRET")
    }

    /// The folder for the records of groups that fail.
    pub fn flight_recorder(&self) -> Option<PathBuf> {
        self.text("MLXD_FLIGHT_RECORDER").map(PathBuf::from)
    }

    /// What goes to stderr: a level's name.
    pub fn log_level(&self) -> Option<String> {
        let verbose = || self.text("MLX_RING_VERBOSE").map(|_| "info".to_owned());
        self.text("MLXD_LOG").or_else(verbose)
    }

    /// The variable that announces a world of more than one, as `NAME=value`.
    pub fn announced_world(&self) -> Option<String> {
        const SIZES: &[&str] = &["MLXD_WORLD_SIZE", "MLX_WORLD_SIZE", "WORLD_SIZE"];
        for name in SIZES {
            let found = self.find(&[name]);
            if let Some(found) = found.filter(|f| f.value.parse::<u64>().is_ok_and(|n| n > 1)) {
                return Some(found.to_string());
            }
        }
        if let Some(launcher) = self.mpi_launcher()
            && launcher.size.is_some_and(|size| size > 1)
        {
            return Some(launcher.variable);
        }
        let rows = |name| -> Option<Found> {
            let found = self.find(&[name])?;
            let text = std::fs::read_to_string(&found.value).ok()?;
            let rows = serde_json::from_str::<Vec<serde_json::Value>>(&text).ok()?;
            (rows.len() > 1).then_some(found)
        };
        ["MLX_HOSTFILE", "MLX_IBV_DEVICES", "JACCL_IBV_DEVICES"]
            .into_iter()
            .find_map(rows)
            .map(|found| found.to_string())
    }
}

/// The value as a `T`, or an error that names the setting and what it should be.
fn parse<T: FromStr>(found: &Found, expected: &str) -> Result<T> {
    match found.value.trim().parse() {
        Ok(value) => Ok(value),
        Err(_) => fail!(Config, "{found} is not {expected}"),
    }
}

/// The one of these that is written so.
fn named<T: fmt::Display, const N: usize>(all: [T; N], name: &str) -> std::result::Result<T, ()> {
    all.into_iter().find(|one| one.to_string() == name).ok_or(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    #[test]
    fn names_are_sorted_for_the_search() {
        assert!(NAMES.is_sorted());
    }

    #[test]
    fn options_are_checked_and_win() {
        let mut settings = Settings::default();
        let error = settings.set("MLXD_RANKS", "1").unwrap_err();
        assert_eq!(error.status, Status::InvalidArgument);
        assert!(error.message.contains("MLXD_RANKS"), "{error}");
        settings.set("MLX_RANK", "3").unwrap();
        let found = settings.find(&["MLXD_RANK", "MLX_RANK"]).unwrap();
        assert_eq!((found.name, found.value.as_str()), ("MLX_RANK", "3"));
    }

    #[test]
    fn limits_have_defaults_and_zero_is_none() {
        let mut settings = Settings::default();
        assert_eq!(settings.timeout().unwrap(), Some(Duration::from_secs(600)));
        assert_eq!(settings.recv_timeout().unwrap(), None);
        settings.set("MLXD_TIMEOUT_MS", "0").unwrap();
        assert_eq!(settings.timeout().unwrap(), None);
        settings.set("MLXD_TIMEOUT_MS", "soon").unwrap();
        let error = settings.timeout().unwrap_err();
        assert_eq!(error.status, Status::Config);
        assert!(error.message.contains("MLXD_TIMEOUT_MS=\"soon\""), "{error}");
    }

    #[test]
    fn a_world_of_more_than_one_is_announced() {
        let mut settings = Settings::default();
        settings.set("WORLD_SIZE", "1").unwrap();
        assert_eq!(settings.announced_world(), None);
        settings.set("MLX_WORLD_SIZE", "4").unwrap();
        assert_eq!(settings.announced_world().as_deref(), Some("MLX_WORLD_SIZE=\"4\""));
    }
}
