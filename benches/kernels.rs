//! Bytes per second of every kernel beside a plain copy of as many bytes: `cargo bench --bench kernels`.
//!
//! Three placements: `out == b`, as in the later steps of a ring, where the own operand is the
//! output; a separate output; and the copy. The figure is bytes of output over the median time.

use std::time::Instant;

use mlxd::dtype::Dtype;
use mlxd::reduce::{Reduction, kernel};

/// Median seconds of 15 runs, each long enough for the clock.
fn median(bytes: usize, mut run: impl FnMut()) -> f64 {
    let repeats = (8 << 20) / bytes.min(8 << 20);
    let mut times: Vec<f64> = (0..16)
        .map(|_| {
            let start = Instant::now();
            (0..repeats).for_each(|_| run());
            start.elapsed().as_secs_f64() / repeats as f64
        })
        .skip(1)
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    println!("GB/s of output; % of a copy of the same bytes in the same minute");
    for bytes in [64 << 10, 64 << 20] {
        let (a, mut b, mut out) = (vec![1u8; bytes], vec![1u8; bytes], vec![1u8; bytes]);
        println!("\n{} KiB", bytes >> 10);
        println!("{:<10} {:<4} {:>8} {:>16} {:>16}", "type", "op", "copy", "out == b", "separate");
        for dtype in Dtype::ALL {
            for reduction in [Reduction::Sum, Reduction::Max] {
                let reduce = kernel(reduction, dtype);
                let count = bytes / dtype.size();
                let (from, own, into) = (a.as_ptr(), b.as_mut_ptr(), out.as_mut_ptr());
                // SAFETY: all three vectors have `bytes` bytes.
                let copied = median(bytes, || unsafe {
                    std::ptr::copy_nonoverlapping(from, std::hint::black_box(into), bytes);
                });
                // SAFETY: as above; the output may be an operand.
                let in_place = median(bytes, || unsafe { reduce(own, from, own, count) });
                // SAFETY: as above.
                let separate = median(bytes, || unsafe { reduce(into, from, own, count) });
                let rate = |time: f64| bytes as f64 / time / 1e9;
                let beside =
                    |time: f64| format!("{:>7.1} ({:>3.0} %)", rate(time), 100.0 * copied / time);
                println!(
                    "{:<10} {:<4} {:>8.1} {:>16} {:>16}",
                    dtype.name(),
                    if reduction == Reduction::Sum { "sum" } else { "max" },
                    rate(copied),
                    beside(in_place),
                    beside(separate)
                );
            }
        }
    }
}
