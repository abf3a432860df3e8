//! Ranks that leave, free and fail while others go on; each rank is a thread of this process.

mod common;

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use common::*;
use mlxd::capi::*;

fn sum(group: *mut mlxd_group, stream: *mut mlxd_stream) -> mlxd_status {
    let (input, mut output) = (1f32, 0f32);
    let (from, into) = ((&raw const input).cast(), (&raw mut output).cast());
    // SAFETY: one element each, and the stream is waited for before they go.
    unsafe {
        let status = mlxd_all_sum(group, from, into, 1, MLXD_FLOAT32, stream);
        if stream.is_null() { status } else { mlxd_stream_synchronize(stream) }
    }
}

fn free(group: *mut mlxd_group) {
    // SAFETY: each test frees each handle once.
    unsafe { mlxd_group_free(group) };
}

fn split(group: *mut mlxd_group, color: i32) -> *mut mlxd_group {
    let mut part = null_mut();
    // SAFETY: `part` has room for a pointer.
    let status = unsafe { mlxd_group_split(group, color, -1, &mut part) };
    assert_eq!(status, MLXD_OK, "{}", last_error());
    part
}

#[test]
fn a_rank_may_leave_as_soon_as_its_start_is_done() {
    for _ in 0..20 {
        let port = free_port();
        ranks(3, |rank| free(start(with_coordinator(port, rank, 3))));
    }
}

#[test]
fn who_needs_a_rank_that_left_is_told_so() {
    let port = free_port();
    ranks(3, |rank| {
        let group = start(with_coordinator(port, rank, 3));
        check_sum(group, rank, 3);
        if rank == 1 {
            return free(group);
        }
        let begin = Instant::now();
        assert_eq!(sum(group, null_mut()), MLXD_ERROR_PEER_LOST);
        assert!(last_error().contains("rank 1 ("), "{}", last_error());
        assert!(begin.elapsed() < Duration::from_secs(10));
        free(group);
    });
}

#[test]
fn who_needs_a_rank_that_freed_a_part_is_told_so() {
    let port = free_port();
    let freed = Barrier::new(2);
    ranks(2, |rank| {
        let world = start(with_coordinator(port, rank, 2));
        let part = split(world, 0);
        if rank == 1 {
            free(part);
            freed.wait();
        } else {
            freed.wait();
            let begin = Instant::now();
            assert_eq!(sum(part, null_mut()), MLXD_ERROR_PEER_LOST, "{}", last_error());
            assert!(begin.elapsed() < Duration::from_secs(10));
            free(part);
        }
        // The world has lost nobody.
        check_sum(world, rank, 2);
        free(world);
    });
}

#[test]
fn who_receives_from_a_rank_that_freed_a_part_is_told_so() {
    let port = free_port();
    let freed = Barrier::new(2);
    ranks(2, |rank| {
        let world = start(with_coordinator(port, rank, 2));
        let part = split(world, 0);
        let mut byte = 7u8;
        let memory: *mut c_void = (&raw mut byte).cast();
        if rank == 1 {
            // What was sent before comes, however late it is asked for.
            // SAFETY: one byte is sent.
            let sent = unsafe { mlxd_send(world, memory, 1, MLXD_UINT8, 0, null_mut()) };
            assert_eq!(sent, MLXD_OK, "{}", last_error());
            free(part);
            freed.wait();
        } else {
            freed.wait();
            let begin = Instant::now();
            // SAFETY: there is room for one byte.
            let status = unsafe { mlxd_recv(part, memory, 1, MLXD_UINT8, 1, null_mut()) };
            assert_eq!(status, MLXD_ERROR_PEER_LOST, "{}", last_error());
            assert!(last_error().contains("has freed its handle"), "{}", last_error());
            assert!(begin.elapsed() < Duration::from_secs(10));
            // SAFETY: as above.
            let status = unsafe { mlxd_recv(world, memory, 1, MLXD_UINT8, 1, null_mut()) };
            assert_eq!((status, byte), (MLXD_OK, 7), "{}", last_error());
            free(part);
        }
        check_sum(world, rank, 2);
        free(world);
    });
}

#[test]
fn an_impatient_rank_0_waits_for_who_is_late() {
    let port = free_port();
    ranks(3, |rank| {
        let options = with_coordinator(port, rank, 3);
        if rank == 0 {
            set(options, "MLXD_PEER_TIMEOUT_MS", "400");
        } else if rank == 2 {
            std::thread::sleep(Duration::from_millis(1500));
        }
        let world = start(options);
        // Rank 0's patience is short, and this machine may be busy.
        free(world);
    });
}

#[test]
fn a_rank_comes_again_though_it_gave_up_before_rank_0_began() {
    let port = free_port();
    let late = Barrier::new(2);
    ranks(2, |rank| {
        // Its listener is there from now on.
        let first = start(with_coordinator(port, rank, 2));
        if rank == 1 {
            for _ in 0..2 {
                let options = with_coordinator(port, rank, 2);
                set(options, "MLXD_CONNECT_TIMEOUT_MS", "200");
                // SAFETY: options is valid, and freed once.
                unsafe {
                    let world = mlxd_init_with_options(1, c"ring".as_ptr(), options);
                    assert!(world.is_null());
                    mlxd_options_free(options);
                }
                assert!(last_error().contains("began no start"), "{}", last_error());
            }
        }
        late.wait();
        if rank == 0 {
            // The living one is in line behind the others.
            std::thread::sleep(Duration::from_millis(200));
        }
        let second = start(with_coordinator(port, rank, 2));
        check_sum(second, rank, 2);
        free(second);
        free(first);
    });
}

/// The root is done and has freed the part, while the last rank of the tree waits for a late one.
#[test]
fn a_rank_may_free_a_part_that_others_are_still_in() {
    let port = free_port();
    ranks(4, |rank| {
        let world = start(options(&[
            ("MLXD_COORDINATOR", format!("127.0.0.1:{port}")),
            ("MLXD_WORLD_SIZE", 4.to_string()),
            ("MLXD_RANK", rank.to_string()),
            ("MLXD_TRANSPORT", "tcp".to_owned()),
            ("MLXD_TIMEOUT_MS", 20_000.to_string()),
        ]));
        let part = split(world, 0);
        check_sum(part, rank, 4);
        if rank == 2 {
            // So long that those who wait say so.
            std::thread::sleep(Duration::from_millis(500));
        }
        let mut value = if rank == 0 { 7u8 } else { 0 };
        // SAFETY: there is one element.
        let status =
            unsafe { mlxd_broadcast(part, (&raw mut value).cast(), 1, MLXD_UINT8, 0, null_mut()) };
        assert_eq!((status, value), (MLXD_OK, 7), "{}", last_error());
        free(part);
        check_sum(world, rank, 4);
        free(world);
    });
}

#[test]
fn a_call_that_waits_for_its_turn_ends_with_its_group() {
    let port = free_port();
    let queued = Barrier::new(2);
    let ended = Barrier::new(2);
    ranks(2, |rank| {
        let world = start(with_coordinator(port, rank, 2));
        let part = split(world, 0);
        if rank == 0 {
            // On one stream: a message that does not come, then a sum of the part.
            let (stream, mut byte) = (mlxd_stream_new(), 0u8);
            let (input, mut output) = (1f32, 0f32);
            let into = (&raw mut byte).cast::<c_void>();
            let (a, b) = ((&raw const input).cast(), (&raw mut output).cast());
            // SAFETY: the buffers outlive the stream, which is freed below.
            unsafe {
                assert_eq!(mlxd_recv(world, into, 1, MLXD_UINT8, 1, stream), MLXD_OK);
                assert_eq!(mlxd_all_sum(part, a, b, 1, MLXD_FLOAT32, stream), MLXD_OK);
            }
            queued.wait();
            let begin = Instant::now();
            assert_eq!(sum(part, null_mut()), MLXD_ERROR_ABORTED);
            assert!(begin.elapsed() < Duration::from_secs(10));
            ended.wait();
            // SAFETY: the stream is freed once.
            unsafe { mlxd_stream_free(stream) };
            assert_eq!(byte, 7);
        } else {
            queued.wait();
            // SAFETY: the handle is valid; one byte is sent.
            unsafe {
                assert_eq!(mlxd_group_abort(part), MLXD_OK);
                ended.wait();
                let byte = 7u8;
                let from = (&raw const byte).cast();
                assert_eq!(mlxd_send(world, from, 1, MLXD_UINT8, 0, null_mut()), MLXD_OK);
            }
        }
        free(part);
        free(world);
    });
}

#[test]
fn threads_that_share_a_stream_keep_the_order_of_calls() {
    let port = free_port();
    ranks(2, |rank| {
        let world = start(with_coordinator(port, rank, 2));
        let stream = mlxd_stream_new();
        // Handles may be used by any thread.
        let handles = (world as usize, stream as usize);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(move || {
                    let (world, stream) =
                        (handles.0 as *mut mlxd_group, handles.1 as *mut mlxd_stream);
                    for _ in 0..200 {
                        assert_eq!(sum(world, stream), MLXD_OK, "{}", last_error());
                    }
                });
            }
        });
        // SAFETY: the stream is freed once.
        unsafe { mlxd_stream_free(stream) };
        free(world);
    });
}

#[test]
fn ranks_may_differ_in_how_long_they_bear_silence() {
    let port = free_port();
    ranks(2, |rank| {
        let options = with_coordinator(port, rank, 2);
        let limit = if rank == 0 { c"400" } else { c"0" };
        // SAFETY: the options are valid, and both strings end with a NUL.
        let set =
            unsafe { mlxd_options_set(options, c"MLXD_PEER_TIMEOUT_MS".as_ptr(), limit.as_ptr()) };
        assert_eq!(set, MLXD_OK);
        let world = start(options);
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(sum(world, null_mut()), MLXD_OK, "{}", last_error());
        free(world);
    });
}

#[test]
fn starts_at_one_address_from_several_threads() {
    let port = free_port();
    ranks(4, |thread| {
        let rank = thread / 2;
        let world = start(with_coordinator(port, rank, 2));
        check_sum(world, rank, 2);
        free(world);
    });
}

#[test]
fn a_start_ends_for_all_with_the_cause_of_whoever_gives_up() {
    let port = free_port();
    ranks(2, |rank| {
        let options = with_coordinator(port, rank, 3);
        if rank == 1 {
            set(options, "MLXD_CONNECT_TIMEOUT_MS", "2000");
        }
        let begin = Instant::now();
        // SAFETY: options is valid, and freed once.
        let world = unsafe { mlxd_init_with_options(1, c"ring".as_ptr(), options) };
        assert!(world.is_null());
        assert_eq!(mlxd_last_status(), MLXD_ERROR_TIMEOUT, "{}", last_error());
        assert!(last_error().contains("rank 2 did not come within 2000 ms"), "{}", last_error());
        assert!(begin.elapsed() < Duration::from_secs(10));
        // SAFETY: as above.
        unsafe { mlxd_options_free(options) };
    });
}

#[test]
fn strangers_do_not_keep_a_start_from_going_on() {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    let port = free_port();
    ranks(3, |rank| {
        if rank == 2 {
            std::thread::sleep(Duration::from_millis(100));
            let mut strangers = Vec::new();
            for number in 0..200 {
                let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { break };
                // Some say nothing, some talk of something else.
                if number % 2 == 0 {
                    let _ = stream
                        .write_all(b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n0123456789012345");
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
                    let mut answer = [0; 1];
                    // Turned away without a word.
                    assert!(matches!(stream.read(&mut answer), Ok(0) | Err(_)));
                }
                strangers.push(stream);
            }
            return;
        }
        if rank == 1 {
            std::thread::sleep(Duration::from_millis(400));
        }
        let world = start(with_coordinator(port, rank, 2));
        check_sum(world, rank, 2);
        free(world);
    });
}
