//! `mlxd-launch` with real processes: what ranks are told, their output, and every way to end.
#![cfg(feature = "tools")]

#[path = "common/scratch.rs"]
mod scratch;

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use scratch::Scratch;

/// No wait in these tests lasts longer, on however busy a machine.
const LIMIT: Duration = Duration::from_secs(30);

impl Scratch {
    /// A launcher with these options, whose ranks run `script` in a shell.
    fn shell(&self, options: &[&str], script: &str) -> Command {
        let mut command = self.launcher(options);
        command.args(["--", "sh", "-c", script]);
        command
    }

    fn launcher(&self, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mlxd-launch"));
        command.args(options).env("TMPDIR", &self.0).current_dir(&self.0).stdin(Stdio::null());
        command
    }

    /// The names of the files that lie here.
    fn files(&self) -> Vec<String> {
        fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// The pid that a rank wrote to a file of this name.
    fn pid(&self, name: &str) -> Pid {
        let path = self.0.join(name);
        let deadline = Instant::now() + LIMIT;
        loop {
            let text = fs::read_to_string(&path).unwrap_or_default();
            if let Some(pid) = text.strip_suffix('\n').and_then(|text| text.parse().ok()) {
                return Pid::from_raw(pid).unwrap();
            }
            assert!(Instant::now() < deadline, "no pid in {}", path.display());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What a launch came to.
struct Ended {
    status: ExitStatus,
    stdout: String,
    stderr: String,
    after: Duration,
}

impl Ended {
    fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The lines of stdout in an order that does not depend on the ranks' speed.
    fn sorted(&self) -> Vec<&str> {
        let mut lines: Vec<&str> = self.stdout.lines().collect();
        lines.sort_unstable();
        lines
    }
}

fn run(mut command: Command) -> Ended {
    finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// Waits for a launcher with piped outputs; one that hangs fails the test.
fn finish(mut child: Child) -> Ended {
    let start = Instant::now();
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = read(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let stderr = read(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let status = wait(&mut child);
    let after = start.elapsed();
    Ended { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap(), after }
}

fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("the launcher hangs");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// A launcher whose ranks say "ready": returned once `ranks` of them have.
fn start_ready(mut command: Command, ranks: usize) -> (Child, BufReader<ChildStdout>) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..ranks {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert!(line.ends_with("ready\n"), "{line:?}");
    }
    (child, stdout)
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process runs: neither gone nor a zombie that nobody has reaped.
fn runs(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start().chars().next();
    test_kill_process(pid).is_ok() && !matches!(state, None | Some('Z' | 'X'))
}

// What the ranks are told.

#[test]
fn every_rank_has_its_number_and_the_same_hostfile() {
    let scratch = Scratch::new("hostfile");
    let ended = run(scratch.shell(
        &["-n", "4", "--connections-per-ip", "2"],
        "echo \"$MLX_RANK $(cat $MLX_HOSTFILE)\"",
    ));
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    let lines = ended.sorted();
    assert_eq!(lines.len(), 4);
    let hostfile = lines[0].strip_prefix("[0] 0 ").unwrap();
    for (rank, line) in lines.iter().enumerate() {
        assert_eq!(*line, format!("[{rank}] {rank} {hostfile}"));
    }
    let hosts: Vec<Vec<String>> = serde_json::from_str(hostfile).unwrap();
    assert_eq!(hosts.iter().map(Vec::len).collect::<Vec<_>>(), [2; 4]);
    let distinct: HashSet<&String> = hosts.iter().flatten().collect();
    assert_eq!(distinct.len(), 8);
    for address in distinct {
        // Free: a rank may listen there.
        TcpListener::bind(address).unwrap();
        assert!(address.starts_with("127.0.0.1:"));
    }
    assert!(scratch.files().is_empty(), "{:?}", scratch.files());
}

#[test]
fn a_world_of_one_has_an_empty_hostfile() {
    let scratch = Scratch::new("one");
    let ended = run(scratch.shell(&["--no-prefix"], "echo $MLX_RANK; cat $MLX_HOSTFILE"));
    assert_eq!((ended.code(), ended.stdout.as_str()), (Some(0), "0\n[]"));
}

#[test]
fn launches_at_one_time_share_no_port() {
    let scratch = Scratch::new("ports");
    let script = "[ $MLX_RANK = 0 ] && cat $MLX_HOSTFILE; echo; exec sleep 60";
    let mut command = scratch.shell(&["-n", "8", "--no-prefix"], script);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut children: Vec<Child> = (0..8).map(|_| command.spawn().unwrap()).collect();
    let (mut ports, mut outputs) = (HashSet::new(), Vec::new());
    for child in &mut children {
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("[[") {
            line.clear();
            assert!(stdout.read_line(&mut line).unwrap() > 0);
        }
        let hosts: Vec<Vec<String>> = serde_json::from_str(&line).unwrap();
        ports.extend(hosts.into_iter().flatten());
        outputs.push(stdout);
    }
    assert_eq!(ports.len(), 64);
    for mut child in children {
        send(&child, Signal::TERM);
        assert_eq!(wait(&mut child).code(), Some(143));
    }
}

#[test]
fn fixed_ports_count_up_and_must_be_free() {
    let scratch = Scratch::new("fixed");
    // Two neighbours, found free a moment ago.
    let (first, second) = loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        if let Some(Ok(second)) = port.checked_add(1).map(|p| TcpListener::bind(("127.0.0.1", p))) {
            break (first, second);
        }
    };
    let port = first.local_addr().unwrap().port();
    let start = port.to_string();
    let options = ["-n", "2", "-p", &start, "--no-prefix"];
    drop(first);
    let ended = run(scratch.shell(&options, "echo started"));
    assert_eq!((ended.code(), ended.stdout.as_str()), (Some(1), ""));
    assert!(ended.stderr.contains(&format!("port {} of 127.0.0.1", port + 1)), "{}", ended.stderr);
    drop(second);
    let ended = run(scratch.shell(&options, "[ $MLX_RANK = 1 ] || cat $MLX_HOSTFILE"));
    let expected = format!("[[\"127.0.0.1:{port}\"],[\"127.0.0.1:{}\"]]", port + 1);
    assert_eq!(ended.stdout, expected, "{}", ended.stderr);
}

#[test]
fn other_worlds_do_not_leak_in_and_settings_do() {
    let scratch = Scratch::new("env");
    let mut command = scratch.launcher(&["--no-prefix", "--env", "A=b=c", "--env", "RANK=5"]);
    for name in ["MLXD_RANK", "WORLD_SIZE", "MASTER_ADDR", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE"] {
        command.env(name, "3");
    }
    command.env("RANK", "3").env("MLX_RANK", "3").env("MLXD_TIMEOUT_MS", "77").env("LINES", "9");
    command.args(["--", "env"]);
    let ended = run(command);
    let has = |line: &str| ended.stdout.lines().any(|other| other == line);
    for line in ["A=b=c", "RANK=5", "MLX_RANK=0", "MLXD_TIMEOUT_MS=77", "LINES=9"] {
        assert!(has(line), "{line} is not in {}", ended.stdout);
    }
    for name in ["MLXD_RANK", "WORLD_SIZE", "MASTER_ADDR", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE"] {
        assert!(!has(&format!("{name}=3")), "{name} leaked");
    }
}

#[test]
fn options_after_the_program_are_its_own() {
    let scratch = Scratch::new("options");
    let mut command = scratch.launcher(&["-n", "1"]);
    let ended = run({
        command.args(["echo", "-n", "7", "--no-prefix", "--", "-x"]);
        command
    });
    assert_eq!(ended.stdout, "[0] 7 --no-prefix -- -x\n");
}

// Standard streams.

#[test]
fn output_comes_in_whole_lines_each_with_its_rank() {
    let scratch = Scratch::new("lines");
    let script = "i=0; while [ $i -lt 500 ]; do echo $MLX_RANK-$i-aaaaaaaaaaaaaaaaaaaaaaaaaaaaa; \
                  i=$((i+1)); done; printf 'no end'; printf 'err %s' $MLX_RANK >&2";
    let ended = run(scratch.shell(&["-n", "3"], script));
    assert_eq!(ended.code(), Some(0));
    for rank in 0..3 {
        let own: Vec<&str> =
            ended.stdout.lines().filter_map(|l| l.strip_prefix(&format!("[{rank}] "))).collect();
        assert_eq!(own.len(), 501);
        for (i, line) in own[..500].iter().enumerate() {
            assert_eq!(*line, format!("{rank}-{i}-aaaaaaaaaaaaaaaaaaaaaaaaaaaaa"));
        }
        assert_eq!(own[500], "no end");
        assert!(ended.stderr.contains(&format!("[{rank}] err {rank}\n")));
    }
    assert_eq!(ended.stdout.lines().count(), 1503);
    assert!(ended.stdout.ends_with('\n'));
}

#[test]
fn lines_do_not_mix_when_both_outputs_are_one_file() {
    let scratch = Scratch::new("onefile");
    let path = scratch.0.join("both");
    let file = fs::File::create(&path).unwrap();
    let script = "i=0; while [ $i -lt 300 ]; do echo out-$i; echo err-$i >&2; i=$((i+1)); done";
    let mut command = scratch.shell(&["-n", "2"], script);
    command.stdout(file.try_clone().unwrap()).stderr(file);
    assert!(wait(&mut command.spawn().unwrap()).success());
    let text = fs::read_to_string(path).unwrap();
    assert_eq!(text.lines().count(), 1200);
    for line in text.lines() {
        let line = line.strip_prefix("[0] ").or(line.strip_prefix("[1] ")).unwrap();
        let number = line.strip_prefix("out-").or(line.strip_prefix("err-")).unwrap();
        assert!(number.parse::<u32>().is_ok(), "{line}");
    }
}

#[test]
fn raw_output_is_passed_on_untouched() {
    let scratch = Scratch::new("raw");
    let script = "printf 'a\\r\\n\\001b'; printf c >&2";
    let ended = run(scratch.shell(&["--no-prefix"], script));
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("a\r\n\u{1}b", "c"));
}

#[test]
fn a_line_arrives_before_the_rank_ends() {
    let scratch = Scratch::new("atonce");
    let (child, _stdout) = start_ready(scratch.shell(&["-n", "2"], "echo ready; sleep 60"), 2);
    send(&child, Signal::TERM);
    assert_eq!(finish(child).code(), Some(143));
}

#[test]
fn a_line_without_end_is_broken() {
    let scratch = Scratch::new("long");
    let ended = run(scratch.shell(&[], "head -c 200000 /dev/zero | tr '\\0' x"));
    let lengths: Vec<usize> = ended.stdout.lines().map(str::len).collect();
    assert_eq!(lengths, [65540, 65540, 65540, 200_000 - 3 * 65536 + 4]);
}

#[test]
fn much_output_comes_through_whole() {
    let scratch = Scratch::new("much");
    let ended = run(scratch.shell(&["-n", "2"], "seq 100000"));
    assert_eq!(ended.stdout.lines().count(), 200_000);
    for rank in ["[0] ", "[1] "] {
        let own = ended.stdout.lines().filter_map(|line| line.strip_prefix(rank));
        assert!(own.enumerate().all(|(i, line)| line == (i + 1).to_string()));
    }
}

#[test]
fn stdin_goes_to_every_rank() {
    let scratch = Scratch::new("stdin");
    // Rank 1 closes its stdin unread, rank 2 starts to read late.
    let script = "case $MLX_RANK in 1) exec <&-; echo none;; 2) sleep 0.3; cksum;; *) cksum;; esac";
    let mut command = scratch.shell(&["-n", "3", "--no-prefix"], script);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let writer = thread::spawn(move || stdin.write_all(&input));
    let ended = finish(child);
    writer.join().unwrap().unwrap();
    let lines = ended.sorted();
    assert_eq!(lines.len(), 3, "{}", ended.stdout);
    assert!(lines[0] == lines[1] && lines[0].ends_with(" 3000000"), "{lines:?}");
    assert_eq!(lines[2], "none");
}

#[test]
fn a_stdin_that_never_ends_holds_nothing_up() {
    let scratch = Scratch::new("open-stdin");
    let mut command = scratch.shell(&["-n", "2"], "true");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stdin = child.stdin.take();
    assert_eq!(finish(child).code(), Some(0));
    drop(stdin);
}

#[test]
fn a_reader_that_leaves_ends_the_ranks_that_write() {
    let scratch = Scratch::new("head");
    let mut command = scratch.shell(&["-n", "2"], "yes");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    drop(stdout);
    assert_eq!(finish(child).code(), Some(128 + 13));
}

#[test]
fn a_full_disk_fails_the_launch_and_is_named() {
    let scratch = Scratch::new("full");
    let mut command = scratch.shell(&["-n", "2"], "echo lost");
    command.stdout(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let ended = finish(command.stderr(Stdio::piped()).spawn().unwrap());
    // A rank that wrote late has had a SIGPIPE.
    assert!(matches!(ended.code(), Some(1 | 141)), "{:?}", ended.status);
    assert!(ended.stderr.contains("cannot write to stdout: No space left"), "{}", ended.stderr);
}

#[test]
fn a_process_left_behind_with_the_output_holds_the_end_up_for_a_second_only() {
    let scratch = Scratch::new("left");
    let ended = run(scratch.shell(&[], "sleep 60 & echo $! > left; echo last"));
    assert_eq!((ended.code(), ended.stdout.as_str()), (Some(0), "[0] last\n"));
    assert!(ended.after < Duration::from_secs(10), "{:?}", ended.after);
    // A launch that went well leaves it alone.
    let left = scratch.pid("left");
    assert!(runs(left));
    kill_process(left, Signal::KILL).unwrap();
}

// Ends.

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

// Signals.

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
