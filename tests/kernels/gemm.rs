//! bf16 products against sums in f64.

use abruzzi::device::cuda::kernels::{dequant, gemm};
use abruzzi::device::cuda::{Buffer, CudaMatrix, CudaTensor, Gpu};
use abruzzi::device::{Precision, Shape as _};
use abruzzi::quant::{Format, MatrixLayout, MatrixView};
use gemm::GroupedWeights;
use half::bf16;

use crate::harness::{
    Random, assert_close, download, poisoned_tensor, quick, random, random_tensor, session, some_of,
};

fn bf16s(random: &mut Random, count: usize) -> Vec<bf16> {
    (0..count).map(|_| bf16::from_f32(random.unit())).collect()
}

fn bytes(w: &[bf16]) -> Vec<u8> {
    w.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn matrix(gpu: &Gpu, w: &[bf16], rows: usize, cols: usize) -> CudaMatrix {
    let layout = MatrixLayout { format: Format::Bf16, rows, cols };
    CudaMatrix::from_parts(gpu, layout, &bytes(w), &[]).unwrap()
}

/// y[r] = w·x[r]; one row of x and k columns.
fn product(x: &[f32], w: &[f32]) -> Vec<f32> {
    let dot = |w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() as f32;
    w.chunks_exact(x.len()).map(dot).collect()
}

fn widen(w: &[bf16]) -> Vec<f32> {
    w.iter().map(|v| v.to_f32()).collect()
}

fn close(what: impl std::fmt::Debug, got: &[f32], want: &[f32], cols: usize, precision: Precision) {
    let (whole, relative) = match precision {
        Precision::Working => (1e-5, 1.0 / 256.0),
        Precision::Full => (1e-9, 1e-5),
    };
    assert_close(what, got, want, cols, whole, relative);
}

fn check_linear(gpu: &Gpu, random: &mut Random, m: usize, n: usize, k: usize, precision: Precision) {
    let (x, values) = random_tensor(gpu, random, m, k, Precision::Working);
    let w = bf16s(random, n * k);
    // A row more than is written.
    let mut out = poisoned_tensor(gpu, m + 1, n, precision);
    gemm::linear_bf16(gpu, &x, &matrix(gpu, &w, n, k), &mut out).unwrap();
    let w = widen(&w);
    let want: Vec<f32> = values.chunks_exact(k).flat_map(|x| product(x, &w)).collect();
    assert_eq!(out.rows(), m);
    close((m, n, k, precision), &download(gpu, &out), &want, n, precision);
    out.resize(m + 1);
    assert!(download(gpu, &out)[m * n..].iter().all(|v| v.is_nan()), "{m}×{n}×{k}: the row behind the last");
}

#[test]
fn linear() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for (m, n, k) in
            [(1, 8, 8), (65, 72, 200), (129, 33, 64), (64, 1, 136), (3, 300, 520), (200, 132, 1000)]
        {
            for precision in [Precision::Working, Precision::Full] {
                check_linear(gpu, &mut random, m, n, k, precision);
            }
        }
    });
}

#[test]
fn linear_with_dimensions_of_k2() {
    if quick() {
        return;
    }
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        check_linear(gpu, &mut random, 300, 576, 1536, Precision::Working);
        check_linear(gpu, &mut random, 20, 200, 7168, Precision::Full);
    });
}

/// Each of the three tile widths is the launcher's choice for one of these; in the last, blocks walk several tiles,
/// in panels.
#[test]
fn linear_in_every_width_of_tile() {
    let (session, mut random) = (session(), random());
    let cases = [
        (100, 512, 64, "gemm_bf16_n64"),
        (1200, 1000, 64, "gemm_bf16_n128"),
        (2500, 3300, 24, "gemm_bf16_n256"),
    ];
    for &(m, n, k, kernel) in some_of(&cases, 2) {
        let counts = session.counted(|gpu| check_linear(gpu, &mut random, m, n, k, Precision::Working));
        if let Some(counts) = counts {
            assert!(counts.contains_key(kernel), "{m}×{n}×{k}: {:?}", counts.keys());
        }
    }
}

/// Bytes no other row may see: not-a-number and infinity stay in their rows of x and of w.
#[test]
fn non_finite_values_stay_in_their_rows_and_columns() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        let (m, n, k) = (130, 100, 96);
        let mut x = random.normals(m * k).into_iter().map(|v| bf16::from_f32(v).to_f32()).collect::<Vec<_>>();
        let mut w = bf16s(&mut random, n * k);
        x[random.below(m * k)] = f32::NAN;
        x[random.below(m * k)] = f32::INFINITY;
        w[random.below(n * k)] = bf16::NEG_INFINITY;
        let tensor = CudaTensor::upload(gpu, k, Precision::Working, &x).unwrap();
        let mut out = poisoned_tensor(gpu, m, n, Precision::Full);
        gemm::linear_bf16(gpu, &tensor, &matrix(gpu, &w, n, k), &mut out).unwrap();
        let w = widen(&w);
        let want: Vec<f32> = x.chunks_exact(k).flat_map(|x| product(x, &w)).collect();
        close("non-finite", &download(gpu, &out), &want, n, Precision::Full);
    });
}

#[test]
fn linear_with_decoded_weights() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        let (m, n, k) = (70, 130, 256);
        let layout = MatrixLayout { format: Format::Fp8Block, rows: n, cols: k };
        // No NaN codes.
        let codes: Vec<u8> =
            (0..n * k).map(|_| (random.bits() % 0x7f) as u8 | (random.bits() as u8 & 0x80)).collect();
        let scale: Vec<u8> = [1.0f32, 0.5, 0.25, 2.0].iter().flat_map(|s| s.to_le_bytes()).collect();
        let weights = CudaMatrix::from_parts(gpu, layout, &codes, &scale).unwrap();
        let mut decoded = poisoned_tensor(gpu, n, k, Precision::Working);
        dequant::fp8_to_bf16(gpu, &weights, &mut decoded).unwrap();
        let (x, values) = random_tensor(gpu, &mut random, m, k, Precision::Working);
        let mut out = poisoned_tensor(gpu, m, n, Precision::Full);
        gemm::linear_bf16(gpu, &x, &decoded, &mut out).unwrap();
        let mut w = vec![0.0; n * k];
        for (row, out) in w.chunks_exact_mut(k).enumerate() {
            MatrixView::new(layout, &codes, &scale).decode(row, 0, out);
        }
        let want: Vec<f32> = values.chunks_exact(k).flat_map(|x| product(x, &w)).collect();
        close("decoded", &download(gpu, &out), &want, n, Precision::Full);
    });
}

/// Slots of random matrices in one buffer, with gaps of NaN between them.
struct Slots {
    memory: Buffer<u8>,
    layout: MatrixLayout,
    at: usize,
    pitch: usize,
    values: Vec<Vec<f32>>,
}

impl Slots {
    fn new(gpu: &Gpu, random: &mut Random, slots: usize, n: usize, k: usize) -> Slots {
        let layout = MatrixLayout { format: Format::Bf16, rows: n, cols: k };
        let (at, pitch) = (128, (128 + layout.weight_bytes()).next_multiple_of(128) + 256);
        let mut memory = vec![0xffu8; slots * pitch];
        let mut values = Vec::new();
        for slot in memory.chunks_exact_mut(pitch) {
            let w = bf16s(random, n * k);
            slot[at..][..layout.weight_bytes()].copy_from_slice(&bytes(&w));
            values.push(widen(&w));
        }
        Slots { memory: gpu.upload(&memory, "slots").unwrap(), layout, at, pitch, values }
    }

    fn weights(&self) -> GroupedWeights<'_> {
        GroupedWeights::new(self.memory.all(), self.layout, self.at, 0, self.values.len(), self.pitch)
    }
}

/// Rows of each group; some rows behind the last group belong to none.
fn check_grouped(gpu: &Gpu, random: &mut Random, slots: &Slots, sizes: &[usize], precision: Precision) {
    let MatrixLayout { rows: n, cols: k, .. } = slots.layout;
    let mut offsets = vec![0u32];
    for size in sizes {
        offsets.push(offsets[offsets.len() - 1] + *size as u32);
    }
    let beyond = 3;
    let total = offsets[sizes.len()] as usize;
    let slot_of: Vec<u32> = sizes.iter().map(|_| random.below(slots.values.len()) as u32).collect();
    let (x, values) = random_tensor(gpu, random, total + beyond, k, Precision::Working);
    let mut out = poisoned_tensor(gpu, total + beyond, n, precision);
    let device_slots = gpu.upload(&slot_of, "slots").unwrap();
    let device_offsets = gpu.upload(&offsets, "offsets").unwrap();
    gemm::grouped_bf16(gpu, &x, &slots.weights(), device_slots.all(), device_offsets.all(), &mut out)
        .unwrap();
    let mut want = Vec::new();
    let mut rows = values.chunks_exact(k);
    for (size, slot) in sizes.iter().zip(&slot_of) {
        for x in rows.by_ref().take(*size) {
            want.extend(product(x, &slots.values[*slot as usize]));
        }
    }
    want.resize((total + beyond) * n, f32::NAN);
    let what = (sizes.iter().filter(|&&s| s > 0).take(8).collect::<Vec<_>>(), n, k, precision);
    close(what, &download(gpu, &out), &want, n, precision);
}

#[test]
fn grouped() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        let slots = Slots::new(gpu, &mut random, 4, 72, 200);
        check_grouped(gpu, &mut random, &slots, &[1, 0, 64, 65, 0, 0, 130], Precision::Working);
        check_grouped(gpu, &mut random, &slots, &[5], Precision::Full);
        check_grouped(gpu, &mut random, &slots, &[0, 0, 257, 0], Precision::Working);
        check_grouped(gpu, &mut random, &slots, &[0, 0], Precision::Full);
        let sizes: Vec<usize> = (0..9).map(|_| random.below(70)).collect();
        check_grouped(gpu, &mut random, &slots, &sizes, Precision::Full);
    });
}

#[test]
fn grouped_with_384_mostly_empty_groups() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        let slots = Slots::new(gpu, &mut random, 9, 96, 136);
        let mut sizes = vec![0; 384];
        for _ in 0..24 {
            sizes[random.below(384)] += 1;
        }
        sizes[383] += 2;
        check_grouped(gpu, &mut random, &slots, &sizes, Precision::Working);
    });
}

/// All rows in one group, then in many: blocks walk several tiles, in panels; 1000 groups stay within the table.
#[test]
fn grouped_with_thousands_of_rows() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    let slots = Slots::new(gpu, &mut random, 3, 1000, 64);
    let mut sizes = vec![0; 384];
    sizes[17] = if quick() { 300 } else { 2500 };
    check_grouped(gpu, &mut random, &slots, &sizes, Precision::Working);
    let slots = Slots::new(gpu, &mut random, 3, 130, 64);
    let sizes: Vec<usize> = (0..1024).map(|g| if g % 3 == 0 { random.below(4) } else { 0 }).collect();
    check_grouped(gpu, &mut random, &slots, &sizes, Precision::Working);
}

#[test]
fn grouped_with_dimensions_of_k2() {
    if quick() {
        return;
    }
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        let slots = Slots::new(gpu, &mut random, 2, 136, 7168);
        check_grouped(gpu, &mut random, &slots, &[3, 9], Precision::Working);
        let slots = Slots::new(gpu, &mut random, 2, 264, 2048);
        check_grouped(gpu, &mut random, &slots, &[0, 40, 1], Precision::Working);
    });
}

#[test]
fn gathering_rows() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for cols in [8, 72, 7168, 18432] {
            let (x, values) = random_tensor(gpu, &mut random, 5, cols, Precision::Working);
            let map: Vec<u32> = (0..9).map(|_| random.below(5) as u32).collect();
            let device_map = gpu.upload(&map, "a map").unwrap();
            let mut out = poisoned_tensor(gpu, map.len(), cols, Precision::Working);
            gemm::gather_rows(gpu, &x, device_map.all(), &mut out).unwrap();
            let want: Vec<f32> =
                map.iter().flat_map(|&row| &values[row as usize * cols..][..cols]).copied().collect();
            assert_eq!(download(gpu, &out), want, "{cols} columns");
        }
    });
}

#[test]
fn gathering_and_products_read_each_byte_once() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    let (rows, cols) = (48, 7168);
    let (x, _) = random_tensor(gpu, &mut random, rows, cols, Precision::Working);
    let map: Vec<u32> = (0..rows as u32).rev().collect();
    let device_map = gpu.upload(&map, "a map").unwrap();
    let mut out = poisoned_tensor(gpu, rows, cols, Precision::Working);
    let (n, k) = (512, 1024);
    let w = matrix(gpu, &bf16s(&mut random, n * k), n, k);
    let (few, _) = random_tensor(gpu, &mut random, 16, k, Precision::Working);
    let mut product = poisoned_tensor(gpu, 16, n, Precision::Working);
    let counted = session.counted(|gpu| {
        gemm::gather_rows(gpu, &x, device_map.all(), &mut out).unwrap();
        gemm::linear_bf16(gpu, &few, &w, &mut product).unwrap();
    });
    let Some(counts) = counted else { return };
    for (kernel, least) in
        [("gather_rows", rows * cols * 4), ("gemm_bf16_n64", (n * k + 16 * k + 16 * n) * 2)]
    {
        let counts = &counts[kernel]["counters"];
        let moved =
            counts["dram_read_bytes"].as_u64().unwrap() + counts["dram_write_bytes"].as_u64().unwrap();
        assert!(moved * 100 <= least as u64 * 105, "{kernel}: {moved} bytes, {least} at least");
        assert_eq!(counts["bank_replays"], 0, "{kernel}");
    }
}
