//! The flight recorder with real ranks: what is written when something goes wrong, and what
//! `mlxd-inspect` makes of it.
#![cfg(feature = "tools")]

mod common;
#[path = "common/scratch.rs"]
mod scratch;

use std::ffi::{CString, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use common::*;
use mlxd::capi::*;
use scratch::Scratch;
use serde_json::Value;

/// No wait in these tests lasts longer, on however busy a machine.
const LIMIT: Duration = Duration::from_secs(60);

impl Scratch {
    /// Where the recorders write; made by them.
    fn records(&self) -> PathBuf {
        self.0.join("records")
    }

    fn files(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.records()) else { return Vec::new() };
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    /// Waits for so many finished files; a rank that is idle writes its own when it hears the news.
    fn await_files(&self, many: usize) -> Vec<PathBuf> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let files = self.files();
            let finished = |file: &&PathBuf| file.extension().is_some_and(|e| e == "json");
            if files.iter().filter(finished).count() == many && files.len() == many {
                return files;
            }
            assert!(Instant::now() < deadline, "{files:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn options(&self, port: u16, rank: usize, size: usize) -> *mut mlxd_options {
        let options = with_coordinator(port, rank, size);
        set(options, "MLXD_FLIGHT_RECORDER", self.records().to_str().unwrap());
        options
    }
}

fn sum(group: *mut mlxd_group, count: usize) -> mlxd_status {
    let (input, mut output) = (vec![1f32; count], vec![0f32; count]);
    let (from, into) = (input.as_ptr().cast(), output.as_mut_ptr().cast());
    // SAFETY: both vectors have `count` elements.
    unsafe { mlxd_all_sum(group, from, into, count, MLXD_FLOAT32, null_mut()) }
}

fn barrier(group: *mut mlxd_group) -> mlxd_status {
    // SAFETY: a barrier has no memory.
    unsafe { mlxd_barrier(group, null_mut()) }
}

fn free(group: *mut mlxd_group) {
    // SAFETY: each test frees each handle once.
    unsafe { mlxd_group_free(group) };
}

fn dump(group: *mut mlxd_group, path: &Path) -> mlxd_status {
    let path = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the path ends with a NUL.
    unsafe { mlxd_group_dump(group, path.as_ptr()) }
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// What `mlxd-inspect` says of these files: its exit status, stdout and stderr.
fn inspect(arguments: &[&Path]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mlxd-inspect"));
    let Output { status, stdout, stderr } = command.args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// The report of a folder in which something is wrong.
fn problem(folder: &Path) -> String {
    let (code, stdout, stderr) = inspect(&[folder]);
    assert_eq!((code, stderr.as_str()), (1, ""), "{stdout}");
    stdout
}

/// Not a test by itself: a rank of `a_rank_that_is_killed_is_the_one_without_a_file`, in a process of
/// its own.
#[test]
#[ignore = "a rank of another test"]
fn rank_to_be_killed() {
    let Ok(rank) = std::env::var("MLXD_RANK") else { return };
    // SAFETY: NULL asks for any backend.
    let world = unsafe { mlxd_init(1, c"ring".as_ptr()) };
    assert!(!world.is_null(), "{}", last_error());
    for _ in 0..3 {
        assert_eq!(sum(world, 5), MLXD_OK, "{}", last_error());
    }
    if rank == "1" {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
            .unwrap();
    }
    assert_eq!(sum(world, 7), MLXD_ERROR_PEER_LOST, "{}", last_error());
    // As programs end that have no time for good manners: the file is there already.
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
}

#[test]
fn a_rank_that_is_killed_is_the_one_without_a_file() {
    let scratch = Scratch::new("killed");
    let port = free_port();
    let start = |rank: usize| -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "rank_to_be_killed", "--include-ignored"])
            .env("MLXD_RANK", rank.to_string())
            .env("MLXD_WORLD_SIZE", "3")
            .env("MLXD_COORDINATOR", format!("127.0.0.1:{port}"))
            .env("MLXD_FLIGHT_RECORDER", scratch.records())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut children: Vec<Child> = (0..3).map(start).collect();
    let ends: Vec<bool> = children.iter_mut().map(|c| c.wait().unwrap().success()).collect();
    assert_eq!(ends, [true, false, true]);
    let files = scratch.files();
    let names: Vec<&str> = files.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(
        names[0].ends_with("-0-rank0.json") && names[1].ends_with("-0-rank2.json"),
        "{names:?}"
    );
    let report = problem(&scratch.records());
    assert!(report.contains("(the world, 3 ranks, ring):\n"), "{report}");
    assert!(
        report.contains("\n  rank 1 wrote no file (killed, or left in good order?)\n"),
        "{report}"
    );
    assert!(report.contains(": MLXD_ERROR_PEER_LOST: lost rank 1: "), "{report}");
    // A survivor may have heard of it before it called.
    assert!(!report.contains("diverge"), "{report}");
}

#[test]
fn ranks_that_call_different_things_are_named_with_their_calls() {
    let scratch = Scratch::new("mismatch");
    let port = free_port();
    // With a third rank, it might hear of the failure before it has called.
    ranks(2, |rank| {
        let world = start(scratch.options(port, rank, 2));
        assert_eq!(sum(world, 9), MLXD_OK, "{}", last_error());
        let status = if rank == 1 { barrier(world) } else { sum(world, 5) };
        assert_eq!(status, MLXD_ERROR_MISMATCH, "{}", last_error());
        free(world);
    });
    scratch.await_files(2);
    let report = problem(&scratch.records());
    let expected = "\n  ranks diverge at collective #1: rank 0 called all_sum of 5 float32, \
                    rank 1 called barrier\n";
    assert!(report.contains(expected), "{report}");
    assert!(report.contains("MLXD_ERROR_MISMATCH: "), "{report}");
}

#[test]
fn a_rank_that_does_not_call_is_behind() {
    let scratch = Scratch::new("behind");
    let port = free_port();
    ranks(3, |rank| {
        let options = scratch.options(port, rank, 3);
        set(options, "MLXD_TIMEOUT_MS", "400");
        let world = start(options);
        assert_eq!(sum(world, 9), MLXD_OK, "{}", last_error());
        if rank != 1 {
            assert_eq!(sum(world, 7), MLXD_ERROR_TIMEOUT, "{}", last_error());
        }
        // The idle rank calls nothing, and writes its file nevertheless.
        scratch.await_files(3);
        free(world);
    });
    let report = problem(&scratch.records());
    let behind = "\n  rank 1 is behind: it has not called collective #1; its last operation is \
                  all_sum #0 (9 float32), done ";
    assert!(report.contains(behind), "{report}");
    assert!(report.contains("\n  ranks 0, 2 wait in all_sum #1 (7 float32) for "), "{report}");
    assert!(report.contains(": MLXD_ERROR_TIMEOUT: "), "{report}");
}

#[test]
fn a_dump_does_not_wait_for_a_thread_that_is_stuck() {
    let scratch = Scratch::new("dump");
    let port = free_port();
    let path = |rank: usize| scratch.0.join(format!("dump-{rank}.json"));
    ranks(2, |rank| {
        let world = start(with_coordinator(port, rank, 2));
        assert_eq!(sum(world, 9), MLXD_OK, "{}", last_error());
        let mut byte = 0u8;
        if rank == 1 {
            let (handle, into) = (world as usize, &raw mut byte as usize);
            std::thread::scope(|scope| {
                let stuck = scope.spawn(move || {
                    let into = into as *mut c_void;
                    // SAFETY: the handle is valid, and there is room for one byte.
                    unsafe {
                        mlxd_recv(handle as *mut mlxd_group, into, 1, MLXD_UINT8, 0, null_mut())
                    }
                });
                let deadline = Instant::now() + LIMIT;
                loop {
                    assert_eq!(dump(world, &path(1)), MLXD_OK, "{}", last_error());
                    let last = &read(&path(1))["operations"][1];
                    if last["state"] == "running" {
                        assert_eq!(last["operation"], "recv");
                        assert_eq!(last["recv"]["peer"], 0);
                        break;
                    }
                    assert!(Instant::now() < deadline, "the receive does not start");
                }
                assert_eq!(barrier(world), MLXD_OK, "{}", last_error());
                assert_eq!(stuck.join().unwrap(), MLXD_OK);
            });
            assert_eq!(byte, 7);
            free(world);
            return;
        }
        assert_eq!(dump(world, &path(0)), MLXD_OK, "{}", last_error());
        assert_eq!(barrier(world), MLXD_OK, "{}", last_error());
        let byte = 7u8;
        let from = (&raw const byte).cast();
        // SAFETY: one byte is sent.
        let status = unsafe { mlxd_send(world, from, 1, MLXD_UINT8, 1, null_mut()) };
        assert_eq!(status, MLXD_OK, "{}", last_error());
        free(world);
    });
    // Nobody asked for files, and nothing failed.
    assert!(!scratch.records().exists());
    let report = problem(&scratch.0);
    assert!(report.contains("\n  rank 1 waits in recv #0 from rank 0 (1 uint8) for "), "{report}");
    assert!(report.contains("; rank 0 has sent 0 messages to it"), "{report}");
}

#[test]
fn a_dump_says_what_is_wrong_with_it_and_works_on_failed_groups() {
    let scratch = Scratch::new("arguments");
    // SAFETY: NULL asks for any backend.
    let world = unsafe { mlxd_init(0, std::ptr::null()) };
    let path = scratch.0.join("alone.json");
    assert_eq!(sum(world, 3), MLXD_OK, "{}", last_error());
    assert_eq!(dump(world, &path), MLXD_OK, "{}", last_error());
    let (code, stdout, _) = inspect(&[&path]);
    assert_eq!(code, 0, "{stdout}");
    assert!(stdout.contains("nothing is wrong; 1 collective called"), "{stdout}");
    // SAFETY: NULL is what is refused; the handle is valid.
    unsafe {
        assert_eq!(mlxd_group_dump(world, std::ptr::null()), MLXD_ERROR_INVALID_ARGUMENT);
        assert_eq!(mlxd_group_dump(null_mut(), c"x".as_ptr()), MLXD_ERROR_INVALID_ARGUMENT);
        assert_eq!(mlxd_group_dump(world, c"".as_ptr()), MLXD_ERROR_INVALID_ARGUMENT);
        assert_eq!(mlxd_group_abort(world), MLXD_OK);
    }
    assert_eq!(dump(world, &scratch.0.join("missing/file.json")), MLXD_ERROR_SYSTEM);
    assert!(last_error().contains("missing/file.json: No such file"), "{}", last_error());
    assert_eq!(dump(world, &path), MLXD_OK, "{}", last_error());
    assert_eq!(read(&path)["failure"]["status"], "MLXD_ERROR_ABORTED");
    assert_eq!(read(&path)["operations"].as_array().unwrap().len(), 1);
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1);
    free(world);
}

#[test]
fn a_part_of_the_world_has_a_file_of_its_own() {
    let scratch = Scratch::new("part");
    let port = free_port();
    ranks(3, |rank| {
        let world = start(scratch.options(port, rank, 3));
        let mut part = null_mut();
        let color = if rank == 1 { -1 } else { 0 };
        // SAFETY: `part` has room for a pointer.
        let status = unsafe { mlxd_group_split(world, color, -1, &mut part) };
        assert_eq!(status, MLXD_OK, "{}", last_error());
        if rank == 2 {
            // SAFETY: the handle is valid.
            assert_eq!(unsafe { mlxd_group_abort(part) }, MLXD_OK);
        } else if rank == 0 {
            assert_eq!(sum(part, 3), MLXD_ERROR_ABORTED, "{}", last_error());
        }
        scratch.await_files(2);
        // The world works on, and its end in good order leaves no file.
        assert_eq!(sum(world, 3), MLXD_OK, "{}", last_error());
        free(part);
        free(world);
    });
    assert_eq!(scratch.files().len(), 2);
    let report = problem(&scratch.records());
    assert!(report.contains("(ranks 0, 2 of the world, 2 ranks, ring):\n"), "{report}");
    assert!(report.contains("MLXD_ERROR_ABORTED: aborted by rank 1 of 2"), "{report}");
}

#[test]
fn a_folder_that_cannot_be_made_changes_no_result() {
    let scratch = Scratch::new("folder");
    let options = options(&[
        ("MLX_RANK", "0".to_owned()),
        ("MLXD_FLIGHT_RECORDER", scratch.0.join("a/b").to_str().unwrap().to_owned()),
    ]);
    // SAFETY: options is valid.
    let world = unsafe { mlxd_init_with_options(0, std::ptr::null(), options) };
    assert!(!world.is_null(), "{}", last_error());
    // SAFETY: both handles are valid.
    unsafe {
        mlxd_options_free(options);
        assert_eq!(mlxd_group_abort(world), MLXD_OK);
    }
    assert_eq!(sum(world, 3), MLXD_ERROR_ABORTED);
    free(world);
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 0);
}

#[test]
fn foreign_files_are_named_and_skipped() {
    let scratch = Scratch::new("foreign");
    let world = start_alone();
    assert_eq!(dump(world, &scratch.0.join("good.json")), MLXD_OK, "{}", last_error());
    free(world);
    fs::write(scratch.0.join("package.json"), r#"{"name": "x"}"#).unwrap();
    fs::write(scratch.0.join("half.json"), r#"{"format": "mlxd-fl"#).unwrap();
    fs::write(scratch.0.join("notes.txt"), "not read at all").unwrap();
    let (code, stdout, stderr) = inspect(&[&scratch.0]);
    assert_eq!(code, 0, "{stdout}");
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{stderr}");
    assert!(lines[0].contains("half.json: damaged: "), "{stderr}");
    assert!(lines[1].contains("package.json: not of a flight recorder"), "{stderr}");
    let (code, stdout, _) = inspect(&[Path::new("--json"), &scratch.0]);
    let json: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &json["problem"]), (0, &Value::Bool(false)));
    assert_eq!(json["groups"][0]["backend"], "none");
    assert_eq!(json["skipped"].as_array().unwrap().len(), 2);
    // Nothing to read, and no such file.
    let (code, stdout, _) = inspect(&[&scratch.0.join("package.json")]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    let (code, _, stderr) = inspect(&[&scratch.0.join("nowhere")]);
    assert!(code == 2 && stderr.contains("nowhere: No such file"), "{stderr}");
    assert_eq!(inspect(&[]).0, 2);
}

fn start_alone() -> *mut mlxd_group {
    // SAFETY: NULL asks for any backend.
    let world = unsafe { mlxd_init(0, std::ptr::null()) };
    assert!(!world.is_null(), "{}", last_error());
    world
}
