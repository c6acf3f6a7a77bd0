use abruzzi::device::Precision;
use abruzzi::device::cuda::kernels::dequant::{self, QuantisedTensor};
use abruzzi::quant::{Format, MatrixLayout};

use crate::case::{Bench, Work};
use crate::harness::{poisoned_tensor, random_tensor};
use crate::inputs::{HIDDEN, INNER, matrix};

pub fn benches(bench: &mut Bench) {
    let (rows, cols) = (INNER, HIDDEN);
    let shape = format!("{rows}×{cols}");
    for (name, format) in [("fp8_to_bf16", Format::Fp8Block), ("int4_to_bf16", Format::Int4Group32)] {
        let layout = MatrixLayout { format, rows, cols };
        let work = Work::bytes(layout.weight_bytes() + layout.scale_bytes() + rows * cols * 2);
        bench.case(name, &shape, work, |gpu, random| {
            let w = matrix(gpu, random, layout);
            let mut out = poisoned_tensor(gpu, rows, cols, Precision::Working);
            Box::new(move |gpu| match format {
                Format::Fp8Block => dequant::fp8_to_bf16(gpu, &w, &mut out),
                _ => dequant::int4_to_bf16(gpu, &w, &mut out),
            })
        });
    }
    let layout = MatrixLayout { format: Format::Fp8Block, rows, cols };
    let work = Work::bytes(layout.weight_bytes() + layout.scale_bytes() + rows * cols * 2);
    bench.case("fp8_to_f16", &shape, work, |gpu, random| {
        let w = matrix(gpu, random, layout);
        let mut out = gpu.alloc::<u16>(rows * cols, "fp16").unwrap();
        let mut saturated = gpu.alloc_zeroed::<u32>(1, "a count").unwrap();
        Box::new(move |gpu| dequant::fp8_to_f16(gpu, &w, &mut out.all_mut(), &mut saturated.all_mut()))
    });
    for rows in [8, 512, 8192] {
        let work = Work::bytes(rows * cols * 3 + rows * cols / 128 * 4);
        bench.case("quantise_fp8", &format!("{rows}×{cols}"), work, |gpu, random| {
            let (x, _) = random_tensor(gpu, random, rows, cols, Precision::Working);
            let mut out = QuantisedTensor::new(gpu, rows, cols).unwrap();
            Box::new(move |gpu| dequant::quantise_fp8(gpu, &x, None, &mut out))
        });
    }
}
