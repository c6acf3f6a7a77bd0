use abruzzi::device::Precision;
use abruzzi::device::cuda::kernels::norm;

use crate::harness::{assert_close, download, poisoned_tensor, random, random_tensor, session};

#[test]
fn rms_norm() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for precision in [Precision::Full, Precision::Working] {
            for (rows, cols) in
                [(1, 1), (3, 7), (2, 256), (5, 1000), (1, 7168), (2, 8192), (2, 18432), (1, 9001)]
            {
                let (x, mut values) = random_tensor(gpu, &mut random, rows, cols, precision);
                let weight = random.normals(cols);
                let device_weight = gpu.upload(&weight, "weights").unwrap();
                let mut out = poisoned_tensor(gpu, rows, cols, Precision::Working);
                norm::rms_norm(gpu, &x, device_weight.all(), 1e-6, &mut out).unwrap();
                for row in values.chunks_exact_mut(cols) {
                    let mean = row.iter().map(|v| f64::from(v * v)).sum::<f64>() / cols as f64;
                    let scale = 1.0 / (mean + 1e-6).sqrt();
                    for (v, w) in row.iter_mut().zip(&weight) {
                        *v = (f64::from(*v) * scale) as f32 * w;
                    }
                }
                let what = (precision, rows, cols);
                assert_close(what, &download(gpu, &out), &values, cols, 1e-4, 1.0 / 256.0);
            }
        }
    });
}

#[test]
fn rms_norm_reads_and_writes_each_byte_once() {
    let (session, mut random) = (session(), random());
    let (rows, cols) = (64, 7168);
    let (x, _) = random_tensor(&session.gpu, &mut random, rows, cols, Precision::Full);
    let weight = session.gpu.upload(&vec![1.0f32; cols], "weights").unwrap();
    let mut out = poisoned_tensor(&session.gpu, rows, cols, Precision::Working);
    let Some(counts) = session.counted(|gpu| norm::rms_norm(gpu, &x, weight.all(), 1e-6, &mut out).unwrap())
    else {
        return;
    };
    let counts = &counts["rms_norm_f32"]["counters"];
    let moved = counts["dram_read_bytes"].as_u64().unwrap() + counts["dram_write_bytes"].as_u64().unwrap();
    let least = (rows * cols * (4 + 2) + cols * 4) as u64;
    assert!(moved * 100 <= least * 105, "{moved} bytes, {least} at least");
    assert_eq!(counts["bank_replays"], 0);
}
