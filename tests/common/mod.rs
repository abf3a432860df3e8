//! What the tests that hold several ranks in one process share.
#![allow(dead_code)] // No test file uses everything.

use std::ffi::{CStr, CString};
use std::net::TcpListener;
use std::ptr::null_mut;

use mlxd::capi::*;

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// This thread's last error.
pub fn last_error() -> String {
    // SAFETY: the library's string is valid until the next call on this thread.
    unsafe { CStr::from_ptr(mlxd_last_error()) }.to_string_lossy().into_owned()
}

/// Options with these settings.
pub fn options(pairs: &[(&str, String)]) -> *mut mlxd_options {
    let options = mlxd_options_new();
    pairs.iter().for_each(|(name, value)| set(options, name, value));
    options
}

/// Sets one of them.
pub fn set(options: *mut mlxd_options, name: &str, value: &str) {
    let (name, value) = (CString::new(name).unwrap(), CString::new(value).unwrap());
    // SAFETY: options is valid, and both strings end with a NUL.
    assert_eq!(unsafe { mlxd_options_set(options, name.as_ptr(), value.as_ptr()) }, MLXD_OK);
}

/// Starts a world with these options and the rank; frees the options.
pub fn start(options: *mut mlxd_options) -> *mut mlxd_group {
    // SAFETY: options is not NULL and not in use elsewhere.
    unsafe {
        let group = mlxd_init_with_options(1, c"ring".as_ptr(), options);
        assert!(!group.is_null(), "{}", last_error());
        mlxd_options_free(options);
        group
    }
}

/// Runs `body` on `size` threads at once, with their ranks.
pub fn ranks(size: usize, body: impl Fn(usize) + Send + Sync) {
    std::thread::scope(|scope| {
        let body = &body;
        let threads: Vec<_> = (0..size).map(|rank| scope.spawn(move || body(rank))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// Options of a rank that meets the others at this port.
pub fn with_coordinator(port: u16, rank: usize, size: usize) -> *mut mlxd_options {
    options(&[
        ("MLXD_COORDINATOR", format!("127.0.0.1:{port}")),
        ("MLXD_WORLD_SIZE", size.to_string()),
        ("MLXD_RANK", rank.to_string()),
        ("MLXD_CONNECT_TIMEOUT_MS", "20000".to_owned()),
    ])
}

/// A small all_sum, compared with its closed form.
pub fn check_sum(group: *mut mlxd_group, rank: usize, size: usize) {
    let input: Vec<i64> = (0..1000).map(|i| i * (rank as i64 + 1)).collect();
    let mut output = vec![0i64; 1000];
    let (from, into) = (input.as_ptr().cast(), output.as_mut_ptr().cast());
    // SAFETY: both vectors have 1000 elements.
    let status = unsafe { mlxd_all_sum(group, from, into, 1000, MLXD_INT64, null_mut()) };
    assert_eq!(status, MLXD_OK, "{}", last_error());
    let factor = (size * (size + 1) / 2) as i64;
    assert!(output.iter().enumerate().all(|(i, sum)| *sum == i as i64 * factor));
}
