//! How long each kernel takes: `cargo bench --features cuda --bench kernels [-- FILTER]`.
//!
//! On a real GPU (`ABRUZZI_TEST_GPU=1`) times are measured by the driver's events, the second-level cache written over
//! before each launch. Otherwise they are the emulator's, modelled, and every group's name says so. A line a case gives the
//! median and its share of the limit; with `ABRUZZI_BENCH_TABLE=FILE` the lines go to that file too, separated by tabs.

mod case;
mod dequant;
mod elementwise;
mod expert_gemm;
mod expert_gemv;
mod gemm;
mod gemv;
mod inputs;
mod mla;
mod norm;
mod rope;
mod route;
mod sample;
mod work;

#[path = "../../tests/kernels/harness.rs"]
mod harness;

use criterion::{Criterion, criterion_group, criterion_main};

fn kernels(criterion: &mut Criterion) {
    let mut bench = case::Bench::new(criterion);
    norm::benches(&mut bench);
    rope::benches(&mut bench);
    elementwise::benches(&mut bench);
    dequant::benches(&mut bench);
    route::benches(&mut bench);
    sample::benches(&mut bench);
    gemv::benches(&mut bench);
    expert_gemv::benches(&mut bench);
    gemm::benches(&mut bench);
    expert_gemm::benches(&mut bench);
    mla::benches(&mut bench);
}

criterion_group!(benches, kernels);
criterion_main!(benches);
