//! Every order in which ranks can take the steps of a sequence of calls: whoever reads a slot or a
//! result finds the block that it wants there, and somebody can always go on.

use std::collections::HashSet;

use super::pattern::{Kind, Pattern};
use crate::call::{Call, Verb};
use crate::transport::board::DEPTH;

/// What a rank does next. Each is one atomic event: waits are conditions of the event that follows,
/// and what a rank reads over a time is two events, its begin and its end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    /// Writes the slot for a block, once everybody is done with the block before in it.
    Write(u64),
    /// Stamps it.
    Post(u64),
    /// Begins to read a peer's slot, once it is stamped.
    Read(usize, u64),
    /// Has read it; nobody may have written it meanwhile.
    HaveRead(usize, u64),
    /// Writes and stamps the result of a block.
    PostResult(u64),
    ReadResult(usize, u64),
    HaveReadResult(usize, u64),
    /// Is done with all blocks before this one.
    PostDone(u64),
}

/// The events of one rank, in order, as `Run` takes its turns.
fn events(rank: usize, calls: &[Pattern]) -> Vec<Event> {
    let mut events = Vec::new();
    let mut first = 0;
    for pattern in calls {
        let (blocks, stages) = (pattern.blocks(), pattern.stages());
        for turn in 0..blocks + stages - 1 {
            if turn < blocks {
                events.extend([Event::Write(first + turn), Event::Post(first + turn)]);
            }
            if turn > 0 && turn <= blocks {
                let block = first + turn - 1;
                let sources = pattern.sources(rank);
                events.extend(
                    sources.flat_map(|p| [Event::Read(p, block), Event::HaveRead(p, block)]),
                );
                match stages {
                    3 => events.push(Event::PostResult(block)),
                    _ => events.push(Event::PostDone(block + 1)),
                }
            }
            if turn > 1 && stages == 3 {
                let block = first + turn - 2;
                let others = pattern.others(rank);
                events.extend(
                    others.flat_map(|p| {
                        [Event::ReadResult(p, block), Event::HaveReadResult(p, block)]
                    }),
                );
                events.push(Event::PostDone(block + 1));
            }
        }
        first += blocks;
    }
    events
}

/// The board: what is in each place, as one more than the number of the block, 0 for nothing.
#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    /// How many of its events each rank has taken.
    taken: Vec<usize>,
    /// Per rank and place: what is written there, and what the stamp says.
    slots: Vec<[(u64, u64); DEPTH as usize]>,
    results: Vec<[u64; DEPTH as usize]>,
    done: Vec<u64>,
}

impl State {
    /// The state after a rank's next event; `None` if it has to wait. Ranks may be `ahead` blocks ahead.
    fn after(&self, rank: usize, event: Event, ahead: u64) -> Option<State> {
        let place = |block: u64| (block % DEPTH) as usize;
        let mut next = self.clone();
        match event {
            Event::Write(block) => {
                let read = (block + 1).saturating_sub(ahead);
                let mut others = (0..self.done.len()).filter(|peer| *peer != rank);
                if others.any(|peer| self.done[peer] < read) {
                    return None;
                }
                next.slots[rank][place(block)].0 = block + 1;
            }
            Event::Post(block) => next.slots[rank][place(block)].1 = block + 1,
            Event::Read(peer, block) if self.slots[peer][place(block)].1 <= block => return None,
            Event::Read(peer, block) | Event::HaveRead(peer, block) => {
                assert_eq!(self.slots[peer][place(block)].0, block + 1, "{event:?} by rank {rank}");
            }
            Event::PostResult(block) => next.results[rank][place(block)] = block + 1,
            Event::ReadResult(peer, block) if self.results[peer][place(block)] <= block => {
                return None;
            }
            Event::ReadResult(peer, block) | Event::HaveReadResult(peer, block) => {
                assert_eq!(self.results[peer][place(block)], block + 1, "{event:?} by rank {rank}");
            }
            Event::PostDone(before) => next.done[rank] = before,
        }
        next.taken[rank] += 1;
        Some(next)
    }
}

/// Visits every state that can be reached; how many there are.
fn explore(ranks: usize, calls: &[Pattern], ahead: u64) -> usize {
    let events: Vec<_> = (0..ranks).map(|rank| events(rank, calls)).collect();
    let begin = State {
        taken: vec![0; ranks],
        slots: vec![[(0, 0); DEPTH as usize]; ranks],
        results: vec![[0; DEPTH as usize]; ranks],
        done: vec![0; ranks],
    };
    let (mut seen, mut open) = (HashSet::from([begin.clone()]), vec![begin]);
    while let Some(state) = open.pop() {
        let left: Vec<_> =
            (0..ranks).filter(|rank| state.taken[*rank] < events[*rank].len()).collect();
        let next: Vec<_> = left
            .iter()
            .filter_map(|rank| state.after(*rank, events[*rank][state.taken[*rank]], ahead))
            .collect();
        assert!(left.is_empty() || !next.is_empty(), "nobody can go on after {:?}", state.taken);
        open.extend(next.into_iter().filter(|state| seen.insert(state.clone())));
    }
    seen.len()
}

/// A call of so many blocks of 64 bytes.
fn call(kind: Kind, ranks: usize, blocks: usize) -> Pattern {
    let parts = if matches!(kind, Kind::ReducePieces | Kind::MovePieces) { ranks } else { 1 };
    let count = (blocks * 64 * parts) as u64;
    let call = Call { sequence: 0, verb: Verb::AllSum, dtype: 1, root: -1, count };
    let pattern = Pattern::new(kind, &call, ranks, 1, 64 * parts);
    assert_eq!(pattern.blocks(), blocks as u64);
    pattern
}

#[test]
fn no_order_of_events_spoils_a_block() {
    let root = |root| Kind::Broadcast { root };
    for (ranks, calls) in [
        (2, vec![(Kind::ReduceSlices, 9), (Kind::Gather, 1), (Kind::ReduceSlices, 2)]),
        (2, vec![(root(0), 7), (root(1), 6), (Kind::ReduceAll, 1), (root(1), 6)]),
        (3, vec![(Kind::ReduceSlices, 6)]),
        (3, vec![(root(0), 1), (root(1), 1), (root(2), 1), (root(0), 6)]),
        (3, vec![(Kind::Gather, 1), (Kind::MovePieces, 2), (root(1), 5)]),
    ] {
        let calls: Vec<_> = calls.into_iter().map(|(kind, n)| call(kind, ranks, n)).collect();
        assert!(explore(ranks, &calls, DEPTH) > 500);
    }
}

/// (Where everybody reads from everybody, nobody can run ahead anyway.)
#[test]
#[should_panic(expected = "Read(0, ")]
fn one_block_more_in_flight_would_spoil_one() {
    explore(2, &[call(Kind::Broadcast { root: 0 }, 2, 7)], DEPTH + 1);
}
