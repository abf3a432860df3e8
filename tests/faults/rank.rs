//! A rank of these tests: gets into a phase, says so, and tells how it ended.

use std::io::BufRead;
use std::ptr::null_mut;

use mlxd::capi::*;
use serde_json::json;

use crate::processes::{READY, report, report_end};

/// The role is `phase victim`.
pub fn main(role: &str) {
    let (phase, victim) = role.split_once(' ').unwrap();
    if phase == "restarts" {
        return crate::restarts::rank();
    }
    let victim: i32 = victim.parse().unwrap();
    if phase == "start" {
        listen(0);
        report(&json!(READY));
        // SAFETY: the name ends with a NUL.
        let world = unsafe { mlxd_init(1, c"ring".as_ptr()) };
        assert!(world.is_null(), "a world without its last rank");
        return report_end(mlxd_last_status());
    }
    // SAFETY: as above.
    let world = unsafe { mlxd_init(1, c"ring".as_ptr()) };
    if world.is_null() {
        return report_end(mlxd_last_status());
    }
    // SAFETY: the handle is valid, and `group` has room for a pointer.
    let (rank, size, group) = unsafe {
        let (rank, size) = (mlxd_group_rank(world), mlxd_group_size(world));
        let mut group = world;
        if phase == "split" {
            assert_eq!(mlxd_group_split(world, 0, size - rank, &mut group), MLXD_OK);
        }
        (rank, size, group)
    };
    assert_eq!(sum(group, 10, null_mut()), MLXD_OK);
    listen(group as usize);
    report(&json!(READY));
    if rank == victim && phase != "large_sum" && phase != "stream" {
        // Until it ends, or is ended.
        std::thread::park();
    }
    let status = match phase {
        "small_sum" | "split" => sum(group, 1, null_mut()),
        "large_sum" => loop {
            let status = sum(group, 16 << 20, null_mut());
            if status != MLXD_OK {
                break status;
            }
        },
        "recv" => recv(group, if rank == (victim + 1) % size { victim } else { (rank + 1) % size }),
        // SAFETY: the handle is valid.
        "barrier" => unsafe { mlxd_barrier(group, null_mut()) },
        "stream" => {
            let stream = mlxd_stream_new();
            loop {
                let status = sum(group, 1 << 10, stream);
                if status != MLXD_OK {
                    break status;
                }
            }
        }
        other => panic!("no phase {other}"),
    };
    report_end(status);
    // From then on every call says the same, at once.
    // SAFETY: the handle is valid.
    assert_eq!(unsafe { mlxd_group_status(group) }, status);
    assert_eq!(sum(group, 3, null_mut()), status);
    if rank == victim {
        std::thread::park();
    }
}

/// A sum on a stream is waited for.
fn sum(group: *mut mlxd_group, count: usize, stream: *mut mlxd_stream) -> mlxd_status {
    let (input, mut output) = (vec![1f32; count], vec![0f32; count]);
    let (from, into) = (input.as_ptr().cast(), output.as_mut_ptr().cast());
    // SAFETY: both have `count` elements, and the stream is waited for before they go.
    unsafe {
        let status = mlxd_all_sum(group, from, into, count, MLXD_FLOAT32, stream);
        if stream.is_null() || status != MLXD_OK { status } else { mlxd_stream_synchronize(stream) }
    }
}

fn recv(group: *mut mlxd_group, peer: i32) -> mlxd_status {
    let mut byte = 0u8;
    // SAFETY: there is room for one byte.
    unsafe { mlxd_recv(group, (&raw mut byte).cast(), 1, MLXD_UINT8, peer, null_mut()) }
}

/// Does what the test says, beside what the rank is in.
fn listen(group: usize) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            match line.as_str() {
                // SAFETY: ends the process, as a program does whose main returns.
                "exit" => unsafe { libc::exit(0) },
                // SAFETY: ends the process.
                "quick_exit" => unsafe { libc::_exit(0) },
                // SAFETY: the handle is valid.
                "abort" => assert_eq!(unsafe { mlxd_group_abort(group as *mut _) }, MLXD_OK),
                other => panic!("told to {other:?}"),
            }
        }
        // The test is over.
        // SAFETY: ends the process.
        unsafe { libc::_exit(0) }
    });
}
