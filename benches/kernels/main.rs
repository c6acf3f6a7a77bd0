//! How long each kernel takes: `cargo bench --features cuda --bench kernels [-- FILTER]`.
//!
//! On a real GPU (`ABRUZZI_TEST_GPU=1`) times are measured by the driver's events, the second-level cache written over
//! before each launch. Otherwise they are the emulator's, modelled, and every group's name says so. A line a case gives the
//! median and its share of the limit; with `ABRUZZI_BENCH_TABLE=FILE` the lines go to that file too, separated by tabs.

mod case;
mod norm;

#[path = "../../tests/kernels/harness.rs"]
mod harness;

use criterion::{Criterion, criterion_group, criterion_main};

fn kernels(criterion: &mut Criterion) {
    let mut bench = case::Bench::new(criterion);
    norm::benches(&mut bench);
}

criterion_group!(benches, kernels);
criterion_main!(benches);
