//! Every kernel of every level against references written another way.

use super::reference::{self, Half};
use super::{Level, Reduction, kernel, kernel_at};
use crate::dtype::Dtype;

/// Bytes that hold every special value now and then: for each type some elements are drawn from the
/// patterns that matter to it and the others are random bits. Bools are 0 or 1.
struct Values {
    state: u64,
}

impl Values {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn bits(&mut self, dtype: Dtype) -> u64 {
        let random = self.next();
        let special = reference::special_bits(dtype);
        if dtype == Dtype::Bool || (random.is_multiple_of(2) && !special.is_empty()) {
            special[(random >> 8) as usize % special.len()]
        } else {
            self.next()
        }
    }

    fn bytes(&mut self, dtype: Dtype, count: usize) -> Vec<u8> {
        (0..count).flat_map(|_| encode(self.bits(dtype), dtype.size())).collect()
    }
}

fn encode(bits: u64, size: usize) -> Vec<u8> {
    match size {
        1 => (bits as u8).to_ne_bytes().to_vec(),
        2 => (bits as u16).to_ne_bytes().to_vec(),
        4 => (bits as u32).to_ne_bytes().to_vec(),
        _ => bits.to_ne_bytes().to_vec(),
    }
}

fn decode(bytes: &[u8]) -> u64 {
    match *bytes {
        [a] => u64::from(a),
        [a, b] => u64::from(u16::from_ne_bytes([a, b])),
        [a, b, c, d] => u64::from(u32::from_ne_bytes([a, b, c, d])),
        _ => u64::from_ne_bytes(bytes.try_into().expect("elements have 1, 2, 4 or 8 bytes")),
    }
}

fn expected(reduction: Reduction, dtype: Dtype, a: &[u8], b: &[u8]) -> Vec<u8> {
    let size = dtype.size();
    let pairs = a.chunks(size).zip(b.chunks(size));
    pairs
        .flat_map(|(a, b)| encode(reference::combine(reduction, dtype, decode(a), decode(b)), size))
        .collect()
}

/// Where the output lies.
#[derive(Clone, Copy, Debug)]
enum Place {
    Apart,
    OnA,
    OnB,
}

/// Runs a kernel on copies of `a` and `b`, `offset` bytes past wherever a buffer starts, and checks
/// that it wrote nothing beside its output and that it left the inputs alone.
fn run(
    level: Level,
    reduction: Reduction,
    dtype: Dtype,
    a: &[u8],
    b: &[u8],
    offset: usize,
    place: Place,
) -> Vec<u8> {
    const MARGIN: usize = 16;
    let kernel = kernel_at(level, reduction, dtype).expect("the level is available");
    let bytes = a.len();
    let buffer = |content: &[u8], offset: usize| {
        let mut buffer = vec![0xa5; offset];
        buffer.extend_from_slice(content);
        buffer.extend_from_slice(&[0xa5; MARGIN]);
        buffer
    };
    let blank = vec![0x5a; bytes];
    let out_offset = offset + 1;
    let (mut a_buffer, mut b_buffer) = (buffer(a, offset), buffer(b, offset + 2));
    let mut out_buffer = buffer(&blank, out_offset);
    let a_pointer = a_buffer.as_mut_ptr().wrapping_add(offset);
    let b_pointer = b_buffer.as_mut_ptr().wrapping_add(offset + 2);
    let out = match place {
        Place::Apart => out_buffer.as_mut_ptr().wrapping_add(out_offset),
        Place::OnA => a_pointer,
        Place::OnB => b_pointer,
    };
    // SAFETY: each buffer holds `bytes` bytes past its offset; `out` is one of them.
    unsafe { kernel(out, a_pointer, b_pointer, bytes / dtype.size()) };
    let (untouched, written, at) = match place {
        Place::Apart => {
            (vec![(&a_buffer, a, offset), (&b_buffer, b, offset + 2)], &out_buffer, out_offset)
        }
        Place::OnA => (vec![(&b_buffer, b, offset + 2)], &a_buffer, offset),
        Place::OnB => (vec![(&a_buffer, a, offset)], &b_buffer, offset + 2),
    };
    for (found, content, offset) in untouched {
        assert_eq!(*found, buffer(content, offset), "{level:?} {reduction:?} {dtype:?} {place:?}");
    }
    let result = written[at..at + bytes].to_vec();
    assert_eq!(*written, buffer(&result, at), "{level:?} {reduction:?} {dtype:?} {place:?}");
    result
}

#[test]
fn every_kernel_at_every_count_offset_and_place() {
    let mut values = Values { state: 1 };
    for dtype in Dtype::ALL {
        for count in 0..(if cfg!(miri) { 70 } else { 140 }) {
            let (a, b) = (values.bytes(dtype, count), values.bytes(dtype, count));
            for reduction in Reduction::ALL {
                let wanted = expected(reduction, dtype, &a, &b);
                for level in Level::available() {
                    for place in [Place::Apart, Place::OnA, Place::OnB] {
                        let found = run(level, reduction, dtype, &a, &b, count % 9, place);
                        assert_eq!(
                            found, wanted,
                            "{level:?} {reduction:?} {dtype:?} {place:?} {count}"
                        );
                    }
                }
            }
        }
    }
}

/// Larger than any unrolled loop.
#[test]
fn every_kernel_on_a_long_buffer() {
    let mut values = Values { state: 2 };
    for dtype in Dtype::ALL {
        let (a, b) = (values.bytes(dtype, 1531), values.bytes(dtype, 1531));
        for reduction in Reduction::ALL {
            let wanted = expected(reduction, dtype, &a, &b);
            for level in Level::available() {
                let found = run(level, reduction, dtype, &a, &b, 0, Place::Apart);
                assert!(found == wanted, "{level:?} {reduction:?} {dtype:?}");
            }
        }
    }
}

#[test]
fn both_inputs_may_be_the_output() {
    let mut values = Values { state: 3 };
    for dtype in Dtype::ALL {
        let a = values.bytes(dtype, 67);
        for reduction in Reduction::ALL {
            let wanted = expected(reduction, dtype, &a, &a);
            for level in Level::available() {
                let kernel = kernel_at(level, reduction, dtype).expect("the level is available");
                let mut out = a.clone();
                let pointer = out.as_mut_ptr();
                // SAFETY: the three ranges are the same 67 elements.
                unsafe { kernel(pointer, pointer, pointer, 67) };
                assert_eq!(out, wanted, "{level:?} {reduction:?} {dtype:?}");
            }
        }
    }
}

/// Every special value of a type against every other, which includes each against itself.
#[test]
fn every_pair_of_special_values() {
    for dtype in Dtype::ALL {
        let special = reference::special_bits(dtype);
        let pairs = special.iter().flat_map(|&a| special.iter().map(move |&b| (a, b)));
        let (a, b): (Vec<u64>, Vec<u64>) = pairs.unzip();
        let bytes = |values: Vec<u64>| -> Vec<u8> {
            values.into_iter().flat_map(|bits| encode(bits, dtype.size())).collect()
        };
        let (a, b) = (bytes(a), bytes(b));
        for reduction in Reduction::ALL {
            let wanted = expected(reduction, dtype, &a, &b);
            for level in Level::available() {
                let found = run(level, reduction, dtype, &a, &b, 0, Place::Apart);
                assert!(found == wanted, "{level:?} {reduction:?} {dtype:?}");
            }
        }
    }
}

/// Every half against a few, in both orders. Under an interpreter only some of them.
#[test]
fn every_half() {
    let step = if cfg!(miri) { 257 } else { 1 };
    let all: Vec<u8> = (0..=u16::MAX).step_by(step).flat_map(u16::to_ne_bytes).collect();
    for (dtype, half) in [(Dtype::Float16, Half::FLOAT16), (Dtype::Bfloat16, Half::BFLOAT16)] {
        for other in half.interesting() {
            let others = other.to_ne_bytes().repeat(all.len() / 2);
            for (a, b) in [(&all, &others), (&others, &all)] {
                for reduction in Reduction::ALL {
                    let wanted = expected(reduction, dtype, a, b);
                    for level in Level::available() {
                        let found = run(level, reduction, dtype, a, b, 0, Place::Apart);
                        assert!(found == wanted, "{level:?} {reduction:?} {dtype:?} {other:#06x}");
                    }
                }
            }
        }
    }
}

/// Every half against partners that share its upper exponent bits, so that sums are rounded by every
/// number of bits, down, up and from the middle.
#[test]
fn every_half_against_one_of_its_size() {
    let mut values = Values { state: 5 };
    let step = if cfg!(miri) { 257 } else { 1 };
    for dtype in [Dtype::Float16, Dtype::Bfloat16] {
        for _ in 0..4 {
            let all = (0..=u16::MAX).step_by(step);
            let pairs = all.map(|half| (half, half ^ (values.next() as u16 & 0x87ff)));
            let (a, b): (Vec<u16>, Vec<u16>) = pairs.unzip();
            let [a, b] = [a, b].map(|halves| -> Vec<u8> {
                halves.into_iter().flat_map(u16::to_ne_bytes).collect()
            });
            let wanted = expected(Reduction::Sum, dtype, &a, &b);
            for level in Level::available() {
                let found = run(level, Reduction::Sum, dtype, &a, &b, 0, Place::OnB);
                assert!(found == wanted, "{level:?} {dtype:?}");
            }
        }
    }
}

#[test]
fn nothing_is_touched_at_count_zero() {
    for dtype in Dtype::ALL {
        for reduction in Reduction::ALL {
            for level in Level::available() {
                let kernel = kernel_at(level, reduction, dtype).expect("the level is available");
                // SAFETY: null pointers are allowed at count 0.
                unsafe { kernel(std::ptr::null_mut(), std::ptr::null(), std::ptr::null(), 0) };
            }
        }
    }
}

#[test]
fn the_chosen_kernel_gives_the_same_bytes() {
    let mut values = Values { state: 4 };
    for dtype in Dtype::ALL {
        let (a, b) = (values.bytes(dtype, 33), values.bytes(dtype, 33));
        for reduction in Reduction::ALL {
            let kernel = kernel(reduction, dtype);
            let mut out = vec![0; a.len()];
            // SAFETY: each of the three buffers holds 33 elements.
            unsafe { kernel(out.as_mut_ptr(), a.as_ptr(), b.as_ptr(), 33) };
            assert_eq!(out, expected(reduction, dtype, &a, &b), "{reduction:?} {dtype:?}");
        }
    }
}

#[test]
fn portable_is_always_available() {
    assert_eq!(Level::available().last(), Some(Level::Portable));
}
