//! Every pattern on threads as ranks, and every order of events in small worlds.

use std::sync::Arc;

use super::pattern::{Kind, Pattern};
use super::wait::Waiting;
use super::*;
use crate::call::{Call, Header, Verb};
use crate::collective::choose_at_board;
use crate::dtype::Dtype;
use crate::error::Status;
use crate::health::Health;
use crate::reduce::{Reduction, kernel};
use crate::transport::segment::Segment;

/// Runs `body` for each rank on a thread of its own, at one board in `bytes` bytes.
fn meet<T: Send>(ranks: usize, bytes: usize, body: impl Fn(usize, Runner) -> T + Sync) -> Vec<T> {
    let segment = Arc::new(Segment::create(bytes).unwrap().0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks)
            .map(|rank| {
                let runner = Runner::new(Board::new(segment.clone(), bytes, rank, ranks));
                let body = &body;
                scope.spawn(move || body(rank, runner))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Calls in the order in which they are made, as one rank makes them.
struct Rank {
    rank: usize,
    ranks: usize,
    runner: Runner,
    health: Health,
    sequence: u64,
    /// Bytes of a block at most.
    block: usize,
    limit: Option<std::time::Duration>,
}

impl Rank {
    fn new(rank: usize, ranks: usize, runner: Runner, block: usize) -> Rank {
        let health = Health::new().unwrap();
        let limit = Some(std::time::Duration::from_secs(60));
        Rank { rank, ranks, runner, health, sequence: 0, block, limit }
    }

    /// int32, in the form that the call of that name has.
    fn call(
        &mut self,
        verb: Verb,
        kind: Kind,
        input: *const i32,
        output: *mut i32,
        count: usize,
    ) -> Result<()> {
        let root = if let Kind::Broadcast { root } = kind { root as i32 } else { -1 };
        let call = Call {
            sequence: self.sequence,
            verb,
            dtype: Dtype::Int32 as u8,
            root,
            count: count as u64,
        };
        self.sequence += 1;
        let header = Header { call, before: None };
        let job = Job {
            input: input.cast(),
            output: output.cast(),
            size: 4,
            kernel: Some(kernel(Reduction::Sum, Dtype::Int32)),
            rank: self.rank,
            sent: header,
            expected: header,
        };
        let pattern =
            Pattern::new(kind, &call, self.ranks, 4, self.block.min(self.runner.slot_bytes()));
        let (notify, has_left) = (|| {}, |_| false);
        let waiting = Waiting {
            limit: self.limit,
            spin: false,
            health: &self.health,
            notify: &notify,
            has_left: &has_left,
        };
        let streams = self.sequence.is_multiple_of(2);
        // SAFETY: callers pass arrays of the lengths that the verb asks for.
        unsafe { self.runner.run(&job, pattern, streams, &waiting) }
    }
}

/// Element `i` of rank `rank`'s input.
fn value(rank: usize, i: usize) -> i32 {
    (rank * 1_000_003 + i * 7) as i32
}

fn input(rank: usize, count: usize) -> Vec<i32> {
    (0..count).map(|i| value(rank, i)).collect()
}

/// Its sum over all ranks.
fn sum(ranks: usize, i: usize) -> i32 {
    (0..ranks).map(|rank| value(rank, i)).fold(0, i32::wrapping_add)
}

fn every_verb(me: &mut Rank, each: usize) {
    let (rank, ranks) = (me.rank, me.ranks);
    let own = input(rank, each);
    for kind in [Kind::ReduceAll, Kind::ReduceSlices] {
        let mut output = vec![-1; each];
        me.call(Verb::AllSum, kind, own.as_ptr(), output.as_mut_ptr(), each).unwrap();
        assert!(output.iter().enumerate().all(|(i, v)| *v == sum(ranks, i)), "{kind:?} of {each}");
        let mut both = own.clone();
        me.call(Verb::AllSum, kind, both.as_ptr(), both.as_mut_ptr(), each).unwrap();
        assert_eq!(both, output, "{kind:?} of {each} in place");
    }
    let all = input(rank, each * ranks);
    let mut output = vec![-1; each];
    me.call(Verb::SumScatter, Kind::ReducePieces, all.as_ptr(), output.as_mut_ptr(), each * ranks)
        .unwrap();
    assert!((0..each).all(|i| output[i] == sum(ranks, rank * each + i)), "sum_scatter of {each}");
    let mut both = all.clone();
    let place = both.as_mut_ptr().wrapping_add(rank * each);
    me.call(Verb::SumScatter, Kind::ReducePieces, both.as_ptr(), place, each * ranks).unwrap();
    assert_eq!(both[rank * each..][..each], output, "sum_scatter of {each} in place");
    let mut output = vec![-1; each * ranks];
    me.call(Verb::AllToAll, Kind::MovePieces, all.as_ptr(), output.as_mut_ptr(), each * ranks)
        .unwrap();
    let moved = |i: usize| value(i / each, rank * each + i % each);
    assert!((0..each * ranks).all(|i| output[i] == moved(i)), "all_to_all of {each}");
    let mut output = vec![-1; each * ranks];
    me.call(Verb::AllGather, Kind::Gather, own.as_ptr(), output.as_mut_ptr(), each).unwrap();
    let gathered = |i: usize| value(i / each, i % each);
    assert!((0..each * ranks).all(|i| output[i] == gathered(i)), "all_gather of {each}");
    output.fill(-1);
    let place = output.as_mut_ptr().wrapping_add(rank * each);
    output[rank * each..][..each].copy_from_slice(&own);
    me.call(Verb::AllGather, Kind::Gather, place, output.as_mut_ptr(), each).unwrap();
    assert!((0..each * ranks).all(|i| output[i] == gathered(i)), "all_gather of {each} in place");
    for root in [0, ranks - 1] {
        let mut buffer = if rank == root { own.clone() } else { vec![-1; each] };
        let place = buffer.as_mut_ptr();
        me.call(Verb::Broadcast, Kind::Broadcast { root }, place, place, each).unwrap();
        assert_eq!(buffer, input(root, each), "broadcast of {each}");
    }
    me.call(Verb::Barrier, Kind::Gather, own.as_ptr(), std::ptr::null_mut(), 0).unwrap();
}

#[test]
fn every_verb_on_every_number_of_ranks() {
    for ranks in 2..=9 {
        meet(ranks, 256 << 10, |rank, runner| {
            let mut me = Rank::new(rank, ranks, runner, 1 << 10);
            for each in [1, 2, 8, 9, 17, 256, 1000, 3001] {
                every_verb(&mut me, each);
            }
        });
    }
}

#[test]
fn blocks_as_large_as_slots() {
    meet(3, 1 << 20, |rank, runner| {
        let mut me = Rank::new(rank, 3, runner, usize::MAX);
        for each in [5, 20_000, 300_001] {
            every_verb(&mut me, each);
        }
    });
}

#[test]
fn the_root_of_broadcasts_cannot_run_away() {
    meet(2, 64 << 10, |rank, runner| {
        let mut me = Rank::new(rank, 2, runner, 4096);
        for round in 0..200 {
            if rank == 1 && round % 50 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            let mut buffer = [if rank == 0 { round } else { -1 }; 100];
            let place = buffer.as_mut_ptr();
            me.call(Verb::Broadcast, Kind::Broadcast { root: 0 }, place, place, 100).unwrap();
            assert_eq!(buffer, [round; 100]);
        }
    });
}

#[test]
fn ranks_in_different_calls_learn_it() {
    let outcomes = meet(2, 64 << 10, |rank, runner| {
        let mut me = Rank::new(rank, 2, runner, 4096);
        let (own, mut output) = (input(rank, 64), [0; 64]);
        // As many bytes, but another call.
        let (verb, kind) = match rank {
            0 => (Verb::AllSum, Kind::ReduceSlices),
            _ => (Verb::AllMax, Kind::ReduceSlices),
        };
        me.call(verb, kind, own.as_ptr(), output.as_mut_ptr(), 64)
    });
    for outcome in outcomes {
        let error = outcome.unwrap_err();
        assert_eq!(error.status, Status::Mismatch);
        assert!(error.message.contains("all_max of 64 int32"), "{error}");
    }
}

#[test]
fn a_rank_in_the_middle_of_another_call_is_not_in_step() {
    let outcomes = meet(2, 64 << 10, |rank, runner| {
        let mut me = Rank::new(rank, 2, runner, 4096);
        // Nobody tells rank 0 here what rank 1 finds out.
        me.limit = Some(std::time::Duration::from_millis(if rank == 0 { 30 } else { 60_000 }));
        let mut buffer = vec![0; 4096];
        let place = buffer.as_mut_ptr();
        // Each is its own root and waits for nobody; one posts four blocks, the other one.
        let count = if rank == 0 { 4096 } else { 1 };
        me.call(Verb::Broadcast, Kind::Broadcast { root: rank }, place, place, count).unwrap();
        me.call(Verb::AllSum, Kind::ReduceAll, place, place, 5)
    });
    let error = outcomes[1].as_ref().unwrap_err();
    assert_eq!(error.status, Status::Mismatch);
    assert!(error.message.contains("rank 0 is in another call"), "{error}");
}

#[test]
fn a_rank_that_does_not_come_is_named() {
    let outcomes = meet(2, 64 << 10, |rank, runner| {
        let mut me = Rank::new(rank, 2, runner, 4096);
        me.limit = Some(std::time::Duration::from_millis(30));
        let mut output = [0];
        match rank {
            0 => me.call(Verb::AllSum, Kind::ReduceAll, &1, output.as_mut_ptr(), 1),
            _ => Ok(()),
        }
    });
    let error = outcomes[0].as_ref().unwrap_err();
    assert_eq!(error.status, Status::Timeout);
    assert!(error.message.contains("from rank 1"), "{error}");
}

#[test]
fn the_table_gives_every_verb_blocks_that_fit() {
    for ranks in [2usize, 3, 16, 200] {
        for slot in [ranks.next_multiple_of(2) * 64, 1 << 20] {
            for verb in
                [Verb::AllSum, Verb::AllGather, Verb::SumScatter, Verb::AllToAll, Verb::Broadcast]
            {
                for size in Dtype::ALL {
                    let count = (ranks * 10_000) as u64;
                    let call = Call { sequence: 0, verb, dtype: size as u8, root: 1, count };
                    let pattern = choose_at_board(&call, ranks, slot);
                    let last = pattern.blocks() - 1;
                    let pieces = matches!(pattern.kind, Kind::ReducePieces | Kind::MovePieces);
                    let most = match pieces {
                        true => pattern.piece_in_slot(ranks - 1) + pattern.block(0).len(),
                        false => pattern.block(0).len(),
                    };
                    assert!(most * size.size() <= slot, "{pattern:?}");
                    let length = if pieces { count as usize / ranks } else { count as usize };
                    assert_eq!(pattern.block(last).end, length);
                    for block in [0, last] {
                        let slices: Vec<_> =
                            (0..ranks).map(|rank| pattern.slice(block, rank)).collect();
                        assert_eq!(slices[0].start, pattern.block(block).start);
                        assert_eq!(slices[ranks - 1].end, pattern.block(block).end);
                        assert!(slices.windows(2).all(|w| w[0].end == w[1].start));
                        let result = slot.div_ceil(ranks).next_multiple_of(128);
                        assert!(slices.iter().all(|s| s.len() * size.size() <= result));
                    }
                }
            }
        }
    }
}
