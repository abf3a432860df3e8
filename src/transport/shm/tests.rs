//! Sleeping and waking, damage, the peer's end, and elements that lie across the end of a ring.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::dtype::Dtype;
use crate::reduce::{Reduction, kernel};
use crate::transport::byte_ring::LINE;
use crate::transport::conformance::{pattern, shm_ends, streams};
use crate::wait::{Deadline, interest, wait};

/// Bytes that a ring of 4 KiB holds.
const HOLDS: usize = LEAST - 4 * LINE;

fn soon() -> Deadline {
    Deadline::after(Some(Duration::from_secs(20)))
}

/// What the link waits for, and whether the wait is over by `deadline`.
fn wakes(link: &ShmLink, deadline: Deadline) -> bool {
    let waiting = link.interest().unwrap();
    wait(&mut [interest(waiting.fd, waiting.read, waiting.write)], deadline).unwrap()
}

/// Whether the link is let sleep, and nobody has woken it yet.
fn sleeps(link: &ShmLink) -> bool {
    !wakes(link, Deadline::after(Some(Duration::ZERO)))
}

/// Whether the peer rings by `deadline`; unlike [`wakes`] this does not look into the rings.
fn rung(link: &ShmLink, deadline: Deadline) -> bool {
    wait(&mut [interest(link.stream.as_fd(), true, false)], deadline).unwrap()
}

fn quiet(link: &ShmLink) -> bool {
    !rung(link, Deadline::after(Some(Duration::ZERO)))
}

/// Sends all of `bytes`, which the ring has room for.
fn send_all(link: &mut ShmLink, bytes: &[u8]) {
    let sent = link.sent() + bytes.len() as u64;
    // SAFETY: the bytes are sent before this returns.
    unsafe { link.post_send(bytes.as_ptr(), bytes.len()) };
    link.progress().unwrap();
    assert_eq!(link.sent(), sent);
}

/// Posts that `into` receives.
///
/// # Safety
/// `into` outlives the post, and is not used meanwhile.
unsafe fn post(link: &mut ShmLink, into: &mut [u8]) {
    // SAFETY: as this function's contract says.
    unsafe { link.post_recv(Landing::Copy { into: into.as_mut_ptr() }, into.len()) };
}

#[test]
fn a_reader_that_sleeps_is_woken_once() {
    let (mut a, mut b, _segment) = shm_ends(LEAST);
    let (data, mut into) = (pattern(30, 1), vec![0; 30]);
    // SAFETY: `into` outlives the links, and is used when all has landed.
    unsafe { post(&mut b, &mut into) };
    assert!(!b.progress().unwrap());
    assert!(sleeps(&b));
    send_all(&mut a, &data[..10]);
    assert!(rung(&b, soon()));
    assert!(b.progress().unwrap());
    assert_eq!(b.landed(), 10);
    // Awake, it needs no bell; and the one that rang was heard.
    send_all(&mut a, &data[10..20]);
    assert!(quiet(&b));
    assert!(b.progress().unwrap());
    // Bytes that come just before it goes to sleep keep it awake.
    send_all(&mut a, &data[20..]);
    assert!(wakes(&b, soon()));
    assert!(b.progress().unwrap());
    assert_eq!(b.landed(), 30);
    assert!(quiet(&b));
    assert_eq!(into, data);
    let waiting = b.interest().unwrap();
    assert!(!waiting.read && !waiting.write);
}

#[test]
fn a_writer_that_sleeps_is_woken() {
    let (mut a, mut b, _segment) = shm_ends(LEAST);
    let (data, mut into) = (pattern(HOLDS + 100, 1), vec![0; HOLDS + 100]);
    // SAFETY: both vectors outlive the links; `into` is used when all has landed.
    unsafe {
        a.post_send(data.as_ptr(), data.len());
        assert!(a.progress().unwrap());
        assert_eq!(a.sent(), HOLDS as u64);
        assert!(!a.progress().unwrap());
        assert!(sleeps(&a));
        post(&mut b, &mut into);
    }
    assert!(b.progress().unwrap());
    assert_eq!(b.landed(), HOLDS as u64);
    assert!(rung(&a, soon()));
    assert!(a.progress().unwrap());
    assert_eq!(a.sent(), data.len() as u64);
    assert!(b.progress().unwrap());
    assert_eq!(into, data);
}

#[test]
fn an_element_in_part_lets_the_reader_sleep() {
    let (mut a, mut b, _segment) = shm_ends(LEAST);
    let (own, mut into) = ([5u64], [0u64]);
    let landing = Landing::Reduce {
        into: into.as_mut_ptr().cast(),
        own: own.as_ptr().cast(),
        kernel: kernel(Reduction::Sum, Dtype::Uint64),
        size: 8,
        own_first: true,
    };
    // SAFETY: both arrays outlive the links; `into` is used when all has landed.
    unsafe { b.post_recv(landing, 8) };
    send_all(&mut a, &7u64.to_ne_bytes()[..5]);
    assert!(!b.progress().unwrap());
    assert!(sleeps(&b));
    assert!(quiet(&b));
    send_all(&mut a, &7u64.to_ne_bytes()[5..]);
    assert!(rung(&b, soon()));
    assert!(b.progress().unwrap());
    assert_eq!(into, [12]);
}

/// Sends and receives all of `out` and `into` in pieces of odd sizes; sleeps whenever nothing moves.
fn exchange(mut link: ShmLink, seed: u64, out: &[u8], into: &mut [u8]) {
    let mut state = seed;
    let mut size = |left: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        // Mostly small.
        let limit = 1usize << ((state >> 33) % 14);
        ((state >> 40) as usize % limit + 1).min(left)
    };
    let (mut sending, mut landing) = (0, 0);
    while link.landed() < into.len() as u64 || link.sent() < out.len() as u64 {
        // SAFETY: the slices outlive the link, and `into` is used when it is gone.
        unsafe {
            if link.sent() == sending as u64 && sending < out.len() {
                let len = size(out.len() - sending);
                link.post_send(out[sending..].as_ptr(), len);
                sending += len;
            }
            if link.landed() == landing as u64 && landing < into.len() {
                let len = size(into.len() - landing);
                post(&mut link, &mut into[landing..landing + len]);
                landing += len;
            }
        }
        if !link.progress().unwrap() {
            assert!(wakes(&link, soon()), "a wake-up was lost");
        }
    }
}

#[test]
fn two_threads_that_sleep_whenever_they_can_lose_nothing() {
    const LEN: usize = 3_000_001;
    for len in [LEAST, LEAST + LINE, 64 << 10] {
        let (a, b, _segment) = shm_ends(len);
        let (from_a, from_b) = (pattern(LEN, 1), pattern(LEN, 2));
        let (mut at_a, mut at_b) = (vec![0; LEN], vec![0; LEN]);
        std::thread::scope(|scope| {
            scope.spawn(|| exchange(a, 1, &from_a, &mut at_a));
            scope.spawn(|| exchange(b, 2, &from_b, &mut at_b));
        });
        assert!(at_a == from_b && at_b == from_a, "rings of {len} bytes");
    }
}

/// Overwrites what the writer, or the reader, of the first ring tells the other.
fn damage(segment: &Segment, side: Side, count: u64) {
    let offset = if side == Side::Writer { 0 } else { 2 * LINE };
    // SAFETY: this is within the segment and aligned; both links are in this thread.
    unsafe { segment.at(offset, 8).cast::<u64>().write(count) };
}

#[test]
fn a_damaged_count_is_an_error() {
    let holds = HOLDS as u64;
    for count in [holds + 101, u64::MAX, u64::MAX / 2, 99] {
        let (mut a, mut b, segment) = shm_ends(LEAST);
        let mut into = vec![0; 2 * HOLDS];
        send_all(&mut a, &pattern(100, 1));
        // SAFETY: `into` outlives the links.
        unsafe { post(&mut b, &mut into) };
        b.progress().unwrap();
        damage(&segment, Side::Writer, count);
        assert!(wakes(&b, soon()), "nobody would wake it");
        let error = b.progress().unwrap_err();
        assert_eq!(error.status, Status::Internal);
        assert!(error.message.contains("rank 0: shared memory is damaged"), "{error}");
    }
    for count in [holds + 1, u64::MAX, u64::MAX - holds] {
        let (mut a, _b, segment) = shm_ends(LEAST);
        let data = pattern(2 * HOLDS, 1);
        // SAFETY: `data` outlives the links.
        unsafe { a.post_send(data.as_ptr(), data.len()) };
        a.progress().unwrap();
        damage(&segment, Side::Reader, count);
        assert!(wakes(&a, soon()), "nobody would wake it");
        let error = a.progress().unwrap_err();
        assert_eq!(error.status, Status::Internal);
        assert!(error.message.contains("rank 1: shared memory is damaged"), "{error}");
    }
}

#[test]
fn what_a_peer_sent_before_it_left_arrives() {
    let (mut a, mut b, _segment) = shm_ends(LEAST);
    let (data, mut into) = (pattern(HOLDS, 1), vec![0; HOLDS + 1]);
    // SAFETY: `into` outlives the links, and is used when no more lands.
    unsafe { post(&mut b, &mut into) };
    assert!(sleeps(&b));
    send_all(&mut a, &data);
    drop(a);
    assert!(wakes(&b, soon()));
    while b.progress().unwrap() {}
    assert_eq!(b.landed(), HOLDS as u64);
    assert_eq!(into[..HOLDS], data);
    assert!(wakes(&b, soon()));
    let error = b.progress().unwrap_err();
    assert_eq!(error.status, Status::PeerLost);
    assert_eq!(error.message, "connection to rank 0 closed by peer");
}

#[test]
fn a_peer_that_left_a_bell_unheard_has_closed_too() {
    let (mut a, mut b, _segment) = shm_ends(LEAST);
    let (data, mut into) = (pattern(2 * HOLDS, 1), vec![0; 1]);
    // SAFETY: both vectors outlive the links.
    unsafe {
        post(&mut a, &mut into);
        assert!(sleeps(&a));
        b.post_send(data.as_ptr(), data.len());
    }
    assert!(b.progress().unwrap());
    assert!(rung(&a, soon()));
    drop(a);
    // One that waits for room learns it as well.
    assert!(wakes(&b, soon()));
    let error = b.progress().unwrap_err();
    assert_eq!(error.status, Status::PeerLost);
    assert_eq!(error.message, "connection to rank 0 closed by peer");
}

/// Sends `theirs` behind `before` other bytes, and reduces it with `own` where it lands.
fn reduced(
    before: usize,
    landing: impl FnOnce(*mut u8) -> Landing,
    theirs: &[u8],
    own: &[u8],
) -> Vec<u8> {
    let (mut a, mut b, _segment) = shm_ends(LEAST);
    let (head, mut at) = (pattern(before, 3), vec![0; before]);
    let mut into = own.to_vec();
    // SAFETY: all vectors outlive the links; those that land are used when all has landed.
    unsafe {
        a.post_send(head.as_ptr(), before);
        a.post_send(theirs.as_ptr(), theirs.len());
        post(&mut b, &mut at);
        b.post_recv(landing(into.as_mut_ptr()), theirs.len());
    }
    while b.landed() < (before + theirs.len()) as u64 {
        assert!(a.progress().unwrap() | b.progress().unwrap(), "nothing moves");
    }
    assert_eq!(at, head);
    into
}

#[test]
fn elements_of_every_type_land_across_the_end_of_a_ring() {
    for dtype in Dtype::ALL {
        let size = dtype.size();
        // Goes around the ring three times.
        let count = 3 * HOLDS / size + 5;
        let mask = if dtype == Dtype::Bool { 1 } else { 0xff };
        let bytes = |seed| -> Vec<u8> {
            pattern(count * size, seed).into_iter().map(|byte| byte & mask).collect()
        };
        let (theirs, own) = (bytes(1), bytes(2));
        for (reduction, own_first) in
            [(Reduction::Sum, true), (Reduction::Max, false), (Reduction::Min, true)]
        {
            let kernel = kernel(reduction, dtype);
            let mut expected = vec![0; own.len()];
            let (x, y) = if own_first { (&own, &theirs) } else { (&theirs, &own) };
            // SAFETY: all three have this number of elements.
            unsafe { kernel(expected.as_mut_ptr(), x.as_ptr(), y.as_ptr(), count) };
            for before in [0, 1, 3, 32 + 7] {
                let landing =
                    |into: *mut u8| Landing::Reduce { into, own: into, kernel, size, own_first };
                let landed = reduced(before, landing, &theirs, &own);
                assert!(landed == expected, "{dtype:?} {reduction:?}, {before} bytes before");
            }
        }
    }
}

#[test]
fn memory_that_is_no_ring_is_refused() {
    let (segment, _) = Segment::create(4 * LEAST).unwrap();
    let segment = Arc::new(segment);
    for range in [0..LEAST - LINE, 64..LEAST + 64, 0..LEAST + 64] {
        let (stream, _) = streams();
        let wrong = ShmLink::new(stream, "rank 1".into(), segment.clone(), Some(range), None);
        assert_eq!(wrong.err().map(|e| e.status), Some(Status::Internal));
    }
}

#[test]
fn a_way_without_a_ring_is_closed() {
    let (segment, _) = Segment::create(LEAST).unwrap();
    let (stream, _other) = streams();
    let mut link = ShmLink::new(stream, "rank 1".into(), Arc::new(segment), None, None).unwrap();
    let mut byte = [0];
    // SAFETY: `byte` outlives the link.
    unsafe { post(&mut link, &mut byte) };
    assert_eq!(link.progress().unwrap_err().status, Status::Internal);
    link.cancel();
    // SAFETY: as above.
    unsafe { link.post_send(byte.as_ptr(), 1) };
    assert_eq!(link.progress().unwrap_err().status, Status::Internal);
}
