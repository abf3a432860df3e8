//! What the ranks are told of their world: addresses, the hostfile, the environment.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The address of every rank of this host.
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// How many ports wide the range is from which free ones are drawn: wide enough that two launches
/// rarely try the same, below the ports which the system gives to outgoing connections.
const PORT_RANGE: u32 = 16384;

/// Variables that announce a world or this process's place in one, by exact name. They are taken
/// from the ranks' environment, so that a launch from inside another launch, a batch job or a
/// shell with leftovers makes its own world; settings (`MLXD_TIMEOUT_MS`, ...) pass. `--env` can
/// set any of them again, save the two that the launcher sets itself.
const FOREIGN_NAMES: [&str; 41] = [
    // this library and MLX
    "MLX_RANK",
    "MLX_HOSTFILE",
    "MLX_WORLD_SIZE",
    "MLXD_RANK",
    "MLXD_WORLD_SIZE",
    "MLXD_COORDINATOR",
    "NCCL_HOST_IP",
    "NCCL_PORT",
    "JACCL_RANK",
    "MLX_JACCL_COORDINATOR",
    "JACCL_COORDINATOR",
    "MLX_IBV_DEVICES",
    "JACCL_IBV_DEVICES",
    "MLX_JACCL_RING",
    "JACCL_RING",
    // torchrun
    "MASTER_ADDR",
    "MASTER_PORT",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "ROLE_NAME",
    // Slurm (one task's place; the job's own variables stay), Kubernetes
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_NTASKS",
    "SLURM_NPROCS",
    "SLURM_STEPID",
    "SLURM_STEP_ID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_TASK_PID",
    "JOB_COMPLETION_INDEX",
    // MPI launchers
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "OMPI_UNIVERSE_SIZE",
    "OMPI_MCA_orte_ess_vpid",
];

/// The same, by how the name starts.
const FOREIGN_PREFIXES: [&str; 6] =
    ["TORCHELASTIC_", "PMI_", "PMIX_", "PMI2_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_"];

/// The variables that the launcher sets, which `--env` must leave alone.
pub const OWN_NAMES: [&str; 2] = ["MLX_RANK", "MLX_HOSTFILE"];

/// The addresses of all ranks and the file that lists them.
pub struct World {
    /// By rank, that rank's addresses, as `host:port`; empty for a world of one.
    pub addresses: Vec<Vec<String>>,
    hostfile: Hostfile,
    /// Held as long as the launch lasts: no other launcher picks these ports meanwhile.
    _claims: Vec<UnixListener>,
}

impl World {
    /// Finds `connections` addresses for each of `ranks` ranks and writes the hostfile; a world of
    /// one has none, and its hostfile is the empty list. Ports count up from `starting_port`, or
    /// are drawn from the free ones.
    pub fn new(ranks: u32, connections: u32, starting_port: Option<u16>) -> Result<World, String> {
        let ports = if ranks == 1 {
            Ports::default()
        } else {
            let count = ranks
                .checked_mul(connections)
                .filter(|&count| count <= u32::from(u16::MAX))
                .ok_or_else(|| {
                    format!(
                        "{ranks} ranks with {connections} connections need more ports than exist"
                    )
                })?;
            match starting_port {
                Some(first) => Ports::from(first, count)?,
                None => Ports::draw(count)?,
            }
        };
        let addresses: Vec<Vec<String>> = ports
            .numbers
            .chunks(connections as usize)
            .map(|own| own.iter().map(|port| format!("{LOOPBACK}:{port}")).collect())
            .collect();
        let hostfile = Hostfile::write(&addresses)?;
        // The listeners in `ports` close here: the ranks can bind from now on.
        Ok(World { addresses, hostfile, _claims: ports.claims })
    }

    /// Tells `command` that it is `rank` of this world, and hides other worlds from it.
    pub fn describe_to(&self, command: &mut Command, rank: u32) {
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_foreign(name)) {
            command.env_remove(name);
        }
        command.env("MLX_RANK", rank.to_string()).env("MLX_HOSTFILE", &self.hostfile.path);
    }
}

/// Whether a variable announces a world.
fn is_foreign(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        FOREIGN_NAMES.contains(&name)
            || FOREIGN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    })
}

/// The hostfile: a plain file in the temporary directory, removed when dropped.
///
/// Plain, because the ranks' programs may be wrappers (containers, `sudo`, Python) which close
/// inherited descriptors or cannot look into another process's `/proc`: a memfd would be lost on
/// them. Only `kill -9` of the launcher leaves the file behind, a few bytes.
struct Hostfile {
    path: PathBuf,
}

impl Hostfile {
    fn write(addresses: &[Vec<String>]) -> Result<Hostfile, String> {
        let directory = std::env::temp_dir();
        Self::write_in(&directory, addresses)
            .map_err(|error| format!("cannot write a hostfile in {}: {error}", directory.display()))
    }

    fn write_in(directory: &Path, addresses: &[Vec<String>]) -> io::Result<Hostfile> {
        let name = format!("mlxd-hosts-{}-{:016x}.json", std::process::id(), random()?);
        let path = std::path::absolute(directory)?.join(name);
        let mut file = File::create_new(&path)?;
        let hostfile = Hostfile { path };
        file.write_all(&serde_json::to_vec(addresses)?)?;
        Ok(hostfile)
    }
}

impl Drop for Hostfile {
    fn drop(&mut self) {
        // Nobody is left to tell if it is gone already.
        let _ = fs::remove_file(&self.path);
    }
}

/// Ports found free, and what keeps others from taking them.
#[derive(Default)]
struct Ports {
    numbers: Vec<u16>,
    /// Hold the ports while more are looked for, so that they are distinct.
    listeners: Vec<TcpListener>,
    /// Hold them against other launchers until the ranks have bound them.
    claims: Vec<UnixListener>,
}

impl Ports {
    /// The `count` ports from `first` up.
    fn from(first: u16, count: u32) -> Result<Ports, String> {
        let last = u32::from(first) + count - 1;
        if last > u32::from(u16::MAX) {
            return Err(format!("{count} ports from --starting-port {first} up go beyond 65535"));
        }
        let mut ports = Ports::default();
        for port in (first..=u16::MAX).take(count as usize) {
            ports.take(port).map_err(|error| {
                format!(
                    "port {port} of {LOOPBACK} is not to be had ({error}); \
                     leave out --starting-port and free ports are found"
                )
            })?;
        }
        Ok(ports)
    }

    /// `count` ports drawn at random from those that are free.
    fn draw(count: u32) -> Result<Ports, String> {
        let range = port_range(ephemeral_range());
        let width = u64::from(range.1 - range.0) + 1;
        // With half the range taken, a draw succeeds every other time: this many tries do not
        // fail before the range is nearly full.
        let tries = 64 * u64::from(count) + 1024;
        let mut ports = Ports::default();
        for _ in 0..tries {
            let offset = random().map_err(|error| format!("no random numbers: {error}"))? % width;
            let port = u16::try_from(u64::from(range.0) + offset).unwrap_or(range.1);
            match ports.take(port) {
                Ok(()) => {}
                // Taken by somebody, or by an earlier draw: the next one.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(format!("cannot try port {port}: {error}")),
            }
            if ports.numbers.len() == count as usize {
                return Ok(ports);
            }
        }
        Err(format!("found no {count} free ports between {} and {}", range.0, range.1))
    }

    fn take(&mut self, port: u16) -> io::Result<()> {
        // An abstract name lives in the network namespace, as ports do, and goes with its process.
        let name = SocketAddr::from_abstract_name(format!("mlxd-launch/port/{port}"))?;
        let claim = UnixListener::bind_addr(&name)?;
        self.listeners.push(TcpListener::bind((LOOPBACK, port))?);
        self.claims.push(claim);
        self.numbers.push(port);
        Ok(())
    }
}

/// The ports that the system gives to outgoing connections: first and last.
fn ephemeral_range() -> (u16, u16) {
    fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| {
            let mut numbers = text.split_whitespace().map(|word| word.parse().ok());
            Some((numbers.next()??, numbers.next()??))
        })
        // Linux's default, where /proc is not to be seen.
        .unwrap_or((32768, 60999))
}

/// Where to draw ports, first and last: below the ephemeral range, so that between our look and a
/// rank's bind no outgoing connection is given one of them; else above it; else within.
fn port_range(ephemeral: (u16, u16)) -> (u16, u16) {
    /// Ports below are for privileged processes.
    const FIRST_FREE: u16 = 1024;
    /// Fewer are too likely to be taken.
    const ENOUGH: u16 = 2048;
    let (low, high) = ephemeral;
    if low >= FIRST_FREE + ENOUGH {
        let first = u32::from(low).saturating_sub(PORT_RANGE).max(u32::from(FIRST_FREE));
        (u16::try_from(first).unwrap_or(FIRST_FREE), low - 1)
    } else if u16::MAX - high >= ENOUGH {
        (high + 1, u16::MAX)
    } else {
        (FIRST_FREE.max(low), high.max(FIRST_FREE))
    }
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_drawn_outside_the_ephemeral_range() {
        assert_eq!(port_range((32768, 60999)), (16384, 32767));
        assert_eq!(port_range((10000, 65535)), (1024, 9999));
        assert_eq!(port_range((1024, 60999)), (61000, 65535));
        assert_eq!(port_range((1024, 65535)), (1024, 65535));
        assert_eq!(port_range((1, 65535)), (1024, 65535));
    }

    #[test]
    fn drawn_ports_are_distinct_and_kept_from_other_launchers() {
        let ports = Ports::draw(200).unwrap();
        let mut numbers = ports.numbers.clone();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 200);
        let first = ports.numbers[0];
        let claims = ports.claims;
        drop(ports.listeners);
        // A rank can bind it, another launcher cannot take it.
        drop(TcpListener::bind((LOOPBACK, first)).unwrap());
        assert!(Ports::from(first, 1).is_err());
        drop(claims);
        assert_eq!(Ports::from(first, 1).unwrap().numbers, [first]);
    }

    #[test]
    fn fixed_ports_end_at_the_last_port() {
        assert!(Ports::from(65535, 2).err().unwrap().contains("beyond 65535"));
    }

    #[test]
    fn only_variables_that_announce_a_world_are_foreign() {
        for name in ["MLX_RANK", "WORLD_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE"] {
            assert!(is_foreign(OsStr::new(name)), "{name}");
        }
        for name in ["MLXD_TIMEOUT_MS", "MLXD_SECRET", "SLURM_JOB_ID", "PATH", "COLUMNS"] {
            assert!(!is_foreign(OsStr::new(name)), "{name}");
        }
    }
}
