//! The flight recorder: a group's last operations, kept in memory for when something hangs.
//!
//! A *record* is one operation as this rank called it. The records lie under the lock that orders the
//! group's operations ([`crate::order`]), so that keeping them costs neither a lock nor an allocation;
//! [`archive`] writes them to the folder of MLXD_FLIGHT_RECORDER when the group fails, and [`document`]
//! says what such a file holds.

pub mod archive;
pub mod document;

use serde::{Deserialize, Serialize};

use crate::call::Verb;
use crate::dtype::Dtype;

/// Records that a group keeps: some steps of a training program, in 28 KiB.
pub const KEPT: usize = 256;

/// A queue of operations that run one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Queue {
    /// All collectives, splits among them.
    Collectives,
    /// Sends to this rank.
    SendsTo(usize),
    /// Receives from this rank.
    RecvsFrom(usize),
}

/// A place in one queue, or in two at once, counted from 0.
pub type Places = [Option<(Queue, u64)>; 2];

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Which call; `Message` is a send, a receive, or both.
    pub verb: Verb,
    /// The elements' type.
    pub dtype: Dtype,
    /// The root's rank, -1 where there is none.
    pub root: i32,
    /// Elements: those of a collective, or those sent and those received.
    pub count: [usize; 2],
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Called; those before it are not done.
    Queued,
    /// Its turn has come.
    Running,
    /// Ended well.
    Done,
    /// Ended with an error.
    Failed,
}

impl State {
    /// Whether it has not ended.
    pub fn is_pending(self) -> bool {
        matches!(self, State::Queued | State::Running)
    }
}

/// Nanoseconds of a coarse monotonic clock; 0 is never.
pub type Stamp = u64;

/// One operation as this rank called it.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// Its place among all operations of the group on this rank, counted from 0.
    pub number: u64,
    /// What was called.
    pub operation: Operation,
    /// Its places in the group's queues: a send's comes first.
    pub places: Places,
    /// How far it is.
    pub state: State,
    /// When it was called.
    pub called: Stamp,
    /// When its turn came.
    pub started: Stamp,
    /// When it ended.
    pub ended: Stamp,
}

/// A slot's first content.
const BLANK: Record = Record {
    number: 0,
    operation: Operation { verb: Verb::Barrier, dtype: Dtype::Bool, root: -1, count: [0; 2] },
    places: [None; 2],
    state: State::Queued,
    called: 0,
    started: 0,
    ended: 0,
};

/// Where a record is kept.
#[derive(Clone, Copy, Debug)]
pub struct Slot(u32);

/// The last [`KEPT`] records of a group, and all that are pending, however many.
#[derive(Debug)]
pub struct Records {
    slots: Vec<Record>,
    /// Where the oldest is looked for.
    next: usize,
    /// Operations ever called.
    called: u64,
    /// How many of the slots hold a pending one.
    pending: usize,
}

impl Default for Records {
    fn default() -> Records {
        Records { slots: Vec::with_capacity(KEPT), next: 0, called: 0, pending: 0 }
    }
}

impl Records {
    /// Records a call, whose places are given next.
    pub fn call(&mut self, operation: &Operation, now: Stamp) -> Slot {
        let at = self.next_slot();
        self.pending += 1;
        let number = self.called;
        self.called += 1;
        // Field by field: a record as a whole would be made elsewhere first.
        let record = &mut self.slots[at];
        record.number = number;
        record.operation = *operation;
        record.places = [None; 2];
        record.state = State::Queued;
        (record.called, record.started, record.ended) = (now, 0, 0);
        Slot(at as u32)
    }

    /// The places of a record.
    pub fn places(&mut self, slot: Slot) -> &mut Places {
        &mut self.slots[slot.0 as usize].places
    }

    /// The operation's turn has come.
    pub fn start(&mut self, slot: Slot, now: Stamp) {
        let record = &mut self.slots[slot.0 as usize];
        (record.state, record.started) = (State::Running, now);
    }

    /// The operation has ended, after its turn or before.
    pub fn end(&mut self, slot: Slot, failed: bool, now: Stamp) {
        let record = &mut self.slots[slot.0 as usize];
        record.state = if failed { State::Failed } else { State::Done };
        record.ended = now;
        self.pending -= 1;
    }

    /// That of the oldest record which is not pending; a new one where there is none, or room.
    fn next_slot(&mut self) -> usize {
        let slots = self.slots.len();
        if slots < KEPT || self.pending == slots {
            self.slots.push(BLANK);
            return slots;
        }
        while self.slots[self.next].state.is_pending() {
            self.next = self.following(self.next);
        }
        let at = self.next;
        self.next = self.following(at);
        at
    }

    fn following(&self, at: usize) -> usize {
        if at + 1 < self.slots.len() { at + 1 } else { 0 }
    }

    /// A copy.
    pub fn snapshot(&self) -> Snapshot {
        let mut records = self.slots.clone();
        records.sort_unstable_by_key(|record| record.number);
        Snapshot { records, called: self.called }
    }
}

/// What a group had called at some moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Oldest first.
    pub records: Vec<Record>,
    /// Operations ever called.
    pub called: u64,
}

impl Record {
    /// Its place in this kind of queue.
    pub fn place(&self, is_it: impl Fn(Queue) -> bool) -> Option<(Queue, u64)> {
        self.places.iter().flatten().copied().find(|(queue, _)| is_it(*queue))
    }
}

/// The coarse clock: a few nanoseconds to read, exact to the kernel's tick (1 to 10 ms).
pub fn now() -> Stamp {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writes. It fails only for an unknown clock; this one is Linux's
    // since 2.6.32.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(count: usize) -> Operation {
        Operation { verb: Verb::AllSum, dtype: Dtype::Float32, root: -1, count: [count, 0] }
    }

    /// Runs operation `number` from beginning to end.
    fn run(records: &mut Records, number: u64) {
        let slot = records.call(&sum(number as usize), 10 * number + 1);
        records.start(slot, 10 * number + 2);
        records.end(slot, number.is_multiple_of(3), 10 * number + 3);
    }

    fn numbers(records: &Records) -> Vec<u64> {
        records.snapshot().records.iter().map(|record| record.number).collect()
    }

    #[test]
    fn the_newest_are_kept() {
        let mut records = Records::default();
        (0..700).for_each(|number| run(&mut records, number));
        let snapshot = records.snapshot();
        assert_eq!(snapshot.called, 700);
        assert_eq!(numbers(&records), (700 - 256..700).collect::<Vec<u64>>());
        for record in snapshot.records {
            let number = record.number;
            let state = if number.is_multiple_of(3) { State::Failed } else { State::Done };
            assert_eq!((record.state, record.operation), (state, sum(number as usize)));
            let times = (record.called, record.started, record.ended);
            assert_eq!(times, (10 * number + 1, 10 * number + 2, 10 * number + 3));
        }
    }

    #[test]
    fn states_follow_the_operation() {
        let mut records = Records::default();
        let state = |records: &Records| records.snapshot().records[0].state;
        let slot = records.call(&sum(5), 7);
        assert_eq!(state(&records), State::Queued);
        records.start(slot, 8);
        assert_eq!(state(&records), State::Running);
        records.end(slot, false, 9);
        assert_eq!(state(&records), State::Done);
        // One that never had its turn.
        let slot = records.call(&sum(6), 10);
        records.end(slot, true, 11);
        let record = records.snapshot().records[1];
        assert_eq!((record.state, record.started, record.ended), (State::Failed, 0, 11));
    }

    #[test]
    fn what_is_pending_stays() {
        let mut records = Records::default();
        let slot = records.call(&sum(0), 1);
        records.start(slot, 2);
        (1..1000).for_each(|number| run(&mut records, number));
        let kept = numbers(&records);
        assert_eq!(kept.len(), KEPT);
        assert_eq!((kept[0], kept[1], kept[255]), (0, 1000 - 255, 999));
        records.end(slot, false, 3);
        (1000..1256).for_each(|number| run(&mut records, number));
        assert_eq!(numbers(&records), (1000..1256).collect::<Vec<u64>>());
    }

    #[test]
    fn more_pending_than_are_kept_are_all_there() {
        let mut records = Records::default();
        let all: Vec<Slot> = (0..300).map(|_| records.call(&sum(7), 1)).collect();
        assert_eq!(numbers(&records), (0..300).collect::<Vec<u64>>());
        for slot in &all[..299] {
            records.start(*slot, 2);
            records.end(*slot, false, 3);
        }
        // The room stays, the last one that is pending too.
        (300..900).for_each(|number| run(&mut records, number));
        let expected: Vec<u64> = std::iter::once(299).chain(900 - 299..900).collect();
        assert_eq!(numbers(&records), expected);
        assert_eq!(records.snapshot().records[0].state, State::Queued);
        records.end(all[299], true, 4);
        (900..1200).for_each(|number| run(&mut records, number));
        assert_eq!(numbers(&records), (900..1200).collect::<Vec<u64>>());
    }

    #[test]
    fn the_clock_goes_on() {
        let (before, begin) = (now(), std::time::Instant::now());
        std::thread::sleep(std::time::Duration::from_millis(50));
        let (passed, real) = (now() - before, begin.elapsed().as_nanos() as u64);
        // Two readings, each up to a tick of 10 ms late.
        assert!(passed + 10_000_000 >= real.min(50_000_000), "{passed} of {real} ns");
    }
}
