use abruzzi::device::Precision;
use abruzzi::device::cuda::kernels::{elementwise, watch};
use abruzzi::quant::{Format, MatrixLayout};

use crate::case::{Bench, Work};
use crate::harness::{poisoned_tensor, random_tensor};
use crate::inputs::{HIDDEN, matrix};

const TOP_K: usize = 8;
/// Of the dense layer.
const DENSE: usize = 18432;

pub fn benches(bench: &mut Bench) {
    let cols = HIDDEN;
    for rows in [1, 64, 1024] {
        let shape = format!("{rows}×{cols}");
        bench.case("embed_f32", &shape, Work::bytes(rows * (cols * 6 + 4)), |gpu, random| {
            let table = matrix(gpu, random, MatrixLayout { format: Format::Bf16, rows: 4096, cols });
            let ids: Vec<u32> = (0..rows).map(|_| random.below(4096) as u32).collect();
            let ids = gpu.upload(&ids, "ids").unwrap();
            let mut out = poisoned_tensor(gpu, rows, cols, Precision::Full);
            Box::new(move |gpu| elementwise::embed(gpu, &table, ids.all(), &mut out))
        });
        bench.case("add_bf16_f32", &shape, Work::bytes(rows * cols * 10), |gpu, random| {
            let (x, _) = random_tensor(gpu, random, rows, cols, Precision::Working);
            let (mut sum, _) = random_tensor(gpu, random, rows, cols, Precision::Full);
            Box::new(move |gpu| elementwise::add(gpu, &x, &mut sum))
        });
        bench.case("copy_rows_f32", &shape, Work::bytes(rows * cols * 8), |gpu, random| {
            let (x, _) = random_tensor(gpu, random, rows, cols, Precision::Full);
            let mut out = poisoned_tensor(gpu, rows, cols, Precision::Full);
            Box::new(move |gpu| elementwise::copy_rows(gpu, &x, 0..rows, &mut out))
        });
        let work = Work::bytes(rows * cols * (TOP_K * 2 + 8) + rows * TOP_K * 8);
        bench.case("combine_bf16", &shape, work, |gpu, random| {
            let pairs = rows * TOP_K;
            let (x, _) = random_tensor(gpu, random, pairs, cols, Precision::Working);
            let (mut sum, _) = random_tensor(gpu, random, rows, cols, Precision::Full);
            let weights = gpu.upload(&random.normals(pairs), "weights").unwrap();
            let positions: Vec<u32> = (0..pairs as u32).collect();
            let positions = gpu.upload(&positions, "positions").unwrap();
            Box::new(move |gpu| {
                elementwise::combine(gpu, &x, weights.all(), positions.all(), TOP_K, &mut sum)
            })
        });
        bench.case("swiglu", &format!("{rows}×{DENSE}"), Work::bytes(rows * DENSE * 6), |gpu, random| {
            let (gate, _) = random_tensor(gpu, random, rows, DENSE, Precision::Working);
            let (up, _) = random_tensor(gpu, random, rows, DENSE, Precision::Working);
            let mut out = poisoned_tensor(gpu, rows, DENSE, Precision::Working);
            Box::new(move |gpu| elementwise::swiglu(gpu, &gate, &up, &mut out))
        });
        bench.case("watch_f32", &shape, Work::bytes(rows * cols * 4), |gpu, random| {
            let (x, _) = random_tensor(gpu, random, rows, cols, Precision::Full);
            let mut guard = gpu.upload(&[watch::CLEAR], "a guard").unwrap();
            Box::new(move |gpu| watch::watch(gpu, &x, 0, guard.all_mut()))
        });
    }
}
