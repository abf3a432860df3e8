//! A case: ranks with the proxy between them, one fault, and what each rank came to.

use std::fmt;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use mlxd::capi::*;
use serde_json::Value;

use crate::between::{BEHIND, Proxy};
use crate::fault::{Fault, Kind, Random};
use crate::processes::Rank;
use crate::program;
use crate::scratch::Scratch;

/// Ranks of a world here: one connection has ends on two of them, the third is to learn of it.
const RANKS: usize = 3;
/// Where a fault must show within these limits.
const SHORT: Limits = Limits { start: 3000, operation: 1500, peer: 1000 };
/// Where nothing is to fail, on however busy a machine.
const LONG: Limits = Limits { start: 40_000, operation: 40_000, peer: 40_000 };
/// Beside the limits of the ranks themselves: what a loaded machine gets.
const GRACE: Duration = Duration::from_secs(15);

/// Of the ranks, in milliseconds.
#[derive(Clone, Copy)]
pub struct Limits {
    start: u64,
    operation: u64,
    peer: u64,
}

/// A test: what it does beside the kind of fault follows from the seed.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub kind: Kind,
    pub transport: &'static str,
    pub seed: u64,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}::seed_{}", self.kind.name(), self.transport, self.seed)
    }
}

impl Case {
    pub fn test(self) -> Result<(), Failed> {
        // Neighbouring seeds, kinds and transports have nothing in common.
        let mut random =
            Random(self.seed << 16 | (self.kind as u64) << 8 | u64::from(self.transport == "shm"));
        let fault = Fault::draw(self.kind, self.transport, RANKS, &mut random);
        // What changes bytes is only found with checksums; of all else half the cases have some.
        let checksums = self.kind.changes_bytes() || random.below(2) == 1;
        let world = World {
            ranks: RANKS,
            role: "all".to_owned(),
            transport: self.transport,
            checksums,
            limits: if self.kind.is_harmless() { LONG } else { SHORT },
        };
        let (reports, happened) = world.run(fault, self.seed)?;
        let scene = format!("{fault:?}, checksums {checksums}, happened {happened}");
        for (rank, report) in reports.iter().enumerate() {
            let judged = match self.kind.is_harmless() {
                true => is_ok(report),
                false => is_ok_or_told(report),
            };
            judged.map_err(|why| {
                format!("rank {rank}: {why}: {report}; all: {reports:?}; {scene}")
            })?;
        }
        if std::env::var("MLXD_TEST_VERBOSE").is_ok() {
            println!("{self}: {scene}: {reports:?}");
        }
        Ok(())
    }
}

/// The world of a test.
pub struct World {
    pub ranks: usize,
    pub role: String,
    pub transport: &'static str,
    pub checksums: bool,
    pub limits: Limits,
}

impl World {
    /// Two ranks over TCP that do one all_sum, with time enough for everything.
    pub fn pair(count: usize, checksums: bool) -> World {
        World { ranks: 2, role: count.to_string(), transport: "tcp", checksums, limits: LONG }
    }

    /// Two ranks over TCP that are to fail soon.
    pub fn short_pair(count: usize) -> World {
        World { limits: SHORT, ..World::pair(count, false) }
    }

    /// What each rank reported, and whether the fault has happened.
    pub fn run(&self, fault: Fault, seed: u64) -> Result<(Vec<Value>, bool), String> {
        let proxy = Proxy::new(self.ranks, fault, seed);
        let scratch = Scratch::new(&proxy.name());
        let hostfile = scratch.0.join("hosts.json");
        std::fs::write(&hostfile, proxy.hostfile()).unwrap();
        let Limits { start, operation, peer } = self.limits;
        let begin = Instant::now();
        let limit = Duration::from_millis(start + operation + peer) + GRACE;
        let mut ranks: Vec<Rank> = (0..self.ranks)
            .map(|rank| {
                let variables = [
                    ("MLX_HOSTFILE", hostfile.to_str().unwrap().to_owned()),
                    ("MLX_RANK", rank.to_string()),
                    ("MLXD_BIND", BEHIND.to_string()),
                    ("MLXD_TRANSPORT", self.transport.to_owned()),
                    ("MLXD_CHECKSUM", u8::from(self.checksums).to_string()),
                    ("MLXD_CONNECT_TIMEOUT_MS", start.to_string()),
                    ("MLXD_TIMEOUT_MS", operation.to_string()),
                    ("MLXD_RECV_TIMEOUT_MS", operation.to_string()),
                    ("MLXD_PEER_TIMEOUT_MS", peer.to_string()),
                ];
                Rank::start(&self.role, &variables, None)
            })
            .collect();
        let mut reports = Vec::new();
        for (rank, process) in ranks.iter().enumerate() {
            let left = limit.saturating_sub(begin.elapsed());
            let report = process.report_within(left);
            reports.push(report.ok_or_else(|| {
                format!(
                    "rank {rank} came to no end within {limit:?}: {fault:?}; before it: {reports:?}"
                )
            })?);
        }
        for (rank, process) in ranks.iter_mut().enumerate() {
            match process.exit() {
                Some(status) if status.success() => {}
                other => return Err(format!("rank {rank} ended with {other:?}: {fault:?}")),
            }
        }
        Ok((reports, proxy.has_happened()))
    }
}

/// All went well.
pub fn is_ok(report: &Value) -> Result<(), String> {
    match program::wrong(report) {
        Some(_) => Err("wrong bytes".to_owned()),
        None if report["status"] == MLXD_OK => Ok(()),
        None => Err("an error".to_owned()),
    }
}

/// All went well, or a status says what it was: a rank lost, a limit passed, bytes changed.
pub fn is_ok_or_told(report: &Value) -> Result<(), String> {
    const TOLD: [mlxd_status; 3] = [MLXD_ERROR_PEER_LOST, MLXD_ERROR_TIMEOUT, MLXD_ERROR_SYSTEM];
    if TOLD.iter().any(|status| report["status"] == *status) {
        return Ok(());
    }
    // An answer that does not even begin as ours: nobody can know that it was a rank's.
    let stranger = |message: &str| message.contains("no rank of this library");
    if report["status"] == MLXD_ERROR_CONFIG && report["message"].as_str().is_some_and(stranger) {
        return Ok(());
    }
    is_ok(report)
}
