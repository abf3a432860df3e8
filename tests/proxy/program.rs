//! What a rank does: collectives and messages of several sizes, each compared with its closed form.

use std::ptr::null_mut;

use mlxd::capi::*;
use serde_json::{Value, json};

use crate::processes::{report, report_end};

/// Elements: one, few, more than a frame, more than a socket holds.
const COUNTS: [usize; 4] = [1, 777, 20_001, 100_002];

/// The role is a count for one all_sum, or `all`.
pub fn main(role: &str) {
    // SAFETY: the name ends with a NUL.
    let world = unsafe { mlxd_init(1, c"ring".as_ptr()) };
    if world.is_null() {
        return report_end(mlxd_last_status());
    }
    // SAFETY: the handle is valid.
    let (rank, size) = unsafe { (mlxd_group_rank(world), mlxd_group_size(world)) };
    let program = Program { world, rank: rank as usize, size: size as usize };
    let outcome = match role.parse() {
        Ok(count) => program.all_sum(count),
        Err(_) => program.everything(),
    };
    match outcome {
        Ok(()) => report_end(MLXD_OK),
        Err(Wrong::Status(status)) => report_end(status),
        Err(Wrong::Bytes(what)) => report(&json!({ "wrong": what })),
    }
    // SAFETY: the handle is valid, and not used again.
    unsafe { mlxd_group_free(world) };
}

/// What a rank reports of bytes that are wrong.
pub fn wrong(report: &Value) -> Option<&str> {
    report["wrong"].as_str()
}

enum Wrong {
    Status(mlxd_status),
    Bytes(String),
}

struct Program {
    world: *mut mlxd_group,
    rank: usize,
    size: usize,
}

/// Element `i` of what a rank gives.
fn element(rank: usize, i: usize) -> i64 {
    i as i64 * (rank as i64 + 1) + 5
}

fn input(rank: usize, count: usize) -> Vec<i64> {
    (0..count).map(|i| element(rank, i)).collect()
}

fn done(status: mlxd_status) -> Result<(), Wrong> {
    if status == MLXD_OK { Ok(()) } else { Err(Wrong::Status(status)) }
}

fn compare(what: &str, found: &[i64], right: impl Fn(usize) -> i64) -> Result<(), Wrong> {
    match (0..found.len()).find(|i| found[*i] != right(*i)) {
        None => Ok(()),
        Some(i) => Err(Wrong::Bytes(format!(
            "{what} of {}: element {i} is {}, not {}",
            found.len(),
            found[i],
            right(i)
        ))),
    }
}

impl Program {
    fn everything(&self) -> Result<(), Wrong> {
        for count in COUNTS {
            self.all_sum(count)?;
            self.all_gather(count)?;
            self.broadcast(count)?;
            self.all_to_all(count)?;
            self.send_recv(count)?;
        }
        // SAFETY: the handle is valid.
        done(unsafe { mlxd_barrier(self.world, null_mut()) })
    }

    fn all_sum(&self, count: usize) -> Result<(), Wrong> {
        let (own, mut all) = (input(self.rank, count), vec![0i64; count]);
        let (from, into) = (own.as_ptr().cast(), all.as_mut_ptr().cast());
        // SAFETY: both have `count` elements.
        done(unsafe { mlxd_all_sum(self.world, from, into, count, MLXD_INT64, null_mut()) })?;
        compare("all_sum", &all, |i| (0..self.size).map(|rank| element(rank, i)).sum())
    }

    fn all_gather(&self, count: usize) -> Result<(), Wrong> {
        let (own, mut all) = (input(self.rank, count), vec![0i64; count * self.size]);
        let (from, into) = (own.as_ptr().cast(), all.as_mut_ptr().cast());
        // SAFETY: the input has `count` elements, the output as many for each rank.
        done(unsafe { mlxd_all_gather(self.world, from, into, count, MLXD_INT64, null_mut()) })?;
        compare("all_gather", &all, |i| element(i / count, i % count))
    }

    fn broadcast(&self, count: usize) -> Result<(), Wrong> {
        let root = count % self.size;
        let mut buffer = input(self.rank, count);
        let into = buffer.as_mut_ptr().cast();
        // SAFETY: the buffer has `count` elements.
        done(unsafe {
            mlxd_broadcast(self.world, into, count, MLXD_INT64, root as i32, null_mut())
        })?;
        compare("broadcast", &buffer, |i| element(root, i))
    }

    fn all_to_all(&self, block: usize) -> Result<(), Wrong> {
        let count = block * self.size;
        let (own, mut all) = (input(self.rank, count), vec![0i64; count]);
        let (from, into) = (own.as_ptr().cast(), all.as_mut_ptr().cast());
        // SAFETY: both have `count` elements.
        done(unsafe { mlxd_all_to_all(self.world, from, into, count, MLXD_INT64, null_mut()) })?;
        compare("all_to_all", &all, |i| element(i / block, self.rank * block + i % block))
    }

    /// To the next rank, from the one before.
    fn send_recv(&self, count: usize) -> Result<(), Wrong> {
        let (to, from) = ((self.rank + 1) % self.size, (self.rank + self.size - 1) % self.size);
        let (own, mut theirs) = (input(self.rank, count), vec![0i64; count]);
        let (input, output) = (own.as_ptr().cast(), theirs.as_mut_ptr().cast());
        let (to, source, dtype) = (to as i32, from as i32, MLXD_INT64);
        // SAFETY: both have `count` elements.
        done(unsafe {
            mlxd_send_recv(self.world, input, count, to, output, count, source, dtype, null_mut())
        })?;
        compare("a message", &theirs, |i| element(from, i))
    }
}
