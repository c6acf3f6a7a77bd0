//! How long it takes to align the neurons of two experts: `cargo bench --bench merge [-- FILTER]`.
//!
//! Random experts of Moonlight's and Kimi-K2's size, on all cores. Nearly all of it is 3 · n² · hidden multiply-adds, the
//! throughput's elements.

use abruzzi::checkpoint::weights::GatedMlp;
use abruzzi::compress::merge::align;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rand_core::Rng;

fn expert(values: usize, seed: u128) -> GatedMlp<Vec<f32>> {
    let mut rng = rand_pcg::Pcg64Mcg::new(seed | 1);
    let mut matrix = || (0..values).map(|_| rng.next_u32() as f32 / u32::MAX as f32 - 0.5).collect();
    GatedMlp { gate: matrix(), up: matrix(), down: matrix() }
}

fn merge(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("align");
    group.sample_size(10);
    for (model, n, hidden) in [("moonlight", 1408, 2048), ("kimi-k2", 2048, 7168)] {
        let (a, b) = (expert(n * hidden, 1), expert(n * hidden, 2));
        group.throughput(Throughput::Elements((3 * n * n * hidden) as u64));
        group.bench_function(model, |bench| bench.iter(|| align(&a, &b, hidden)));
    }
    group.finish();
}

criterion_group!(benches, merge);
criterion_main!(benches);
