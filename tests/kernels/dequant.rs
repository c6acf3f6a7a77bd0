//! Format conversions against plain arithmetic.

use abruzzi::device::Precision;
use abruzzi::device::cuda::kernels::dequant::{self, QuantisedTensor};
use abruzzi::device::cuda::kernels::gemm::GroupedWeights;
use abruzzi::device::cuda::{CudaMatrix, CudaTensor, Gpu};
use abruzzi::quant::{Format, MatrixLayout, MatrixView, fp8};
use half::{bf16, f16};

use crate::harness::{Random, download, poisoned_tensor, random, session};

/// A tensor with room for `rows` rows, all of its memory NaN.
fn poisoned(gpu: &Gpu, rows: usize, cols: usize) -> QuantisedTensor {
    let mut tensor = QuantisedTensor::new(gpu, rows, cols).unwrap();
    tensor.codes.all_mut().fill_bytes(gpu, 0xff).unwrap();
    tensor.scales.all_mut().fill_bytes(gpu, 0xff).unwrap();
    tensor
}

/// The code whose value is nearest, ties to the even code; NaN for NaN.
fn encode(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let x = x.clamp(-fp8::MAX, fp8::MAX);
    let distance = |code: u8| (f64::from(fp8::decode(code)) - f64::from(x.abs())).abs();
    // Values grow with codes, so the nearest is one of the two around.
    let above = (0..0x7e).find(|&code| fp8::decode(code) >= x.abs()).unwrap_or(0x7e);
    let below = above.saturating_sub(1);
    let nearest = match distance(below).total_cmp(&distance(above)) {
        std::cmp::Ordering::Less => below,
        std::cmp::Ordering::Greater => above,
        std::cmp::Ordering::Equal => below + below % 2,
    };
    nearest | if x.is_sign_negative() { 0x80 } else { 0 }
}

/// Rows of bf16 values, of every magnitude; some groups are zero, tiny, NaN or infinite in places.
fn activations(random: &mut Random, rows: usize, cols: usize) -> Vec<f32> {
    let mut values = vec![0.0; rows * cols];
    for row in values.chunks_exact_mut(cols) {
        for group in row.chunks_mut(fp8::BLOCK) {
            let magnitude = match random.below(8) {
                0 => 0.0,
                1 => 1e-38,
                2 => 1.2e-36,
                3 => 1e36,
                4 => 3e38,
                _ => 1.0,
            };
            for v in &mut *group {
                *v = bf16::from_f32(random.unit() * magnitude).to_f32();
            }
            if random.below(6) == 0 {
                let place = random.below(group.len());
                group[place] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][random.below(3)];
            }
            let place = random.below(group.len());
            group[place] *= -0.0;
        }
    }
    values
}

/// Scale and codes of one group.
fn quantise(group: &[f32]) -> (f32, Vec<u8>) {
    let least = 448.0 * f32::MIN_POSITIVE;
    let largest = group.iter().filter(|v| v.is_finite()).fold(least, |m, v| m.max(v.abs()));
    let code = |&v: &f32| encode(if v.is_finite() { v * (448.0 / largest) } else { f32::NAN });
    (largest / 448.0, group.iter().map(code).collect())
}

fn check_quantised(gpu: &Gpu, values: &[f32], map: Option<&[u32]>, cols: usize) {
    let x = CudaTensor::upload(gpu, cols, Precision::Working, values).unwrap();
    let rows = map.map_or(values.len() / cols, <[u32]>::len);
    let mut out = poisoned(gpu, rows + 5, cols);
    let device_map = map.map(|map| gpu.upload(map, "a map").unwrap());
    dequant::quantise_fp8(gpu, &x, device_map.as_ref().map(|m| m.all()), &mut out).unwrap();
    assert_eq!((out.rows, out.cols, out.row_stride % 16, out.scale_stride % 4), (rows, cols, 0, 0));
    let (codes, scales) = (out.codes.download().unwrap(), out.scales.download().unwrap());
    for row in 0..rows {
        let from = map.map_or(row, |map| map[row] as usize);
        let line = &codes[row * out.row_stride..][..out.row_stride];
        for (g, group) in values[from * cols..][..cols].chunks(fp8::BLOCK).enumerate() {
            let (scale, want) = quantise(group);
            assert_eq!(scales[g * out.scale_stride + row], scale, "scale [{row}, {g}] of {rows}×{cols}");
            for (i, (&w, &got)) in want.iter().zip(&line[g * fp8::BLOCK..]).enumerate() {
                let same = if w & 0x7f == 0x7f { got & 0x7f == 0x7f } else { got == w };
                assert!(
                    same,
                    "code [{row}, {g}·128 + {i}] of {rows}×{cols}: {got:#x} for {w:#x}, {}",
                    group[i]
                );
            }
        }
        assert!(line[cols..].iter().all(|&code| code == 0), "padding of row {row}");
    }
    assert!(codes[rows * out.row_stride..].iter().all(|&code| code == 0xff), "rows that are not in use");
    for group in scales.chunks_exact(out.scale_stride) {
        assert!(group[..rows.next_multiple_of(4)].iter().all(|s| s.is_normal()), "a scale");
        assert!(group[rows.next_multiple_of(4)..].iter().all(|s| s.is_nan()), "scales that are not in use");
    }
}

#[test]
fn activations_to_fp8() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for (rows, cols) in [(1, 8), (3, 7), (4, 128), (7, 200), (2, 576), (5, 1536), (3, 2048), (2, 7168)] {
            let values = activations(&mut random, rows, cols);
            check_quantised(gpu, &values, None, cols);
        }
    });
}

#[test]
fn activations_to_fp8_gathered() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        let (tokens, cols) = (6, 7168);
        let values = activations(&mut random, tokens, cols);
        let map: Vec<u32> = (0..13).map(|_| random.below(tokens) as u32).collect();
        check_quantised(gpu, &values, Some(&map), cols);
        check_quantised(gpu, &values, Some(&[]), cols);
    });
}

#[test]
fn every_bf16_value_to_fp8() {
    let session = session();
    // Each group holds 448, so that where values are no larger the scale is 1 and codes are rounded values.
    let mut values = Vec::new();
    for bits in 0..=u16::MAX {
        if values.len() % 128 == 0 {
            values.push(448.0);
        }
        values.push(bf16::from_bits(bits).to_f32());
    }
    values.resize(values.len().next_multiple_of(128), 0.0);
    session.fast(|gpu| check_quantised(gpu, &values, None, 128));
}

/// Asserts that a kernel moved at most 1.05 of `least` bytes, without conflicts in shared memory.
fn assert_moves(counts: &serde_json::Map<String, serde_json::Value>, kernel: &str, least: usize) {
    let counts = &counts[kernel]["counters"];
    let moved = counts["dram_read_bytes"].as_u64().unwrap() + counts["dram_write_bytes"].as_u64().unwrap();
    assert!(moved * 100 <= least as u64 * 105, "{kernel}: {moved} bytes, {least} at least");
    assert_eq!(counts["bank_replays"], 0);
}

#[test]
fn quantising_reads_and_writes_each_byte_once() {
    let (session, mut random) = (session(), random());
    let (rows, cols) = (64, 7168);
    let values = random.normals(rows * cols);
    let x = CudaTensor::upload(&session.gpu, cols, Precision::Working, &values).unwrap();
    let mut out = poisoned(&session.gpu, rows, cols);
    let counted = session.counted(|gpu| dequant::quantise_fp8(gpu, &x, None, &mut out).unwrap());
    if let Some(counts) = counted {
        assert_moves(&counts, "quantise_fp8", rows * cols * 3 + rows * cols / 32);
    }
}

/// Fresh weights: every code is as likely as another, NaN codes included; scales by `scale`.
fn weights(
    random: &mut Random,
    layout: MatrixLayout,
    scale: impl Fn(&mut Random) -> f32,
) -> (Vec<u8>, Vec<u8>) {
    let weight = (0..layout.weight_bytes()).map(|_| random.bits() as u8).collect();
    let [r, c] = layout.scale_shape().unwrap();
    let mut bytes = Vec::new();
    for _ in 0..r * c {
        match layout.format {
            Format::Int4Group32 => bytes.extend(bf16::from_f32(scale(random)).to_le_bytes()),
            _ => bytes.extend(scale(random).to_le_bytes()),
        }
    }
    (weight, bytes)
}

/// Every element by the formats' own decoder.
fn decoded(layout: MatrixLayout, weight: &[u8], scale: &[u8]) -> Vec<f32> {
    let view = MatrixView::new(layout, weight, scale);
    let mut all = vec![0.0; layout.rows * layout.cols];
    for (row, out) in all.chunks_exact_mut(layout.cols).enumerate() {
        view.decode(row, 0, out);
    }
    all
}

/// Bit for bit, except that any NaN is as good as another.
fn assert_same(what: impl std::fmt::Debug, got: &[f32], want: impl Iterator<Item = f32>, cols: usize) {
    let mut count = 0;
    for (i, want) in want.enumerate() {
        let same = if want.is_nan() { got[i].is_nan() } else { got[i].to_bits() == want.to_bits() };
        assert!(same, "{what:?} [{}, {}]: {} for {want}", i / cols, i % cols, got[i]);
        count += 1;
    }
    assert_eq!(got.len(), count, "{what:?}");
}

fn check_bf16(gpu: &Gpu, random: &mut Random, layout: MatrixLayout, scale: impl Fn(&mut Random) -> f32) {
    let (weight, scale) = weights(random, layout, scale);
    let matrix = CudaMatrix::from_parts(gpu, layout, &weight, &scale).unwrap();
    let mut out = poisoned_tensor(gpu, layout.rows + 1, layout.cols, Precision::Working);
    match layout.format {
        Format::Fp8Block => dequant::fp8_to_bf16(gpu, &matrix, &mut out).unwrap(),
        _ => dequant::int4_to_bf16(gpu, &matrix, &mut out).unwrap(),
    }
    let want = decoded(layout, &weight, &scale).into_iter().map(|v| bf16::from_f32(v).to_f32());
    assert_same(layout, &download(gpu, &out), want, layout.cols);
    out.resize(layout.rows + 1);
    let beyond = &download(gpu, &out)[layout.rows * layout.cols..];
    assert!(beyond.iter().all(|v| v.is_nan()), "{layout:?}: the row behind the last");
}

#[test]
fn fp8_weights_to_bf16() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for (rows, cols) in
            [(1, 1), (5, 7), (130, 200), (131, 272), (3, 16), (576, 256), (129, 7168), (300, 512)]
        {
            let layout = MatrixLayout { format: Format::Fp8Block, rows, cols };
            check_bf16(gpu, &mut random, layout, |random| random.normal());
        }
    });
}

#[test]
fn int4_weights_to_bf16() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for (rows, cols) in [(1, 1), (5, 7), (9, 72), (131, 96), (3, 32), (33, 7168), (70, 2048)] {
            let layout = MatrixLayout { format: Format::Int4Group32, rows, cols };
            check_bf16(gpu, &mut random, layout, |random| random.normal());
        }
    });
}

#[test]
fn scales_of_every_magnitude() {
    let (session, mut random) = (session(), random());
    for format in [Format::Fp8Block, Format::Int4Group32] {
        let layout = MatrixLayout { format, rows: 300, cols: 1024 };
        check_bf16(&session.gpu, &mut random, layout, |random| f32::from_bits(random.bits()));
    }
}

#[test]
fn fp8_weights_to_fp16_saturate_and_say_so() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for (rows, cols) in [(5, 7), (130, 200), (131, 272), (576, 256), (9, 7168)] {
            let layout = MatrixLayout { format: Format::Fp8Block, rows, cols };
            // 256 · 255.9375 rounds to 65520, the least that fp16 rounds to infinity.
            let scales = [1.0, -3e-4, 146.0, 200.0, 1e6, 255.9375, f32::INFINITY, f32::NAN];
            let (weight, scale) = weights(&mut random, layout, |random| scales[random.below(scales.len())]);
            let matrix = CudaMatrix::from_parts(gpu, layout, &weight, &scale).unwrap();
            let stride = cols.next_multiple_of(8);
            let mut out = gpu.upload(&vec![0xffffu16; (rows + 1) * stride], "fp16 weights").unwrap();
            let mut saturated = gpu.upload(&[7u32, 99], "a counter").unwrap();
            dequant::fp8_to_f16(gpu, &matrix, &mut out.all_mut(), &mut saturated.all_mut()).unwrap();
            let exact = decoded(layout, &weight, &scale);
            let beyond = exact.iter().filter(|v| f16::from_f32(**v).is_infinite()).count() as u32;
            let want = exact.into_iter().map(|v| match f16::from_f32(v).to_f32() {
                f32::INFINITY => 65504.0,
                f32::NEG_INFINITY => -65504.0,
                v => v,
            });
            let halves = out.download().unwrap();
            let got: Vec<f32> = halves[..rows * stride]
                .chunks_exact(stride)
                .flat_map(|row| row[..cols].iter().map(|&bits| f16::from_bits(bits).to_f32()))
                .collect();
            assert_same(layout, &got, want, cols);
            assert!(halves[rows * stride..].iter().all(|&bits| bits == 0xffff), "the row behind the last");
            assert_eq!(saturated.download().unwrap(), [7 + beyond, 99], "{rows}×{cols}");
        }
    });
}

#[test]
fn slots_to_bf16() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for format in [Format::Fp8Block, Format::Int4Group32] {
            let layout = MatrixLayout { format, rows: 200, cols: 288 };
            let (weight_at, scale_at, pitch, slots) = (64, 72064, 90112, 5);
            let mut memory = vec![0xffu8; slots * pitch];
            let mut want = Vec::new();
            for slot in memory.chunks_exact_mut(pitch) {
                let (weight, scale) = weights(&mut random, layout, |random| random.normal());
                slot[weight_at..][..weight.len()].copy_from_slice(&weight);
                slot[scale_at..][..scale.len()].copy_from_slice(&scale);
                want.push(decoded(layout, &weight, &scale));
            }
            let memory = gpu.upload(&memory, "slots").unwrap();
            let weights = GroupedWeights::new(memory.all(), layout, weight_at, scale_at, slots, pitch);
            let list = [3u32, 0, 4, 3];
            let each = dequant::dequantised_layout(layout).weight_bytes();
            let mut out = gpu.upload(&vec![0xffu8; list.len() * each], "bf16 matrices").unwrap();
            let device_list = gpu.upload(&list, "a list").unwrap();
            dequant::slots_to_bf16(gpu, &weights, device_list.all(), &mut out.all_mut()).unwrap();
            for (slot, bytes) in list.iter().zip(out.download().unwrap().chunks_exact(each)) {
                let got: Vec<f32> =
                    bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
                let want = want[*slot as usize].iter().map(|v| bf16::from_f32(*v).to_f32());
                assert_same((format, slot), &got, want, layout.cols);
            }
        }
    });
}

#[test]
fn dequantising_reads_and_writes_each_byte_once() {
    let (session, mut random) = (session(), random());
    for (format, kernel) in [(Format::Fp8Block, "fp8_to_bf16"), (Format::Int4Group32, "int4_to_bf16")] {
        let layout = MatrixLayout { format, rows: 256, cols: 2048 };
        let (weight, scale) = weights(&mut random, layout, |random| random.normal());
        let matrix = CudaMatrix::from_parts(&session.gpu, layout, &weight, &scale).unwrap();
        let mut out = poisoned_tensor(&session.gpu, layout.rows, layout.cols, Precision::Working);
        let counted = session.counted(|gpu| match format {
            Format::Fp8Block => dequant::fp8_to_bf16(gpu, &matrix, &mut out).unwrap(),
            _ => dequant::int4_to_bf16(gpu, &matrix, &mut out).unwrap(),
        });
        if let Some(counts) = counted {
            assert_moves(&counts, kernel, weight.len() + scale.len() + layout.rows * layout.cols * 2);
        }
    }
}
