//! Times by the driver's clock; on the emulated GPU they are modelled and so the same every time.

use abruzzi::device::Precision;
use abruzzi::device::cuda::kernels::norm;

use crate::harness::{poisoned_tensor, random, random_tensor, real, session};

#[test]
fn work_takes_the_time_it_must_and_none_takes_none() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    let (rows, cols) = (256, 7168);
    let (x, _) = random_tensor(gpu, &mut random, rows, cols, Precision::Full);
    let weight = gpu.upload(&vec![1.0f32; cols], "weights").unwrap();
    let mut out = poisoned_tensor(gpu, rows, cols, Precision::Working);
    let mut norm = || gpu.timed(|gpu| norm::rms_norm(gpu, &x, weight.all(), 1e-6, &mut out)).unwrap();
    // The first launch loads the code.
    let (_, first, second) = (norm(), norm(), norm());
    // 6 bytes an element at 5 TB/s, more than any card here has; and launches take microseconds, not milliseconds.
    let least_ms = (rows * cols * 6) as f64 / 5e9;
    assert!(least_ms < second && second < 1.0, "{second} ms, {least_ms} at least");
    assert!(real() || (first / second - 1.0).abs() < 1e-3, "{first} and {second}");
    let nothing = gpu.timed(|_| Ok(())).unwrap();
    assert!((0.0..least_ms).contains(&nothing), "{nothing} ms");
}

#[test]
fn what_the_work_returns_comes_back() {
    let session = session();
    let result = session.gpu.timed(|gpu| gpu.alloc::<u8>(1 << 50, "too much").map(drop));
    assert!(matches!(result, Err(abruzzi::Error::OutOfMemory { .. })), "{result:?}");
}

#[test]
fn copies_run_at_a_rate_of_device_memory() {
    let session = session();
    let rate = session.gpu.copy_rate(64 << 20).unwrap() / 1e9;
    assert!((500.0..6000.0).contains(&rate), "{rate} GB/s");
}
