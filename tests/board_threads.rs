//! Shared memory used by threads: ranks at a board, and both ends of a link. A plain program, for
//! ThreadSanitizer (scripts/sanitize), which makes false reports of the test harness.
//!
//! All threads use *one* mapping of the segment. Two mappings of the same memory have different
//! addresses, between which ThreadSanitizer would see no race at all.
//!
//! With BOARD_THREADS_PLANT=slot or =ring it commits a race, to show that it would be reported.

use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::ptr::null_mut;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mlxd::call::{Call, Header, Verb};
use mlxd::collective::board::Runner;
use mlxd::collective::board::pattern::{Kind, Pattern};
use mlxd::collective::board::wait::Waiting;
use mlxd::collective::engine::Job;
use mlxd::dtype::Dtype;
use mlxd::health::Health;
use mlxd::reduce::{Reduction, kernel};
use mlxd::transport::board::Board;
use mlxd::transport::byte_ring::{End, LEAST, Side};
use mlxd::transport::segment::Segment;
use mlxd::transport::shm::ShmLink;
use mlxd::transport::{Landing, Link};
use mlxd::wait::{Deadline, interest, wait};

/// Elements of each rank's share.
const COUNTS: [usize; 6] = [1, 2, 9, 257, 3001, 20_000];
/// Bytes of a block at most: from one cache line for each rank to what a slot holds.
const BLOCKS: [usize; 4] = [64, 1 << 10, 16 << 10, usize::MAX];

fn main() {
    match std::env::var("BOARD_THREADS_PLANT").as_deref() {
        Ok("slot") => return race_in_a_slot(),
        Ok("ring") => return race_in_a_ring(),
        _ => {}
    }
    let mut calls = 0;
    for ranks in [2, 3, 4] {
        for block in BLOCKS {
            for spin in [false, true] {
                calls += meet(ranks, block, spin);
            }
        }
    }
    for len in [LEAST, 64 << 10] {
        talk(len);
    }
    println!("board_threads: {calls} calls at boards, 2 links: every value right");
}

fn join_all<T>(threads: Vec<thread::JoinHandle<T>>) -> Vec<T> {
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

fn segment(bytes: usize) -> Arc<Segment> {
    Arc::new(Segment::create(bytes).unwrap().0)
}

/// All kinds of calls of all counts at one board; how many there were.
fn meet(ranks: usize, block: usize, spin: bool) -> u64 {
    const BYTES: usize = 1 << 20;
    let shared = segment(BYTES);
    let threads = (0..ranks)
        .map(|rank| {
            let shared = shared.clone();
            thread::spawn(move || {
                let runner = Runner::new(Board::new(shared, BYTES, rank, ranks));
                let health = Health::new().unwrap();
                let mut me = Rank { rank, ranks, runner, health, sequence: 0, block, spin };
                for each in COUNTS {
                    // Blocks of a cache line are for few elements.
                    if each * 4 <= block.saturating_mul(64) {
                        every_kind(&mut me, each);
                    }
                }
                me.sequence
            })
        })
        .collect();
    join_all(threads)[0]
}

/// One rank and its calls.
struct Rank {
    rank: usize,
    ranks: usize,
    runner: Runner,
    health: Health,
    sequence: u64,
    block: usize,
    spin: bool,
}

impl Rank {
    /// A call with int32.
    fn call(&mut self, verb: Verb, kind: Kind, input: *const i32, output: *mut i32, count: usize) {
        let root = if let Kind::Broadcast { root } = kind { root as i32 } else { -1 };
        let (sequence, count) = (self.sequence, count as u64);
        let call = Call { sequence, verb, dtype: Dtype::Int32 as u8, root, count };
        self.sequence += 1;
        // Somebody is late now and then, so that the others run ahead and fall asleep.
        if self.sequence % 16 == 3 * self.rank as u64 {
            thread::sleep(Duration::from_millis(1));
        }
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
        let block = self.block.max(64 * self.ranks).min(self.runner.slot_bytes());
        let pattern = Pattern::new(kind, &call, self.ranks, 4, block);
        let waiting = Waiting {
            limit: Some(Duration::from_secs(60)),
            spin: self.spin,
            health: &self.health,
            notify: &|| {},
            has_left: &|_| false,
        };
        let streams = self.sequence.is_multiple_of(2);
        // SAFETY: callers pass arrays of the lengths that the kind asks for.
        unsafe { self.runner.run(&job, pattern, streams, &waiting) }.unwrap();
    }
}

/// Element `i` of rank `rank`'s input.
fn value(rank: usize, i: usize) -> i32 {
    (rank * 1_000_003 + i * 7) as i32
}

fn sum(ranks: usize, i: usize) -> i32 {
    (0..ranks).map(|rank| value(rank, i)).fold(0, i32::wrapping_add)
}

fn every_kind(me: &mut Rank, each: usize) {
    let (rank, ranks) = (me.rank, me.ranks);
    let input: Vec<i32> = (0..each * ranks).map(|i| value(rank, i)).collect();
    let mut output = vec![-1; each * ranks];
    for kind in [Kind::ReduceAll, Kind::ReduceSlices] {
        me.call(Verb::AllSum, kind, input.as_ptr(), output.as_mut_ptr(), each);
        assert!((0..each).all(|i| output[i] == sum(ranks, i)), "{kind:?} of {each}");
        output[..each].copy_from_slice(&input[..each]);
        me.call(Verb::AllSum, kind, output.as_ptr(), output.as_mut_ptr(), each);
        assert!((0..each).all(|i| output[i] == sum(ranks, i)), "{kind:?} of {each} in place");
    }
    let (from, into, all) = (input.as_ptr(), output.as_mut_ptr(), each * ranks);
    me.call(Verb::SumScatter, Kind::ReducePieces, from, into, all);
    assert!((0..each).all(|i| output[i] == sum(ranks, rank * each + i)), "sum_scatter of {each}");
    let into = output.as_mut_ptr();
    me.call(Verb::AllToAll, Kind::MovePieces, from, into, all);
    let moved = |i: usize| value(i / each, rank * each + i % each);
    assert!((0..all).all(|i| output[i] == moved(i)), "all_to_all of {each}");
    let into = output.as_mut_ptr();
    me.call(Verb::AllGather, Kind::Gather, from, into, each);
    assert!((0..all).all(|i| output[i] == value(i / each, i % each)), "all_gather of {each}");
    // One after the other, so that roots run ahead.
    for root in (0..ranks).chain([0, 0, 0, 0, 0, 0]) {
        output.fill(if rank == root { root as i32 } else { -1 });
        let place = output.as_mut_ptr();
        me.call(Verb::Broadcast, Kind::Broadcast { root }, place, place, each);
        assert!(output[..each].iter().all(|v| *v == root as i32), "broadcast of {each}");
    }
    me.call(Verb::Barrier, Kind::Gather, from, null_mut(), 0);
}

fn streams() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (there, listener.accept().unwrap().0)
}

/// Both ends of a link send and receive at once, in pieces of odd sizes.
fn talk(len: usize) {
    const BYTES: usize = 300_001;
    let (shared, (a, b)) = (segment(2 * len), streams());
    let end = |stream, out: Range<usize>, incoming, number| {
        let shared = shared.clone();
        thread::spawn(move || {
            let name = format!("end {}", 1 - number);
            let link = ShmLink::new(stream, name, shared, Some(out), Some(incoming)).unwrap();
            exchange(link, number, BYTES);
        })
    };
    let (there, back) = (0..len, len..2 * len);
    join_all(vec![end(a, there.clone(), back.clone(), 0), end(b, back, there, 1)]);
}

fn byte(end: usize, i: usize) -> u8 {
    (i * 7 + i / 251 + end * 101) as u8
}

fn exchange(mut link: ShmLink, number: usize, bytes: usize) {
    let out: Vec<u8> = (0..bytes).map(|i| byte(number, i)).collect();
    let mut into = vec![0; bytes];
    let (mut sending, mut landing, mut turn) = (0, 0, number);
    let mut size = |left: usize| {
        turn += 1;
        (1 + turn * 7919 % 9973).min(left)
    };
    while link.landed() < bytes as u64 || link.sent() < bytes as u64 {
        // SAFETY: both vectors outlive the link's posts, and `into` is read when all has landed.
        unsafe {
            if link.sent() == sending as u64 && sending < bytes {
                let len = size(bytes - sending);
                link.post_send(out[sending..].as_ptr(), len);
                sending += len;
            }
            if link.landed() == landing as u64 && landing < bytes {
                let len = size(bytes - landing);
                let into = into[landing..].as_mut_ptr();
                link.post_recv(Landing::Copy { into }, len);
                landing += len;
            }
        }
        if !link.progress().unwrap() {
            let waits = link.interest().unwrap();
            let soon = Deadline::after(Some(Duration::from_secs(30)));
            let woken = wait(&mut [interest(waits.fd, waits.read, waits.write)], soon);
            assert!(woken.unwrap(), "a wake-up was lost");
        }
    }
    assert!((0..bytes).all(|i| into[i] == byte(1 - number, i)), "bytes of end {}", 1 - number);
}

/// A rank uses its slot again before the others are done with it.
fn race_in_a_slot() {
    const BYTES: usize = 64 << 10;
    let shared = segment(BYTES);
    let threads = (0..2)
        .map(|rank| {
            let board = Board::new(shared.clone(), BYTES, rank, 2);
            thread::spawn(move || {
                let data = board.data(0, 0, 100);
                if rank == 0 {
                    // SAFETY: the place is within the slot; that it is read meanwhile is the race.
                    unsafe { data.write(1) };
                    board.post(0, None);
                    // SAFETY: as above.
                    unsafe { data.write(2) };
                } else {
                    while !board.has_posted(0, 0) {
                        thread::yield_now();
                    }
                    // SAFETY: as above.
                    assert!(unsafe { data.read() } > 0);
                }
            })
        })
        .collect();
    join_all(threads);
}

/// A reader takes a byte that it was not told of.
fn race_in_a_ring() {
    let shared = segment(LEAST);
    let threads = [Side::Writer, Side::Reader]
        .map(|side| {
            let shared = shared.clone();
            thread::spawn(move || {
                // SAFETY: the memory is zeros, and long enough; the thread keeps the segment.
                let mut end = unsafe { End::new(shared.at(0, LEAST), LEAST, side) };
                let (place, _) = end.place();
                if side == Side::Writer {
                    assert!(end.ready(1).unwrap() >= 1);
                    // SAFETY: the ring has room; that it is read meanwhile is the race.
                    unsafe { place.write(1) };
                    end.advance(1);
                    let _ = end.tell();
                } else {
                    thread::sleep(Duration::from_millis(20));
                    // SAFETY: as above.
                    assert!(unsafe { place.read() } <= 1);
                }
            })
        })
        .into();
    join_all(threads);
}
