//! How the kernel tells that memory has gone: a userfaultfd. Only its events are used; pages are never
//! protected, so that no page fault is ever ours to answer.
//!
//! A thread that unmaps watched memory, gives its pages back or moves it, waits in the kernel until the
//! event was read. The change itself comes before the event or after it, so neither tells whether an
//! address still has the memory that it had. What does: from before any change until its event was read
//! the kernel counts the change ([`Guard::is_quiet`] sees that), and events are read with the table
//! locked. So whoever has the table locked, finds a span in it and no change under way, has the memory that
//! was registered: any that had been put in its place would have followed a change whose event was read and
//! taken in before.
//!
//! That takes Linux 5.19. Before 5.15 the kernel only notes whether some change is under way, and forgets that
//! at the end of any; before 5.19 a page that a device uses is left behind by a process that makes it read
//! only, then writable, and writes to it. (Pages of forked parents are not, since 5.12.) Of one change the
//! kernel never tells: MADV_GUARD_INSTALL, since 6.13, drops pages for guard pages. Allocators have these
//! where nobody has data; a program that makes them of memory that it has sent from, and sends from there
//! again, has to turn registration off.
//!
//! A forked child has a copy of the descriptor, which would keep watched memory watched when this process
//! has closed its own, with nobody to read events: so children close theirs.

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use super::span::Span;

/// `UFFD_API`
const API: u64 = 0xaa;
/// `UFFD_USER_MODE_ONLY`, since Linux 5.11: needs no privilege.
const USER_MODE_ONLY: u32 = 1;
/// `UFFD_FEATURE_PAGEFAULT_FLAG_WP`, `_EVENT_REMAP`, `_EVENT_REMOVE`, `_EVENT_UNMAP`.
const FEATURES: u64 = 1 | 1 << 2 | 1 << 3 | 1 << 6;
/// `UFFDIO_REGISTER_MODE_WP`
const MODE_WP: u64 = 1 << 1;
/// Parts of a span that are unwatched one by one, where that does not do for the whole.
const PARTS: usize = 1024;
/// `UFFD_EVENT_REMAP`, `_REMOVE`, `_UNMAP`
const REMAP: u8 = 0x14;
const REMOVE: u8 = 0x15;
const UNMAP: u8 = 0x16;

/// `struct uffdio_api`
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_range`
#[repr(C)]
struct Stretch {
    start: u64,
    len: u64,
}

/// `struct uffdio_copy`
#[derive(Default)]
#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// `struct uffd_msg`; what an event says depends on it.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Message {
    event: u8,
    _spare: [u8; 7],
    said: [u64; 3],
}

/// What has become of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is not there any more.
    Unmapped(Span),
    /// Its pages were given back: it reads as zeros.
    Emptied(Span),
    /// It is somewhere else, and watched there.
    Moved(Span, Span),
}

/// What there may be of guards: one at a time, and one that is about to end; more in tests.
const GUARDS: usize = 16;
/// Their descriptors, or -1: for children, who close them.
static OPEN: [AtomicI32; GUARDS] = [const { AtomicI32::new(-1) }; GUARDS];

/// In a forked child, where only what signal handlers may do may be done.
extern "C" fn close_in_child() {
    for fd in &OPEN {
        let fd = fd.swap(-1, Ordering::Relaxed);
        if fd >= 0 {
            // SAFETY: a guard's, which this child does not use: see `crate::process`.
            unsafe { libc::close(fd) };
        }
    }
}

/// Whether the kernel is new enough, by its release: `6.1.0-56-amd64`.
fn is_new_enough(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    let mut number = || numbers.next().unwrap_or(0);
    (number(), number()) >= (5, 19)
}

/// Tells when watched memory goes.
pub struct Guard(OwnedFd);

impl Drop for Guard {
    fn drop(&mut self) {
        let number = self.0.as_raw_fd();
        for fd in &OPEN {
            let _ = fd.compare_exchange(number, -1, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

impl Guard {
    /// One that watches nothing; an error where the kernel, or a sandbox, has none for us.
    pub fn new() -> Result<Guard, Errno> {
        let release = rustix::system::uname();
        if !is_new_enough(&release.release().to_string_lossy()) {
            return Err(Errno::NOSYS);
        }
        static CLOSES: OnceLock<bool> = OnceLock::new();
        // SAFETY: the handler stays: this library is never unloaded.
        let register = || unsafe { libc::pthread_atfork(None, None, Some(close_in_child)) == 0 };
        if !*CLOSES.get_or_init(register) {
            return Err(Errno::NOMEM);
        }
        let flags = libc::O_CLOEXEC as u32 | libc::O_NONBLOCK as u32 | USER_MODE_ONLY;
        // SAFETY: what is watched with it stays as it is.
        let fd = unsafe { userfaultfd(UserfaultfdFlags::from_bits_retain(flags)) }?;
        let number = fd.as_raw_fd();
        let claim = |slot: &AtomicI32| {
            slot.compare_exchange(-1, number, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        if !OPEN.iter().any(claim) {
            return Err(Errno::NFILE);
        }
        let guard = Guard(fd);
        let mut api = Api { api: API, features: FEATURES, ioctls: 0 };
        const ENABLE: Opcode = opcode::read_write::<Api>(0xaa, 0x3f);
        // SAFETY: this is the opcode's argument.
        unsafe { ioctl(&guard.0, Updater::<ENABLE, Api>::new(&mut api)) }?;
        Ok(guard)
    }

    /// Watches this span of whole pages, of which some may be watched already.
    pub fn watch(&self, span: &Span) -> Result<(), Errno> {
        let (start, len) = (span.start as u64, span.len() as u64);
        let mut request = Register { start, len, mode: MODE_WP, ioctls: 0 };
        const REGISTER: Opcode = opcode::read_write::<Register>(0xaa, 0x00);
        // SAFETY: this is the opcode's argument. For the program nothing changes but that who unmaps waits
        // until that was read, and that mremap does not take watched memory together with what is beside it.
        unsafe { ioctl(&self.0, Updater::<REGISTER, Register>::new(&mut request)) }
    }

    /// Watches it no more, as far as it is still there. What stays watched, as what mremap adds to it does,
    /// is so until this is dropped.
    pub fn unwatch(&self, span: &Span) {
        if self.unwatch_all(span).is_ok() {
            return;
        }
        // Something else is there now, in part, which cannot be watched and so not be unwatched.
        let step = page_size().max(span.len() / PARTS / page_size() * page_size());
        for start in span.clone().step_by(step) {
            // Nothing to be done: this is not watched.
            let _ = self.unwatch_all(&(start..span.end.min(start + step)));
        }
    }

    fn unwatch_all(&self, span: &Span) -> Result<(), Errno> {
        let mut stretch = Stretch { start: span.start as u64, len: span.len() as u64 };
        const UNREGISTER: Opcode = opcode::read::<Stretch>(0xaa, 0x01);
        // SAFETY: this is the opcode's argument, which the kernel only reads.
        unsafe { ioctl(&self.0, Updater::<UNREGISTER, Stretch>::new(&mut stretch)) }
    }

    /// Whether no change to watched memory is under way. The kernel refuses to copy while there is one,
    /// before it looks at what is to be copied: here nothing, which it refuses in another way.
    pub fn is_quiet(&self) -> bool {
        let mut nothing = Copy::default();
        const COPY: Opcode = opcode::read_write::<Copy>(0xaa, 0x03);
        // SAFETY: this is the opcode's argument, and nothing is copied.
        let refused = unsafe { ioctl(&self.0, Updater::<COPY, Copy>::new(&mut nothing)) };
        refused == Err(Errno::INVAL)
    }

    /// Reads events, which lets those go on who waited for that, and tells what they say. Allocates nothing.
    pub fn read(&self, mut told: impl FnMut(Event)) {
        let mut messages = [Message::default(); 8];
        loop {
            let (fd, room) = (self.0.as_raw_fd(), size_of_val(&messages));
            // SAFETY: there is room for so many bytes; all values are valid for a message.
            let count = unsafe { libc::read(fd, messages.as_mut_ptr().cast::<c_void>(), room) };
            let Ok(count @ 1..) = usize::try_from(count) else { return };
            for message in &messages[..count / size_of::<Message>()] {
                let [a, b, c] = message.said.map(|word| word as usize);
                match message.event {
                    UNMAP => told(Event::Unmapped(a..b)),
                    REMOVE => told(Event::Emptied(a..b)),
                    REMAP => told(Event::Moved(a..a.saturating_add(c), b..b.saturating_add(c))),
                    _ => {}
                }
            }
        }
    }
}

impl AsFd for Guard {
    /// Ready to read when there is an event.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Bytes of a page.
pub fn page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    *SIZE.get_or_init(|| {
        // SAFETY: it asks for a number.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(size).unwrap_or(4096)
    })
}

/// The whole pages that hold this span.
pub fn pages(span: &Span) -> Span {
    let page = page_size();
    span.start / page * page..span.end.div_ceil(page) * page
}

/// What memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// This process's alone, without a file.
    Private,
    /// Shared between processes, without a file on a disk. Its pages may go, and others come in their
    /// place, by a descriptor, without any event.
    Shared,
    /// A file's, or unknown. Registered for writing all of it would count as written.
    File,
}

/// What this memory is; all of it, or the worst of it.
pub fn sort(span: &Span) -> Sort {
    std::fs::read_to_string("/proc/self/maps").map_or(Sort::File, |maps| sort_in(&maps, span))
}

fn sort_in(maps: &str, span: &Span) -> Sort {
    const SHARED: [&str; 5] = ["/dev/zero", "/memfd:", "/SYSV", "/dev/shm/", "/anon_hugepage"];
    let (mut at, mut found) = (span.start, Sort::Private);
    for line in maps.lines() {
        // 7f..-7f.. rw-p 00000000 00:00 0   name
        let mut words = line.split_ascii_whitespace();
        let (Some(range), Some(access)) = (words.next(), words.next()) else { break };
        let hex = |text: &str| usize::from_str_radix(text, 16).ok();
        let Some((Some(start), Some(end))) = range.split_once('-').map(|(a, b)| (hex(a), hex(b)))
        else {
            break;
        };
        if end <= at {
            continue;
        }
        let (inode, name) = (words.nth(2), words.next().unwrap_or(""));
        if start > at {
            break;
        }
        if inode != Some("0") || !access.ends_with('p') {
            if !SHARED.iter().any(|known| name.starts_with(known)) {
                break;
            }
            found = Sort::Shared;
        }
        at = end;
        if at >= span.end {
            return found;
        }
    }
    Sort::File
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_from_files() {
        let maps = "\
55d0c0000000-55d0c0002000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000003000 rw-p 00000000 00:00 0
7f0000003000-7f0000004000 r--p 00000000 00:00 0
7f0000004000-7f0000005000 rw-s 00000000 00:01 1027                       /dev/zero (deleted)
7f0000006000-7f0000007000 rw-p 00001000 08:01 4711                       /lib/a file
7f0000007000-7f0000008000 rw-p 00000000 00:01 12                         /memfd:x (deleted)
";
        let is = |span: Span| sort_in(maps, &span);
        assert_eq!(is(0x55d0c0000000..0x55d0c0002000), Sort::Private);
        assert_eq!(is(0x7f0000001000..0x7f0000004000), Sort::Private);
        assert_eq!(is(0x7f0000003000..0x7f0000005000), Sort::Shared);
        assert_eq!(is(0x7f0000004000..0x7f0000005000), Sort::Shared);
        assert_eq!(is(0x7f0000007000..0x7f0000008000), Sort::Shared);
        // A file's; what is not there, at either end.
        assert_eq!(is(0x7f0000006000..0x7f0000007000), Sort::File);
        assert_eq!(is(0x7f0000005000..0x7f0000007000), Sort::File);
        assert_eq!(is(0x7f0000008000..0x7f0000009000), Sort::File);
        assert_eq!(is(0x55d0c0001000..0x55d0c0003000), Sort::File);
        assert_eq!(sort_in("nonsense", &(0..1)), Sort::File);
        let (own, page) = (vec![1u8; 100_000], page_size());
        let at = own.as_ptr() as usize;
        assert_eq!(sort(&pages(&(at..at + own.len()))), Sort::Private);
        assert_eq!(pages(&(at..at + 1)).len(), page);
        let code = pages as *const () as usize;
        assert_eq!(sort(&pages(&(code..code + 1))), Sort::File);
    }

    #[test]
    fn kernels_are_told_apart() {
        for old in ["4.18.0-553.el8", "5.14.0-427.13.1.el9_4.x86_64", "5.18.19", "5", "", "x"] {
            assert!(!is_new_enough(old), "{old}");
        }
        for new in ["5.19.0-50-generic", "6.1.0-56-amd64", "6.18.44-fc", "10.0"] {
            assert!(is_new_enough(new), "{new}");
        }
    }
}
