//! One rank: a child process at the head of its own process group.

use std::io::{self, PipeReader, PipeWriter};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, getpid, getppid, kill_process, kill_process_group,
    set_parent_process_death_signal, test_kill_process_group,
};

use crate::signals::{self, Signals};

/// A rank that was started.
///
/// It leads a process group of its own: a signal reaches what it started as well (wrappers,
/// workers), and Ctrl-C in a terminal reaches it once, through the launcher.
pub struct Rank {
    /// Its process, and the group's number.
    pub pid: Pid,
    /// How it ended, once it has.
    pub ended: Option<ExitStatus>,
    /// Whether its group may still have members.
    group_lives: bool,
}

/// Our ends of a rank's standard streams.
pub struct Streams {
    /// What it reads; `None`: `/dev/null`.
    pub stdin: Option<PipeWriter>,
    /// What it writes to stdout.
    pub stdout: PipeReader,
    /// What it writes to stderr.
    pub stderr: PipeReader,
}

impl Rank {
    /// Starts `command`, which dies with the launcher; `with_stdin`: its stdin is a pipe.
    ///
    /// To be called from the main thread: the kernel takes the end of the *thread* that started a
    /// process for the end of its parent.
    pub fn start(
        mut command: Command,
        signals: &Signals,
        with_stdin: bool,
    ) -> io::Result<(Rank, Streams)> {
        let (stdout, its_stdout) = io::pipe()?;
        let (stderr, its_stderr) = io::pipe()?;
        let stdin = if with_stdin {
            let (its_stdin, stdin) = io::pipe()?;
            command.stdin(its_stdin);
            Some(stdin)
        } else {
            command.stdin(Stdio::null());
            None
        };
        command.stdout(its_stdout).stderr(its_stderr).process_group(0);
        let (launcher, signals) = (getpid(), signals.clone());
        let before_exec = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The launcher may have died before that took effect.
            if getppid() != Some(launcher) {
                return Err(Errno::SRCH.into());
            }
            signals.restore()
        };
        // SAFETY: between fork and exec it makes three system calls (prctl, getppid,
        // rt_sigprocmask) on memory that it owns; it takes no lock and allocates nothing.
        unsafe { command.pre_exec(before_exec) };
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the child has no process id"))?;
        Ok((Rank { pid, ended: None, group_lives: true }, Streams { stdin, stdout, stderr }))
    }

    /// Sends `signal` to the rank and all that it started in its group.
    pub fn signal(&mut self, signal: Signal) {
        if self.lives() {
            // It may end this moment; nothing else can fail for a group of ours.
            let _ = kill_process_group(self.pid, signal);
        }
    }

    /// Sends `signal` to the rank's own process.
    pub fn signal_alone(&self, signal: Signal) {
        // Until it has been reaped, its number is its own.
        if self.ended.is_none() {
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Notes how the rank's process ended.
    pub fn note_end(&mut self, status: ExitStatus) {
        self.ended = Some(status);
        // Now, while its number cannot have been given to another group.
        self.lives();
    }

    /// Whether the rank or anything else in its group still runs.
    pub fn lives(&mut self) -> bool {
        self.group_lives = self.group_lives
            && (self.ended.is_none() || test_kill_process_group(self.pid) != Err(Errno::SRCH));
        self.group_lives
    }
}

/// How a rank failed, if it did: in words, and as an exit status.
pub fn failure(status: ExitStatus) -> Option<(String, u8)> {
    if status.success() {
        return None;
    }
    Some(match (status.code(), status.signal()) {
        (Some(code), _) => {
            (format!("exited with status {code}"), u8::try_from(code).unwrap_or(u8::MAX))
        }
        (None, signal) => {
            let signal = signal.unwrap_or(0);
            let core = if status.core_dumped() { " (core dumped)" } else { "" };
            let words = format!("was killed by {}{core}", signals::name(signal));
            (words, signals::exit_status(signal))
        }
    })
}
