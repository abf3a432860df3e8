//! Watches the ranks from their start to the end of the last, and decides how the launch ends.

use std::io::{PipeWriter, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, wait, waitpid};

use crate::rank::{Rank, failure};
use crate::signals::{self, Received, Signals};

/// How often to look whether a process group has emptied: nothing tells of that.
const GROUP_LOOK: Duration = Duration::from_millis(20);

/// How long a process may take to die of `SIGKILL` (it may sit in a device driver).
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Where a launch stands.
enum Phase {
    /// All is well.
    Running,
    /// The ranks were asked to end, and have until then.
    Ending(Instant),
    /// They were killed; those which are not dead by then are given up.
    Killed(Instant),
}

/// The ranks of a launch, and what became of it.
pub struct Supervisor {
    ranks: Vec<Rank>,
    grace: Duration,
    verbose: bool,
    phase: Phase,
    /// The signal that asked us to end.
    interrupted: Option<i32>,
    /// The exit status of the first rank that failed.
    first_failure: Option<u8>,
    /// Where messages go: to stderr, in line with the ranks' own output.
    messages: PipeWriter,
}

impl Supervisor {
    /// A launch without any rank yet.
    pub fn new(grace: Duration, verbose: bool, messages: PipeWriter) -> Supervisor {
        Supervisor {
            ranks: Vec::new(),
            grace,
            verbose,
            phase: Phase::Running,
            interrupted: None,
            first_failure: None,
            messages,
        }
    }

    /// The next rank has started; the others reach it at `addresses`.
    pub fn add(&mut self, rank: Rank, addresses: Option<&Vec<String>>) {
        if self.verbose {
            let at = addresses.map(|own| format!(", {}", own.join(" "))).unwrap_or_default();
            self.say(&format!("rank {} is process {}{at}", self.ranks.len(), rank.pid));
        }
        self.ranks.push(rank);
    }

    /// The next rank could not be started, for this reason: the launch fails with `status`.
    pub fn refuse(&mut self, reason: &str, status: u8) {
        self.say(&format!("cannot start rank {}: {reason}", self.ranks.len()));
        self.first_failure = Some(status);
        self.end_ranks();
    }

    /// Watches until all ranks have ended (those of a launch that failed with everything in their
    /// process groups) and gives the launch's exit status: 0, or that of the first that failed.
    pub fn watch(&mut self, signals: &Signals) -> std::io::Result<u8> {
        while self.goes_on() {
            let received = signals.wait(self.patience())?;
            self.reap(received.as_ref().and_then(|received| received.child));
            if let Some(Received { signal, .. }) = received {
                self.take_signal(signal);
            }
            self.keep_deadline();
        }
        Ok(self.first_failure.unwrap_or(0))
    }

    /// Shows a message, if the output takes it.
    fn say(&mut self, message: &str) {
        // The pipe does not block; where it is full or closed there is nobody to read this.
        let _ = self.messages.write_all(format!("{message}\n").as_bytes());
    }

    fn goes_on(&mut self) -> bool {
        match self.phase {
            Phase::Running => self.ranks.iter().any(|rank| rank.ended.is_none()),
            Phase::Ending(_) => self.ranks.iter_mut().any(Rank::lives),
            Phase::Killed(_) => self.ranks.iter().any(|rank| rank.ended.is_none()),
        }
    }

    /// How long to wait for the next signal.
    fn patience(&self) -> Option<Duration> {
        let left = match self.phase {
            Phase::Running => return None,
            Phase::Ending(deadline) | Phase::Killed(deadline) => {
                deadline.saturating_duration_since(Instant::now())
            }
        };
        // While one of them runs, its end wakes us.
        let one_runs = self.ranks.iter().any(|rank| rank.ended.is_none());
        Some(if one_runs { left } else { left.min(GROUP_LOOK) })
    }

    /// Takes note of all processes that have ended or were stopped, `first` before the others.
    fn reap(&mut self, first: Option<Pid>) {
        let news = WaitOptions::NOHANG | WaitOptions::UNTRACED;
        if let Some(Ok(Some((pid, status)))) = first.map(|pid| waitpid(Some(pid), news)) {
            self.note(pid, status);
        }
        // Any child: what ranks left behind is ours to reap, too.
        while let Ok(Some((pid, status))) = wait(news) {
            self.note(pid, status);
        }
    }

    fn note(&mut self, pid: Pid, status: WaitStatus) {
        match status.stopping_signal() {
            Some(signal) => self.note_stop(pid, signal),
            None => self.note_end(pid, status.as_raw()),
        }
    }

    /// A rank that was stopped is missed by the others: they would wait without a word.
    fn note_stop(&mut self, pid: Pid, signal: i32) {
        let Some(number) = self.ranks.iter().position(|rank| rank.pid == pid) else { return };
        let stopped = format!("rank {number} was stopped by {}", signals::name(signal));
        match signal {
            // It would be stopped again each time that it goes on.
            libc::SIGTTIN | libc::SIGTTOU if matches!(self.phase, Phase::Running) => {
                self.say(&format!(
                    "{stopped}: ranks cannot use the terminal itself; ending all ranks"
                ));
                self.first_failure.get_or_insert(signals::exit_status(signal));
                self.end_ranks();
            }
            _ => self.say(&stopped),
        }
    }

    fn note_end(&mut self, pid: Pid, status: i32) {
        let status = ExitStatus::from_raw(status);
        let Some(number) =
            self.ranks.iter().position(|rank| rank.pid == pid && rank.ended.is_none())
        else {
            return;
        };
        self.ranks[number].note_end(status);
        let Some((words, mut code)) = failure(status) else {
            if self.verbose {
                self.say(&format!("rank {number} has ended well"));
            }
            return;
        };
        // Our own SIGKILL, because it did not heed the signal that we passed on.
        if let (Phase::Killed(_), Some(signal)) = (&self.phase, self.interrupted) {
            code = signals::exit_status(signal);
        }
        let is_first = self.first_failure.is_none();
        let others_run = self.ranks.iter().any(|rank| rank.ended.is_none());
        let ends_others = is_first && others_run && matches!(self.phase, Phase::Running);
        if is_first || self.verbose {
            let rest = if ends_others { "; ending the other ranks" } else { "" };
            self.say(&format!("rank {number} {words}{rest}"));
        }
        self.first_failure.get_or_insert(code);
        if matches!(self.phase, Phase::Running) {
            self.end_ranks();
        }
    }

    fn take_signal(&mut self, signal: i32) {
        if signals::ENDING.contains(&signal) {
            // Whoever presses Ctrl-C again does not want to wait.
            if signal == libc::SIGINT && self.interrupted == Some(libc::SIGINT) {
                return self.kill_ranks();
            }
            let wait = format!("what runs after {} s is killed", self.grace.as_secs_f64());
            self.say(&format!("{}, passed on to the ranks; {wait}", signals::name(signal)));
            self.interrupted.get_or_insert(signal);
            self.signal_ranks(signal);
            if matches!(self.phase, Phase::Running) {
                self.phase = Phase::Ending(Instant::now() + self.grace);
            }
        } else if signals::PASSED_ON.contains(&signal) {
            // Not for what they started: it would die of a signal that it does not expect.
            if let Some(signal) = Signal::from_named_raw(signal) {
                self.ranks.iter().for_each(|rank| rank.signal_alone(signal));
            }
        } else if signal == libc::SIGTSTP {
            self.signal_ranks(signal);
            stop_here();
            self.signal_ranks(libc::SIGCONT);
        }
    }

    fn keep_deadline(&mut self) {
        match self.phase {
            Phase::Ending(deadline) if Instant::now() >= deadline => self.kill_ranks(),
            Phase::Killed(deadline) if Instant::now() >= deadline => {
                for number in 0..self.ranks.len() {
                    if self.ranks[number].ended.is_none() {
                        let pid = self.ranks[number].pid;
                        self.say(&format!("rank {number} (process {pid}) does not die: given up"));
                        self.note_end(pid, libc::SIGKILL);
                    }
                }
            }
            _ => {}
        }
    }

    /// Asks all ranks to end, and sets them a deadline.
    fn end_ranks(&mut self) {
        self.signal_ranks(libc::SIGTERM);
        // One that is stopped acts on it only when it goes on.
        self.signal_ranks(libc::SIGCONT);
        self.phase = Phase::Ending(Instant::now() + self.grace);
    }

    fn kill_ranks(&mut self) {
        self.signal_ranks(libc::SIGKILL);
        self.phase = Phase::Killed(Instant::now() + KILL_LIMIT);
    }

    /// Sends a signal to all ranks and what they started.
    fn signal_ranks(&mut self, signal: i32) {
        if let Some(signal) = Signal::from_named_raw(signal) {
            self.ranks.iter_mut().for_each(|rank| rank.signal(signal));
        }
    }
}

/// Stops the launcher, as Ctrl-Z is meant to; returns when it goes on.
pub fn stop_here() {
    // A process may always signal itself.
    let _ = kill_process(getpid(), Signal::STOP);
}
