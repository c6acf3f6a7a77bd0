use abruzzi::device::Precision;
use abruzzi::device::cuda::kernels::watch;
use abruzzi::device::cuda::{CudaTensor, Gpu};

use crate::harness::{random, random_tensor, session};

type Finding = Option<(u32, usize, usize)>;

/// What a guard holds after tensors were watched in this order.
fn first(gpu: &Gpu, watched: &[(u32, &CudaTensor)]) -> Finding {
    let mut guard = gpu.upload(&[watch::CLEAR], "a guard").unwrap();
    for (site, x) in watched {
        watch::watch(gpu, x, *site, guard.all_mut()).unwrap();
    }
    watch::unpack(guard.download().unwrap()[0])
}

#[test]
fn names_the_first_of_any_kind() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for precision in [Precision::Full, Precision::Working] {
            for (rows, cols) in [(1, 1), (3, 7), (4, 2055), (3, 7168)] {
                let (clean, values) = random_tensor(gpu, &mut random, rows, cols, precision);
                assert_eq!(first(gpu, &[(3, &clean)]), None);
                for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut values = values.clone();
                    let at = random.below(rows * cols);
                    values[at] = bad;
                    // Others behind it, in the same vector and in other rows.
                    for later in [at + 1, at + 2, at + cols] {
                        if later < values.len() {
                            values[later] = f32::NAN;
                        }
                    }
                    let x = CudaTensor::upload(gpu, cols, precision, &values).unwrap();
                    let found = Some((7, at / cols, at % cols));
                    assert_eq!(first(gpu, &[(7, &x)]), found, "{precision:?} {bad} [{rows}, {cols}]");
                }
            }
        }
    });
}

#[test]
fn the_first_site_stays() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    let (clean, mut values) = random_tensor(gpu, &mut random, 5, 33, Precision::Full);
    let all_nan = CudaTensor::upload(gpu, 33, Precision::Full, &[f32::NAN; 5 * 33]).unwrap();
    values[4 * 33 + 32] = f32::INFINITY;
    let last_bad = CudaTensor::upload(gpu, 33, Precision::Full, &values).unwrap();
    assert_eq!(first(gpu, &[(0, &clean), (1, &last_bad), (2, &all_nan)]), Some((1, 4, 32)));
    assert_eq!(first(gpu, &[(65534, &all_nan)]), Some((65534, 0, 0)));
}

/// The largest finite values, zeros and denormals are nothing to report; neither is what stands beyond the columns.
#[test]
fn finite_values_and_padding_are_clean() {
    let session = session();
    let gpu = &session.gpu;
    let values = [f32::MAX, f32::MIN, -0.0, 0.0, f32::MIN_POSITIVE, -1e-45, 1e-45];
    let mut x = CudaTensor::upload(gpu, 7, Precision::Full, &values).unwrap();
    // The eighth element is padding.
    x.memory_mut().slice_mut(28..).fill_bytes(gpu, 0xff).unwrap();
    assert_eq!(first(gpu, &[(1, &x)]), None);
    let values = values.map(|v| half::bf16::from_bits((v.to_bits() >> 16) as u16).to_f32());
    let mut x = CudaTensor::upload(gpu, 7, Precision::Working, &values).unwrap();
    x.memory_mut().slice_mut(14..).fill_bytes(gpu, 0xff).unwrap();
    assert_eq!(first(gpu, &[(1, &x)]), None);
}

#[test]
fn a_clean_tensor_costs_its_bytes_and_no_atomic() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    let (rows, cols) = (64, 7168);
    let (x, _) = random_tensor(gpu, &mut random, rows, cols, Precision::Working);
    let mut guard = gpu.upload(&[watch::CLEAR], "a guard").unwrap();
    let Some(counts) = session.counted(|gpu| watch::watch(gpu, &x, 0, guard.all_mut()).unwrap()) else {
        return;
    };
    let counts = &counts["watch_bf16"]["counters"];
    let (read, written) =
        (counts["dram_read_bytes"].as_u64().unwrap(), counts["dram_write_bytes"].as_u64().unwrap());
    let least = (rows * cols * 2) as u64;
    assert!(read * 100 <= least * 105, "{read} bytes read, {least} at least");
    // An atomic would write its sector.
    assert_eq!(written, 0);
}
