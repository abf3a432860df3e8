//! What the MPI backend starts from: the library, and the launcher that started this process.

use std::time::Duration;

use super::{Found, Settings, parse};
use crate::error::{Result, fail};

/// The launcher that started this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MpiLauncher {
    /// The variable by which it was told, as `NAME=value`.
    pub variable: String,
    /// Ranks in the world, where the launcher says so.
    pub size: Option<usize>,
    mpich: bool,
}

impl MpiLauncher {
    /// Whether it talks to processes as MPICH's does: then Open MPI would see worlds of one.
    pub fn is_mpich(&self) -> bool {
        self.mpich
    }
}

/// All that a start needs to know.
#[derive(Clone, Debug)]
pub struct MpiSettings {
    /// The library's file, if it was named.
    pub library: Option<String>,
    /// The launcher, if there is one.
    pub launcher: Option<MpiLauncher>,
    /// Whether ranks compare their calls.
    pub check: bool,
    /// Bytes of what is handed to MPI at once.
    pub part_bytes: usize,
    /// How long the whole start may take.
    pub connect_timeout: Option<Duration>,
}

/// 1 GiB: MPI counts in `int`, and some versions compute with bytes in one; a part this large takes
/// 0.1 s and more, so that another cut costs nothing.
const PART_BYTES: usize = 1 << 30;

impl Settings {
    /// What to start MPI from; there is always something to try.
    pub fn mpi(&self) -> Result<MpiSettings> {
        let part_bytes = match self.find(&["MLXD_MPI_PART_BYTES"]) {
            Some(found) => {
                let bytes = parse::<usize>(&found, "a number of bytes")?;
                // An element of the largest type must fit.
                if !(16..=PART_BYTES).contains(&bytes) {
                    fail!(Config, "{found} is not a number of bytes from 16 to {PART_BYTES}");
                }
                bytes
            }
            None => PART_BYTES,
        };
        Ok(MpiSettings {
            library: self.text("MLX_MPI_LIBNAME"),
            launcher: self.mpi_launcher(),
            check: self.text("MLXD_CHECK").is_some_and(|value| value != "0"),
            part_bytes,
            connect_timeout: self.connect_timeout()?,
        })
    }

    /// The limits that were set by name. MPI's blocking calls are the tuned ones and know no limit,
    /// so there is none by default.
    pub fn mpi_timeouts(&self) -> Result<(Option<Duration>, Option<Duration>)> {
        Ok((self.milliseconds("MLXD_TIMEOUT_MS", 0)?, self.recv_timeout()?))
    }

    /// The MPI launcher that started this process, by the variables that it sets.
    pub fn mpi_launcher(&self) -> Option<MpiLauncher> {
        let size = |found: &Found| found.value.trim().parse::<usize>().ok();
        let told = |found: &Found, size, mpich| {
            Some(MpiLauncher { variable: found.to_string(), size, mpich })
        };
        if let Some(found) = self.variable("OMPI_COMM_WORLD_SIZE") {
            return told(&found, size(&found), false);
        }
        // Hydra (MPICH, Intel MPI, MVAPICH) and what speaks its protocol; Slurm's PMI-2 gives no
        // PMI_SIZE, but the size of the step.
        let step = || self.variable("SLURM_STEP_NUM_TASKS");
        if let Some(found) =
            self.variable("PMI_SIZE").or_else(|| self.variable("MV2_COMM_WORLD_SIZE"))
        {
            return told(&found, size(&found), true);
        }
        if let Some(found) = self.variable("PMI_RANK") {
            return told(&found, step().as_ref().and_then(size), true);
        }
        let found = self.variable("PMIX_RANK")?;
        told(&found, step().as_ref().and_then(size), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    #[test]
    fn parts_have_bounds() {
        let mut settings = Settings::default();
        assert_eq!(settings.mpi().unwrap().part_bytes, 1 << 30);
        settings.set("MLXD_MPI_PART_BYTES", "64").unwrap();
        assert_eq!(settings.mpi().unwrap().part_bytes, 64);
        for wrong in ["15", "1073741825", "many"] {
            settings.set("MLXD_MPI_PART_BYTES", wrong).unwrap();
            assert_eq!(settings.mpi().unwrap_err().status, Status::Config);
        }
    }

    #[test]
    fn no_limit_unless_one_was_set() {
        let mut settings = Settings::default();
        assert_eq!(settings.mpi_timeouts().unwrap(), (None, None));
        settings.set("MLXD_TIMEOUT_MS", "300").unwrap();
        assert_eq!(settings.mpi_timeouts().unwrap(), (Some(Duration::from_millis(300)), None));
    }

    #[test]
    fn checks_are_asked_for() {
        let mut settings = Settings::default();
        for (value, wanted) in [("1", true), ("0", false), ("", false)] {
            settings.set("MLXD_CHECK", value).unwrap();
            assert_eq!(settings.mpi().unwrap().check, wanted);
        }
    }
}
