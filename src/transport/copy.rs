//! Copies past the cache: for large buffers whose destination nobody reads soon.

/// A cache line of all x86-64 CPUs: what is written whole needs not be read first.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const LINE: usize = 64;

/// How many bytes ahead the source is asked for; without it two cores at once copy 15 % less
/// (bench: kernels).
#[cfg(all(target_arch = "x86_64", not(miri)))]
const AHEAD: usize = 768;

/// Copies `len` bytes. The destination's lines go to memory without being read, and leave the cache
/// if they were there: an ordinary copy reads each before it writes it. All is written before
/// whatever the caller stores next, so that a release store may announce it.
///
/// # Safety
/// `from` is readable and `into` is writable for `len` bytes, which do not overlap; neither needs to
/// be aligned. With a `len` of 0 they may be null.
pub unsafe fn copy_streaming(into: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller's contract is that of the function; the fence follows.
    unsafe { stream(into, from, len) };
    fence();
}

/// Copies as [`copy_streaming`] does, but what is written may become visible after later stores: for
/// many small pieces, since each [`fence`] waits for memory.
///
/// # Safety
/// As [`copy_streaming`]; and [`fence`] is called before other threads or processes are told of the
/// bytes.
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub unsafe fn stream(into: *mut u8, from: *const u8, len: usize) {
    use std::arch::x86_64::{
        __m128i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm_stream_si128,
    };

    let head = (into.addr().wrapping_neg() % LINE).min(len);
    let (lines, tail) = ((len - head) / LINE, (len - head) % LINE);
    // SAFETY: head, lines and tail are the caller's `len` bytes, one behind the other; the lines of
    // the destination are aligned. Prefetching is no access, and is harmless behind the end.
    unsafe {
        std::ptr::copy_nonoverlapping(from, into, head);
        let (mut from, mut into) = (from.add(head), into.add(head));
        for _ in 0..lines {
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD).cast());
            let (source, line) = (from.cast::<__m128i>(), into.cast::<__m128i>());
            let quarters = [0, 1, 2, 3].map(|quarter| _mm_loadu_si128(source.add(quarter)));
            for (quarter, bytes) in quarters.into_iter().enumerate() {
                _mm_stream_si128(line.add(quarter), bytes);
            }
            (from, into) = (from.add(LINE), into.add(LINE));
        }
        std::ptr::copy_nonoverlapping(from, into, tail);
    }
}

/// Copies; this target has no streamed stores of its own.
///
/// # Safety
/// As [`copy_streaming`].
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
pub unsafe fn stream(into: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller's contract is that of the function.
    unsafe { std::ptr::copy_nonoverlapping(from, into, len) }
}

/// Orders what this thread has streamed before all that it stores from here on.
pub fn fence() {
    // Streamed stores are weakly ordered: no fence of the language covers them.
    // SAFETY: every x86-64 CPU has the instruction.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that repeat only every 251: no line is like the one before.
    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8).collect()
    }

    /// Copies from `from_offset` to `into_offset` and checks every byte of the destination's buffer.
    fn check(from: &[u8], into: &mut [u8], from_offset: usize, into_offset: usize, len: usize) {
        into.fill(0xff);
        let source = from[from_offset..from_offset + len].as_ptr();
        let destination = into[into_offset..into_offset + len].as_mut_ptr();
        // SAFETY: both ranges were just taken from buffers apart.
        unsafe { copy_streaming(destination, source, len) };
        let scene = format!("{len} bytes from {from_offset} to {into_offset}");
        let (before, rest) = into.split_at(into_offset);
        let (copied, behind) = rest.split_at(len);
        assert!(copied == &from[from_offset..from_offset + len], "{scene}");
        assert!(before.iter().chain(behind).all(|&byte| byte == 0xff), "{scene}");
    }

    #[test]
    fn every_alignment_of_both_sides() {
        let (from, mut into) = (pattern(64 + 300), vec![0; 64 + 300 + 64]);
        let step = if cfg!(miri) { 17 } else { 1 };
        for from_offset in (0..64).step_by(step) {
            for into_offset in (0..64).step_by(step) {
                for len in [0, 1, 63, 64, 65, 200, 299] {
                    check(&from, &mut into, from_offset, into_offset, len);
                }
            }
        }
    }

    #[test]
    fn every_short_length() {
        let (from, mut into) = (pattern(64 + 300), vec![0; 64 + 300 + 64]);
        let step = if cfg!(miri) { 29 } else { 1 };
        for len in (0..300).step_by(step) {
            for (from_offset, into_offset) in [(0, 0), (1, 0), (0, 1), (7, 33), (63, 63)] {
                check(&from, &mut into, from_offset, into_offset, len);
            }
        }
    }

    #[test]
    fn long_copies() {
        let len = if cfg!(miri) { 5001 } else { (1 << 20) + 13 };
        let (from, mut into) = (pattern(len + 64), vec![0; len + 128]);
        for (from_offset, into_offset) in [(0, 0), (3, 0), (5, 61)] {
            check(&from, &mut into, from_offset, into_offset, len);
        }
    }

    #[test]
    fn null_pointers_at_length_zero() {
        // SAFETY: null pointers are allowed there.
        unsafe { copy_streaming(std::ptr::null_mut(), std::ptr::null(), 0) };
    }
}
