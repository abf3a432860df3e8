//! How a launch ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::run::{run, runs, wait, wait_until};
use crate::scratch::Scratch;

#[test]
fn the_first_failing_status_ends_the_launch() {
    let scratch = Scratch::new("fail");
    let script = "echo $$ > pid-$MLX_RANK; [ $MLX_RANK = 2 ] || exec sleep 60; \
                  while ! [ -s pid-0 ] || ! [ -s pid-1 ]; do sleep 0.01; done; echo why >&2; exit 7";
    let ended = run(scratch.shell(&["-n", "3"], script));
    assert_eq!(ended.code(), Some(7));
    let expected = "[2] why\nmlxd-launch: rank 2 exited with status 7; ending the other ranks\n";
    assert_eq!(ended.stderr, expected);
    for name in ["pid-0", "pid-1"] {
        assert!(!runs(scratch.pid(name)));
    }
    assert!(!scratch.files().iter().any(|name| name.ends_with(".json")));
}

#[test]
fn a_rank_killed_by_a_signal_counts_as_128_and_its_number() {
    let scratch = Scratch::new("segv");
    let script = "ulimit -c 0; [ $MLX_RANK = 1 ] && kill -SEGV $$; exec sleep 60";
    let ended = run(scratch.shell(&["-n", "2"], script));
    assert_eq!(ended.code(), Some(139));
    let expected = "mlxd-launch: rank 1 was killed by SIGSEGV; ending the other ranks\n";
    assert_eq!(ended.stderr, expected);
}

#[test]
fn a_rank_that_asks_for_the_terminal_ends_the_launch() {
    let scratch = Scratch::new("ttin");
    // What reading /dev/tty comes to where there is one.
    let script = "[ $MLX_RANK = 1 ] && kill -TTIN $$; exec sleep 60";
    let ended = run(scratch.shell(&["-n", "2"], script));
    assert_eq!(ended.code(), Some(128 + libc::SIGTTIN));
    let expected = "mlxd-launch: rank 1 was stopped by SIGTTIN: ranks cannot use the terminal itself; \
                    ending all ranks\n";
    assert_eq!(ended.stderr, expected);
}

#[test]
fn a_rank_that_somebody_stops_is_named() {
    let scratch = Scratch::new("stopped");
    let script = "[ $MLX_RANK = 1 ] && { echo $$ > pid; kill -STOP $$; }; exit 0";
    let mut command = scratch.shell(&["-n", "2"], script);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "mlxd-launch: rank 1 was stopped by SIGSTOP\n");
    kill_process(scratch.pid("pid"), Signal::CONT).unwrap();
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn ranks_and_their_children_that_do_not_end_are_killed_after_the_grace_period() {
    let scratch = Scratch::new("grace");
    // Rank 0 heeds SIGTERM, but what it started does not.
    let script = "case $MLX_RANK in \
        0) sh -c 'trap \"\" TERM; echo $$ > deaf-0; while :; do sleep 0.1; done' & \
           trap 'exit 0' TERM; while :; do sleep 0.1; done;; \
        1) trap '' TERM; echo $$ > deaf-1; while :; do sleep 0.1; done;; \
        2) while ! [ -s deaf-0 ] || ! [ -s deaf-1 ]; do sleep 0.01; done; exit 3;; esac";
    let ended = run(scratch.shell(&["-n", "3", "--grace", "0.5"], script));
    assert_eq!(ended.code(), Some(3), "{}", ended.stderr);
    assert!(ended.after >= Duration::from_millis(500));
    let own = ended.stderr.lines().filter(|line| line.starts_with("mlxd-launch: "));
    assert_eq!(own.count(), 1, "{}", ended.stderr);
    wait_until("both are dead", || !runs(scratch.pid("deaf-0")) && !runs(scratch.pid("deaf-1")));
}

#[test]
fn a_program_that_cannot_run_is_named() {
    let scratch = Scratch::new("norun");
    fs::write(scratch.0.join("plain"), "text").unwrap();
    for (program, code, words) in [
        ("no-such-program", 127, "no-such-program: not found in PATH"),
        ("plain", 127, "perhaps ./plain"),
        ("./absent", 127, "no such program"),
        ("./plain", 126, "Permission denied"),
        ("/", 126, "cannot be executed"),
    ] {
        let mut command = scratch.launcher(&["-n", "2"]);
        command.arg(program);
        let ended = run(command);
        assert_eq!(ended.code(), Some(code), "{program}: {}", ended.stderr);
        assert!(ended.stderr.contains(words), "{program}: {}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1);
    }
}

#[test]
fn a_wrong_command_line_is_status_2() {
    let scratch = Scratch::new("usage");
    for options in [
        &["-n", "0", "true"][..],
        &["-n", "x", "true"],
        &["--env", "novalue", "true"],
        &["--env", "MLX_RANK=1", "true"],
        &["--grace", "-1", "true"],
        &["--unknown", "true"],
        &["-n", "2"],
        &["-n", "2", "--unknown", "--", "true"],
    ] {
        assert_eq!(run(scratch.launcher(options)).code(), Some(2), "{options:?}");
    }
}

#[test]
fn too_many_ranks_for_the_ports_is_an_error() {
    let scratch = Scratch::new("toomany");
    let mut command = scratch.launcher(&["-n", "4000000000", "--connections-per-ip", "4000000000"]);
    command.arg("true");
    let ended = run(command);
    assert_eq!(ended.code(), Some(1));
    assert!(ended.stderr.contains("more ports than exist"), "{}", ended.stderr);
}

#[test]
fn a_temporary_directory_that_is_not_there_is_an_error() {
    let scratch = Scratch::new("notmp");
    let mut command = scratch.shell(&["-n", "2"], "echo started");
    command.env("TMPDIR", "/nonexistent");
    let ended = run(command);
    assert_eq!((ended.code(), ended.stdout.as_str()), (Some(1), ""));
    assert!(ended.stderr.contains("cannot write a hostfile in /nonexistent"), "{}", ended.stderr);
}
