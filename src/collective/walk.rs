//! Every schedule walked for every rank: its arithmetic against closed forms, and the engine on it
//! over links in memory.

use super::engine::{Advance, Engine, Job};
use super::links::{Links, Way};
use super::schedule::{Buffer, Step};
use super::{Algorithm, plan, reduction, schedule};
use crate::call::{Call, Header, Verb};
use crate::config::Topology;
use crate::dtype::Dtype;
use crate::reduce::kernel;
use crate::transport::Link;
use crate::transport::local::LocalLink;

const VERBS: [Verb; 7] = [
    Verb::AllSum,
    Verb::AllMax,
    Verb::AllMin,
    Verb::AllGather,
    Verb::SumScatter,
    Verb::AllToAll,
    Verb::Broadcast,
];

/// Each verb with each of its algorithms.
fn algorithms() -> impl Iterator<Item = (Verb, Algorithm)> {
    let of = |verb| Algorithm::of(verb).iter().map(move |algorithm| (verb, *algorithm));
    VERBS.into_iter().flat_map(of)
}

/// The same of a barrier, which has no data.
fn barriers() -> impl Iterator<Item = (Verb, Algorithm)> {
    Algorithm::of(Verb::Barrier).iter().map(|algorithm| (Verb::Barrier, *algorithm))
}

/// The call, with `count` made a multiple of `size` where it must be one.
fn call(verb: Verb, count: usize, size: usize, root: usize) -> Call {
    let count = match verb {
        Verb::SumScatter | Verb::AllToAll => count * size,
        Verb::Barrier => 0,
        _ => count,
    };
    let root = if verb == Verb::Broadcast { root as i32 } else { -1 };
    Call { sequence: 9, verb, dtype: Dtype::Int32 as u8, root, count: count as u64 }
}

/// What rank r contributes as element i.
fn input(rank: usize, i: usize) -> i32 {
    (rank as i32 + 1) * 1000 + (i as i32 * 7) % 101
}

/// Element i of what rank r must have in the end, out of `size` ranks.
fn expected(call: &Call, rank: usize, size: usize, i: usize) -> i32 {
    let count = call.count as usize;
    let over = |i: usize| (0..size).map(move |r| input(r, i));
    match call.verb {
        Verb::AllSum => over(i).sum(),
        Verb::AllMax => over(i).max().unwrap(),
        Verb::AllMin => over(i).min().unwrap(),
        Verb::AllGather => input(i / count, i % count),
        Verb::SumScatter => over(rank * (count / size) + i).sum(),
        Verb::AllToAll => {
            let block = count / size;
            input(i / block, rank * block + i % block)
        }
        _ => input(call.root as usize, i),
    }
}

fn output_len(call: &Call, size: usize) -> usize {
    let count = call.count as usize;
    match call.verb {
        Verb::AllGather => count * size,
        Verb::SumScatter => count / size,
        _ => count,
    }
}

/// One rank of a world in memory.
struct Rank {
    engine: Engine,
    links: Links,
    input: Vec<i32>,
    output: Vec<i32>,
    done: bool,
}

/// A world of `size` ranks whose links hold `capacity` bytes.
fn world(size: usize, lanes: usize, capacity: usize) -> Vec<Links> {
    let mut worlds: Vec<Links> = (0..size).map(|_| Links::new(lanes)).collect();
    for a in 0..size {
        for b in a + 1..size {
            let (mut at_a, mut at_b) = (Vec::new(), Vec::new());
            for _ in 0..lanes {
                let (x, y) = LocalLink::pair(capacity);
                at_a.push(Box::new(x) as Box<dyn Link>);
                at_b.push(Box::new(y) as Box<dyn Link>);
            }
            worlds[a].add(b, &[Way::Out, Way::In], at_a);
            worlds[b].add(a, &[Way::Out, Way::In], at_b);
        }
    }
    worlds
}

/// Runs a call on all ranks, one after the other, until all are done; some ranks are lazy.
fn run(
    algorithm: Algorithm,
    call: &Call,
    size: usize,
    lanes: usize,
    capacity: usize,
    in_place: bool,
) -> Vec<Vec<i32>> {
    let mut ranks: Vec<Rank> = world(size, lanes, capacity)
        .into_iter()
        .enumerate()
        .map(|(rank, links)| {
            let schedule = schedule(algorithm, call, rank, size);
            let count = call.count as usize;
            let mut own: Vec<i32> = (0..count).map(|i| input(rank, i)).collect();
            let mut output = vec![-1; output_len(call, size)];
            if call.verb == Verb::Broadcast && rank == call.root as usize {
                output.copy_from_slice(&own);
            }
            let (mut from, mut into) = (own.as_ptr(), output.as_mut_ptr());
            if in_place {
                match call.verb {
                    Verb::AllGather => {
                        output[rank * count..][..count].copy_from_slice(&own);
                        from = output[rank * count..].as_ptr();
                    }
                    Verb::SumScatter => into = own[rank * (count / size)..].as_mut_ptr(),
                    Verb::AllSum | Verb::AllMax | Verb::AllMin => into = own.as_mut_ptr(),
                    _ => {}
                }
            }
            let job = Job {
                input: from.cast(),
                output: into.cast(),
                size: 4,
                kernel: reduction(call.verb).map(|reduction| kernel(reduction, Dtype::Int32)),
                rank,
                sent: Header { call: *call, before: None },
                expected: Header { call: *call, before: None },
            };
            let mut engine = Engine::default();
            engine.begin(&schedule, job, &links).unwrap();
            Rank { engine, links, input: own, output, done: false }
        })
        .collect();
    let mut turn = 0;
    while ranks.iter().any(|rank| !rank.done) {
        for (number, rank) in ranks.iter_mut().enumerate() {
            // Some ranks come late and seldom.
            if !rank.done && (turn + number) % (1 + number % 3) == 0 {
                // SAFETY: input and output live in `rank`, and only the engine uses them until all
                // are done.
                rank.done =
                    unsafe { rank.engine.advance(&mut rank.links) }.unwrap() == Advance::Done;
            }
        }
        turn += 1;
        assert!(turn < 1_000_000, "no end in sight: {}", ranks[0].engine.waits_for());
    }
    ranks
        .into_iter()
        .enumerate()
        .map(|(number, rank)| {
            let in_input = in_place
                && matches!(
                    call.verb,
                    Verb::AllSum | Verb::AllMax | Verb::AllMin | Verb::SumScatter
                );
            match (in_input, call.verb) {
                (true, Verb::SumScatter) => {
                    let block = call.count as usize / size;
                    rank.input[number * block..][..block].to_vec()
                }
                (true, _) => rank.input,
                (false, _) => rank.output,
            }
        })
        .collect()
}

fn check(call: &Call, size: usize, lanes: usize, capacity: usize, in_place: bool) {
    for &algorithm in Algorithm::of(call.verb) {
        let outputs = run(algorithm, call, size, lanes, capacity, in_place);
        for (rank, output) in outputs.into_iter().enumerate() {
            for (i, value) in output.into_iter().enumerate() {
                let right = expected(call, rank, size, i);
                let place = format!("rank {rank} of {size}, element {i}");
                assert_eq!(value, right, "{call} by {algorithm:?} on {place}");
            }
        }
    }
}

#[test]
fn every_collective_on_every_size() {
    for size in 2..=9 {
        for verb in VERBS {
            for count in [1, 2, 3, 7, 100, 1001] {
                for root in [0, size - 1, size / 2] {
                    check(&call(verb, count, size, root), size, 1, 1 << 16, false);
                    if verb != Verb::Broadcast {
                        break;
                    }
                }
            }
        }
    }
}

#[test]
fn in_place() {
    for size in 2..=9 {
        for verb in [Verb::AllSum, Verb::AllMax, Verb::AllMin, Verb::AllGather, Verb::SumScatter] {
            for count in [1, 5, 100, 999] {
                check(&call(verb, count, size, 0), size, 1, 1 << 16, true);
            }
        }
    }
}

#[test]
fn links_that_hold_less_than_a_block() {
    for size in [2, 3, 5] {
        for verb in VERBS {
            check(&call(verb, 5000, size, 1), size, 1, 100, false);
        }
        check(&call(Verb::AllSum, 5000, size, 1), size, 1, 100, true);
        check(&call(Verb::SumScatter, 5000, size, 1), size, 1, 100, true);
    }
}

#[test]
fn several_lanes_share_the_bytes() {
    for lanes in [2, 3, 4] {
        for verb in VERBS {
            check(&call(verb, 100_003, 3, 1), 3, lanes, 1 << 16, false);
        }
    }
}

#[test]
fn nobody_leaves_a_barrier_before_all_have_come() {
    for (size, (_, algorithm)) in (2..=9).flat_map(|size| barriers().map(move |b| (size, b))) {
        let call = call(Verb::Barrier, 0, size, 0);
        for late in 0..size {
            let mut ranks: Vec<(Engine, Links)> = world(size, 1, 1 << 10)
                .into_iter()
                .enumerate()
                .map(|(rank, links)| {
                    let schedule = schedule(algorithm, &call, rank, size);
                    let mut engine = Engine::default();
                    let (input, output) = (std::ptr::null(), std::ptr::null_mut());
                    let header = Header { call, before: None };
                    let (sent, expected) = (header, header);
                    let job = Job { input, output, size: 1, kernel: None, rank, sent, expected };
                    engine.begin(&schedule, job, &links).unwrap();
                    (engine, links)
                })
                .collect();
            let mut out = vec![false; size];
            for turn in 0..200 {
                for (rank, (engine, links)) in ranks.iter_mut().enumerate() {
                    if out[rank] || (rank == late && turn < 50) {
                        continue;
                    }
                    // SAFETY: the schedule uses scratch memory only.
                    out[rank] = unsafe { engine.advance(links) }.unwrap() == Advance::Done;
                    assert!(turn >= 50 || !out[rank], "rank {rank} left without rank {late}");
                }
            }
            assert!(out.iter().all(|out| *out), "size {size}: some never left");
        }
    }
}

/// Every send has its receive of the same length, in the same order, on the other side.
#[test]
fn sends_and_receives_pair_up() {
    for size in 1..=9 {
        for (verb, algorithm) in algorithms().chain(barriers()) {
            for count in [0, 1, 4, 10, 23] {
                let call = call(verb, count, size, size / 2);
                let steps: Vec<Vec<Step>> =
                    (0..size).map(|rank| schedule(algorithm, &call, rank, size).steps).collect();
                for (from, mine) in steps.iter().enumerate() {
                    for (to, theirs) in steps.iter().enumerate() {
                        let sent: Vec<usize> = mine
                            .iter()
                            .filter_map(|step| match step {
                                Step::Send { to: t, from } if *t == to => Some(from.len),
                                _ => None,
                            })
                            .collect();
                        let received: Vec<usize> = theirs
                            .iter()
                            .filter_map(|step| match step {
                                Step::Recv { from: f, into }
                                | Step::Reduce { from: f, into, .. }
                                    if *f == from =>
                                {
                                    Some(into.len)
                                }
                                _ => None,
                            })
                            .collect();
                        assert_eq!(sent, received, "{call} from {from} to {to} of {size}");
                    }
                }
            }
        }
    }
}

/// Where ranks form a ring, nobody talks to any but its neighbours, unless data has to go elsewhere.
#[test]
fn in_a_ring_only_neighbours_talk() {
    for size in 2..=9 {
        for verb in VERBS.into_iter().chain([Verb::Barrier, Verb::Split]) {
            for count in [1, 7, 100_000] {
                let call = call(verb, count, size, size / 2);
                for rank in 0..size {
                    let schedule = plan(&call, rank, size, Topology::Ring);
                    let beside =
                        |peer: &usize| [1, size - 1].contains(&((peer + size - rank) % size));
                    let all_beside = schedule.peers().iter().all(beside);
                    assert_eq!(all_beside, verb != Verb::AllToAll || size < 4, "{call} of {size}");
                }
            }
        }
    }
}

/// Every span lies within its buffer, and nothing writes the input.
#[test]
fn spans_stay_inside() {
    for size in 1..=9 {
        for (verb, algorithm) in algorithms() {
            for count in [0, 1, 4, 10, 23] {
                let call = call(verb, count, size, 0);
                for rank in 0..size {
                    let schedule = schedule(algorithm, &call, rank, size);
                    for step in &schedule.steps {
                        let (read, write) = match *step {
                            Step::Send { from, .. } => (Some(from), None),
                            Step::Recv { into, .. } => (None, Some(into)),
                            Step::Reduce { own, into, .. } => (Some(own), Some(into)),
                            Step::Copy { from, into } => (Some(from), Some(into)),
                        };
                        for span in read.iter().chain(&write) {
                            let room = match span.buffer {
                                Buffer::Input => call.count as usize,
                                Buffer::Output => output_len(&call, size),
                                Buffer::Scratch => schedule.scratch,
                            };
                            assert!(span.start + span.len <= room, "{call}: {step:?}");
                        }
                        assert!(write.is_none_or(|span| span.buffer != Buffer::Input));
                    }
                }
            }
        }
    }
}
