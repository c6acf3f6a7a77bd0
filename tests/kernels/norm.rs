use abruzzi::device::Precision;
use abruzzi::device::cuda::CudaTensor;
use abruzzi::device::cuda::kernels::{elementwise, norm};

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

/// Normalisation after the sum is the two operations to the bit, wherever the row is kept meanwhile.
#[test]
fn add_rms_norm_is_both_operations() {
    let (session, mut random) = (session(), random());
    let both = [Precision::Full, Precision::Working];
    session.every_schedule(|gpu| {
        for (of_x, of_sum) in both.iter().flat_map(|x| both.map(|sum| (*x, sum))) {
            for (rows, cols) in [(1, 1), (3, 7), (5, 1000), (2, 7168), (1, 9001), (1, 18432)] {
                let (x, _) = random_tensor(gpu, &mut random, rows, cols, of_x);
                let (mut sum, values) = random_tensor(gpu, &mut random, rows, cols, of_sum);
                let mut fused = CudaTensor::upload(gpu, cols, of_sum, &values).unwrap();
                let weight = gpu.upload(&random.normals(cols), "weights").unwrap();
                let mut out = poisoned_tensor(gpu, rows, cols, Precision::Working);
                let mut fused_out = poisoned_tensor(gpu, rows, cols, Precision::Working);
                elementwise::add(gpu, &x, &mut sum).unwrap();
                norm::rms_norm(gpu, &sum, weight.all(), 1e-5, &mut out).unwrap();
                norm::add_rms_norm(gpu, &x, &mut fused, weight.all(), 1e-5, &mut fused_out).unwrap();
                let what = (of_x, of_sum, rows, cols);
                assert_eq!(download(gpu, &fused), download(gpu, &sum), "{what:?}: sum");
                assert_eq!(download(gpu, &fused_out), download(gpu, &out), "{what:?}: out");
            }
        }
    });
}

/// A NaN spoils its own row, an infinity makes its own element NaN and the others 0, and a row of zeros stays zeros.
#[test]
fn non_finite_values_stay_in_their_row() {
    let session = session();
    let gpu = &session.gpu;
    let mut values = vec![1.0f32; 4 * 24];
    values[5] = f32::NAN;
    values[24 + 7] = f32::INFINITY;
    values[48..72].fill(0.0);
    let zeros = vec![0.0; 4 * 24];
    let x = CudaTensor::upload(gpu, 24, Precision::Full, &values).unwrap();
    let mut sum = CudaTensor::upload(gpu, 24, Precision::Full, &zeros).unwrap();
    let weight = gpu.upload(&[1.0f32; 24], "weights").unwrap();
    let mut want = vec![f32::NAN; 24];
    want.extend((0..24).map(|c| if c == 7 { f32::NAN } else { 0.0 }));
    want.extend([0.0; 24]);
    want.extend([1.0; 24]);
    let mut out = poisoned_tensor(gpu, 4, 24, Precision::Working);
    norm::rms_norm(gpu, &x, weight.all(), 1e-6, &mut out).unwrap();
    assert_close("rms_norm", &download(gpu, &out), &want, 24, 1e-4, 1.0 / 256.0);
    norm::add_rms_norm(gpu, &x, &mut sum, weight.all(), 1e-6, &mut out).unwrap();
    assert_close("add_rms_norm", &download(gpu, &out), &want, 24, 1e-4, 1.0 / 256.0);
}

#[test]
fn add_rms_norm_reads_and_writes_each_byte_once() {
    let (session, mut random) = (session(), random());
    let (rows, cols) = (64, 7168);
    let (x, _) = random_tensor(&session.gpu, &mut random, rows, cols, Precision::Working);
    let (mut sum, _) = random_tensor(&session.gpu, &mut random, rows, cols, Precision::Full);
    let weight = session.gpu.upload(&vec![1.0f32; cols], "weights").unwrap();
    let mut out = poisoned_tensor(&session.gpu, rows, cols, Precision::Working);
    let Some(counts) =
        session.counted(|gpu| norm::add_rms_norm(gpu, &x, &mut sum, weight.all(), 1e-6, &mut out).unwrap())
    else {
        return;
    };
    let counts = &counts["add_rms_norm_bf16_f32"]["counters"];
    let moved = counts["dram_read_bytes"].as_u64().unwrap() + counts["dram_write_bytes"].as_u64().unwrap();
    let least = (rows * cols * (2 + 4 + 4 + 2) + cols * 4) as u64;
    assert!(moved * 100 <= least * 105, "{moved} bytes, {least} at least");
    assert_eq!(counts["bank_replays"], 0);
}
