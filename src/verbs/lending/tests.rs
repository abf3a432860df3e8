//! Registrations against the kernel itself: what is registered is the memory that is there.
//!
//! Instead of a device, a pipe has the first page of what is registered: as a device would, it keeps to that
//! page, whatever becomes of the mapping. So what is written to memory then shows in the pipe, or it is
//! not the same memory any more.

use std::collections::HashMap;
use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};
use rustix::mm::{madvise, mmap_anonymous, mremap, mremap_fixed, munmap};

use super::guard::{Event, Guard, page_size};
use super::registrations::{Registrar, Registrations, Wish};
use super::span::Span;
use super::table::Region;
use crate::error::{Result, fail};
use crate::wait::{Deadline, interest, wait};

/// Far from where the kernel places what it chooses the address of, so that no other thread's memory comes
/// to be there.
const APART: usize = 0x1234_0000_0000;
/// Bytes of a buffer.
const LEN: usize = 1 << 20;

/// A pipe with a page in it.
struct Pinned([OwnedFd; 2]);

impl Pinned {
    fn pipe() -> [OwnedFd; 2] {
        let mut ends = [0; 2];
        // SAFETY: there is room for both; they are owned from now on.
        unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
            ends.map(|end| OwnedFd::from_raw_fd(end))
        }
    }

    fn new(page: usize) -> Pinned {
        let pipe = Pinned::pipe();
        let piece = libc::iovec { iov_base: page as *mut c_void, iov_len: 8 };
        // SAFETY: the caller's memory; written first, so that the page is its own.
        unsafe {
            let word = page as *mut u64;
            word.write_volatile(word.read_volatile());
            assert_eq!(libc::vmsplice(pipe[1].as_raw_fd(), &piece, 1, 0), 8);
        }
        Pinned(pipe)
    }

    /// The first word of the page now.
    fn word(&self) -> u64 {
        let copy = Pinned::pipe();
        let mut word = [0u8; 8];
        // SAFETY: the pipes are there, and there is room for the word.
        unsafe {
            assert_eq!(libc::tee(self.0[0].as_raw_fd(), copy[1].as_raw_fd(), 8, 0), 8);
            assert_eq!(libc::read(copy[0].as_raw_fd(), word.as_mut_ptr().cast(), 8), 8);
        }
        u64::from_ne_bytes(word)
    }
}

/// Registers with pipes, and counts them.
struct Fake {
    registered: Arc<AtomicUsize>,
    pinned: Arc<Mutex<HashMap<u32, Pinned>>>,
    next: AtomicU64,
    keeps_at_once: bool,
    pays: bool,
    works: bool,
}

impl Fake {
    fn new(keeps_at_once: bool, pays: bool) -> Fake {
        let (registered, pinned) = Default::default();
        Fake { registered, pinned, next: AtomicU64::new(1), keeps_at_once, pays, works: true }
    }

    fn count(&self) -> usize {
        self.registered.load(Ordering::Relaxed)
    }

    /// That the memory at which the region begins, a page of the caller's, is what was registered.
    fn check(&self, region: &Region) {
        let (stamp, word) =
            (self.next.fetch_add(1, Ordering::Relaxed), region.span.start as *mut u64);
        // SAFETY: every caller has mapped it, and no other thread uses it.
        unsafe { word.write_volatile(stamp) };
        assert_eq!(self.pinned.lock()[&region.lkey].word(), stamp, "other memory");
    }

    /// Until so many are registered.
    fn wait_for(&self, count: usize) {
        let start = Instant::now();
        while self.count() != count {
            assert!(start.elapsed() < Duration::from_secs(20), "{} registered", self.count());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// One that is registered.
struct Counted {
    registered: Arc<AtomicUsize>,
    pinned: Arc<Mutex<HashMap<u32, Pinned>>>,
    lkey: u32,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.pinned.lock().remove(&self.lkey);
        self.registered.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Registrar for Fake {
    fn owner(&self) -> u64 {
        1
    }

    fn register(&self, span: &Span) -> Result<Region> {
        if !self.works {
            fail!(Backend, "no more");
        }
        self.registered.fetch_add(1, Ordering::Relaxed);
        let lkey = self.next.fetch_add(1, Ordering::Relaxed) as u32;
        self.pinned.lock().insert(lkey, Pinned::new(span.start));
        let (registered, pinned) = (self.registered.clone(), self.pinned.clone());
        let registered = Box::new(Counted { registered, pinned, lkey });
        Ok(Region { span: span.clone(), lkey, registered })
    }

    fn pays(&self, _: &Wish) -> bool {
        self.pays
    }

    fn keeps_at_once(&self) -> bool {
        self.keeps_at_once
    }
}

/// Whether the kernel lets us watch memory; says why not.
fn can_watch() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| match Guard::new() {
        Ok(_) => true,
        Err(e) => {
            eprintln!("not tested: userfaultfd: {e}");
            false
        }
    })
}

fn map() -> *mut u8 {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, at an address of the kernel's choice.
    unsafe { mmap_anonymous(std::ptr::null_mut(), LEN, access, MapFlags::PRIVATE) }.unwrap().cast()
}

/// Other memory at an address where there was some, or is.
fn map_at(at: *mut u8) {
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED);
    // SAFETY: only memory of the test's own is replaced.
    let there = unsafe { mmap_anonymous(at.cast(), LEN, access, flags) }.unwrap();
    assert_eq!(there, at.cast());
}

fn unmap(at: *mut u8) {
    // SAFETY: memory of the test's own, which it does not use any more.
    unsafe { munmap(at.cast(), LEN) }.unwrap();
}

fn wish(at: *mut u8, call: u64) -> Wish {
    Wish { span: at as usize..at as usize + LEN, sent: LEN as u64, call }
}

fn lend(all: &Arc<Registrations>, fake: &Fake, at: *mut u8, call: u64) -> Option<Arc<Region>> {
    let region = all.lend(fake, &wish(at, call));
    if let Some(region) = &region {
        fake.check(region);
    }
    region
}

fn settle(all: &Registrations) {
    all.settle(Deadline::after(Some(Duration::from_secs(20))));
}

#[test]
fn what_pays_is_registered_for_a_call() {
    let (all, fake) = (Arc::new(Registrations::default()), Fake::new(false, true));
    let at = map();
    let one = lend(&all, &fake, at, 1).unwrap();
    let other = lend(&all, &fake, at, 1).unwrap();
    assert!(Arc::ptr_eq(&one, &other) && fake.count() == 1);
    drop((one, other));
    assert_eq!(fake.count(), 0);
    settle(&all);
    unmap(at);
}

#[test]
fn what_returns_is_kept() {
    if !can_watch() {
        return;
    }
    let (all, fake) = (Arc::new(Registrations::default()), Fake::new(false, false));
    let at = map();
    assert!(lend(&all, &fake, at, 1).is_none());
    for call in 2..10 {
        assert!(lend(&all, &fake, at, call).is_some());
        assert_eq!(fake.count(), 1);
    }
    assert!(all.forget(1) && fake.count() == 0);
    settle(&all);
    unmap(at);
}

#[test]
fn what_cannot_be_registered_is_not_tried_again() {
    let all = Arc::new(Registrations::default());
    let fake = Fake { works: false, ..Fake::new(true, true) };
    let at = map();
    assert!(lend(&all, &fake, at, 1).is_none());
    let works = Fake::new(true, true);
    assert!(lend(&all, &works, at, 2).is_none() && works.count() == 0);
    settle(&all);
    unmap(at);
}

/// Shared memory may lose its pages by a descriptor, of which nobody tells.
#[test]
fn shared_memory_is_not_kept() {
    let (all, fake) = (Arc::new(Registrations::default()), Fake::new(true, true));
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let at = unsafe { mmap_anonymous(std::ptr::null_mut(), LEN, access, MapFlags::SHARED) };
    let at = at.unwrap().cast();
    for call in 0..5 {
        drop(lend(&all, &fake, at, call).unwrap());
        assert_eq!(fake.count(), 0);
    }
    settle(&all);
    unmap(at);
}

/// Every way in which memory goes, with memory kept: none is found stale, and each is undone.
#[test]
fn memory_that_goes_is_told_of() {
    if !can_watch() {
        return;
    }
    let (all, fake) = (Arc::new(Registrations::default()), Fake::new(true, true));
    let at = APART as *mut u8;
    map_at(at);
    let (mut call, mut found) = (0, 0);
    let ways: [(&str, &dyn Fn()); 5] = [
        ("nothing", &|| {}),
        ("unmapped, other memory there", &|| {
            unmap(at);
            map_at(at);
        }),
        ("replaced", &|| map_at(at)),
        ("given back", &|| {
            // SAFETY: memory of the test's own.
            unsafe { madvise(at.cast(), LEN, Advice::LinuxDontNeed) }.unwrap();
        }),
        ("moved, other memory there", &|| {
            let elsewhere = map();
            // SAFETY: memory of the test's own, which is only used where it was, after some was mapped there.
            unsafe { mremap_fixed(at.cast(), LEN, LEN, MremapFlags::MAYMOVE, elsewhere.cast()) }
                .unwrap();
            map_at(at);
            unmap(elsewhere);
        }),
    ];
    for _ in 0..50 {
        for (name, way) in &ways {
            let kept = lend(&all, &fake, at, call).map(|region| region.lkey);
            way();
            let again = lend(&all, &fake, at, call + 1).map(|region| region.lkey);
            // While events are read nothing is found.
            assert!(kept.is_none() || again.is_none() || (kept == again) == (*name == "nothing"));
            found += usize::from(kept.is_some() && again.is_some());
            call += 2;
        }
    }
    assert!(found > 200, "{found} of 250");
    unmap(at);
    // By a thread of its own.
    fake.wait_for(0);
    settle(&all);
}

/// Part of a buffer goes, and its neighbour on the same page stays.
#[test]
fn what_shares_pages_stays_watched() {
    if !can_watch() {
        return;
    }
    let (all, fake) = (Arc::new(Registrations::default()), Fake::new(true, true));
    let (at, page) = (map(), page_size());
    let part = |start: usize, end: usize, call| Wish {
        span: at as usize + start..at as usize + end,
        sent: LEN as u64,
        call,
    };
    let (middle, last) = (10 * page + 100, 20 * page);
    drop(all.lend(&fake, &part(0, middle, 1)).unwrap());
    drop(all.lend(&fake, &part(middle, last, 1)).unwrap());
    assert_eq!(fake.count(), 2);
    // SAFETY: memory of the test's own.
    unsafe { madvise(at.cast(), page, Advice::LinuxDontNeed) }.unwrap();
    fake.wait_for(1);
    let other = all.lend(&fake, &part(middle, last, 2)).unwrap();
    drop(other);
    // The page that both were on.
    // SAFETY: memory of the test's own.
    unsafe { madvise(at.add(10 * page).cast(), page, Advice::LinuxDontNeed) }.unwrap();
    fake.wait_for(0);
    settle(&all);
    unmap(at);
}

/// A change is seen from its beginning until its event was read, however late that is.
#[test]
fn a_change_under_way_is_seen() {
    if !can_watch() {
        return;
    }
    let guard = Guard::new().unwrap();
    let at = map();
    let span = at as usize..at as usize + LEN;
    guard.watch(&span).unwrap();
    // Again, and in part: as where two buffers share a page.
    guard.watch(&(span.start..span.start + page_size())).unwrap();
    assert!(guard.is_quiet());
    let done = AtomicBool::new(false);
    let address = at as usize;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            unmap(address as *mut u8);
            done.store(true, Ordering::Relaxed);
        });
        let mut fds = [interest(guard.as_fd(), true, false)];
        wait(&mut fds, Deadline::NEVER).unwrap();
        let mut seen = 0;
        for _ in 0..100 {
            seen += usize::from(!guard.is_quiet() && !done.load(Ordering::Relaxed));
            std::thread::yield_now();
        }
        // Whatever was seen: the other thread waits for it.
        let mut told = Vec::new();
        guard.read(|event| told.push(event));
        assert_eq!((seen, told), (100, vec![Event::Unmapped(span.clone())]));
    });
    assert!(done.load(Ordering::Relaxed) && guard.is_quiet());
    guard.unwatch(&span);
}

/// Whoever unmaps after the end does not wait for anybody.
#[test]
fn the_end_leaves_nothing_watched() {
    if !can_watch() {
        return;
    }
    let (all, fake) = (Arc::new(Registrations::default()), Fake::new(true, true));
    let buffers: Vec<usize> = (0..40).map(|_| map() as usize).collect();
    for (call, at) in buffers.iter().enumerate() {
        drop(lend(&all, &fake, *at as *mut u8, call as u64));
    }
    assert_eq!(fake.count(), 16);
    settle(&all);
    assert_eq!(fake.count(), 0);
    buffers.iter().for_each(|at| unmap(*at as *mut u8));
    // And again.
    let at = map();
    drop(lend(&all, &fake, at, 100).unwrap());
    assert_eq!(fake.count(), 1);
    settle(&all);
    unmap(at);
    assert_eq!(fake.count(), 0);
}

/// A child that lives on has the descriptor no more, so that nobody waits for ever once it is closed: for
/// memory that has grown, of which more is watched than was asked for. In a process of its own: unlike
/// devices, pipes and a forking process part over a page.
#[test]
fn children_keep_nobody_waiting() {
    const ALONE: &str = "MLXD_TEST_ALONE";
    if !can_watch() {
        return;
    }
    if std::env::var_os(ALONE).is_none() {
        let program = std::env::current_exe().unwrap();
        let name = "verbs::lending::tests::children_keep_nobody_waiting";
        let args = ["--exact", name, "--nocapture"];
        let output =
            std::process::Command::new(program).args(args).env(ALONE, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
        return;
    }
    let (all, fake) = (Arc::new(Registrations::default()), Fake::new(true, true));
    let at = (APART + (1 << 36)) as *mut u8;
    map_at(at);
    drop(lend(&all, &fake, at, 1).unwrap());
    assert_eq!(fake.count(), 1);
    // SAFETY: the child only waits until it is killed.
    let child = unsafe { libc::fork() };
    if child == 0 {
        loop {
            // SAFETY: it may be called at any time.
            unsafe { libc::pause() };
        }
    }
    assert!(child > 0);
    let grown = MremapFlags::empty();
    // SAFETY: memory of the test's own; nothing is behind it.
    let there = unsafe { mremap(at.cast(), LEN, 2 * LEN, grown) }.unwrap();
    settle(&all);
    let (told, hears) = std::sync::mpsc::channel();
    let address = there as usize;
    std::thread::spawn(move || {
        // SAFETY: memory of the test's own, which it does not use any more.
        unsafe { munmap(address as *mut c_void, 2 * LEN) }.unwrap();
        told.send(()).unwrap();
    });
    let outcome = hears.recv_timeout(Duration::from_secs(20));
    // SAFETY: the child of above, which was not waited for.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    assert!(outcome.is_ok(), "still waits for events that nobody reads");
}

/// Threads that allocate, free and lend, as programs do, with blocks that the allocator maps and unmaps, and
/// some that it keeps.
#[test]
fn allocators_go_on() {
    if !can_watch() {
        return;
    }
    let (all, fake) = (Arc::new(Registrations::default()), Fake::new(true, true));
    let (calls, checked) = (AtomicU64::new(0), AtomicUsize::new(0));
    let rounds = if std::env::var("MLXD_TEST_LONG").is_ok() { 20_000 } else { 500 };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (all, fake, calls, checked) = (&all, &fake, &calls, &checked);
            scope.spawn(move || {
                let mut blocks: Vec<Vec<u8>> = Vec::new();
                for round in 0..rounds {
                    let len = [30_000, 100_000, 150_000, 700_000, 3_000_000][(round + thread) % 5];
                    let block: Vec<u8> = Vec::with_capacity(len);
                    let at = block.as_ptr() as usize;
                    blocks.push(block);
                    // The pages that no other block is on.
                    let span = at.next_multiple_of(page_size())..at + len;
                    let call = calls.fetch_add(1, Ordering::Relaxed);
                    let wish = Wish { span: span.clone(), sent: len as u64, call };
                    if let Some(region) = all.lend(fake, &wish) {
                        assert!(region.span.start <= span.start && span.end <= region.span.end);
                        if region.span.start == span.start {
                            fake.check(&region);
                            checked.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    if blocks.len() > 5 {
                        blocks.swap_remove(round % 5);
                    }
                }
            });
        }
    });
    assert!(checked.load(Ordering::Relaxed) > rounds);
    settle(&all);
    assert_eq!(fake.count(), 0);
}
