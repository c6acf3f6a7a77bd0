use abruzzi::device::Precision;
use abruzzi::device::cuda::kernels::dequant::QuantisedTensor;
use abruzzi::device::cuda::kernels::expert_gemm::{self, ExpertScratch};
use abruzzi::quant::{Format, MatrixLayout};

use crate::case::{Bench, Unit, Work};
use crate::harness::{poisoned_tensor, random_tensor};
use crate::inputs::{HIDDEN, INNER, expert, matrix, moe, pool, reached, routing};

pub fn benches(bench: &mut Bench) {
    // With the quantisation before it.
    for (rows, n, k) in [(128, INNER, HIDDEN), (4096, HIDDEN, 8192)] {
        let layout = MatrixLayout { format: Format::Fp8Block, rows: n, cols: k };
        let bytes = layout.weight_bytes() + layout.scale_bytes() + rows * (k * 4 + n * 2);
        let work = Work::bytes(bytes).flops(2 * rows * n * k, Unit::Fp8);
        bench.case("linear_fp8", &format!("{rows}×{n}×{k}"), work, |gpu, random| {
            let (x, _) = random_tensor(gpu, random, rows, k, Precision::Working);
            let w = matrix(gpu, random, layout);
            let mut scratch = QuantisedTensor::new(gpu, rows, k).unwrap();
            let mut out = poisoned_tensor(gpu, rows, n, Precision::Working);
            Box::new(move |gpu| expert_gemm::linear_fp8(gpu, &x, &w, &mut scratch, &mut out))
        });
    }
    // Quantisation, gate and up, down: of one expert, some, a layer.
    for (tokens, experts, top_k) in [(32, 1, 1), (64, 8, 8), (4096, 384, 8), (16384, 384, 8)] {
        let moe = moe(experts, top_k);
        let pairs = tokens * top_k;
        let bytes = reached(tokens, &moe) * expert(Format::Fp8Block).1
            + tokens * HIDDEN * 2
            + pairs * (HIDDEN * 2 + INNER * 2 + HIDDEN * 2);
        let work = Work::bytes(bytes).flops(6 * pairs * INNER * HIDDEN, Unit::Fp8);
        let shape = format!("{tokens} tokens, {top_k} of {experts}");
        bench.case("experts_fp8_gemm", &shape, work, |gpu, random| {
            let (x, _) = random_tensor(gpu, random, tokens, HIDDEN, Precision::Working);
            let pool = pool(gpu, random, Format::Fp8Block, experts);
            let routing = routing(gpu, random, tokens, &moe);
            let mut scratch = ExpertScratch::new(gpu, pairs, HIDDEN, INNER).unwrap();
            let mut out = poisoned_tensor(gpu, pairs, HIDDEN, Precision::Working);
            Box::new(move |gpu| {
                expert_gemm::experts_fp8(gpu, &x, pool.layer(0), &routing, &mut scratch, &mut out)
            })
        });
    }
}
