//! Signals.

use std::fs;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::run::{finish, run, runs, send, start_ready, wait, wait_until};
use crate::scratch::Scratch;

#[test]
fn signals_reach_every_rank_once() {
    let scratch = Scratch::new("signals");
    for (signal, name, code) in [
        (Signal::INT, "INT", 130),
        (Signal::TERM, "TERM", 143),
        (Signal::HUP, "HUP", 129),
        (Signal::QUIT, "QUIT", 131),
    ] {
        let script = format!(
            "n=0; trap 'n=$((n+1)); echo {name} $n' {name}; echo ready; \
             while [ $n = 0 ]; do sleep 0.05; done; sleep 0.2; exit {code}"
        );
        let (child, mut stdout) = start_ready(scratch.shell(&["-n", "3"], &script), 3);
        send(&child, signal);
        let ended = finish(child);
        assert_eq!(ended.code(), Some(code), "{}", ended.stderr);
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        let mut lines: Vec<&str> = rest.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, [0, 1, 2].map(|rank| format!("[{rank}] {name} 1")), "{}", ended.stderr);
        assert!(scratch.files().is_empty(), "{:?}", scratch.files());
    }
}

#[test]
fn ranks_that_end_well_after_a_signal_end_the_launch_well() {
    let scratch = Scratch::new("graceful");
    let script = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let (child, _stdout) = start_ready(scratch.shell(&["-n", "2"], script), 2);
    send(&child, Signal::TERM);
    assert_eq!(finish(child).code(), Some(0));
}

#[test]
fn ranks_that_ignore_a_signal_are_killed() {
    let scratch = Scratch::new("deaf");
    let script = "trap '' TERM INT; echo ready; while :; do sleep 0.05; done";
    let (child, _stdout) = start_ready(scratch.shell(&["-n", "2", "--grace", "0.3"], script), 2);
    send(&child, Signal::TERM);
    let ended = finish(child);
    assert_eq!(ended.code(), Some(143), "{}", ended.stderr);
    assert!(ended.after >= Duration::from_millis(290));
    assert!(ended.stderr.contains("was killed by SIGKILL"), "{}", ended.stderr);

    // A second SIGINT does not wait for the grace period.
    let (child, _stdout) = start_ready(scratch.shell(&["-n", "2", "--grace", "1000"], script), 2);
    send(&child, Signal::INT);
    thread::sleep(Duration::from_millis(100));
    send(&child, Signal::INT);
    assert_eq!(finish(child).code(), Some(130));
}

#[test]
fn user_signals_end_nothing() {
    let scratch = Scratch::new("usr");
    let script = "trap 'echo got; exit 0' USR1; echo ready; while :; do sleep 0.05; done";
    let (child, mut stdout) = start_ready(scratch.shell(&["-n", "2"], script), 2);
    send(&child, Signal::USR1);
    let ended = finish(child);
    assert_eq!((ended.code(), ended.stderr.as_str()), (Some(0), ""));
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest.lines().count(), 2);
}

#[test]
fn a_stop_stops_the_ranks_too() {
    let scratch = Scratch::new("stop");
    let script = "echo $$ > pid-$MLX_RANK; echo ready; exec sleep 60";
    let (child, _stdout) = start_ready(scratch.shell(&["-n", "2"], script), 2);
    let pids = [Pid::from_child(&child), scratch.pid("pid-0"), scratch.pid("pid-1")];
    let state = |pid: &Pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().trim_start().chars().next().unwrap()
    };
    send(&child, Signal::TSTP);
    // The test's own process group may be orphaned; SIGSTOP works there as well.
    wait_until("the launcher is stopped", || state(&pids[0]) == 'T');
    wait_until("the ranks are stopped", || pids[1..].iter().all(|pid| state(pid) == 'T'));
    send(&child, Signal::CONT);
    wait_until("they go on", || pids.iter().all(|pid| state(pid) != 'T'));
    send(&child, Signal::TERM);
    assert_eq!(finish(child).code(), Some(143));
}

#[test]
fn an_ignored_hangup_stays_ignored() {
    let scratch = Scratch::new("nohup");
    let script = "echo ready; while ! [ -e done ]; do sleep 0.02; done";
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' HUP; exec \"$0\" -n 2 -- sh -c \"$1\""])
        .args([env!("CARGO_BIN_EXE_mlxd-launch"), script])
        .env("TMPDIR", &scratch.0)
        .current_dir(&scratch.0)
        .stdin(Stdio::null());
    let (child, _stdout) = start_ready(command, 2);
    send(&child, Signal::HUP);
    thread::sleep(Duration::from_millis(100));
    fs::write(scratch.0.join("done"), "").unwrap();
    let ended = finish(child);
    assert_eq!((ended.code(), ended.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_signal_is_heeded_while_nobody_reads_the_output() {
    let scratch = Scratch::new("blocked");
    let mut command = scratch.shell(&["-n", "2"], "echo $$ > pid-$MLX_RANK; exec yes");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stdout = child.stdout.take();
    let pids = [scratch.pid("pid-0"), scratch.pid("pid-1")];
    thread::sleep(Duration::from_millis(200));
    send(&child, Signal::TERM);
    wait_until("the ranks are gone", || !pids.iter().any(|&pid| runs(pid)));
    // What they wrote waits for its reader, until a signal says not to.
    send(&child, Signal::TERM);
    assert_eq!(wait(&mut child).code(), Some(143));
    drop(stdout);
}

#[test]
fn ranks_die_with_a_killed_launcher() {
    let scratch = Scratch::new("kill9");
    let script = "trap '' TERM HUP INT; echo $$ > pid-$MLX_RANK; echo ready; \
                  while :; do sleep 0.05; done";
    let (child, _stdout) = start_ready(scratch.shell(&["-n", "2"], script), 2);
    let pids = [scratch.pid("pid-0"), scratch.pid("pid-1")];
    send(&child, Signal::KILL);
    assert_eq!(finish(child).status.signal(), Some(9));
    wait_until("the ranks are dead", || !pids.iter().any(|&pid| runs(pid)));
}

#[test]
fn a_launch_survives_an_ignored_sigchld() {
    let scratch = Scratch::new("sigchld");
    let mut command = scratch.shell(&["-n", "2"], "exit 5");
    // SAFETY: signal(2) is async-signal-safe and takes no memory.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGCHLD, libc::SIG_IGN);
            Ok(())
        });
    }
    assert_eq!(run(command).code(), Some(5));
}
