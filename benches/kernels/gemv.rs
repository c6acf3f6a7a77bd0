use abruzzi::device::Precision;
use abruzzi::device::cuda::kernels::gemv;
use abruzzi::quant::{Format, MatrixLayout};

use crate::case::{Bench, Unit, Work};
use crate::harness::{poisoned_tensor, random_tensor};
use crate::inputs::{HIDDEN, INNER, matrix};

pub fn benches(bench: &mut Bench) {
    // The router; a shared expert's gate; the projection out of attention.
    for (name, format, rows, cols) in [
        ("linear_bf16", Format::Bf16, 384, HIDDEN),
        ("linear_int4", Format::Int4Group32, INNER, HIDDEN),
        ("linear_fp8", Format::Fp8Block, INNER, HIDDEN),
        ("linear_fp8", Format::Fp8Block, HIDDEN, 8192),
    ] {
        let layout = MatrixLayout { format, rows, cols };
        for tokens in [1, 8, 16] {
            let bytes = layout.weight_bytes() + layout.scale_bytes() + tokens * (cols + rows) * 2;
            let work = Work::bytes(bytes).flops(2 * tokens * rows * cols, Unit::Bf16);
            let name = format!("{name}_{}", if tokens <= 8 { 8 } else { 16 });
            bench.case(&name, &format!("{tokens}×{rows}×{cols}"), work, |gpu, random| {
                let (x, _) = random_tensor(gpu, random, tokens, cols, Precision::Working);
                let w = matrix(gpu, random, layout);
                let mut out = poisoned_tensor(gpu, tokens, rows, Precision::Working);
                Box::new(move |gpu| gemv::linear(gpu, &x, &w, &mut out))
            });
        }
    }
}
