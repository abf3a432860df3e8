//! Facts about this machine that a reader of the figures needs.

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};

use crate::memory::last_level_cache;

/// Variables that say where ranks are or what they keep secret, not how they run.
const PRIVATE: [&str; 5] =
    ["MLXD_SECRET", "MLXD_COORDINATOR", "MLXD_BIND", "MLX_HOSTFILE", "MLX_JACCL_COORDINATOR"];

/// The machine of rank 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// The processor's name.
    pub cpu: String,
    /// Processors that this process may run on.
    pub cores: usize,
    /// Bytes of the last-level cache, where the kernel tells.
    pub last_level_cache: Option<usize>,
    /// The kernel's release.
    pub kernel: String,
    /// The processor's architecture.
    pub architecture: String,
}

impl Host {
    /// The one that this runs on.
    pub fn here() -> Host {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Host {
            cpu: cpu_name(&cpuinfo).unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            last_level_cache: last_level_cache(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| "unknown".to_owned(), |release| release.trim().to_owned()),
            architecture: std::env::consts::ARCH.to_owned(),
        }
    }
}

/// The library's settings in the environment, but for secrets and addresses.
pub fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with("MLXD_") || name.starts_with("MLX_"))
        .filter(|(name, _)| !PRIVATE.contains(&name.as_str()))
        .map(|(name, value)| (name, value.to_string_lossy().into_owned()))
        .collect()
}

/// The name in `/proc/cpuinfo`; not every architecture has one.
fn cpu_name(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_has_a_name() {
        assert_eq!(cpu_name("processor\t: 0\nmodel name\t: A 9000\n"), Some("A 9000"));
        assert_eq!(cpu_name("processor\t: 0\nBogoMIPS\t: 1\n"), None);
    }
}
