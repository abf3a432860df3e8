//! What every kind of link must do, and each kind held against it.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::checked::CheckedLink;
use super::late::{Arrival, LateLink};
use super::local::LocalLink;
use super::rdma::{Introduction, Opening, Stub, Ways, Wire};
use super::segment::Segment;
use super::shm::ShmLink;
use super::tcp::TcpLink;
use super::{Interest, Landing, Lent, Link};
use crate::config::Registration;
use crate::dtype::Dtype;
use crate::error::{Result, Status};
use crate::reduce::{Reduction, kernel};
use crate::verbs::device::{self, Device, Wanted};
use crate::verbs::lending::{Lender, Registrations};
use crate::verbs::queue_pair::Kind;
use crate::wait::Wake;

pub type Pair = (Box<dyn Link>, Box<dyn Link>);

fn local(capacity: usize) -> Pair {
    let (a, b) = LocalLink::pair(capacity);
    (Box::new(a), Box::new(b))
}

/// Both ends of a connection.
pub fn streams() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (b, _) = listener.accept().unwrap();
    (a, b)
}

/// Both ends over TCP.
pub fn tcp_ends() -> (TcpLink, TcpLink) {
    let (a, b) = streams();
    let link = |stream, peer: &str| TcpLink::new(stream, peer.to_owned()).unwrap();
    (link(a, "rank 1"), link(b, "rank 0"))
}

fn tcp() -> Pair {
    let (a, b) = tcp_ends();
    (Box::new(a), Box::new(b))
}

/// Both ends with checksums over a link of the same kind.
fn checked<L: Link + 'static>((a, b): (L, L)) -> Pair {
    let link = |below, peer: &str| Box::new(CheckedLink::new(below, peer.to_owned()));
    (link(a, "rank 1"), link(b, "rank 0"))
}

/// Both ends over rings of `len` bytes each, mapped once: that of the first end comes first.
pub fn shm_ends(len: usize) -> (ShmLink, ShmLink, Arc<Segment>) {
    let (segment, _) = Segment::create(2 * len).unwrap();
    let (segment, (a, b)) = (Arc::new(segment), streams());
    let (there, back) = (Some(0..len), Some(len..2 * len));
    let link = |stream, peer: &str, out, incoming| {
        ShmLink::new(stream, peer.to_owned(), segment.clone(), out, incoming).unwrap()
    };
    let ends = (link(a, "rank 1", there.clone(), back.clone()), link(b, "rank 0", back, there));
    (ends.0, ends.1, segment)
}

fn shm(len: usize) -> Pair {
    let (a, b, _) = shm_ends(len);
    (Box::new(a), Box::new(b))
}

/// TCP, where one end has to be asked three times before it is there.
fn late() -> Pair {
    let (a, b) = tcp();
    (
        a,
        Box::new(LateLink::new(Box::new(Third {
            there: Some(b),
            looks: 0,
            wake: Wake::new().unwrap(),
        }))),
    )
}

/// Comes at the third look.
struct Third {
    there: Option<Box<dyn Link>>,
    looks: usize,
    wake: Wake,
}

impl Arrival for Third {
    fn look(&mut self) -> Result<Option<Box<dyn Link>>> {
        self.looks += 1;
        Ok(if self.looks < 3 { None } else { self.there.take() })
    }

    fn bell(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Over RDMA.
fn rdma(kind: Kind) -> Pair {
    let (a, b) = rdma_wires(kind);
    rdma_channel(&a, &b)
}

/// Over RDMA, with all that is sent lent to the link.
fn rdma_lent(kind: Kind) -> Pair {
    let (a, b) = rdma(kind);
    (Box::new(LendingLink::new(a)), Box::new(LendingLink::new(b)))
}

/// Lends what is posted to the link below.
pub struct LendingLink {
    below: Box<dyn Link>,
    lent: Vec<Lent>,
    posted: u64,
    call: u64,
}

impl LendingLink {
    /// Over this link.
    pub fn new(below: Box<dyn Link>) -> LendingLink {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        let call = CALLS.fetch_add(1, Ordering::Relaxed);
        LendingLink { below, lent: Vec::new(), posted: 0, call }
    }
}

// SAFETY: the pointers are only passed on to the link, whose callers vouch for them.
unsafe impl Send for LendingLink {}

impl Link for LendingLink {
    unsafe fn post_send(&mut self, from: *const u8, len: usize) {
        // What was sent may not be there any more.
        if self.below.sent() == self.posted {
            self.lent.clear();
        }
        self.posted += len as u64;
        if len >= 4096 {
            self.lent.push(Lent { from, len, sent: len as u64, call: self.call });
        }
        // SAFETY: as this function's contract says; what was lent is lent again, or was sent.
        unsafe {
            self.below.lend(&self.lent);
            self.below.post_send(from, len);
        }
    }

    unsafe fn post_recv(&mut self, landing: Landing, len: usize) {
        // SAFETY: as this function's contract says.
        unsafe { self.below.post_recv(landing, len) };
    }

    fn progress(&mut self) -> Result<bool> {
        self.below.progress()
    }

    fn sent(&self) -> u64 {
        self.below.sent()
    }

    fn landed(&self) -> u64 {
        self.below.landed()
    }

    fn cancel(&mut self) {
        self.lent.clear();
        self.below.cancel();
        self.posted = self.below.sent();
    }

    fn stir(&mut self) {
        self.below.stir();
    }

    fn interest(&self) -> Option<Interest<'_>> {
        self.below.interest()
    }
}

/// A device, of several that are known to work the one of this place; for tests that are ignored unless
/// they are asked for: there must be one.
pub fn rdma_device(place: usize) -> Arc<Device> {
    let names = device::require_any().and_then(|()| device::names()).unwrap();
    let names: Vec<String> = match std::env::var("MLXD_TEST_RDMA_DEVICES") {
        Ok(known) => known.split([',', ' ']).map(str::to_owned).collect(),
        Err(_) => names.into_iter().take(1).collect(),
    };
    let name = names.get(place).unwrap_or(&names[0]);
    static ALL: OnceLock<Arc<Registrations>> = OnceLock::new();
    let mut device = Device::open(name, Wanted::default()).unwrap();
    device.lender = Lender::new(ALL.get_or_init(Arc::default), Registration::Always);
    Arc::new(device)
}

/// Both ends of a wire, on two devices if there are two.
pub fn rdma_wires(kind: Kind) -> (Arc<Wire>, Arc<Wire>) {
    let stub = |place| Stub::new(&rdma_device(place), Some(kind)).unwrap();
    let (a, b) = (stub(0), stub(1));
    let travel = |stub: &Stub| Introduction::decode(&stub.introduction().encode()).unwrap();
    let (of_a, of_b) = (travel(&a), travel(&b));
    let a = a.connect(&of_b, "rank 1").unwrap();
    (Arc::new(a), Arc::new(b.connect(&of_a, "rank 0").unwrap()))
}

/// Both ends of a new channel of a wire.
pub fn rdma_channel(a: &Arc<Wire>, b: &Arc<Wire>) -> Pair {
    let ways = Ways { sends: true, receives: true };
    let (s, t) = streams();
    let link = |stream, wire: &Arc<Wire>, peer: &str| -> Box<dyn Link> {
        let opening = Opening::new(stream, peer.to_owned(), Some(wire.clone()), ways).unwrap();
        Box::new(LateLink::new(Box::new(opening)))
    };
    (link(s, a, "rank 1"), link(t, b, "rank 0"))
}

/// Bytes that differ by place and seed.
pub fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + seed * 17) >> 2) as u8).collect()
}

fn copy(into: &mut [u8]) -> Landing {
    Landing::Copy { into: into.as_mut_ptr() }
}

/// Calls progress on both ends until `done`.
fn drive(pair: &mut Pair, done: impl Fn(&Pair) -> bool) {
    let start = Instant::now();
    while !done(pair) {
        pair.0.progress().unwrap();
        pair.1.progress().unwrap();
        assert!(start.elapsed() < Duration::from_secs(20), "no end in sight");
    }
}

fn bytes_arrive_in_order(mut pair: Pair) {
    let sizes = [1, 0, 7, 4096, 100_000, 3, 1_000_003];
    let sent: Vec<Vec<u8>> = sizes.iter().map(|size| pattern(*size, *size)).collect();
    let mut received: Vec<Vec<u8>> = sizes.iter().map(|size| vec![0; *size]).collect();
    let total: u64 = sizes.iter().sum::<usize>() as u64;
    for (from, into) in sent.iter().zip(&mut received) {
        // SAFETY: both vectors outlive the loop that drives the links, and are not used meanwhile.
        unsafe {
            pair.0.post_send(from.as_ptr(), from.len());
            pair.1.post_recv(copy(into), into.len());
        }
    }
    drive(&mut pair, |pair| pair.1.landed() == total && pair.0.sent() == total);
    assert!(sent == received);
}

fn both_directions_at_once(mut pair: Pair) {
    const LEN: usize = 3_000_000;
    let (a, b) = (pattern(LEN, 1), pattern(LEN, 2));
    let (mut at_a, mut at_b) = (vec![0; LEN], vec![0; LEN]);
    // SAFETY: the vectors outlive the loop that drives the links, and are not used meanwhile.
    unsafe {
        pair.0.post_send(a.as_ptr(), LEN);
        pair.1.post_send(b.as_ptr(), LEN);
        pair.0.post_recv(copy(&mut at_a), LEN);
        pair.1.post_recv(copy(&mut at_b), LEN);
    }
    drive(&mut pair, |p| p.0.landed() == LEN as u64 && p.1.landed() == LEN as u64);
    assert!(at_a == b && at_b == a);
}

fn pieces_need_not_match(mut pair: Pair) {
    let data = pattern(100_000, 5);
    let mut into = vec![0; data.len()];
    // SAFETY: the vectors outlive the loop that drives the links, and are not used meanwhile.
    unsafe {
        for piece in data.chunks(777) {
            pair.0.post_send(piece.as_ptr(), piece.len());
        }
        for piece in into.chunks_mut(33_333) {
            pair.1.post_recv(copy(piece), piece.len());
        }
    }
    drive(&mut pair, |pair| pair.1.landed() == data.len() as u64);
    assert!(data == into);
}

fn nothing_lands_before_it_is_posted(mut pair: Pair) {
    let data = pattern(64, 9);
    let mut into = vec![0; 64];
    // SAFETY: the vectors outlive the loop that drives the links, and are not used meanwhile.
    unsafe { pair.0.post_send(data.as_ptr(), 64) };
    drive(&mut pair, |pair| pair.0.sent() == 64);
    for _ in 0..10 {
        pair.1.progress().unwrap();
    }
    assert_eq!(pair.1.landed(), 0);
    for half in into.chunks_mut(32) {
        let landed = pair.1.landed() + 32;
        // SAFETY: as above.
        unsafe { pair.1.post_recv(copy(half), 32) };
        drive(&mut pair, |pair| pair.1.landed() >= landed);
        assert_eq!(pair.1.landed(), landed);
    }
    assert!(data == into);
}

fn what_lands_is_reduced(mut pair: Pair) {
    let theirs: Vec<f32> = (0..50_001).map(|i| i as f32).collect();
    let own: Vec<f32> = (0..50_001).map(|i| (i % 7) as f32 - 3.0).collect();
    let mut into = vec![0f32; own.len()];
    let bytes = own.len() * 4;
    let landing = Landing::Reduce {
        into: into.as_mut_ptr().cast(),
        own: own.as_ptr().cast(),
        kernel: kernel(Reduction::Sum, Dtype::Float32),
        size: 4,
        own_first: true,
    };
    // SAFETY: the vectors outlive the loop that drives the links, and are not used meanwhile.
    unsafe {
        pair.1.post_recv(landing, bytes);
        // Pieces that cut elements in two.
        let from = theirs.as_ptr().cast::<u8>();
        let mut at = 0;
        while at < bytes {
            let len = 1001.min(bytes - at);
            pair.0.post_send(from.add(at), len);
            at += len;
        }
    }
    drive(&mut pair, |pair| pair.1.landed() == bytes as u64);
    for i in 0..own.len() {
        assert_eq!(into[i], theirs[i] + own[i], "element {i}");
    }
}

fn a_closed_peer_is_an_error(mut pair: Pair) {
    let data = pattern(10, 1);
    let mut into = vec![0; 20];
    // SAFETY: the vectors outlive the loop that drives the links, and are not used meanwhile.
    unsafe {
        pair.0.post_send(data.as_ptr(), 10);
        pair.1.post_recv(copy(&mut into), 20);
    }
    drive(&mut pair, |pair| pair.0.sent() == 10);
    let (first, mut second) = pair;
    drop(first);
    let start = Instant::now();
    let error = loop {
        match second.progress() {
            Err(error) => break error,
            Ok(_) => assert!(start.elapsed() < Duration::from_secs(20), "no error"),
        }
        // Some links look for it only when their user is about to wait.
        second.interest();
    };
    assert_eq!(error.status, Status::PeerLost);
    // What had been sent before arrives nevertheless.
    assert_eq!(second.landed(), 10);
    assert_eq!(into[..10], data[..]);
}

fn cancelled_posts_are_forgotten(mut pair: Pair) {
    let data = pattern(8, 3);
    let mut into = vec![0; 8];
    // SAFETY: the vectors outlive the loops that drive the links, and are not used meanwhile.
    unsafe {
        pair.1.post_recv(copy(&mut into), 8);
        pair.1.cancel();
        pair.0.post_send(data.as_ptr(), 8);
    }
    drive(&mut pair, |pair| pair.0.sent() == 8);
    for _ in 0..10 {
        pair.1.progress().unwrap();
    }
    assert_eq!((pair.1.landed(), into), (0, vec![0; 8]));
}

macro_rules! every_link {
    ($($check:ident),* $(,)?) => {
        mod over_tcp {
            $(#[test] fn $check() { super::$check(super::tcp()) })*
        }
        mod over_tcp_that_comes_late {
            $(#[test] fn $check() { super::$check(super::late()) })*
        }
        mod over_rdma {
            $(#[test] #[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
            fn $check() { super::$check(super::rdma(super::Kind::Rc)) })*
        }
        mod over_unreliable_rdma {
            $(#[test] #[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
            fn $check() { super::$check(super::rdma(super::Kind::Uc)) })*
        }
        mod over_rdma_without_copies {
            $(#[test] #[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
            fn $check() { super::$check(super::rdma_lent(super::Kind::Rc)) })*
        }
        mod over_unreliable_rdma_without_copies {
            $(#[test] #[ignore = "needs RDMA devices: scripts/rxe-vm has some"]
            fn $check() { super::$check(super::rdma_lent(super::Kind::Uc)) })*
        }
        mod over_tcp_with_checksums {
            $(#[test] fn $check() { super::$check(super::checked(super::tcp_ends())) })*
        }
        mod over_little_memory_with_checksums {
            $(#[test] fn $check() { super::$check(super::checked(super::LocalLink::pair(100))) })*
        }
        mod over_shared_memory {
            $(#[test] fn $check() { super::$check(super::shm(1 << 20)) })*
        }
        mod over_some_shared_memory {
            $(#[test] fn $check() { super::$check(super::shm((64 << 10) + 128)) })*
        }
        mod over_little_shared_memory {
            $(#[test] fn $check() { super::$check(super::shm(4096)) })*
        }
        mod over_memory {
            $(#[test] fn $check() { super::$check(super::local(1 << 20)) })*
        }
        mod over_little_memory {
            $(#[test] fn $check() { super::$check(super::local(100)) })*
        }
    };
}

every_link!(
    bytes_arrive_in_order,
    both_directions_at_once,
    pieces_need_not_match,
    nothing_lands_before_it_is_posted,
    what_lands_is_reduced,
    a_closed_peer_is_an_error,
    cancelled_posts_are_forgotten,
);
