//! Linear layers for few tokens, in every weight format.

use abruzzi::device::cuda::kernels::gemv;
use abruzzi::device::cuda::{CudaMatrix, CudaTensor, Gpu};
use abruzzi::device::{Precision, Shape as _};
use abruzzi::quant::{Format, MatrixLayout, MatrixView};
use half::{bf16, f16};

use crate::harness::{Random, assert_close, download, poisoned_tensor, quick, random, session, some_of};

pub const FORMATS: [Format; 5] =
    [Format::F32, Format::F16, Format::Bf16, Format::Fp8Block, Format::Int4Group32];

/// A matrix as a checkpoint has it: finite weights of about unit size.
pub struct HostWeights {
    pub layout: MatrixLayout,
    pub weight: Vec<u8>,
    pub scale: Vec<u8>,
}

impl HostWeights {
    pub fn random(random: &mut Random, format: Format, rows: usize, cols: usize) -> HostWeights {
        let layout = MatrixLayout { format, rows, cols };
        let count = rows * cols;
        let weight = match format {
            Format::F32 => (0..count).flat_map(|_| random.unit().to_le_bytes()).collect(),
            Format::F16 => (0..count).flat_map(|_| f16::from_f32(random.unit()).to_le_bytes()).collect(),
            Format::Bf16 => (0..count).flat_map(|_| bf16::from_f32(random.unit()).to_le_bytes()).collect(),
            // No NaN, which are 0x7f and 0xff.
            Format::Fp8Block => (0..count).map(|_| finite(random.bits() as u8)).collect(),
            Format::Int4Group32 => (0..layout.weight_bytes()).map(|_| random.bits() as u8).collect(),
        };
        let scales = layout.scale_bytes() / if format == Format::Int4Group32 { 2 } else { 4 };
        let scale = match format {
            Format::Int4Group32 => {
                (0..scales).flat_map(|_| bf16::from_f32(random.unit() / 8.0).to_le_bytes()).collect()
            }
            _ => (0..scales).flat_map(|_| (random.unit() / 256.0).to_le_bytes()).collect(),
        };
        HostWeights { layout, weight, scale }
    }

    pub fn upload(&self, gpu: &Gpu) -> CudaMatrix {
        CudaMatrix::from_parts(gpu, self.layout, &self.weight, &self.scale).unwrap()
    }

    /// W·x for every row of x [.., cols], in f64.
    pub fn multiply(&self, x: &[f32]) -> Vec<f64> {
        let MatrixLayout { rows, cols, .. } = self.layout;
        let view = MatrixView::new(self.layout, &self.weight, &self.scale);
        let (mut out, mut w) = (vec![0.0; x.len() / cols * rows], vec![0.0f32; cols]);
        for row in 0..rows {
            view.decode(row, 0, &mut w);
            for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(rows)) {
                out[row] = x.iter().zip(&w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
            }
        }
        out
    }
}

fn finite(code: u8) -> u8 {
    if code & 0x7f == 0x7f { code - 1 } else { code }
}

/// A bf16 tensor of these rows in memory that is NaN everywhere else: in the padding of rows and in rows beyond.
pub fn tensor_in_poison(gpu: &Gpu, cols: usize, values: &[f32]) -> CudaTensor {
    let rows = values.len() / cols;
    let mut tensor = CudaTensor::new(gpu, rows + 3, cols, Precision::Working).unwrap();
    tensor.resize(rows);
    let mut host = vec![0xffu8; (rows + 3) * tensor.stride() * 2];
    for (row, bytes) in values.chunks_exact(cols).zip(host.chunks_exact_mut(tensor.stride() * 2)) {
        for (v, b) in row.iter().zip(bytes.chunks_exact_mut(2)) {
            b.copy_from_slice(&bf16::from_f32(*v).to_le_bytes());
        }
    }
    tensor.memory_mut().all_mut().write(gpu, &host).unwrap();
    tensor
}

/// About normal values that bf16 holds exactly.
pub fn bf16_values(random: &mut Random, count: usize) -> Vec<f32> {
    random.normals(count).into_iter().map(|v| bf16::from_f32(v).to_f32()).collect()
}

pub fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

/// Runs `linear`; checks that nothing beside the result is written.
fn run(gpu: &Gpu, x: &CudaTensor, w: &CudaMatrix, precision: Precision) -> Vec<f32> {
    let (rows, cols) = (x.rows(), w.layout().rows);
    let mut out = poisoned_tensor(gpu, rows + 1, cols, precision);
    gemv::linear(gpu, x, w, &mut out).unwrap();
    assert_eq!(out.rows(), rows);
    let element = if precision == Precision::Full { 4 } else { 2 };
    let pitch = out.stride() * element;
    let memory = out.memory_mut().download().unwrap();
    for (row, bytes) in memory.chunks_exact(pitch).enumerate() {
        let beyond = if row < rows { cols * element } else { 0 };
        assert!(bytes[beyond..].iter().all(|&b| b == 0xff), "written beyond row {row} of {rows} × {cols}");
    }
    download(gpu, &out)
}

fn check(gpu: &Gpu, random: &mut Random, w: &HostWeights, tokens: usize, precision: Precision) {
    let MatrixLayout { rows, cols, .. } = w.layout;
    let x = bf16_values(random, tokens * cols);
    let got = run(gpu, &tensor_in_poison(gpu, cols, &x), &w.upload(gpu), precision);
    let (whole, relative) = match precision {
        Precision::Full => (1e-9, 1e-5),
        Precision::Working => (1e-4, 1.0 / 256.0),
    };
    assert_close((w.layout, tokens), &got, &narrow(&w.multiply(&x)), rows, whole, relative);
}

#[test]
fn linear_of_any_shape_in_every_format() {
    let (session, mut random) = (session(), random());
    // Each schedule takes other pairs of shape and tokens; five of them meet nearly all.
    let mut turn = (0..7).cycle();
    session.every_schedule(|gpu| {
        for format in FORMATS {
            for (rows, cols) in [(1, 1), (3, 7), (33, 136), (200, 272), (65, 1000), (130, 96)] {
                let w = HostWeights::random(&mut random, format, rows, cols);
                for turn in turn.by_ref().take(2) {
                    let precision = if turn % 2 == 0 { Precision::Full } else { Precision::Working };
                    check(gpu, &mut random, &w, [0, 1, 40, 2, 17, 5, 16][turn], precision);
                }
            }
        }
        turn.next();
    });
}

/// Blocks of several groups: long rows for several tokens. Some have fewer spans than groups, or no whole pieces.
#[test]
fn linear_in_wide_blocks() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for format in FORMATS {
            for (rows, cols, tokens) in [(70, 2048, 8), (3, 1501, 16), (65, 4096, 11), (100, 2500, 21)] {
                let w = HostWeights::random(&mut random, format, rows, cols);
                check(gpu, &mut random, &w, tokens, Precision::Full);
            }
        }
    });
}

#[test]
fn linear_at_the_sizes_of_k2() {
    if quick() {
        return;
    }
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    // Router, kv_a, a slice of o_proj, of an expert's down, of the dense layer's down.
    for (format, rows, cols) in [
        (Format::Bf16, 384, 7168),
        (Format::F32, 384, 7168),
        (Format::Fp8Block, 576, 7168),
        (Format::F16, 100, 7168),
        (Format::Int4Group32, 192, 8192),
        (Format::Int4Group32, 96, 2048),
        (Format::Fp8Block, 96, 2048),
        (Format::Fp8Block, 64, 18432),
        (Format::Bf16, 30, 18432),
    ] {
        let w = HostWeights::random(&mut random, format, rows, cols);
        for tokens in [1, 8, 19] {
            check(gpu, &mut random, &w, tokens, Precision::Full);
        }
    }
}

#[test]
fn linear_gives_the_same_bits_in_every_schedule() {
    let (session, mut random) = (session(), random());
    // Both split among blocks, so that who arrives last differs.
    for (format, rows, cols) in [(Format::Bf16, 100, 7168), (Format::Fp8Block, 130, 4096)] {
        let w = HostWeights::random(&mut random, format, rows, cols);
        let x = bf16_values(&mut random, 11 * cols);
        let want = narrow(&w.multiply(&x));
        let mut first: Option<Vec<f32>> = None;
        session.every_schedule(|gpu| {
            let (x, w) = (tensor_in_poison(gpu, cols, &x), w.upload(gpu));
            for _ in 0..2 {
                let got = run(gpu, &x, &w, Precision::Full);
                assert_close((format, rows, cols), &got, &want, rows, 1e-9, 1e-5);
                let first = first.get_or_insert_with(|| got.clone());
                assert!(got.iter().zip(first).all(|(a, b)| a.to_bits() == b.to_bits()), "bits differ");
            }
        });
    }
}

/// NaN, infinities and zeros reach the rows and tokens they belong to, and no other.
#[test]
fn linear_keeps_what_is_not_finite_in_its_place() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    let (rows, cols, tokens) = (150, 400, 10);
    for format in FORMATS {
        let mut w = HostWeights::random(&mut random, format, rows, cols);
        let row_bytes = w.layout.row_bytes();
        // NaN at row 17, column 399 of the formats that have it, −∞ at row 40, column 0; −0 at row 3.
        let place = |row: usize, col: usize, element: usize| row * row_bytes + col * element;
        match format {
            Format::F32 => {
                w.weight[place(17, 399, 4)..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
                w.weight[place(40, 0, 4)..][..4].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
                w.weight[place(3, 5, 4)..][..4].copy_from_slice(&(-0.0f32).to_le_bytes());
            }
            Format::F16 => {
                w.weight[place(17, 399, 2)..][..2].copy_from_slice(&f16::NAN.to_le_bytes());
                w.weight[place(40, 0, 2)..][..2].copy_from_slice(&f16::NEG_INFINITY.to_le_bytes());
                w.weight[place(3, 5, 2)..][..2].copy_from_slice(&f16::MIN_POSITIVE_SUBNORMAL.to_le_bytes());
            }
            Format::Bf16 => {
                w.weight[place(17, 399, 2)..][..2].copy_from_slice(&bf16::NAN.to_le_bytes());
                w.weight[place(40, 0, 2)..][..2].copy_from_slice(&bf16::NEG_INFINITY.to_le_bytes());
                w.weight[place(3, 5, 2)..][..2].copy_from_slice(&bf16::NEG_ZERO.to_le_bytes());
            }
            Format::Fp8Block => {
                w.weight[place(17, 399, 1)] = 0x7f;
                w.weight[place(40, 0, 1)] = 0xff;
            }
            Format::Int4Group32 => {
                let groups = cols.div_ceil(32);
                w.scale[(17 * groups + 12) * 2..][..2].copy_from_slice(&bf16::NAN.to_le_bytes());
                w.scale[(40 * groups) * 2..][..2].copy_from_slice(&bf16::INFINITY.to_le_bytes());
            }
        }
        // Token 4 has a NaN, token 7 an infinity. Values are never 0, so that ∞ · w is no NaN by chance of a zero.
        let mut x = bf16_values(&mut random, tokens * cols);
        x[4 * cols + 200] = f32::NAN;
        x[7 * cols + 399] = f32::INFINITY;
        let got = run(gpu, &tensor_in_poison(gpu, cols, &x), &w.upload(gpu), Precision::Full);
        let want = w.multiply(&x);
        for token in 0..tokens {
            for row in 0..rows {
                let (g, e) = (got[token * rows + row], want[token * rows + row]);
                let what = format!("{format:?}, token {token}, row {row}: {g} for {e}");
                if token == 4 || row == 17 {
                    assert!(g.is_nan(), "{what}");
                } else if token == 7 || row == 40 {
                    assert!(!g.is_finite() && !e.is_finite(), "{what}");
                } else {
                    assert!((f64::from(g) - e).abs() < 1e-3, "{what}");
                }
            }
        }
    }
}

/// An infinite block scale spoils its 128 rows and no other.
#[test]
fn linear_keeps_an_infinite_block_scale_in_its_rows() {
    let (session, mut random) = (session(), random());
    let (rows, cols) = (300, 272);
    let mut w = HostWeights::random(&mut random, Format::Fp8Block, rows, cols);
    // Block (1, 2): rows 128 to 255, of the last 16 columns.
    w.scale[(3 + 2) * 4..][..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let x = bf16_values(&mut random, cols);
    let got = run(
        &session.gpu,
        &tensor_in_poison(&session.gpu, cols, &x),
        &w.upload(&session.gpu),
        Precision::Full,
    );
    for (row, (g, e)) in got.iter().zip(w.multiply(&x)).enumerate() {
        if row / 128 == 1 {
            assert!(!g.is_finite(), "row {row}: {g}");
        } else {
            assert!((f64::from(*g) - e).abs() < 1e-3, "row {row}: {g} for {e}");
        }
    }
}

/// Every one of the 256 FP8 codes and 16 INT4 codes, at every place of a chunk.
#[test]
fn linear_decodes_every_code_exactly() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    // x picks one column a token, so that out[token, row] is the weight itself.
    let (rows, cols) = (256, 128);
    let mut x = vec![0.0; 16 * cols];
    for (format, first) in [(Format::Fp8Block, 0), (Format::Fp8Block, 112), (Format::Int4Group32, 16)] {
        let mut w = HostWeights::random(&mut random, format, rows, cols);
        w.scale.clear();
        match format {
            Format::Fp8Block => {
                for (i, code) in w.weight.iter_mut().enumerate() {
                    // No NaN: 0 · NaN would spoil the row.
                    *code = finite((i / cols + i % cols * 17) as u8);
                }
                w.scale.extend([2.0f32, 0.5].iter().flat_map(|s| s.to_le_bytes()));
            }
            _ => {
                for (i, byte) in w.weight.iter_mut().enumerate() {
                    *byte = (i / (cols / 2)) as u8 ^ (i as u8).wrapping_mul(37);
                }
                w.scale
                    .extend((0..rows * 4).flat_map(|i| bf16::from_f32(0.5 + i as f32 % 4.0).to_le_bytes()));
            }
        }
        x.fill(0.0);
        for token in 0..16 {
            x[token * cols + first + token] = 1.0;
        }
        let got = run(gpu, &tensor_in_poison(gpu, cols, &x), &w.upload(gpu), Precision::Full);
        assert_eq!(got, narrow(&w.multiply(&x)), "{format:?}");
    }
}

/// Weights cross the memory interface once, and the main loop meets no bank conflict.
#[test]
fn linear_reads_each_weight_once() {
    let (session, mut random) = (session(), random());
    for (format, kernel) in [
        (Format::Fp8Block, "linear_fp8"),
        (Format::Int4Group32, "linear_int4"),
        (Format::Bf16, "linear_bf16"),
        (Format::F16, "linear_f16"),
        (Format::F32, "linear_f32"),
    ] {
        // Split among 14 blocks for one token; whole rows for 16.
        for &(tokens, rows, cols) in some_of(&[(1, 512, 7168), (16, 12800, 512)], 1) {
            let w = HostWeights::random(&mut random, format, rows, cols);
            let (x, matrix) = (
                tensor_in_poison(&session.gpu, cols, &bf16_values(&mut random, tokens * cols)),
                w.upload(&session.gpu),
            );
            let mut out = poisoned_tensor(&session.gpu, tokens, rows, Precision::Working);
            let Some(counts) = session.counted(|gpu| gemv::linear(gpu, &x, &matrix, &mut out).unwrap())
            else {
                return;
            };
            let name = format!("{kernel}_{}", if tokens <= 8 { 8 } else { 16 });
            let counts = &counts[&name]["counters"];
            let moved =
                counts["dram_read_bytes"].as_u64().unwrap() + counts["dram_write_bytes"].as_u64().unwrap();
            let least = (w.weight.len() + w.scale.len() + tokens * (rows + cols) * 2) as u64;
            assert!(moved * 100 <= least * 105, "{name}: {moved} bytes, {least} at least");
            assert_eq!(counts["bank_replays"], 0, "{name}");
        }
    }
}
