//! Worlds that fail and start again, 200 times in the same processes and at the same address: nothing
//! is left of them, no descriptor, no thread, no mapping.

use std::fs;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use mlxd::capi::*;
use serde_json::{Value, json};

use crate::processes::{LIMIT, Rank, free_port, report};

/// Starts, each followed by a failure.
const CYCLES: usize = 200;
/// What a process has after so many is compared with what it has at the end: until then its allocator
/// may get used to the threads that come and go.
const WARM: usize = 60;
/// Ranks; the last one is killed in every fourth cycle, and comes again as another process.
const RANKS: usize = 3;
/// Mappings that the allocator and the stacks of threads may add between the two.
const MAPPINGS: u64 = 6;

pub fn trials() -> Vec<Trial> {
    ["shm", "tcp"]
        .into_iter()
        .map(|transport| Trial::test(format!("restarts::{transport}"), move || restarts(transport)))
        .collect()
}

/// How a cycle ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Failure {
    Abort,
    Timeout,
    Mismatch,
    Kill,
}

fn failure_of(cycle: usize) -> Failure {
    [Failure::Abort, Failure::Timeout, Failure::Mismatch, Failure::Kill][cycle % 4]
}

fn restarts(transport: &str) -> Result<(), Failed> {
    let port = free_port();
    let start = |rank: usize, from: usize| {
        let variables = [
            ("MLXD_COORDINATOR", format!("127.0.0.1:{port}")),
            ("MLXD_WORLD_SIZE", RANKS.to_string()),
            ("MLXD_RANK", rank.to_string()),
            ("MLXD_TRANSPORT", transport.to_owned()),
            ("FROM_CYCLE", from.to_string()),
        ];
        Rank::start("restarts 2", &variables, None)
    };
    let mut stays: Vec<Rank> = (0..RANKS - 1).map(|rank| start(rank, 0)).collect();
    for last in (0..CYCLES).filter(|cycle| failure_of(*cycle) == Failure::Kill) {
        let from = last + 1 - 4;
        let mut dies = start(RANKS - 1, from);
        let status = dies.exit().ok_or_else(|| format!("cycles from {from}: it does not end"))?;
        if status.success() || dies.report().is_some() {
            return Err(format!("cycles from {from}: the last rank ended with {status}").into());
        }
    }
    for (rank, process) in stays.iter_mut().enumerate() {
        let told = process.report().ok_or_else(|| format!("rank {rank} did not come through"))?;
        println!("restarts over {transport}, rank {rank}: {told}");
        let figure = |when: &str, what: &str| told[when][what].as_u64().unwrap();
        for what in ["descriptors", "threads", "segments"] {
            if figure("end", what) != figure("warm", what) {
                return Err(format!("rank {rank}: {what}: {told}").into());
            }
        }
        if figure("end", "mappings") > figure("warm", "mappings") + MAPPINGS {
            return Err(format!("rank {rank}: mappings: {told}").into());
        }
        process.exit().filter(|status| status.success()).ok_or("ended badly")?;
    }
    Ok(())
}

/// What this process has.
fn have() -> Value {
    let entries = |path: &str| fs::read_dir(path).unwrap().count();
    // First of all: what a thread holds goes before it does.
    let threads = entries("/proc/self/task");
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    json!({
        "descriptors": entries("/proc/self/fd"),
        "threads": threads,
        "mappings": maps.lines().count(),
        "segments": maps.lines().filter(|line| line.contains("memfd:")).count(),
        "resident_kib": resident.trim().trim_end_matches(" kB").parse::<u64>().unwrap(),
    })
}

/// A rank: all cycles from the one that it is told of.
pub fn rank() {
    let from: usize = std::env::var("FROM_CYCLE").unwrap().parse().unwrap();
    let mut warm = Value::Null;
    for cycle in from..CYCLES {
        once(cycle);
        if cycle + 1 == WARM {
            warm = settled();
        }
    }
    report(&json!({ "warm": warm, "end": settled() }));
}

/// What the process has once what it let go of is gone: the control thread says goodbye by itself.
fn settled() -> Value {
    let deadline = Instant::now() + LIMIT;
    let mut last = have();
    while last["threads"] != 1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        last = have();
    }
    last
}

/// A world that works, and fails.
fn once(cycle: usize) {
    // SAFETY: handles are valid until they are freed; each operation has the memory that it names.
    unsafe {
        let world = mlxd_init(1, c"ring".as_ptr());
        assert!(!world.is_null(), "cycle {cycle}: {}", error());
        let (rank, mut part) = (mlxd_group_rank(world) as usize, null_mut());
        assert_eq!(sum(world, 1000), MLXD_OK, "{}", error());
        assert_eq!(mlxd_group_split(world, 0, -1, &mut part), MLXD_OK, "{}", error());
        assert_eq!(sum(part, 10), MLXD_OK, "{}", error());
        let stream = mlxd_stream_new();
        let (one, mut all) = (1f32, 0f32);
        let (from, into) = ((&raw const one).cast(), (&raw mut all).cast());
        assert_eq!(mlxd_all_sum(part, from, into, 1, MLXD_FLOAT32, stream), MLXD_OK);
        // A faster rank may have gone on to what fails the group.
        let last = mlxd_stream_synchronize(stream);
        mlxd_stream_free(stream);
        let chosen = cycle % RANKS == rank;
        let expected = match failure_of(cycle) {
            Failure::Abort => {
                if chosen {
                    assert_eq!(mlxd_group_abort(world), MLXD_OK);
                }
                MLXD_ERROR_ABORTED
            }
            Failure::Timeout => {
                assert_eq!(mlxd_group_set_timeout(world, 50), MLXD_OK);
                MLXD_ERROR_TIMEOUT
            }
            Failure::Mismatch => MLXD_ERROR_MISMATCH,
            Failure::Kill => {
                if rank == RANKS - 1 {
                    libc::raise(libc::SIGKILL);
                }
                MLXD_ERROR_PEER_LOST
            }
        };
        let status = match failure_of(cycle) {
            _ if last != MLXD_OK => last,
            Failure::Timeout if chosen => await_failure(world),
            Failure::Mismatch if chosen => sum(world, 6),
            _ => sum(world, 5),
        };
        assert_eq!(status, expected, "cycle {cycle}: {}", error());
        mlxd_group_free(part);
        mlxd_group_free(world);
    }
}

fn sum(group: *mut mlxd_group, count: usize) -> mlxd_status {
    let (input, mut output) = (vec![1f32; count], vec![0f32; count]);
    let (from, into) = (input.as_ptr().cast(), output.as_mut_ptr().cast());
    // SAFETY: both have `count` elements.
    unsafe { mlxd_all_sum(group, from, into, count, MLXD_FLOAT32, null_mut()) }
}

/// Calls nothing until the group has failed.
fn await_failure(group: *mut mlxd_group) -> mlxd_status {
    let deadline = Instant::now() + LIMIT;
    loop {
        // SAFETY: the handle is valid.
        let status = unsafe { mlxd_group_status(group) };
        if status != MLXD_OK || Instant::now() > deadline {
            return status;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn error() -> String {
    // SAFETY: the library's string is valid until the next call on this thread.
    unsafe { std::ffi::CStr::from_ptr(mlxd_last_error()) }.to_string_lossy().into_owned()
}
