//! Wires between two devices of this machine. Each test needs one, and is ignored unless it is asked for.

mod channels;
mod lineless;
mod wires;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::channel::Ways;
use super::wire::Wire;
use crate::error::Error;
use crate::transport::conformance::{Pair, pattern};
use crate::transport::{Landing, Link};
use crate::wait::{Deadline, interest, wait};

const BOTH: Ways = Ways { sends: true, receives: true };

/// Sends `len` bytes from the first end to the second, and calls progress on both until they have landed.
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

/// Both ends say hello, as all do before anything else goes over a wire.
fn greet(a: &Arc<Wire>, b: &Arc<Wire>) {
    a.say_hello();
    b.say_hello();
    until(|| a.has_met().unwrap() & b.has_met().unwrap());
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
