//! Bytes per second of the kernels and of copies.
//!
//! - `cargo bench --bench kernels`: criterion's groups, one per element type, with `out == b`.
//! - `cargo bench --bench kernels -- --table`: every kernel beside a plain copy of as many bytes, timed
//!   in turn, so that what else the machine does falls on both.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use mlxd::dtype::Dtype;
use mlxd::reduce::{Reduction, kernel};
use mlxd::transport::copy::copy_streaming;

/// In the second level of cache, and far beyond the last.
const SIZES: [usize; 2] = [64 << 10, 64 << 20];

/// Max stands for min, which is as fast.
const REDUCTIONS: [Reduction; 2] = [Reduction::Sum, Reduction::Max];

/// Rounds of the table; the first does not count.
const ROUNDS: usize = 16;

/// The destination of the copies of the table: what is written there has left the cache before it is
/// written again.
const COLD: usize = 128 << 20;

fn main() {
    if std::env::args().any(|argument| argument == "--table") {
        print_kernels();
        print_copies();
    } else {
        let mut criterion = Criterion::default()
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_secs(1))
            .sample_size(20)
            .configure_from_args();
        measure(&mut criterion);
        criterion.final_summary();
    }
}

fn name(reduction: Reduction) -> &'static str {
    match reduction {
        Reduction::Sum => "sum",
        Reduction::Max => "max",
        Reduction::Min => "min",
    }
}

fn measure(criterion: &mut Criterion) {
    for dtype in Dtype::ALL {
        let mut group = criterion.benchmark_group(dtype.name());
        for bytes in SIZES {
            group.throughput(Throughput::Bytes(bytes as u64));
            let (a, mut b) = (vec![1u8; bytes], vec![1u8; bytes]);
            for reduction in REDUCTIONS {
                let reduce = kernel(reduction, dtype);
                let (from, own) = (a.as_ptr(), b.as_mut_ptr());
                group.bench_function(BenchmarkId::new(name(reduction), bytes), |bencher| {
                    // SAFETY: both vectors have `bytes` bytes; the output may be an operand.
                    bencher.iter(|| unsafe { reduce(own, from, own, bytes / dtype.size()) });
                });
            }
        }
    }
}

/// Seconds that one of several calls takes, which together are long enough for the clock.
fn seconds(bytes: usize, run: impl Fn()) -> f64 {
    let repeats = (8 << 20) / bytes.min(8 << 20);
    let start = Instant::now();
    (0..repeats).for_each(|_| run());
    start.elapsed().as_secs_f64() / repeats as f64
}

/// The values at a quarter, the half and three quarters of the way from the least to the greatest.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
}

fn print_kernels() {
    println!("GB/s of output, the median; % of a copy of the same bytes right before, quartiles");
    for bytes in SIZES {
        println!("\n{} KiB", bytes >> 10);
        println!("{:<10} {:<4} {:>6} {:>27} {:>27}", "type", "op", "copy", "out == b", "separate");
        for dtype in Dtype::ALL {
            for reduction in REDUCTIONS {
                print_kernel(bytes, dtype, reduction);
            }
        }
    }
}

fn print_kernel(bytes: usize, dtype: Dtype, reduction: Reduction) {
    let (a, mut b, mut out) = (vec![1u8; bytes], vec![1u8; bytes], vec![1u8; bytes]);
    let (from, own, into) = (a.as_ptr(), b.as_mut_ptr(), out.as_mut_ptr());
    let (reduce, count) = (kernel(reduction, dtype), bytes / dtype.size());
    let rounds: Vec<[f64; 3]> = (0..ROUNDS)
        .map(|_| {
            // SAFETY: all three vectors have `bytes` bytes; the output may be an operand.
            [
                seconds(bytes, || unsafe { from.copy_to_nonoverlapping(black_box(into), bytes) }),
                seconds(bytes, || unsafe { reduce(own, from, own, count) }),
                seconds(bytes, || unsafe { reduce(into, from, own, count) }),
            ]
        })
        .skip(1)
        .collect();
    let rate = |which: usize| {
        quartiles(rounds.iter().map(|times| bytes as f64 / times[which] / 1e9).collect())[1]
    };
    let beside = |which: usize| {
        let shares = rounds.iter().map(|times| 100.0 * times[0] / times[which]).collect();
        let [low, median, high] = quartiles(shares);
        format!("{:>7.1} ({median:>3.0} %, {low:>3.0} to {high:>3.0})", rate(which))
    };
    println!(
        "{:<10} {:<4} {:>6.1} {:>27} {:>27}",
        dtype.name(),
        name(reduction),
        rate(0),
        beside(1),
        beside(2)
    );
}

fn print_copies() {
    println!("\nGB/s of each thread that copies at the same time, the median; into cold memory");
    println!("{:>8} {:<7} {:>7} {:>7} {:>10}", "KiB", "source", "threads", "copy", "streaming");
    for threads in [1, 2] {
        for (bytes, warm) in
            [(64 << 10, true), (64 << 10, false), (1 << 20, false), (64 << 20, false)]
        {
            let barrier = Barrier::new(threads);
            let [copy, streaming] = std::thread::scope(|scope| {
                for _ in 1..threads {
                    scope.spawn(|| copies(bytes, warm, &barrier));
                }
                copies(bytes, warm, &barrier)
            });
            let source = if warm { "warm" } else { "cold" };
            println!("{:>8} {source:<7} {threads:>7} {copy:>7.1} {streaming:>10.1}", bytes >> 10);
        }
    }
}

/// Median rates of a plain copy and of a streaming one, `bytes` at a time through cold memory; from
/// the same bytes each time if the source is to be warm.
fn copies(bytes: usize, warm: bool, barrier: &Barrier) -> [f64; 2] {
    let (source, mut destination) = (vec![1u8; COLD], vec![1u8; COLD]);
    let (from, into) = (source.as_ptr(), destination.as_mut_ptr());
    let through = |copy: &dyn Fn(*mut u8, *const u8)| {
        barrier.wait();
        let start = Instant::now();
        for offset in (0..COLD).step_by(bytes) {
            let from = from.wrapping_add(if warm { 0 } else { offset });
            copy(into.wrapping_add(offset), from);
        }
        COLD as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    let rounds: Vec<[f64; 2]> = (0..ROUNDS)
        .map(|_| {
            // SAFETY: `bytes` divides the lengths of both vectors, which are apart.
            let plain = through(&|into, from| unsafe { from.copy_to_nonoverlapping(into, bytes) });
            // SAFETY: as above.
            let streaming = through(&|into, from| unsafe { copy_streaming(into, from, bytes) });
            [plain, streaming]
        })
        .skip(1)
        .collect();
    [0, 1].map(|which| quartiles(rounds.iter().map(|rates| rates[which]).collect())[1])
}
