//! What a wire does where no connection beside it does: channels meet by name, failures are told.

use std::sync::Arc;

use super::super::wire::Wire;
use super::super::{CONTROL_CREDITS, Name, open};
use super::{BOTH, exchange, failure, failure_beside, greet, until};
use crate::error::{Error, Status};
use crate::transport::conformance::{Pair, pattern, rdma_wires};
use crate::transport::{Landing, Link};
use crate::verbs::queue_pair::Kind;
use crate::wait::Wake;

const NAME: Name = Name { group: 7, from: 0, purpose: 3, lane: 0 };

/// This end of a channel of this name.
fn named(wire: &Arc<Wire>, name: Name) -> Box<dyn Link> {
    Box::new(open(wire, name, "the other".to_owned(), BOTH).unwrap())
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
