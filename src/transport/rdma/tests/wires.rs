//! How a wire comes up, ends, and finds out that it has.

use std::sync::Arc;
use std::time::Duration;

use super::super::wire::Wire;
use super::super::{Approach, CONTROL_CREDITS, Prospect, Stub};
use super::{BOTH, exchange, failure, greet, until};
use crate::error::Status;
use crate::transport::conformance::{
    Pair, pattern, rdma_channel, rdma_device, rdma_wires, streams,
};
use crate::transport::late::LateLink;
use crate::transport::{Landing, Link};
use crate::verbs::queue_pair::Kind;
use crate::wait::Deadline;

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

#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn a_goodbye_waits_for_a_room() {
    let (a, b) = rdma_wires(Kind::Uc);
    greet(&a, &b);
    // As if all were under way.
    let mut taken = Vec::new();
    {
        let mut state = a.state.lock();
        until(|| a.free_rooms(&mut state).is_ok() && state.rooms.free() == state.rooms.total());
        taken.extend(std::iter::from_fn(|| state.rooms.take()));
    }
    a.say_goodbye();
    assert!(!b.has_left());
    for room in taken {
        a.state.lock().rooms.give_back(room.into()).unwrap();
    }
    a.settle(Deadline::after(Some(Duration::from_secs(20))));
    until(|| b.has_left());
}
