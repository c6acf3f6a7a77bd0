use abruzzi::device::Precision;
use abruzzi::device::cuda::kernels::gemm::{self, GroupedWeights};
use abruzzi::quant::{Format, MatrixLayout};

use crate::case::{Bench, Unit, Work};
use crate::harness::{poisoned_tensor, random_tensor};
use crate::inputs::{HIDDEN, INNER, matrix};

pub fn benches(bench: &mut Bench) {
    // The router; a shared expert's gate; the projection out of attention.
    for (rows, n, k) in [(128, 384, HIDDEN), (512, 384, HIDDEN), (512, INNER, HIDDEN), (4096, HIDDEN, 8192)] {
        let work = Work::bytes((rows * k + n * k + rows * n) * 2).flops(2 * rows * n * k, Unit::Bf16);
        bench.case("linear_bf16", &format!("{rows}×{n}×{k}"), work, |gpu, random| {
            let (x, _) = random_tensor(gpu, random, rows, k, Precision::Working);
            let w = matrix(gpu, random, MatrixLayout { format: Format::Bf16, rows: n, cols: k });
            let mut out = poisoned_tensor(gpu, rows, n, Precision::Working);
            Box::new(move |gpu| gemm::linear_bf16(gpu, &x, &w, &mut out))
        });
    }
    // Pieces of experts; then whole ones, as after dequantisation.
    for (groups, each, n) in [(4, 8, 256), (384, 85, INNER)] {
        let (rows, k) = (groups * each, HIDDEN);
        let work =
            Work::bytes((rows * k + groups * n * k + rows * n) * 2).flops(2 * rows * n * k, Unit::Bf16);
        bench.case("grouped_bf16", &format!("{groups} × {each}×{n}×{k}"), work, |gpu, random| {
            let (x, _) = random_tensor(gpu, random, rows, k, Precision::Working);
            let layout = MatrixLayout { format: Format::Bf16, rows: n, cols: k };
            let memory = gpu.alloc_zeroed::<u8>(groups * layout.weight_bytes(), "experts").unwrap();
            let slots: Vec<u32> = (0..groups as u32).collect();
            let offsets: Vec<u32> = (0..=groups).map(|g| (g * each) as u32).collect();
            let (slots, offsets) =
                (gpu.upload(&slots, "slots").unwrap(), gpu.upload(&offsets, "offsets").unwrap());
            let mut out = poisoned_tensor(gpu, rows, n, Precision::Working);
            Box::new(move |gpu| {
                let weights = GroupedWeights::new(memory.all(), layout, 0, 0, groups, layout.weight_bytes());
                gemm::grouped_bf16(gpu, &x, &weights, slots.all(), offsets.all(), &mut out)
            })
        });
    }
    for rows in [64, 8192] {
        let work = Work::bytes(rows * HIDDEN * 4 + rows * 4);
        bench.case("gather_rows", &format!("{rows}×{HIDDEN}"), work, |gpu, random| {
            let (x, _) = random_tensor(gpu, random, rows, HIDDEN, Precision::Working);
            let map: Vec<u32> = (0..rows as u32).rev().collect();
            let map = gpu.upload(&map, "a map").unwrap();
            let mut out = poisoned_tensor(gpu, rows, HIDDEN, Precision::Working);
            Box::new(move |gpu| gemm::gather_rows(gpu, &x, map.all(), &mut out))
        });
    }
}
