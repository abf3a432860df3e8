//! Several ranks in one process, each on a thread of its own, through the C interface.

mod common;

use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Arc, Barrier, Mutex};

use common::*;
use mlxd::capi::*;

#[test]
fn one_address_serves_start_after_start() {
    let port = free_port();
    ranks(3, |rank| {
        let mut groups = Vec::new();
        for _ in 0..3 {
            let group = start(with_coordinator(port, rank, 3));
            check_sum(group, rank, 3);
            groups.push(group);
        }
        for group in groups {
            check_sum(group, rank, 3);
            // SAFETY: the handle is freed once.
            unsafe { mlxd_group_free(group) };
        }
        let group = start(with_coordinator(port, rank, 3));
        check_sum(group, rank, 3);
        // SAFETY: the handle is freed once.
        unsafe { mlxd_group_free(group) };
    });
}

/// The system calls from 127.0.0.1 wherever on loopback it calls.
#[test]
fn ranks_meet_at_any_address_of_loopback() {
    let port = free_port();
    for transport in ["tcp", "auto"] {
        ranks(3, |rank| {
            let group = start(options(&[
                ("MLXD_COORDINATOR", format!("127.0.0.2:{port}")),
                ("MLXD_WORLD_SIZE", 3.to_string()),
                ("MLXD_RANK", rank.to_string()),
                ("MLXD_TRANSPORT", transport.to_owned()),
            ]));
            check_sum(group, rank, 3);
            // SAFETY: the handle is freed once.
            unsafe { mlxd_group_free(group) };
        });
    }
}

/// What the ranks of one all-gather share.
struct Exchange {
    bytes: Mutex<Vec<Vec<u8>>>,
    barrier: Barrier,
}

struct Side {
    rank: usize,
    exchange: Arc<Exchange>,
}

unsafe extern "C" fn gather(
    user_data: *mut c_void,
    src: *const c_void,
    dst: *mut c_void,
    bytes: usize,
) -> i32 {
    // SAFETY: user_data is the Side that was set, src has `bytes` and dst `size * bytes` bytes.
    unsafe {
        let side = &*user_data.cast::<Side>();
        let own = std::slice::from_raw_parts(src.cast::<u8>(), bytes).to_vec();
        side.exchange.bytes.lock().unwrap()[side.rank] = own;
        side.exchange.barrier.wait();
        for (rank, theirs) in side.exchange.bytes.lock().unwrap().iter().enumerate() {
            dst.cast::<u8>().add(rank * bytes).copy_from_nonoverlapping(theirs.as_ptr(), bytes);
        }
    }
    0
}

#[test]
fn ranks_meet_through_the_callers_all_gather() {
    let exchange =
        Arc::new(Exchange { bytes: Mutex::new(vec![Vec::new(); 4]), barrier: Barrier::new(4) });
    ranks(4, |rank| {
        let mut side = Side { rank, exchange: exchange.clone() };
        let options = options(&[
            ("MLXD_WORLD_SIZE", "4".to_owned()),
            ("MLXD_RANK", rank.to_string()),
            ("MLXD_CONNECT_TIMEOUT_MS", "20000".to_owned()),
        ]);
        let data = (&raw mut side).cast();
        // SAFETY: side outlives the options, which `start` frees.
        assert_eq!(unsafe { mlxd_options_set_all_gather(options, Some(gather), data) }, MLXD_OK);
        let group = start(options);
        check_sum(group, rank, 4);
        // SAFETY: the handle is freed once.
        unsafe { mlxd_group_free(group) };
    });
}

#[test]
fn a_failing_all_gather_is_an_error() {
    unsafe extern "C" fn fails(_: *mut c_void, _: *const c_void, _: *mut c_void, _: usize) -> i32 {
        7
    }
    let options = options(&[("MLXD_WORLD_SIZE", "2".to_owned()), ("MLXD_RANK", "1".to_owned())]);
    // SAFETY: options is valid; the function needs no data; the group is NULL.
    unsafe {
        assert_eq!(mlxd_options_set_all_gather(options, Some(fails), null_mut()), MLXD_OK);
        assert!(mlxd_init_with_options(1, null(), options).is_null());
        assert_eq!(mlxd_last_status(), MLXD_ERROR_CONFIG);
        assert!(last_error().contains("returned 7"), "{}", last_error());
        mlxd_options_free(options);
    }
}

#[test]
fn a_secret_must_be_shared() {
    let port = free_port();
    ranks(3, |rank| {
        let with = |secret: &str| {
            let options = with_coordinator(port, rank.min(1), 2);
            let value = CString::new(secret).unwrap();
            // SAFETY: options is valid, and both strings end with a NUL.
            let status =
                unsafe { mlxd_options_set(options, c"MLXD_SECRET".as_ptr(), value.as_ptr()) };
            assert_eq!(status, MLXD_OK);
            options
        };
        // Thread 2 is a stranger that claims to be rank 1, with a wrong secret or none.
        if rank == 2 {
            for secret in ["wrong", ""] {
                let options = with(secret);
                // SAFETY: options is valid; the group is NULL.
                unsafe {
                    assert!(mlxd_init_with_options(1, null(), options).is_null());
                    assert_eq!(mlxd_last_status(), MLXD_ERROR_AUTH, "{}", last_error());
                    mlxd_options_free(options);
                }
            }
            return;
        }
        if rank == 1 {
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        let group = start(with("correct"));
        check_sum(group, rank, 2);
        if rank == 0 {
            // The stranger may still be about to try.
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        // SAFETY: the handle is freed once.
        unsafe { mlxd_group_free(group) };
    });
}

fn count(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn starts_and_ends_leave_nothing_behind() {
    // In a process of its own: the other tests here have descriptors and threads too.
    if std::env::var_os("MLXD_TEST_ALONE").is_none() {
        let this = std::env::current_exe().unwrap();
        let status = std::process::Command::new(this)
            .args(["--exact", "starts_and_ends_leave_nothing_behind"])
            .env("MLXD_TEST_ALONE", "1")
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let port = free_port();
    let cycle = || {
        let summed = Barrier::new(3);
        ranks(3, |rank| {
            let group = start(with_coordinator(port, rank, 3));
            check_sum(group, rank, 3);
            summed.wait();
            if rank == 1 {
                // SAFETY: the handle is valid.
                assert_eq!(unsafe { mlxd_group_abort(group) }, MLXD_OK);
            }
            // SAFETY: the handle is freed once.
            unsafe { mlxd_group_free(group) };
        });
    };
    let settled = || {
        // The control thread ends once its last connection is closed.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let counts = (count("/proc/self/fd"), count("/proc/self/task"));
            if counts.1 <= 2 || std::time::Instant::now() > deadline {
                return counts;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    cycle();
    let before = settled();
    for _ in 0..20 {
        cycle();
    }
    assert_eq!(settled(), before, "descriptors and threads after 20 cycles and before");
}

#[test]
fn a_token_goes_around_before_any_lane_is_there() {
    let port = free_port();
    ranks(3, |rank| {
        let group = start(with_coordinator(port, rank, 3));
        let (mut token, sent) = ([0u8; 3], [7u8, 8, 9]);
        let (into, from) = (token.as_mut_ptr().cast::<c_void>(), sent.as_ptr().cast::<c_void>());
        let (dst, src) = ((rank as i32 + 1) % 3, (rank as i32 + 2) % 3);
        // SAFETY: both arrays have 3 elements; the handle is freed once.
        unsafe {
            if rank == 0 {
                // Its message comes only after the one that it sends has gone around.
                let status =
                    mlxd_send_recv(group, from, 3, dst, into, 3, src, MLXD_UINT8, null_mut());
                assert_eq!(status, MLXD_OK, "{}", last_error());
            } else {
                let status = mlxd_recv(group, into, 3, MLXD_UINT8, src, null_mut());
                assert_eq!(status, MLXD_OK, "{}", last_error());
                let status = mlxd_send(group, into, 3, MLXD_UINT8, dst, null_mut());
                assert_eq!(status, MLXD_OK, "{}", last_error());
            }
            mlxd_group_free(group);
        }
        assert_eq!(token, sent);
    });
}
