//! What channels of one wire are to each other.

use std::sync::Arc;

use super::super::Opening;
use super::super::wire::Wire;
use super::{BOTH, exchange, pass, until};
use crate::error::Status;
use crate::transport::conformance::{pattern, rdma_channel, rdma_wires, streams};
use crate::transport::late::LateLink;
use crate::transport::{Landing, Link};
use crate::verbs::queue_pair::Kind;
use crate::wait::Wake;

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
