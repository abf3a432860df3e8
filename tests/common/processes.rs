//! Ranks as processes of their own: the test's program once more, in another role. It tells what
//! happens to it in lines of JSON, and is told what to do in lines of text.
#![allow(dead_code)] // No test file uses everything.

use std::ffi::CStr;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use mlxd::capi::*;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// No wait in these tests lasts longer, on however busy a machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Says to this program that it is a rank, and what it is to do.
const ROLE: &str = "MLXD_TEST_ROLE";

/// What this process is to do, if it is a rank: asked first of all by `main`.
pub fn role() -> Option<String> {
    let role = std::env::var(ROLE).ok()?;
    // Whatever happens to the test: nothing is left behind.
    // SAFETY: an alarm ends this process, which has no handler for it.
    unsafe { libc::alarm(4 * LIMIT.as_secs() as u32) };
    Some(role)
}

/// In a rank: tells the test something.
pub fn report(value: &Value) {
    let mut stdout = std::io::stdout().lock();
    // Without a reader there is nobody to tell.
    let _ = writeln!(stdout, "{value}").and_then(|()| stdout.flush());
}

/// In a rank: tells the test how this thread's last call ended, and when.
pub fn report_end(status: mlxd_status) {
    // SAFETY: the library's string is valid until the next call on this thread.
    let message = unsafe { CStr::from_ptr(mlxd_last_error()) }.to_string_lossy();
    report(&json!({ "status": status, "message": message, "at": now() }));
}

/// Seconds of a clock that all processes share.
pub fn now() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// How a call of a rank ended.
#[derive(Clone, Debug)]
pub struct End {
    /// What it returned.
    pub status: mlxd_status,
    /// What it said.
    pub message: String,
    /// When, by [`now`].
    pub at: f64,
}

/// A rank, from the test's side. It is killed when this is dropped.
pub struct Rank {
    child: Child,
    stdin: ChildStdin,
    reports: Receiver<Value>,
}

impl Rank {
    /// Starts this program in a role with these variables, and none of this process's that a start
    /// reads; in a network namespace if one is named.
    pub fn start(role: &str, variables: &[(&str, String)], namespace: Option<&str>) -> Rank {
        let program = std::env::current_exe().unwrap();
        let mut command = match namespace {
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(program);
                command
            }
            None => Command::new(program),
        };
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("ML") || ["RANK", "WORLD_SIZE", "MASTER_ADDR"].contains(&&*text) {
                command.env_remove(name);
            }
        }
        command.env(ROLE, role).envs(variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (tell, reports) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let told = serde_json::from_str(&line).map(|value: Value| tell.send(value));
                if let Err(e) = told {
                    eprintln!("a rank said {line:?}: {e}");
                }
            }
        });
        Rank { child, stdin, reports }
    }

    /// Tells it to do something.
    pub fn tell(&mut self, what: &str) {
        // One that is gone is noticed when it does not report.
        let _ = writeln!(self.stdin, "{what}").and_then(|()| self.stdin.flush());
    }

    /// The next that it tells; `None` if it ends, or says nothing for too long.
    pub fn report(&self) -> Option<Value> {
        self.reports.recv_timeout(LIMIT).ok()
    }

    /// How its call ended.
    pub fn end(&self) -> Option<End> {
        let report = self.report()?;
        Some(End {
            status: report["status"].as_i64()? as mlxd_status,
            message: report["message"].as_str()?.to_owned(),
            at: report["at"].as_f64()?,
        })
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end: its status, or `None` if it did not end in time.
    pub fn exit(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return Some(status),
                None if Instant::now() > deadline => return None,
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
