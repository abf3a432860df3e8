//! What channels of one wire are to each other. Each needs a device, and is ignored unless it is asked for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::channel::Ways;
use super::wire::Wire;
use super::{Approach, CONTROL_CREDITS, Name, Opening, Prospect, Stub, open};
use crate::error::{Error, Status};
use crate::transport::conformance::{
    Pair, pattern, rdma_channel, rdma_device, rdma_wires, streams,
};
use crate::transport::late::LateLink;
use crate::transport::{Landing, Link};
use crate::verbs::queue_pair::Kind;
use crate::wait::{Deadline, Wake, interest, wait};

const BOTH: Ways = Ways { sends: true, receives: true };

/// Sends `len` bytes from the first end to the second, and calls progress on both until `done`.
pub fn exchange(pair: &mut Pair, len: usize) {
    let (data, mut into) = (pattern(len, 3), vec![0; len]);
    let landed = pair.1.landed() + len as u64;
    // SAFETY: the vectors outlive the loop that drives the links, and are not used meanwhile.
    unsafe {
        pair.0.post_send(data.as_ptr(), len);
        pair.1.post_recv(Landing::Copy { into: into.as_mut_ptr() }, len);
    }
    until(|| {
        pair.0.progress().unwrap();
        pair.1.progress().unwrap();
        pair.1.landed() == landed
    });
    assert!(data == into);
}

pub fn until(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "no end in sight");
    }
}

#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn a_channel_that_nobody_drives_stops_no_other() {
    let (a, b) = rdma_wires(Kind::Uc);
    let (mut idle, mut busy) = (rdma_channel(&a, &b), rdma_channel(&a, &b));
    exchange(&mut idle, 1);
    let len = 2_000_000;
    let (data, mut into) = (pattern(len, 9), vec![0; len]);
    // SAFETY: the vectors outlive the loops that drive the links, and are not used meanwhile.
    unsafe { idle.0.post_send(data.as_ptr(), len) };
    // As far as its credits go.
    let mut sent = 0;
    until(|| {
        idle.0.progress().unwrap();
        std::mem::replace(&mut sent, idle.0.sent()) == idle.0.sent() && sent > 400_000
    });
    exchange(&mut busy, 3_000_000);
    // SAFETY: as above.
    unsafe { idle.1.post_recv(Landing::Copy { into: into.as_mut_ptr() }, len) };
    until(|| {
        idle.0.progress().unwrap();
        idle.1.progress().unwrap();
        idle.1.landed() == 1 + len as u64
    });
    assert!(data == into);
}

#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn what_was_closed_makes_room() {
    let (a, b) = rdma_wires(Kind::Rc);
    let before = (a.registered(), b.registered());
    for round in 0..30 {
        let mut pair = rdma_channel(&a, &b);
        exchange(&mut pair, 1 + round * 1000);
        // One end first, then the other; now and then with data that nobody reads.
        let data = [7; 100];
        if round % 3 == 0 {
            // SAFETY: `data` outlives the pair.
            unsafe { pair.0.post_send(data.as_ptr(), data.len()) };
            pair.0.progress().unwrap();
        }
        if round % 2 == 0 { drop(pair.0) } else { drop(pair.1) }
    }
    // 11 receives for each: without room that is made, one slab would not do.
    assert_eq!((a.registered(), b.registered()), before);
}

#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn what_was_given_up_in_the_middle_makes_room() {
    let (a, b) = rdma_wires(Kind::Rc);
    let before = (a.registered(), b.registered());
    for round in 0..18 {
        let (s, t) = streams();
        let opening = |stream, wire: &Arc<Wire>| {
            Opening::new(stream, "the other".to_owned(), Some(wire.clone()), BOTH).unwrap()
        };
        let given_up = opening(s, &a);
        match round % 3 {
            // Before the other end has come, or never comes.
            0 => drop((given_up, t)),
            1 => {
                drop(given_up);
                let mut other = LateLink::new(Box::new(opening(t, &b)));
                let data = [1; 10];
                // SAFETY: `data` outlives the link.
                unsafe { other.post_send(data.as_ptr(), data.len()) };
                until(|| match other.progress() {
                    Ok(_) => other.sent() == 10,
                    Err(e) => e.status == Status::PeerLost,
                });
            }
            _ => {
                let other = opening(t, &b);
                drop(given_up);
                drop(other);
            }
        }
    }
    exchange(&mut rdma_channel(&a, &b), 10);
    assert_eq!((a.registered(), b.registered()), before);
}

/// The peer's hello lies unread while its data lands: more often than there are buffers for it.
#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn what_had_landed_before_it_was_given_up_is_posted_again() {
    let (a, b) = rdma_wires(Kind::Rc);
    let (to, from) = rdma_channel(&a, &b);
    let mut other = (from, to);
    let (data, len) = (pattern(400_000, 1), 400_000);
    for _ in 0..30 {
        let (s, t) = streams();
        let opening = |stream, wire: &Arc<Wire>| {
            Opening::new(stream, "the other".to_owned(), Some(wire.clone()), BOTH).unwrap()
        };
        let given_up = opening(s, &a);
        let mut sender = LateLink::new(Box::new(opening(t, &b)));
        // SAFETY: `data` outlives the link.
        unsafe { sender.post_send(data.as_ptr(), len) };
        until(|| {
            sender.progress().unwrap();
            sender.sent() == len as u64
        });
        // Comes behind that, so that all of it has come.
        exchange(&mut other, 10);
        drop(given_up);
    }
    exchange(&mut other, 1_000_000);
}

#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn channels_without_room_go_over_tcp() {
    let (a, b) = rdma_wires(Kind::Rc);
    let bell = Arc::new(Wake::new().unwrap());
    let mut taken = Vec::new();
    while let Some(number) = a.open(BOTH, bell.clone()).unwrap() {
        taken.push(number);
    }
    assert!((40..=46).contains(&taken.len()), "{}", taken.len());
    assert!(a.registered().regions <= 6 && a.registered().bytes <= 33 << 20);
    let (other, one) = (b.registered(), &mut rdma_channel(&a, &b));
    exchange(one, 300_000);
    taken.into_iter().for_each(|number| a.forget(number));
    exchange(&mut rdma_channel(&a, &b), 300_000);
    assert_eq!(b.registered(), other);
}

/// Threads that all sleep at one wire, each until its own channel has something.
#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn sleepers_are_woken() {
    let (a, b) = rdma_wires(Kind::Rc);
    std::thread::scope(|scope| {
        for channel in 0..3 {
            let (one, other) = rdma_channel(&a, &b);
            for (mut link, first) in [(one, true), (other, false)] {
                scope.spawn(move || {
                    // More than all credits, now and then.
                    for round in 0..20 {
                        let len = if round % 10 == 9 { 1_000_000 } else { 1 + channel };
                        for sends in [first, !first] {
                            pass(link.as_mut(), sends, len);
                        }
                    }
                });
            }
        }
    });
}

/// Sends or receives so many bytes; sleeps whenever nothing moves.
pub fn pass(link: &mut dyn Link, sends: bool, len: usize) {
    let (data, mut into) = (pattern(len, len), vec![0; len]);
    let all = len as u64 + if sends { link.sent() } else { link.landed() };
    // SAFETY: the vectors outlive the loop that drives the link, and are not used meanwhile.
    unsafe {
        match sends {
            true => link.post_send(data.as_ptr(), len),
            false => link.post_recv(Landing::Copy { into: into.as_mut_ptr() }, len),
        }
    }
    let moved = |link: &dyn Link| if sends { link.sent() } else { link.landed() };
    while moved(link) < all {
        if link.progress().unwrap() {
            continue;
        }
        let Some(waiting) = link.interest().filter(|i| i.read || i.write) else { continue };
        let mut fds = [interest(waiting.fd, waiting.read, waiting.write)];
        let limit = Deadline::after(Some(Duration::from_secs(60)));
        assert!(wait(&mut fds, limit).unwrap(), "nobody woke this end");
    }
    assert!(sends || data == into);
}

#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn a_wire_is_made_by_whoever_needs_it_first() {
    let device = rdma_device(0);
    for nobody in [false, true] {
        let prospect = |nobody: bool| {
            let stub = Stub::new(&device, Some(Kind::Rc)).unwrap();
            Arc::new(Prospect::new((!nobody).then_some(stub)))
        };
        let (a, b) = (prospect(false), prospect(nobody));
        let link = |stream, prospect: &Arc<Prospect>| -> Box<dyn Link> {
            let name = "the other".to_owned();
            let approach = Approach::new(stream, name, prospect.clone(), BOTH).unwrap();
            Box::new(LateLink::new(Box::new(approach)))
        };
        // Two at once, in different order at either end.
        let ((s, t), (u, v)) = (streams(), streams());
        let (one, two) = (link(s, &a), link(u, &a));
        let (four, three) = (link(v, &b), link(t, &b));
        let mut pairs = [(one, three), (four, two)];
        pairs.iter_mut().for_each(|pair| exchange(pair, 200_000));
        assert_eq!((a.wire().is_some(), b.wire().is_some()), (!nobody, !nobody));
    }
}

#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn without_a_queue_pair_to_spare_there_is_none() {
    // Other tests of this process have some meanwhile.
    let (kind, plenty) = (Some(Kind::Uc), 1000);
    let held = Stub::spare(plenty, &rdma_device(0), kind).unwrap();
    // Whoever opens the device anew shares the count.
    let error = Stub::spare(1, &rdma_device(0), kind).err().unwrap();
    assert_eq!(error.status, Status::Unavailable);
    let message = format!("all 1 queue pairs of this process on {} are in use", held.device());
    assert_eq!(error.message, message);
    // Where the device has to have one, there is no such limit.
    Stub::new(&rdma_device(0), kind).unwrap();
}

#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn who_says_goodbye_ends_every_channel() {
    let (a, b) = rdma_wires(Kind::Rc);
    let (mut one, mut two) = (rdma_channel(&a, &b), rdma_channel(&a, &b));
    for pair in [&mut one, &mut two] {
        exchange(pair, 10);
    }
    let (data, mut into) = (pattern(10, 3), [0; 20]);
    // SAFETY: both outlive the loops that drive the links, and are not used meanwhile.
    unsafe {
        one.0.post_send(data.as_ptr(), 10);
        one.0.progress().unwrap();
        one.1.post_recv(Landing::Copy { into: into.as_mut_ptr() }, 20);
        two.1.post_recv(Landing::Copy { into: into.as_mut_ptr() }, 20);
    }
    a.say_goodbye();
    a.settle(Deadline::after(Some(Duration::from_secs(20))));
    for link in [&mut one.1, &mut two.1] {
        until(|| link.progress().is_err_and(|e| e.status == Status::PeerLost));
    }
    // What was sent before has come.
    assert_eq!((one.1.landed(), &into[..10]), (20, &data[..]));
}

/// Both ends of two channels, and something to receive at each.
fn two_channels(a: &Arc<Wire>, b: &Arc<Wire>, into: &mut [[u8; 10]; 2]) -> [Pair; 2] {
    let mut pairs = [rdma_channel(a, b), rdma_channel(a, b)];
    for (pair, into) in pairs.iter_mut().zip(into) {
        exchange(pair, 10);
        // SAFETY: the caller keeps the memory, and does not use it, as long as the links are there.
        unsafe { pair.1.post_recv(Landing::Copy { into: into.as_mut_ptr() }, 10) };
    }
    pairs
}

#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn what_is_lost_on_the_way_is_missed() {
    let (a, b) = rdma_wires(Kind::Uc);
    let mut into = [[0; 10]; 2];
    let mut pairs = two_channels(&a, &b, &mut into);
    // As if two messages had gone and not arrived.
    a.state.lock().sent += 2;
    let data = [9; 10];
    // SAFETY: `data` outlives the pairs' last use.
    unsafe { pairs[0].0.post_send(data.as_ptr(), 10) };
    pairs[0].0.progress().unwrap();
    for pair in &mut pairs {
        let mut error = None;
        until(|| {
            error = pair.1.progress().err();
            error.is_some()
        });
        let error = error.unwrap();
        assert_eq!(error.status, Status::Backend);
        assert!(error.message.contains("2 missing"), "{error}");
        assert_eq!(pair.1.landed(), 10);
    }
    drop(pairs);
    assert_eq!(into, [[0; 10]; 2]);
}

#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn a_peer_that_does_not_answer_is_named() {
    let (a, b) = rdma_wires(Kind::Rc);
    let mut into = [[0; 10]; 2];
    let mut pairs = two_channels(&a, &b, &mut into);
    // Its queue pair takes nothing any more, and says nothing.
    b.pair.stop().unwrap();
    let data = [9; 10];
    // SAFETY: `data` outlives the pairs' last use.
    unsafe { pairs[0].0.post_send(data.as_ptr(), 10) };
    let mut room = [0; 10];
    // SAFETY: `room` outlives the pairs' last use.
    unsafe { pairs[0].0.post_recv(Landing::Copy { into: room.as_mut_ptr() }, 10) };
    let mut error = None;
    until(|| {
        error = pairs[0].0.progress().err();
        pairs[0].0.interest();
        std::thread::sleep(Duration::from_millis(10));
        error.is_some()
    });
    let error = error.unwrap();
    assert_eq!(error.status, Status::PeerLost, "{error}");
    assert!(error.message.contains("IBV_WC_RETRY_EXC_ERR"), "{error}");
    // The other end has seen what stopped its own.
    until(|| pairs[1].1.progress().is_err_and(|e| e.message.contains("IBV_WC_WR_FLUSH_ERR")));
}

const NAME: Name = Name { group: 7, from: 0, purpose: 3, lane: 0 };

/// This end of a channel of this name.
fn named(wire: &Arc<Wire>, name: Name) -> Box<dyn Link> {
    Box::new(open(wire, name, "the other".to_owned(), BOTH).unwrap())
}

/// What a link fails with that has something to receive.
fn failure(link: &mut dyn Link, into: &mut [u8; 10]) -> Error {
    failure_beside(link, into, || ())
}

/// The same, while the other end does something.
fn failure_beside(link: &mut dyn Link, into: &mut [u8; 10], other: impl Fn()) -> Error {
    // SAFETY: the memory is there as long as the link is driven here.
    unsafe { link.post_recv(Landing::Copy { into: into.as_mut_ptr() }, into.len()) };
    let mut error = None;
    until(|| {
        other();
        error = link.progress().err();
        error.is_some()
    });
    link.cancel();
    error.unwrap()
}

#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn channels_are_opened_by_name() {
    for kind in [Kind::Rc, Kind::Uc] {
        let (a, b) = rdma_wires(kind);
        greet(&a, &b);
        let before = (a.registered(), b.registered());
        // More at once than there are credits for records; in different order at either end, and with
        // the data of some under way before the other end has opened them.
        for round in 0..6 {
            let names: Vec<Name> = (0..2 * CONTROL_CREDITS as u16)
                .map(|lane| Name { group: 7 + round, lane, ..NAME })
                .collect();
            let (data, len) = (pattern(1000, 5), 1000);
            let mut ours: Vec<_> = names.iter().map(|name| named(&a, *name)).collect();
            // SAFETY: `data` outlives the links.
            ours.iter_mut().for_each(|link| unsafe { link.post_send(data.as_ptr(), len) });
            for link in &mut ours {
                link.progress().unwrap();
            }
            let theirs = names.iter().rev().map(|name| named(&b, *name));
            let mut pairs: Vec<Pair> = ours.into_iter().rev().zip(theirs).collect();
            for pair in &mut pairs {
                let mut into = vec![0; len];
                // SAFETY: `into` outlives the loop that drives the links.
                unsafe { pair.1.post_recv(Landing::Copy { into: into.as_mut_ptr() }, len) };
                until(|| {
                    pair.0.progress().unwrap();
                    pair.1.progress().unwrap();
                    pair.1.landed() == len as u64
                });
                assert!(data == into);
                exchange(pair, 20_000);
            }
            // Either end goes first.
            pairs.into_iter().for_each(|(one, other)| match round % 2 {
                0 => drop((one, other)),
                _ => drop((other, one)),
            });
            [&a, &b].into_iter().for_each(|wire| wire.forget_group(7 + round));
        }
        // 11 receives for each of 48: those of channels that were closed were used again.
        let after = (a.registered(), b.registered());
        assert!(after.0.regions <= before.0.regions + 3, "{before:?} {after:?}");
    }
}

/// Takes in what has come.
fn look(wire: &Arc<Wire>) {
    assert_eq!(wire.watch(0), Ok(()));
}

/// Both ends say hello, as all do before anything else goes over a wire.
fn greet(a: &Arc<Wire>, b: &Arc<Wire>) {
    a.say_hello();
    b.say_hello();
    until(|| a.has_met().unwrap() & b.has_met().unwrap());
}

#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn who_waits_for_a_group_that_is_let_go_of_is_told() {
    let (a, b) = rdma_wires(Kind::Rc);
    greet(&a, &b);
    let (mut early, mut into) = (named(&a, NAME), [0; 10]);
    let unused = named(&a, Name { lane: 1, ..NAME });
    look(&b);
    b.forget_group(NAME.group);
    let mut late = named(&a, Name { lane: 2, ..NAME });
    for link in [&mut early, &mut late] {
        let error = failure_beside(link.as_mut(), &mut into, || look(&b));
        assert_eq!(error.status, Status::PeerLost);
        assert!(error.message.contains("has no part in the group"), "{error}");
    }
    let before = a.state.lock().channels.len();
    drop((early, unused, late));
    assert_eq!((before, a.state.lock().channels.len()), (3, 0));
}

#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn a_channel_for_which_the_other_end_has_no_room_is_refused() {
    let (a, b) = rdma_wires(Kind::Uc);
    greet(&a, &b);
    let bell = Arc::new(Wake::new().unwrap());
    while b.open(BOTH, bell.clone()).unwrap().is_some() {}
    let (mut early, mut into) = (named(&a, NAME), [0; 10]);
    for name in [NAME, Name { lane: 1, ..NAME }] {
        let error = open(&b, name, "the other".to_owned(), BOTH).err().unwrap();
        assert!(
            error.status == Status::Unavailable && error.message.contains("this end"),
            "{error}"
        );
    }
    let mut late = named(&a, Name { lane: 1, ..NAME });
    for link in [&mut early, &mut late] {
        let error = failure(link.as_mut(), &mut into);
        assert_eq!(error.status, Status::Unavailable);
        assert!(error.message.contains("the other end"), "{error}");
    }
    drop((early, late));
    assert!(a.state.lock().channels.is_empty());
}

#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn a_group_s_failure_is_told_with_its_cause() {
    let (a, b) = rdma_wires(Kind::Uc);
    greet(&a, &b);
    let (mut pair, mut into) = ((named(&a, NAME), named(&b, NAME)), [0; 10]);
    let other = Name { group: 8, ..NAME };
    let mut untouched = (named(&a, other), named(&b, other));
    exchange(&mut pair, 1000);
    // However much is probed before.
    (0..10).for_each(|_| a.stir(true));
    a.tell_failure(NAME.group, &Error::new(Status::Aborted, "enough"));
    drop(pair.0);
    let error = failure(pair.1.as_mut(), &mut into);
    assert_eq!((error.status, &*error.message), (Status::Aborted, "enough"));
    assert_eq!(b.watch(NAME.group), Err(error));
    assert_eq!(b.watch(other.group), Ok(()));
    exchange(&mut untouched, 1000);
}

/// The last message of a channel is lost, and both ends wait: a probe shows it.
#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn a_probe_shows_that_the_last_message_was_lost() {
    let (a, b) = rdma_wires(Kind::Uc);
    greet(&a, &b);
    let (mut pair, mut into) = (rdma_channel(&a, &b), [0; 10]);
    exchange(&mut pair, 10);
    // As if it had gone and not arrived.
    a.state.lock().sent += 1;
    // SAFETY: `into` outlives the loops that drive the link.
    unsafe { pair.1.post_recv(Landing::Copy { into: into.as_mut_ptr() }, 10) };
    for _ in 0..100 {
        assert_eq!(pair.1.progress(), Ok(false));
    }
    pair.0.stir();
    let mut error = None;
    until(|| {
        error = pair.1.progress().err();
        error.is_some()
    });
    let error = error.unwrap();
    assert!(error.status == Status::Backend && error.message.contains("1 missing"), "{error}");
    // The end that sent it is told, before the wire is of no more use.
    let error = failure(pair.0.as_mut(), &mut into);
    assert!(error.status == Status::Backend && error.message.contains("1 missing"), "{error}");
}

/// However often an end probes, nothing meets an empty receive queue, and what it sends arrives.
#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn probes_are_bounded() {
    for kind in [Kind::Rc, Kind::Uc] {
        let (a, b) = rdma_wires(kind);
        greet(&a, &b);
        let mut pair = rdma_channel(&a, &b);
        exchange(&mut pair, 10);
        for _ in 0..3 {
            // Nobody looks at the other end meanwhile.
            let before = a.state.lock().sent;
            (0..50).for_each(|_| pair.0.stir());
            let probes = (a.state.lock().sent - before) as usize;
            assert!(probes <= CONTROL_CREDITS / 2, "{probes} probes");
            exchange(&mut pair, 600_000);
            std::mem::swap(&mut pair.0, &mut pair.1);
            exchange(&mut pair, 600_000);
            std::mem::swap(&mut pair.0, &mut pair.1);
        }
        assert_eq!((a.watch(0), b.watch(0)), (Ok(()), Ok(())));
    }
}

/// On a reliable wire without channels probes find out that the other end is gone, also after others were
/// answered, and though nothing else is sent.
#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn a_probe_shows_that_the_peer_is_gone() {
    let (a, b) = rdma_wires(Kind::Rc);
    greet(&a, &b);
    // Answered by then, most likely; else it is the same.
    for _ in 0..20 {
        assert_eq!(a.watch(0), Ok(()));
        std::thread::sleep(Duration::from_millis(5));
    }
    b.pair.stop().unwrap();
    let mut error = None;
    until(|| {
        std::thread::sleep(Duration::from_millis(10));
        error = a.watch(0).err();
        error.is_some()
    });
    let error = error.unwrap();
    assert_eq!((error.status, a.lost()), (Status::PeerLost, Some(error.clone())));
    assert!(error.message.contains("IBV_WC_RETRY_EXC_ERR"), "{error}");
}

#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn a_name_is_opened_once() {
    let (a, b) = rdma_wires(Kind::Uc);
    greet(&a, &b);
    let other = Name { group: 8, ..NAME };
    let mut untouched = (named(&a, other), named(&b, other));
    let (mut pair, mut into) = ((named(&a, NAME), named(&b, NAME)), [0; 10]);
    exchange(&mut pair, 10);
    drop(pair.0);
    // As long as the other end has it,
    let error = open(&a, NAME, "the other".to_owned(), BOTH).err().unwrap();
    assert_eq!(error.status, Status::PeerLost);
    // and should it open again nevertheless.
    let number = a.open(BOTH, Arc::new(Wake::new().unwrap())).unwrap().unwrap();
    a.say_opened(NAME, number);
    let failed = failure(pair.1.as_mut(), &mut into);
    assert!(failed.message.contains("closed by peer"), "{failed}");
    until(|| {
        look(&a);
        look(&b);
        let state = a.state.lock();
        state.channels.get(&number).is_some_and(|channel| channel.refused.is_some())
    });
    exchange(&mut untouched, 1000);
}

/// What waits for a credit is not overtaken by what needs none.
#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn nothing_of_a_channel_comes_before_it_was_told_of() {
    let (a, b) = rdma_wires(Kind::Rc);
    greet(&a, &b);
    let mut theirs = named(&b, NAME);
    // All credits of this end, of which the other looks at none.
    let filling: Vec<_> =
        (1..=CONTROL_CREDITS as u16).map(|lane| named(&a, Name { lane, ..NAME })).collect();
    let data = [5; 10];
    let mut ours = named(&a, NAME);
    // SAFETY: `data` outlives the link.
    unsafe { ours.post_send(data.as_ptr(), 10) };
    let sent = a.state.lock().sent;
    for _ in 0..1000 {
        ours.progress().unwrap();
    }
    drop(ours);
    assert_eq!(a.state.lock().sent, sent);
    let mut into = [0; 10];
    let error = failure_beside(theirs.as_mut(), &mut into, || look(&a));
    assert!(error.message.contains("closed by peer"), "{error}");
    drop((theirs, filling));
    [&a, &b].into_iter().for_each(|wire| wire.forget_group(NAME.group));
    until(|| {
        look(&a);
        look(&b);
        a.state.lock().channels.is_empty() & b.state.lock().channels.is_empty()
    });
}
