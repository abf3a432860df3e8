//! Launches, and what they came to.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::scratch::Scratch;

/// No wait in these tests lasts longer, on however busy a machine.
pub const LIMIT: Duration = Duration::from_secs(30);

impl Scratch {
    /// A launcher with these options, whose ranks run `script` in a shell.
    pub fn shell(&self, options: &[&str], script: &str) -> Command {
        let mut command = self.launcher(options);
        command.args(["--", "sh", "-c", script]);
        command
    }

    pub fn launcher(&self, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mlxd-launch"));
        command.args(options).env("TMPDIR", &self.0).current_dir(&self.0).stdin(Stdio::null());
        command
    }

    /// The names of the files that lie here.
    pub fn files(&self) -> Vec<String> {
        fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// The pid that a rank wrote to a file of this name.
    pub fn pid(&self, name: &str) -> Pid {
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
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub after: Duration,
}

impl Ended {
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The lines of stdout in an order that does not depend on the ranks' speed.
    pub fn sorted(&self) -> Vec<&str> {
        let mut lines: Vec<&str> = self.stdout.lines().collect();
        lines.sort_unstable();
        lines
    }
}

pub fn run(mut command: Command) -> Ended {
    finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// Waits for a launcher with piped outputs; one that hangs fails the test.
pub fn finish(mut child: Child) -> Ended {
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

pub fn wait(child: &mut Child) -> ExitStatus {
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
pub fn start_ready(mut command: Command, ranks: usize) -> (Child, BufReader<ChildStdout>) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..ranks {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert!(line.ends_with("ready\n"), "{line:?}");
    }
    (child, stdout)
}

pub fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process runs: neither gone nor a zombie that nobody has reaped.
pub fn runs(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start().chars().next();
    test_kill_process(pid).is_ok() && !matches!(state, None | Some('Z' | 'X'))
}
