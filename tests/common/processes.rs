//! Ranks as processes of their own: the test's program once more, in another role. It tells what
//! happens to it in lines of JSON, and is told what to do in lines of text.
#![allow(dead_code)] // No test file uses everything.

use std::ffi::CStr;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::task::Poll;
use std::time::{Duration, Instant};

use mlxd::capi::*;
use rustix::net::{Shutdown, shutdown};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, WaitOptions, kill_process, pidfd_getfd, pidfd_open,
    waitpid,
};
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

/// What a rank reports that is where the test wants it.
pub const READY: &str = "ready";

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

/// A free port of the loopback interface, below those that the system itself hands out; each call and
/// each process looks in another place.
pub fn free_port() -> u16 {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut ports = std::iter::repeat_with(|| {
        let call = CALLS.fetch_add(1, Ordering::Relaxed);
        20000 + (std::process::id().wrapping_mul(61).wrapping_add(call * 7) % 12000) as u16
    });
    ports.find(free).unwrap()
}

/// Whether the message has `rank N`, after the scene: `[ring] recv on rank 1 of 4: ...`.
pub fn names_rank(message: &str, number: usize) -> bool {
    let cause = message.split_once(": ").map_or("", |(_, cause)| cause);
    let name = format!("rank {number}");
    cause
        .match_indices(&name)
        .any(|(at, _)| !cause[at + name.len()..].starts_with(|next: char| next.is_ascii_digit()))
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
        self.report_within(LIMIT)
    }

    /// The same, with another limit.
    pub fn report_within(&self, limit: Duration) -> Option<Value> {
        self.reports.recv_timeout(limit).ok()
    }

    /// Waits until it says so.
    pub fn ready(&self) -> Result<(), String> {
        match self.report() {
            Some(report) if report == READY => Ok(()),
            other => Err(format!("it did not get ready: {other:?}")),
        }
    }

    /// The next that it tells, if it has told something; `None` once it ends.
    pub fn poll(&self) -> Poll<Option<Value>> {
        match self.reports.try_recv() {
            Ok(value) => Poll::Ready(Some(value)),
            Err(TryRecvError::Disconnected) => Poll::Ready(None),
            Err(TryRecvError::Empty) => Poll::Pending,
        }
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

    /// Its descriptors that are sockets.
    pub fn sockets(&self) -> Vec<i32> {
        let folder = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let socket = |entry: std::io::Result<std::fs::DirEntry>| {
            let entry = entry.ok()?;
            // Closed meanwhile, perhaps.
            let target = std::fs::read_link(entry.path()).ok()?;
            let is_socket = target.to_str()?.starts_with("socket:");
            is_socket.then(|| entry.file_name().to_str()?.parse().ok())?
        };
        folder.filter_map(socket).collect()
    }

    /// Shuts all its connections down for writing. It stands still meanwhile, since it would tell those
    /// whose turn has not come of what it hears from the first.
    pub fn half_close(&self) {
        self.signal(Signal::STOP);
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        waitpid(Some(pid), WaitOptions::UNTRACED).unwrap();
        let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let mut shut = 0;
        for number in self.sockets() {
            let fd = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).unwrap();
            // What is neither connected nor listens is refused.
            shut += usize::from(shutdown(&fd, Shutdown::Write).is_ok());
        }
        assert!(shut > 0, "no connections");
        self.signal(Signal::CONT);
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
