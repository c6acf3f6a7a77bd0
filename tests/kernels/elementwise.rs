use abruzzi::device::cuda::kernels::elementwise;
use abruzzi::device::cuda::{CudaMatrix, CudaTensor, Gpu};
use abruzzi::device::{Precision, Shape};
use abruzzi::quant::{Format, MatrixLayout};

use crate::harness::{Random, assert_close, download, poisoned_tensor, random, random_tensor, session};

const BOTH: [Precision; 2] = [Precision::Full, Precision::Working];

fn bf16(v: f32) -> f32 {
    half::bf16::from_f32(v).to_f32()
}

fn rounded(v: f32, precision: Precision) -> f32 {
    if precision == Precision::Full { v } else { bf16(v) }
}

/// Equal to the bit, NaN being one value.
fn assert_same(what: impl std::fmt::Debug, got: &[f32], want: &[f32], cols: usize) {
    assert_eq!(got.len(), want.len(), "{what:?}: elements");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = g.to_bits() == w.to_bits() || g.is_nan() && w.is_nan();
        assert!(same, "{what:?} [{}, {}]: {g} for {w}", i / cols, i % cols);
    }
}

/// Values that arithmetic could lose, at random places.
fn sprinkle(values: &mut [f32], random: &mut Random) {
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::MIN_POSITIVE, 3.0e38] {
        let at = random.below(values.len());
        values[at] = special;
    }
}

/// A matrix in a plain format, and its values.
fn table(gpu: &Gpu, random: &mut Random, rows: usize, cols: usize, format: Format) -> (CudaMatrix, Vec<f32>) {
    let mut values = random.normals(rows * cols);
    sprinkle(&mut values, random);
    let mut bytes = Vec::new();
    for v in &mut values {
        match format {
            Format::F32 => bytes.extend(v.to_le_bytes()),
            Format::F16 => {
                let narrow = half::f16::from_f32(*v);
                bytes.extend(narrow.to_le_bytes());
                *v = narrow.to_f32();
            }
            Format::Bf16 => {
                let narrow = half::bf16::from_f32(*v);
                bytes.extend(narrow.to_le_bytes());
                *v = narrow.to_f32();
            }
            _ => unreachable!("plain formats"),
        }
    }
    (CudaMatrix::from_parts(gpu, MatrixLayout { format, rows, cols }, &bytes, &[]).unwrap(), values)
}

#[test]
fn embed() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for format in [Format::F32, Format::F16, Format::Bf16] {
            for precision in BOTH {
                for (rows, cols, tokens) in [(1, 1, 3), (5, 7, 4), (40, 2056, 3), (9, 2049, 2), (3, 7168, 2)]
                {
                    let (table, values) = table(gpu, &mut random, rows, cols, format);
                    let ids: Vec<u32> = (0..tokens).map(|_| random.below(rows) as u32).collect();
                    let device_ids = gpu.upload(&ids, "ids").unwrap();
                    let mut out = poisoned_tensor(gpu, tokens, cols, precision);
                    elementwise::embed(gpu, &table, device_ids.all(), &mut out).unwrap();
                    let want: Vec<f32> = ids
                        .iter()
                        .flat_map(|&id| &values[id as usize * cols..][..cols])
                        .map(|&v| rounded(v, precision))
                        .collect();
                    let what = (format, precision, rows, cols);
                    assert_same(what, &download(gpu, &out), &want, cols);
                }
            }
        }
    });
}

#[test]
fn embed_of_a_row_that_is_not_there_is_nan() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    let (table, values) = table(gpu, &mut random, 6, 24, Format::Bf16);
    let ids = gpu.upload(&[5u32, 6, u32::MAX, 0], "ids").unwrap();
    let mut out = CudaTensor::new(gpu, 4, 24, Precision::Full).unwrap();
    elementwise::embed(gpu, &table, ids.all(), &mut out).unwrap();
    let mut want = values[5 * 24..].to_vec();
    want.extend([f32::NAN; 48]);
    want.extend(&values[..24]);
    assert_same("ids", &download(gpu, &out), &want, 24);
}

#[test]
fn embed_of_no_ids() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    let (table, _) = table(gpu, &mut random, 3, 8, Format::F32);
    let ids = gpu.upload::<u32>(&[], "ids").unwrap();
    let (mut out, _) = random_tensor(gpu, &mut random, 2, 8, Precision::Full);
    elementwise::embed(gpu, &table, ids.all(), &mut out).unwrap();
    assert_eq!(out.rows(), 0);
}

#[test]
fn add() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for (of_x, of_sum) in BOTH.iter().flat_map(|x| BOTH.map(|sum| (*x, sum))) {
            for (rows, cols) in [(1, 1), (3, 7), (2, 2055), (4, 576), (2, 7168)] {
                let [x, sum] = [of_x, of_sum].map(|precision| {
                    let mut values = random.normals(rows * cols);
                    sprinkle(&mut values, &mut random);
                    values.iter().map(|&v| rounded(v, precision)).collect::<Vec<f32>>()
                });
                let device_x = CudaTensor::upload(gpu, cols, of_x, &x).unwrap();
                let mut device_sum = CudaTensor::upload(gpu, cols, of_sum, &sum).unwrap();
                elementwise::add(gpu, &device_x, &mut device_sum).unwrap();
                let want: Vec<f32> = x.iter().zip(&sum).map(|(x, s)| rounded(s + x, of_sum)).collect();
                assert_same((of_x, of_sum, rows, cols), &download(gpu, &device_sum), &want, cols);
            }
        }
    });
}

#[test]
fn copy_rows() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for precision in BOTH {
            for (rows, cols, range) in
                [(1, 1, 0..1), (9, 7, 3..8), (5, 2055, 4..5), (6, 576, 0..6), (4, 7168, 2..4), (3, 8, 1..1)]
            {
                let mut values = random.normals(rows * cols);
                if cols > 1 {
                    sprinkle(&mut values, &mut random);
                }
                let x = CudaTensor::upload(gpu, cols, precision, &values).unwrap();
                let mut out = poisoned_tensor(gpu, rows, cols, precision);
                elementwise::copy_rows(gpu, &x, range.clone(), &mut out).unwrap();
                assert_eq!(out.rows(), range.len());
                let want: Vec<f32> = values[range.start * cols..range.end * cols]
                    .iter()
                    .map(|&v| rounded(v, precision))
                    .collect();
                assert_same((precision, rows, cols), &download(gpu, &out), &want, cols);
            }
        }
    });
}

/// A NaN's payload is data too.
#[test]
fn copy_rows_keeps_every_bit() {
    let session = session();
    let gpu = &session.gpu;
    let bits: Vec<u32> = (0..13).map(|i| 0x7f80_0001 | i << 3 | (i & 1) << 31).collect();
    let values: Vec<f32> = bits.iter().map(|&b| f32::from_bits(b)).collect();
    let x = CudaTensor::upload(gpu, 13, Precision::Full, &values).unwrap();
    let mut out = poisoned_tensor(gpu, 1, 13, Precision::Full);
    elementwise::copy_rows(gpu, &x, 0..1, &mut out).unwrap();
    let got: Vec<u32> = download(gpu, &out).iter().map(|v| v.to_bits()).collect();
    assert_eq!(got, bits);
}

#[test]
fn swiglu() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for (rows, cols) in [(1, 1), (3, 7), (2, 2055), (5, 576), (2, 18432)] {
            let mut gate: Vec<f32> = random.normals(rows * cols).iter().map(|v| bf16(v * 8.0)).collect();
            let mut up: Vec<f32> = random.normals(rows * cols).iter().map(|&v| bf16(v)).collect();
            // e^-z overflows below −88, sinks above 104; −∞ has no value of its own: −∞ / ∞.
            let extremes =
                [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, -88.5, -104.0, 1e30, -1e30, 1e-38];
            if cols > 8 {
                gate[..extremes.len()].copy_from_slice(&extremes.map(bf16));
                up[..extremes.len()].fill(2.0);
            }
            let device_gate = CudaTensor::upload(gpu, cols, Precision::Working, &gate).unwrap();
            let device_up = CudaTensor::upload(gpu, cols, Precision::Working, &up).unwrap();
            let mut out = poisoned_tensor(gpu, rows, cols, Precision::Working);
            elementwise::swiglu(gpu, &device_gate, &device_up, &mut out).unwrap();
            let got = download(gpu, &out);
            for (i, ((&got, &g), &u)) in got.iter().zip(&gate).zip(&up).enumerate() {
                // As the reference does it, in f32: the overflow of e^-z is part of the formula.
                let want = g / (1.0 + (-g).exp()) * u;
                let same = got == want
                    || got.is_nan() && want.is_nan()
                    || (got - want).abs() <= want.abs() / 250.0 + 1e-37;
                assert!(same, "[{rows}, {cols}] {i}: {got} for {want}, gate {g}, up {u}");
            }
        }
    });
}

/// `sum` after the pairs of each token in rank order, and for each element the sum of the terms' magnitudes.
fn combined(
    pairs: &[f32],
    weights: &[f32],
    positions: &[u32],
    top_k: usize,
    sum: &[f32],
    cols: usize,
) -> (Vec<f64>, Vec<f64>) {
    let mut out: Vec<f64> = sum.iter().map(|&v| f64::from(v)).collect();
    let mut size: Vec<f64> = out.iter().map(|v| v.abs()).collect();
    for (t, row) in out.chunks_exact_mut(cols).enumerate() {
        for j in 0..top_k {
            let weight = f64::from(weights[t * top_k + j]);
            let from = &pairs[positions[t * top_k + j] as usize * cols..][..cols];
            for (c, v) in from.iter().enumerate() {
                row[c] += weight * f64::from(*v);
                size[t * cols + c] += (weight * f64::from(*v)).abs();
            }
        }
    }
    (out, size)
}

#[test]
fn combine() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for precision in BOTH {
            for (tokens, top_k, cols) in
                [(1, 1, 1), (3, 2, 7), (5, 8, 576), (2, 6, 2055), (2, 8, 7168), (2, 9, 16)]
            {
                let (pairs, values) = random_tensor(gpu, &mut random, tokens * top_k, cols, precision);
                let weights: Vec<f32> = (0..tokens * top_k).map(|_| random.unit().abs()).collect();
                // A permutation, as the pairs are sorted by expert.
                let mut positions: Vec<u32> = (0..(tokens * top_k) as u32).collect();
                for i in (1..positions.len()).rev() {
                    positions.swap(i, random.below(i + 1));
                }
                let sum = random.normals(tokens * cols);
                let mut device_sum = CudaTensor::upload(gpu, cols, Precision::Full, &sum).unwrap();
                let device_weights = gpu.upload(&weights, "weights").unwrap();
                let device_positions = gpu.upload(&positions, "positions").unwrap();
                elementwise::combine(
                    gpu,
                    &pairs,
                    device_weights.all(),
                    device_positions.all(),
                    top_k,
                    &mut device_sum,
                )
                .unwrap();
                let (want, size) = combined(&values, &weights, &positions, top_k, &sum, cols);
                for (i, got) in download(gpu, &device_sum).into_iter().enumerate() {
                    let error = (f64::from(got) - want[i]).abs();
                    let what = (precision, tokens, top_k, cols);
                    assert!(error <= size[i] * 1e-6, "{what:?} {i}: {got} for {}", want[i]);
                }
            }
        }
    });
}

/// Ranks are added in order, whatever the order of the pairs: moving the pairs about moves no bit of the sum.
#[test]
fn combine_does_not_depend_on_where_pairs_stand() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    let (tokens, top_k, cols) = (3, 8, 264);
    let count = tokens * top_k;
    let values = random.normals(count * cols);
    let weights = gpu.upload(&random.normals(count), "weights").unwrap();
    let mut results = Vec::new();
    for turn in 0..3 {
        // Pair p stands at (p + turn · 5) mod count.
        let position = |p: usize| (p + turn * 5) % count;
        let mut moved = vec![0.0; count * cols];
        for (p, row) in values.chunks_exact(cols).enumerate() {
            moved[position(p) * cols..][..cols].copy_from_slice(row);
        }
        let pairs = CudaTensor::upload(gpu, cols, Precision::Full, &moved).unwrap();
        let positions: Vec<u32> = (0..count).map(|p| position(p) as u32).collect();
        let positions = gpu.upload(&positions, "positions").unwrap();
        let mut sum = CudaTensor::upload(gpu, cols, Precision::Full, &vec![1.0; tokens * cols]).unwrap();
        elementwise::combine(gpu, &pairs, weights.all(), positions.all(), top_k, &mut sum).unwrap();
        results.push(download(gpu, &sum));
    }
    assert_same("turned", &results[1], &results[0], cols);
    assert_same("turned twice", &results[2], &results[0], cols);
}

#[test]
fn combine_of_a_pair_that_is_not_there_is_nan() {
    let session = session();
    let gpu = &session.gpu;
    let pairs = CudaTensor::upload(gpu, 8, Precision::Working, &[1.0; 16]).unwrap();
    let weights = gpu.upload(&[0.5f32; 4], "weights").unwrap();
    let positions = gpu.upload(&[0u32, 1, 1, 2], "positions").unwrap();
    let mut sum = CudaTensor::upload(gpu, 8, Precision::Full, &[0.0; 16]).unwrap();
    elementwise::combine(gpu, &pairs, weights.all(), positions.all(), 2, &mut sum).unwrap();
    let want = [[1.0; 8], [f32::NAN; 8]].concat();
    assert_same("positions", &download(gpu, &sum), &want, 8);
    // No expert at all leaves the sum as it is.
    let mut sum = CudaTensor::upload(gpu, 8, Precision::Full, &[3.0; 16]).unwrap();
    elementwise::combine(gpu, &pairs, weights.slice(..0), positions.slice(..0), 0, &mut sum).unwrap();
    assert_close("no ranks", &download(gpu, &sum), &[3.0; 16], 8, 1e-9, 0.0);
}

#[test]
fn each_byte_moves_once() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    let (rows, cols, top_k) = (32, 7168, 8);
    let (table, _) = table(gpu, &mut random, rows, cols, Format::Bf16);
    let ids: Vec<u32> = (0..rows as u32).rev().collect();
    let ids = gpu.upload(&ids, "ids").unwrap();
    let (x, _) = random_tensor(gpu, &mut random, rows, cols, Precision::Working);
    let (y, _) = random_tensor(gpu, &mut random, rows, cols, Precision::Working);
    let (pairs, _) = random_tensor(gpu, &mut random, rows, cols, Precision::Working);
    let weights = gpu.upload(&vec![0.5f32; rows], "weights").unwrap();
    let mut sum = poisoned_tensor(gpu, rows, cols, Precision::Full);
    let mut out = poisoned_tensor(gpu, rows, cols, Precision::Working);
    let mut few = CudaTensor::upload(gpu, cols, Precision::Full, &vec![0.0; rows / top_k * cols]).unwrap();
    let Some(counts) = session.counted(|gpu| {
        elementwise::embed(gpu, &table, ids.all(), &mut sum).unwrap();
        elementwise::add(gpu, &x, &mut sum).unwrap();
        elementwise::copy_rows(gpu, &x, 0..rows, &mut out).unwrap();
        elementwise::swiglu(gpu, &x, &y, &mut out).unwrap();
        elementwise::combine(gpu, &pairs, weights.all(), ids.all(), top_k, &mut few).unwrap();
    }) else {
        return;
    };
    // Bytes an element of a row of the sum.
    for (kernel, rows, bytes) in [
        ("embed_f32", rows, 2 + 4),
        ("add_bf16_f32", rows, 2 + 4 + 4),
        ("copy_rows_bf16", rows, 2 + 2),
        ("swiglu", rows, 2 + 2 + 2),
        ("combine_bf16", rows / top_k, 2 * top_k + 4 + 4),
    ] {
        let counts = &counts[kernel]["counters"];
        let moved =
            counts["dram_read_bytes"].as_u64().unwrap() + counts["dram_write_bytes"].as_u64().unwrap();
        let least = (rows * cols * bytes) as u64;
        assert!(moved * 100 <= least * 105, "{kernel}: {moved} bytes, {least} at least");
        assert_eq!(counts["bank_replays"], 0, "{kernel}");
    }
}
