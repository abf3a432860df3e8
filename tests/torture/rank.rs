//! A rank of a round: follows the program, and tells what was not as it should be.

use std::ffi::CStr;
use std::io::BufRead;
use std::ptr::null_mut;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mlxd::capi::*;
use serde_json::json;

use crate::flight::{Flight, Lane, Remains};
use crate::groups::{Groups, Handle};
use crate::processes::report;
use crate::program::{Action, Step};
use crate::random::Random;
use crate::round::{Moment, Round};

/// The step that each thread is in: this one, and the two that it may wait for.
static AT: [AtomicUsize; 3] = [const { AtomicUsize::new(usize::MAX) }; 3];
/// Operations whose bytes were right; all, and after a failure.
static RIGHT: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
static GROUPS: std::sync::LazyLock<Groups> = std::sync::LazyLock::new(Groups::default);

/// The role is `seed rank`.
pub fn main(role: &str) {
    let (seed, rank) = role.split_once(' ').unwrap();
    let (round, rank) = (Round::new(seed.parse().unwrap()), rank.parse().unwrap());
    if let Some((victim, Moment::Launch(after))) = round.victim
        && victim == rank
    {
        die(after);
    }
    listen();
    linger(&mut round.random(rank, usize::MAX - 1));
    // SAFETY: the name ends with a NUL.
    let world = unsafe { mlxd_init(1, c"ring".as_ptr()) };
    if world.is_null() {
        return report(&json!({ "no_world": mlxd_last_status(), "message": last_error() }));
    }
    GROUPS.insert(0, Handle(world));
    let lanes = vec![Lane::new(), Lane::new()];
    let mut worker = Worker { round: &round, rank, thread: 0, lanes, remains: Vec::new() };
    round.program.steps.iter().for_each(|step| worker.step(step));
    worker.end();
}

/// Kills this process after a while.
fn die(after: Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(after);
        // SAFETY: ends the process.
        unsafe { libc::raise(libc::SIGKILL) }
    });
}

/// Is late now and then; seldom so late that others tell what they wait in.
fn linger(random: &mut Random) {
    if random.one_in(12) {
        std::thread::sleep(Duration::from_micros(random.log_uniform(4_000) as u64));
    } else if random.one_in(200) {
        std::thread::sleep(Duration::from_millis(130));
    }
}

/// Says where it is, whenever the test asks.
fn listen() {
    std::thread::spawn(|| {
        for _ in std::io::stdin().lock().lines().map_while(Result::ok) {
            let at: Vec<_> = AT.iter().map(|at| at.load(Ordering::Relaxed)).collect();
            report(&json!({ "at": at }));
        }
    });
}

fn last_error() -> String {
    // SAFETY: the library's string is valid until the next call on this thread.
    unsafe { CStr::from_ptr(mlxd_last_error()) }.to_string_lossy().into_owned()
}

/// Tells the test of something wrong; the others go on.
fn wrong(what: &str) {
    report(&json!({ "wrong": what }));
}

fn expect_right(outcome: Result<(), String>) {
    outcome.unwrap_or_else(|e| wrong(&e));
}

/// Looks at what an operation that succeeded has left.
fn land(flight: &Flight) {
    expect_right(flight.check());
    RIGHT[0].fetch_add(1, Ordering::Relaxed);
    RIGHT[1].fetch_add(GROUPS.any_failed().into(), Ordering::Relaxed);
}

/// A thread of a rank.
pub struct Worker<'a> {
    pub round: &'a Round,
    /// In the world.
    pub rank: usize,
    thread: usize,
    lanes: Vec<Lane>,
    remains: Vec<Remains>,
}

impl Worker<'_> {
    fn step(&mut self, step: &Step) {
        AT[self.thread].store(step.number, Ordering::Relaxed);
        self.die_if_due(step);
        let mut random = self.round.random(self.rank, step.number);
        linger(&mut random);
        let ranks = &self.round.program.groups[step.group];
        let own = ranks.iter().position(|rank| *rank == self.rank);
        match (&step.action, own) {
            (Action::Threads(tracks), _) => self.threads(tracks),
            (_, None) => {}
            (Action::Free, _) if random.one_in(3) => {}
            (Action::Free, _) => GROUPS.free(step.group),
            (Action::Split { colors, keys, parts }, Some(own)) => {
                self.split(step, colors[own], keys[own], parts);
            }
            (_, Some(own)) => {
                if let Some(group) = GROUPS.get(step.group) {
                    self.operate(step, group, own, &mut random);
                }
            }
        }
        if random.one_in(8) {
            self.synchronize(random.below(2) % self.lanes.len());
        }
    }

    fn die_if_due(&self, step: &Step) {
        static ONCE: Once = Once::new();
        if let Some((victim, Moment::Step(number, after))) = self.round.victim
            && victim == self.rank
            && step.number >= number
        {
            ONCE.call_once(|| die(after));
        }
    }

    /// Each with a stream of its own.
    fn threads(&mut self, tracks: &[Vec<Step>; 2]) {
        let lanes = std::mem::take(&mut self.lanes);
        let (round, rank) = (self.round, self.rank);
        let workers: Vec<Worker> = std::thread::scope(|scope| {
            let threads: Vec<_> = tracks
                .iter()
                .zip(lanes)
                .enumerate()
                .map(|(number, (steps, lane))| {
                    scope.spawn(move || {
                        let (lanes, remains) = (vec![lane], Vec::new());
                        let thread = number + 1;
                        let mut worker = Worker { round, rank, thread, lanes, remains };
                        steps.iter().for_each(|step| worker.step(step));
                        worker
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for worker in workers {
            self.lanes.extend(worker.lanes);
            self.remains.extend(worker.remains);
        }
    }

    fn split(&mut self, step: &Step, color: i32, key: i32, parts: &[usize]) {
        let groups = &self.round.program.groups;
        let part = parts.iter().copied().find(|part| groups[*part].contains(&self.rank));
        let mut handle = null_mut();
        let status = match GROUPS.get(step.group) {
            // SAFETY: the handle is valid, and there is room for another.
            Some(group) => unsafe { mlxd_group_split(group, color, key, &mut handle) },
            None => return self.abandon(part),
        };
        if status != MLXD_OK {
            self.failed(step.group, status, &step.to_string());
            return self.abandon(part);
        }
        let Some(part) = part else {
            return expect_right(match handle.is_null() {
                true => Ok(()),
                false => Err(format!("{step}: a group of colour -1")),
            });
        };
        // SAFETY: the handle is new.
        let place = unsafe { (mlxd_group_rank(handle), mlxd_group_size(handle)) };
        let own = groups[part].iter().position(|rank| *rank == self.rank);
        let right = (own.map_or(-1, |own| own as i32), groups[part].len() as i32);
        if place != right {
            wrong(&format!("{step}: rank and size {place:?}, not {right:?}"));
        }
        GROUPS.insert(part, Handle(handle));
    }

    /// This rank will never have the group: those that have it wait for it in vain.
    fn abandon(&self, part: Option<usize>) {
        if let Some(part) = part {
            report(&json!({ "abandoned": part }));
        }
    }

    /// A stream, or none.
    pub fn choose(&self, random: &mut Random) -> Option<usize> {
        let choice = random.below(4);
        (choice < 2).then_some(choice % self.lanes.len())
    }

    pub fn stream(&self, choice: Option<usize>) -> *mut mlxd_stream {
        choice.map_or(null_mut(), |lane| self.lanes[lane].stream)
    }

    /// Goes on with an operation that was called with this outcome.
    pub fn called(&mut self, flight: Flight, choice: Option<usize>, status: mlxd_status) {
        match (status, choice) {
            (MLXD_OK, None) => land(&flight),
            (MLXD_OK, Some(lane)) => self.lanes[lane].flights.push(flight),
            _ => {
                self.failed(flight.group, status, &flight.label);
                self.remains.push(flight.remains());
            }
        }
    }

    /// Tells of a failure, once for each group; from then on it stays the same.
    fn failed(&self, group: usize, status: mlxd_status, label: &str) {
        let message = last_error();
        match GROUPS.fail(group, status) {
            Some(first) if first == status => return,
            Some(first) => wrong(&format!("{label}: status {status} after {first}: {message}")),
            None => {}
        }
        report(&json!({
            "failed": status, "groups": [group], "message": message, "in": label
        }));
    }

    fn synchronize(&mut self, lane: usize) {
        let flights = std::mem::take(&mut self.lanes[lane].flights);
        // SAFETY: the stream is valid.
        let status = unsafe { mlxd_stream_synchronize(self.lanes[lane].stream) };
        if status == MLXD_OK {
            return flights.iter().for_each(land);
        }
        let message = last_error();
        // Which of them failed is not said.
        let groups: Vec<usize> = flights.iter().map(|flight| flight.group).collect();
        report(&json!({
            "failed": status, "groups": groups, "message": message, "in": "synchronize"
        }));
        self.remains.extend(flights.into_iter().map(Flight::remains));
    }

    /// Looks at what is left, and leaves in one way or another.
    fn end(mut self) {
        AT[0].store(usize::MAX, Ordering::Relaxed);
        (0..self.lanes.len()).for_each(|lane| self.synchronize(lane));
        for group in GROUPS.all() {
            let Some(handle) = GROUPS.get(group) else { continue };
            // SAFETY: the handle is valid.
            match unsafe { mlxd_group_status(handle) } {
                MLXD_OK => {}
                status => self.failed(group, status, "at the end"),
            }
        }
        let mut random = self.round.random(self.rank, usize::MAX);
        for lane in &self.lanes {
            // SAFETY: the stream is not used again.
            unsafe { mlxd_stream_free(lane.stream) };
        }
        match random.below(3) {
            0 => mlxd_finalize(),
            1 => {
                let all = GROUPS.all();
                let order = random.permutation(all.len());
                order.into_iter().for_each(|at| GROUPS.free(all[at]));
            }
            _ => {}
        }
        self.remains.iter().for_each(|remains| expect_right(remains.check()));
        let [right, after] = RIGHT.each_ref().map(|count| count.load(Ordering::Relaxed));
        report(&json!({ "done": true, "right": right, "after": after }));
    }
}
