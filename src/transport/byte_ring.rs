//! A one-way ring of bytes in memory that two processes share: one writes, one reads, either may sleep.
//!
//! Each end has a count of all bytes that it ever wrote or read, which only grows; what the other end
//! may do follows from it. The counts are hints from outside: an end keeps its own in private memory,
//! and goes nowhere that the other's would lead it if they do not fit together.
//!
//! An end that finds nothing to do says in the ring that it sleeps, looks once more, and waits for a
//! bell, which is not the ring's affair. The other end, after it has told its count, looks whether it
//! has to ring. Between the store and the look both have a SeqCst fence: whichever comes second in the
//! order of these sees the other's store, so one of them notices, and no wake-up is lost.

use std::ptr::NonNull;

#[cfg(all(loom, test))]
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(all(loom, test)))]
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::error::{Result, fail};

/// 128 bytes: what one end writes and the other reads shares no such line with anything else; CPUs
/// fetch lines of 64 bytes in pairs, and some have lines of 128.
pub const LINE: usize = 128;
/// 4 KiB: the least memory that a ring is made of.
pub const LEAST: usize = 4096;
/// 32 KiB: the other end is told of progress at least this often, so that both work at once on bytes
/// that are still in the cache; but four times in a ring at least.
const PIECE: usize = 32 << 10;

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It fills the ring.
    Writer,
    /// It empties it.
    Reader,
}

/// Alone on its line.
#[repr(C, align(128))]
struct Lone<T>(T);

/// What one end tells the other.
#[repr(C)]
struct Notes {
    /// All bytes that it ever wrote or read.
    count: Lone<AtomicU64>,
    /// 1 while it waits for the bell.
    sleeps: Lone<AtomicU32>,
}

/// What a ring begins with; all zeros are an empty ring that nobody waits for.
#[repr(C)]
struct Control {
    writer: Notes,
    reader: Notes,
}

#[cfg(not(all(loom, test)))]
const _: () = assert!(size_of::<Control>() == 4 * LINE && align_of::<Control>() == LINE);

/// One end of a ring.
pub struct End {
    control: NonNull<Control>,
    data: *mut u8,
    capacity: usize,
    side: Side,
    piece: usize,
    /// All bytes that this end ever wrote or read.
    moved: u64,
    /// How many of them the other end was told of.
    told: u64,
    /// What `moved` may grow to, as far as this end has looked.
    limit: u64,
    /// Where in the data the next byte is.
    at: usize,
}

// SAFETY: whoever makes an end vouches for its memory, from every thread; of one end's methods only
// one runs at a time, since nothing shares an end between threads.
unsafe impl Send for End {}

impl End {
    /// One end of the ring in these `len` bytes.
    ///
    /// # Safety
    /// The memory is mapped while the end lives, and was all zeros before either end was made. It is a
    /// multiple of [`LINE`] in address and length, and at least [`LEAST`]. Nobody writes it but the
    /// two ends of this ring, one of each side.
    pub unsafe fn new(memory: *mut u8, len: usize, side: Side) -> End {
        // SAFETY: no memory is mapped at address 0; and this is longer than what a ring begins with.
        let (control, data) = unsafe {
            (NonNull::new_unchecked(memory.cast::<Control>()), memory.add(size_of::<Control>()))
        };
        End::over(control, data, len - size_of::<Control>(), side)
    }

    fn over(control: NonNull<Control>, data: *mut u8, capacity: usize, side: Side) -> End {
        let limit = if side == Side::Writer { capacity as u64 } else { 0 };
        let piece = PIECE.min(capacity / 4);
        End { control, data, capacity, side, piece, moved: 0, told: 0, limit, at: 0 }
    }

    /// This end's notes and the other's.
    fn notes(&self) -> (&Notes, &Notes) {
        // SAFETY: this memory is mapped, and zeros, like all that atomics may hold, are valid.
        let control = unsafe { self.control.as_ref() };
        match self.side {
            Side::Writer => (&control.writer, &control.reader),
            Side::Reader => (&control.reader, &control.writer),
        }
    }

    /// How far this end may go by what the other end says now.
    fn look(&self) -> u64 {
        // Acquire: what the other end did before it told its count has happened.
        let other = self.notes().1.count.0.load(Ordering::Acquire);
        match self.side {
            Side::Writer => other.wrapping_add(self.capacity as u64),
            Side::Reader => other,
        }
    }

    /// Bytes that may be written, or read, now; looks again if fewer than `wanted` are known of.
    pub fn ready(&mut self, wanted: usize) -> Result<usize> {
        if self.limit - self.moved < wanted as u64 {
            let limit = self.look();
            // A count that went back, or beyond the ring, is none that the other end told.
            if limit < self.limit || limit - self.moved > self.capacity as u64 {
                let (side, moved, capacity) = (self.side, self.moved, self.capacity);
                fail!(
                    Internal,
                    "shared memory is damaged: the {side:?} of a ring of {capacity} bytes is at \
                     {moved} and may go on to {limit}"
                );
            }
            self.limit = limit;
        }
        Ok((self.limit - self.moved) as usize)
    }

    /// Where the next byte is, and how many there are from there to the end of the memory.
    pub fn place(&self) -> (*mut u8, usize) {
        // `at` is less than the capacity.
        (self.data.wrapping_add(self.at), self.capacity - self.at)
    }

    /// Where the first byte of the memory is: it follows the last.
    pub fn start(&self) -> *mut u8 {
        self.data
    }

    /// `len` bytes, all of them ready, are written or read.
    pub fn advance(&mut self, len: usize) {
        debug_assert!(len as u64 <= self.limit - self.moved);
        self.moved += len as u64;
        self.at += len;
        if self.at >= self.capacity {
            self.at -= self.capacity;
        }
    }

    /// How much to move before the other end is told.
    pub fn piece(&self) -> usize {
        self.piece
    }

    /// Bytes that the other end was not told of.
    pub fn untold(&self) -> usize {
        (self.moved - self.told) as usize
    }

    /// Tells the other end what has moved; whether it sleeps, and must be woken now.
    #[must_use]
    pub fn tell(&mut self) -> bool {
        self.told = self.moved;
        let (own, other) = self.notes();
        // Release: the bytes have been written, or read, before.
        own.count.0.store(self.moved, Ordering::Release);
        // See the top: either this sees the flag, or the other end, which looks after it has set the
        // flag, sees the count.
        fence(Ordering::SeqCst);
        // Swapped only if set: most often it is not, and then its line stays with both CPUs.
        other.sleeps.0.load(Ordering::Relaxed) != 0
            && other.sleeps.0.swap(0, Ordering::Relaxed) != 0
    }

    /// Says that this end goes to sleep until the other end has told more; whether it may: false if
    /// `wanted` bytes are ready by now.
    #[must_use]
    pub fn sleep(&self, wanted: usize) -> bool {
        // Swapped like all changes of a flag, so that their order is plain, to loom as well.
        self.notes().0.sleeps.0.swap(1, Ordering::Relaxed);
        // See the top, and `tell`.
        fence(Ordering::SeqCst);
        let limit = self.look();
        // A count that cannot be does not let it sleep either: `ready` says so then.
        limit >= self.limit && limit - self.moved < wanted as u64
    }

    /// Says that this end sleeps no more; needless if it was woken.
    pub fn wake(&self) {
        self.notes().0.sleeps.0.swap(0, Ordering::Relaxed);
    }
}

/// Every order in which two threads can meet, and every value that they can see then.
#[cfg(all(loom, test))]
mod under_loom {
    use loom::cell::UnsafeCell;
    use loom::sync::{Arc, Notify};
    use loom::thread;

    use super::*;

    const CAPACITY: usize = 2;

    struct Shared {
        control: Control,
        /// loom sees who reads or writes one too soon.
        data: [UnsafeCell<u8>; CAPACITY],
        /// What the writer, and the reader, waits for.
        bells: [Notify; 2],
    }

    /// Calls `step` with `len` bytes one after another; sleeps whenever it can.
    fn run(shared: &Shared, side: Side, len: u8, step: impl Fn(*mut u8, u8)) {
        let control = NonNull::from(&shared.control);
        let mut end = End::over(control, std::ptr::null_mut(), CAPACITY, side);
        let (own, other) = match side {
            Side::Writer => (&shared.bells[0], &shared.bells[1]),
            Side::Reader => (&shared.bells[1], &shared.bells[0]),
        };
        for number in 0..len {
            while end.ready(1).unwrap() == 0 {
                if end.sleep(1) {
                    own.wait();
                }
                end.wake();
            }
            let at = CAPACITY - end.place().1;
            match side {
                // SAFETY: loom checks that nobody else uses the cell meanwhile.
                Side::Writer => shared.data[at].with_mut(|byte| step(byte, number)),
                Side::Reader => shared.data[at].with(|byte| step(byte.cast_mut(), number)),
            }
            end.advance(1);
            if end.tell() {
                other.notify();
            }
        }
    }

    #[test]
    fn no_wake_up_is_lost_and_no_byte_is_read_too_soon() {
        const LEN: u8 = 3;
        let mut model = loom::model::Builder::new();
        // loom's own advice: more show nothing new.
        model.preemption_bound = Some(3);
        model.check(|| {
            let shared = Arc::new(Shared {
                control: control(),
                data: std::array::from_fn(|_| UnsafeCell::new(0)),
                bells: [Notify::new(), Notify::new()],
            });
            let writer = {
                let shared = shared.clone();
                // SAFETY: loom checks that the reader does not use the byte meanwhile.
                thread::spawn(move || {
                    run(&shared, Side::Writer, LEN, |byte, n| unsafe { *byte = n + 1 });
                })
            };
            run(&shared, Side::Reader, LEN, |byte, n| {
                // SAFETY: loom checks that the writer does not use the byte meanwhile.
                assert_eq!(unsafe { *byte }, n + 1);
            });
            writer.join().unwrap();
        });
    }

    fn control() -> Control {
        let notes = || Notes { count: Lone(AtomicU64::new(0)), sleeps: Lone(AtomicU32::new(0)) };
        Control { writer: notes(), reader: notes() }
    }
}
