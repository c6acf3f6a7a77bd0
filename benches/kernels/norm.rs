use abruzzi::device::Precision;
use abruzzi::device::cuda::kernels::norm;

use crate::case::{Bench, Work};
use crate::harness::{poisoned_tensor, random_tensor};

pub fn benches(bench: &mut Bench) {
    let cols = 7168;
    for (name, precision, bytes) in
        [("rms_norm_f32", Precision::Full, 4), ("rms_norm_bf16", Precision::Working, 2)]
    {
        for rows in [1, 64, 1024] {
            let work = Work::bytes(rows * cols * (bytes + 2) + cols * 4);
            bench.case(name, &format!("{rows}×{cols}"), work, |gpu, random| {
                let (x, _) = random_tensor(gpu, random, rows, cols, precision);
                let weight = gpu.upload(&random.normals(cols), "weights").unwrap();
                let mut out = poisoned_tensor(gpu, rows, cols, Precision::Working);
                Box::new(move |gpu| norm::rms_norm(gpu, &x, weight.all(), 1e-6, &mut out))
            });
        }
    }
}
