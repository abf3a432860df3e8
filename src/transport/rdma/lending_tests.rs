//! Memory that links lend to devices. Each test needs a device, and is ignored unless it is asked for.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::channel::Channel;
use super::tests::{exchange, pass, until};
use super::wire::{Bytes, Wire};
use crate::error::Status;
use crate::transport::conformance::{LendingLink, Pair, pattern, rdma_channel, rdma_wires};
use crate::transport::{Landing, Link};
use crate::verbs::queue_pair::{Kind, Queue};
use crate::wait::{Deadline, interest, wait};

fn lending((a, b): Pair) -> Pair {
    (Box::new(LendingLink::new(a)), Box::new(LendingLink::new(b)))
}

fn bytes(wire: &Arc<Wire>) -> Bytes {
    wire.state.lock().bytes
}

#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn what_is_lent_is_not_copied() {
    for kind in [Kind::Rc, Kind::Uc] {
        let (a, b) = rdma_wires(kind);
        let (mut copying, mut lending) = (rdma_channel(&a, &b), lending(rdma_channel(&a, &b)));
        let before = bytes(&a);
        exchange(&mut copying, 1_000_000);
        assert_eq!(bytes(&a), Bytes { copied: before.copied + 1_000_000, ..before });
        exchange(&mut lending, 1_000_000);
        let after = bytes(&a);
        let (copied, lent) = (after.copied - before.copied - 1_000_000, after.lent - before.lent);
        // But for a rest that is not worth it.
        assert!(copied + lent == 1_000_000 && copied < 4096, "{copied} copied, {lent} lent");
    }
}

#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn what_the_device_may_still_read_is_not_counted() {
    let (a, b) = rdma_wires(Kind::Rc);
    let mut pair = lending(rdma_channel(&a, &b));
    exchange(&mut pair, 10);
    let (data, mut into) = (pattern(50_000, 3), vec![0; 50_000]);
    // SAFETY: the vectors outlive the loops that drive the links, and are not used meanwhile.
    unsafe { pair.0.post_send(data.as_ptr(), data.len()) };
    // Its completion is only looked for the next time.
    while bytes(&a).lent == 0 {
        pair.0.progress().unwrap();
        assert_eq!(pair.0.sent(), 10);
    }
    // SAFETY: as above.
    unsafe { pair.1.post_recv(Landing::Copy { into: into.as_mut_ptr() }, into.len()) };
    until(|| {
        pair.0.progress().unwrap();
        pair.1.progress().unwrap();
        pair.0.sent() == 50_010 && pair.1.landed() == 50_010
    });
    assert!(data == into);
}

/// A sender that waits for nothing but its device is woken by that.
#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn senders_are_woken_by_completions() {
    let (a, b) = rdma_wires(Kind::Rc);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (one, other) = lending(rdma_channel(&a, &b));
            for (mut link, first) in [(one, true), (other, false)] {
                scope.spawn(move || {
                    for round in 0..20 {
                        let len = if round % 10 == 9 { 1_000_000 } else { 40_000 };
                        for sends in [first, !first] {
                            pass(link.as_mut(), sends, len);
                        }
                    }
                });
            }
        }
    });
}

/// Whoever takes the event of a completion off the wire has it wake the one who waits for it.
#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn completions_wake_whoever_waits_for_them() {
    let (a, b) = rdma_wires(Kind::Rc);
    let (mut one, mut two) = (lending(rdma_channel(&a, &b)), rdma_channel(&a, &b));
    exchange(&mut one, 10);
    exchange(&mut two, 10);
    for _ in 0..5 {
        let (data, mut into) = (pattern(50_000, 3), [0; 10]);
        let (before, sent) = (bytes(&a).lent, one.0.sent() + 50_000);
        let descriptor =
            |link: &dyn Link| link.interest().unwrap().fd.try_clone_to_owned().unwrap();
        let sender = descriptor(one.0.as_ref());
        // SAFETY: the memory outlives the loops that drive the links, and is not used meanwhile.
        unsafe {
            one.0.post_send(data.as_ptr(), data.len());
            one.1.post_recv(Landing::Copy { into: vec![0; 50_000].leak().as_mut_ptr() }, 50_000);
            two.0.post_recv(Landing::Copy { into: into.as_mut_ptr() }, 10);
        }
        // One sleeps until data comes, the other just before its message has completed.
        let reader = descriptor(two.0.as_ref());
        a.pair.arm(Queue::Send).unwrap();
        until(|| {
            one.0.progress().unwrap();
            bytes(&a).lent > before
        });
        let lends = |channel: &&mut Channel| channel.lent > 0;
        a.state.lock().channels.values_mut().filter(lends).for_each(|channel| {
            (channel.asleep, channel.hungry) = (true, true);
        });
        let limit = || Deadline::after(Some(Duration::from_secs(20)));
        assert!(wait(&mut [interest(reader.as_fd(), true, false)], limit()).unwrap());
        two.0.progress().unwrap();
        assert!(wait(&mut [interest(sender.as_fd(), true, false)], limit()).unwrap());
        one.0.progress().unwrap();
        assert_eq!(one.0.sent(), sent);
        // SAFETY: as above.
        unsafe { two.1.post_send(data.as_ptr(), 10) };
        until(|| {
            for link in [&mut one.0, &mut one.1, &mut two.0, &mut two.1] {
                link.progress().unwrap();
            }
            into == data[..10] && one.1.landed() == sent
        });
    }
}

const LEN: usize = 1 << 20;

/// A mapping full of ones.
fn map() -> *mut u8 {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, at an address of the kernel's choice, which is then written.
    unsafe {
        let at = mmap_anonymous(std::ptr::null_mut(), LEN, access, MapFlags::PRIVATE).unwrap();
        at.cast::<u8>().write_bytes(1, LEN);
        at.cast()
    }
}

/// Posts a send of such memory and has it begin; takes it back and unmaps it: how long that took.
fn take_back(link: &mut dyn Link, wire: &Arc<Wire>) -> Duration {
    let (at, before) = (map(), bytes(wire).lent);
    // SAFETY: it is unmapped after the link was cancelled.
    unsafe { link.post_send(at, LEN) };
    until(|| {
        link.progress().unwrap();
        bytes(wire).lent > before
    });
    let start = Instant::now();
    link.cancel();
    let took = start.elapsed();
    // SAFETY: nobody uses it any more.
    unsafe { munmap(at.cast(), LEN) }.unwrap();
    let state = wire.state.lock();
    assert!(state.channels.values().all(|channel| channel.lent == 0) && state.stranded.is_empty());
    took
}

#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn memory_is_taken_back_from_a_device() {
    for kind in [Kind::Rc, Kind::Uc] {
        let (a, b) = rdma_wires(kind);
        let (mut one, mut two) = (lending(rdma_channel(&a, &b)), lending(rdma_channel(&a, &b)));
        exchange(&mut one, 10);
        // The peer's program does nothing, its device does.
        take_back(one.0.as_mut(), &a);
        assert!(a.state.lock().end.is_none());
        exchange(&mut two, 300_000);
    }
}

#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn memory_is_taken_back_where_nobody_answers() {
    let (a, b) = rdma_wires(Kind::Rc);
    let (mut one, mut two) = (lending(rdma_channel(&a, &b)), lending(rdma_channel(&a, &b)));
    exchange(&mut one, 10);
    exchange(&mut two, 10);
    b.pair.stop().unwrap();
    let took = take_back(one.0.as_mut(), &a);
    assert!(took < Duration::from_secs(10), "{took:?}");
    // The device was stopped for it: that is the end of every channel.
    let mut room = [0; 10];
    for pair in [&mut one, &mut two] {
        // SAFETY: `room` outlives the pairs' last use.
        unsafe { pair.0.post_recv(Landing::Copy { into: room.as_mut_ptr() }, 10) };
        let mut error = None;
        until(|| {
            error = pair.0.progress().err();
            error.is_some()
        });
        assert_eq!(error.unwrap().status, Status::PeerLost);
    }
}

/// Nothing is posted any more, but lent memory is under way when the wire fails.
#[test]
#[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
fn who_waits_for_completions_learns_that_the_wire_failed() {
    let (a, b) = rdma_wires(Kind::Rc);
    let mut pair = lending(rdma_channel(&a, &b));
    exchange(&mut pair, 10);
    b.pair.stop().unwrap();
    let data = pattern(10_000, 1);
    // SAFETY: `data` outlives the link, which is dropped first.
    unsafe { pair.0.post_send(data.as_ptr(), data.len()) };
    let mut error = None;
    until(|| {
        error = pair.0.progress().err();
        pair.0.interest();
        std::thread::sleep(Duration::from_millis(10));
        error.is_some()
    });
    assert_eq!(error.unwrap().status, Status::PeerLost);
    assert_eq!(pair.0.sent(), 10);
    drop(pair);
}
