//! What it costs to plan a call, without a byte of data: `cargo bench --bench schedules`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

use mlxd::call::{Call, Verb};
use mlxd::collective::plan;
use mlxd::config::Topology;
use mlxd::dtype::Dtype;

/// Elements per rank of a small and of a large call: they may have different algorithms.
const COUNTS: [(&str, u64); 2] = [("small", 1), ("large", 1 << 20)];

fn schedules(criterion: &mut Criterion) {
    for verb in [Verb::AllSum, Verb::AllGather, Verb::AllToAll, Verb::Broadcast] {
        let mut group = criterion.benchmark_group(verb.name());
        for ranks in [4usize, 64, 1024] {
            for (name, count) in COUNTS {
                // An all_to_all has a block for each rank.
                let count = if verb == Verb::AllToAll { count * ranks as u64 } else { count };
                let root = if verb == Verb::Broadcast { 0 } else { -1 };
                let call = Call { sequence: 0, verb, dtype: Dtype::Float32 as u8, root, count };
                // A rank in the middle, neither the root nor next to it.
                let rank = ranks / 2;
                group.bench_function(BenchmarkId::new(name, ranks), |bencher| {
                    bencher.iter(|| {
                        plan(black_box(&call), black_box(rank), black_box(ranks), Topology::Mesh)
                    });
                });
            }
        }
        group.finish();
    }
}

/// What the macro makes has no comments.
mod groups {
    #![allow(missing_docs)]
    use super::{criterion_group, schedules};
    criterion_group!(benches, schedules);
}
criterion_main!(groups::benches);
