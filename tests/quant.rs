//! Encoding and decoding belong together: what was decoded once is given back, and nothing else is accepted. Python's
//! compressed-tensors reads our INT4 as we do.

mod common;

use std::collections::BTreeMap;

use abruzzi::quant::{Encoded, Format, MatrixLayout, MatrixView};
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// What a file holds of a matrix.
#[derive(Debug, PartialEq)]
struct Stored {
    weight: Vec<u8>,
    scale: Vec<u8>,
}

fn encode(layout: MatrixLayout, values: &[f32], kept: Option<&[u8]>) -> (Stored, Encoded) {
    // What is not written shows.
    let mut stored =
        Stored { weight: vec![0xee; layout.weight_bytes()], scale: vec![0xee; layout.scale_bytes()] };
    let encoded = layout.encode(0, values, kept, &mut stored.weight, &mut stored.scale).unwrap();
    (stored, encoded)
}

fn decode(layout: MatrixLayout, stored: &Stored) -> Vec<f32> {
    let view = MatrixView::new(layout, &stored.weight, &stored.scale);
    let mut values = vec![0.0; layout.rows * layout.cols];
    for (r, row) in values.chunks_mut(layout.cols).enumerate() {
        view.decode(r, 0, row);
    }
    values
}

fn uniform(seed: u64) -> impl FnMut() -> f32 {
    use rand_core::Rng;
    let mut rng = rand_pcg::Pcg64Mcg::new(u128::from(seed) | 1);
    move || (rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0
}

/// A random matrix as a file might hold it: any code that is a number, any scale.
fn random(layout: MatrixLayout, seed: u64) -> Stored {
    use rand_core::Rng;
    let mut rng = rand_pcg::Pcg64Mcg::new(u128::from(seed) | 1);
    let mut weight = vec![0; layout.weight_bytes()];
    rng.fill_bytes(&mut weight);
    let mut scale = vec![0; layout.scale_bytes()];
    let mut number = || f32::from_bits(rng.next_u32() % (40 << 23) + (80 << 23));
    if layout.format == Format::Fp8Block {
        weight.iter_mut().filter(|code| **code & 0x7f == 0x7f).for_each(|code| *code ^= 0x10);
        scale.as_chunks_mut().0.iter_mut().for_each(|raw| *raw = number().to_le_bytes());
    } else {
        scale.as_chunks_mut().0.iter_mut().for_each(|raw| *raw = bf16::from_f32(number()).to_le_bytes());
        // Words beyond the last column are zero in what is encoded.
        let there = layout.cols % 8;
        for row in weight.chunks_mut(layout.row_bytes()).filter(|_| there != 0) {
            let last = row.last_chunk_mut::<4>().unwrap();
            *last = (u32::from_le_bytes(*last) & (u32::MAX >> (32 - 4 * there))).to_le_bytes();
        }
    }
    Stored { weight, scale }
}

fn blocks(layout: MatrixLayout) -> u64 {
    layout.scale_shape().map_or(0, |[r, c]| (r * c) as u64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_quantised_matrix_returns_from_bf16_bit_by_bit(rows in 1usize..300, cols in 1usize..300, seed: u64) {
        for format in [Format::Fp8Block, Format::Int4Group32] {
            let layout = MatrixLayout { format, rows, cols };
            let before = random(layout, seed);
            let exact = decode(layout, &before);
            let rounded: Vec<f32> = exact.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
            for values in [exact, rounded] {
                let (after, encoded) = encode(layout, &values, Some(&before.scale));
                prop_assert_eq!((encoded.kept_scales, encoded.fresh_scales), (blocks(layout), 0));
                prop_assert!(after == before, "{:?}", layout);
            }
        }
    }

    #[test]
    fn a_value_that_is_another_has_a_fresh_scale_in_its_block_alone(
        rows in 1usize..300, cols in 2usize..300, seed: u64, at: prop::sample::Index,
    ) {
        for format in [Format::Fp8Block, Format::Int4Group32] {
            let layout = MatrixLayout { format, rows, cols };
            let before = random(layout, seed);
            let mut values = decode(layout, &before);
            let at = at.index(values.len());
            // Larger than any code under that scale.
            values[at] = values[at].abs().max(1.0) * 1e6;
            let (after, encoded) = encode(layout, &values, Some(&before.scale));
            prop_assert_eq!((encoded.kept_scales, encoded.fresh_scales), (blocks(layout) - 1, 1));
            let different = after.scale.iter().zip(&before.scale).filter(|(a, b)| a != b).count();
            prop_assert!((1..=4).contains(&different), "{different} bytes of scales");
            let got = decode(layout, &after)[at];
            prop_assert!((got / values[at] - 1.0).abs() < 0.08, "{got} for {}", values[at]);
        }
    }

    #[test]
    fn plain_formats_give_back_what_they_can_hold(rows in 1usize..20, cols in 1usize..80, seed: u64) {
        for format in [Format::F32, Format::F16, Format::Bf16] {
            let layout = MatrixLayout { format, rows, cols };
            let before = random(MatrixLayout { format: Format::Fp8Block, ..layout }, seed);
            let values = decode(MatrixLayout { format: Format::Fp8Block, ..layout }, &before);
            let values: Vec<f32> = values.iter().map(|&v| match format {
                Format::F16 => f16::from_f32(v).to_f32(),
                Format::Bf16 => bf16::from_f32(v).to_f32(),
                _ => v,
            }).collect();
            prop_assume!(values.iter().all(|v| v.is_finite()));
            let (stored, encoded) = encode(layout, &values, None);
            prop_assert_eq!(encoded, Encoded::default());
            let same = decode(layout, &stored).iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits());
            prop_assert!(same, "{:?}", format);
        }
    }

    #[test]
    fn fp8_is_the_nearest_code_under_the_scale_of_its_block(rows in 1usize..200, cols in 1usize..300, seed: u64) {
        let layout = MatrixLayout { format: Format::Fp8Block, rows, cols };
        let values = decode(layout, &random(layout, seed));
        let (stored, _) = encode(layout, &values, None);
        let decoded = decode(layout, &stored);
        for (i, (&value, &got)) in values.iter().zip(&decoded).enumerate() {
            let block = i / cols / 128 * cols.div_ceil(128) + i % cols / 128;
            let scale = f32::from_le_bytes(stored.scale.as_chunks().0[block]);
            // Half of the last place: 2^-4 of a normal number, 2^-10 scales of a subnormal one.
            let bound = (value.abs() / 16.0).max(scale * 2f32.powi(-10)) * 1.000001;
            prop_assert!((got - value).abs() <= bound, "[{}, {}]: {got} for {value}", i / cols, i % cols);
        }
    }
}

#[test]
fn scales_that_cannot_be_scales_are_not_kept() {
    for format in [Format::Fp8Block, Format::Int4Group32] {
        let layout = MatrixLayout { format, rows: 1, cols: 32 };
        for bad in [0.0, -0.0, f32::NAN, f32::INFINITY, f32::from_bits(0x10_0000)] {
            let kept = match format {
                Format::Fp8Block => bad.to_le_bytes().to_vec(),
                _ => bf16::from_f32(bad).to_le_bytes().to_vec(),
            };
            let values: Vec<f32> = (0..32).map(|i| i as f32 - 16.0).collect();
            for values in [values, vec![0.0; 32]] {
                let (stored, encoded) = encode(layout, &values, Some(&kept));
                assert_eq!((encoded.kept_scales, encoded.fresh_scales), (0, 1), "{format:?} {bad}");
                assert!(stored == encode(layout, &values, None).0, "{format:?} {bad}");
            }
        }
    }
}

#[test]
fn bf16_below_the_normal_numbers_cannot_tell_codes_apart_and_still_gives_back_values() {
    let layout = MatrixLayout { format: Format::Fp8Block, rows: 1, cols: 64 };
    let before = Stored { weight: (0..64).collect(), scale: 2f32.powi(-126).to_le_bytes().to_vec() };
    let values: Vec<f32> = decode(layout, &before).iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
    let (after, _) = encode(layout, &values, Some(&before.scale));
    assert_ne!(after.weight, before.weight);
    let again: Vec<f32> = decode(layout, &after).iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
    assert_eq!(again, values);
}

#[test]
#[should_panic(expected = "begins no block")]
fn rows_that_begin_inside_a_block_of_scales_are_refused() {
    let layout = MatrixLayout { format: Format::Fp8Block, rows: 256, cols: 1 };
    let _ = layout.encode(1, &[1.0; 255], None, &mut [0; 255], &mut [0; 8]);
}

/// The matrices of tests/fixtures/int4: names, sizes, values.
fn int4_cases() -> Vec<(&'static str, MatrixLayout, Vec<f32>)> {
    let layout = |rows, cols| MatrixLayout { format: Format::Int4Group32, rows, cols };
    let mut random = uniform(11);
    let mut normal = || (0..12).map(|_| random()).sum::<f32>() / 40.0;
    // Every code in every place of a word, under many scales.
    let codes = (0..64 * 64).map(|i| ((i * 5 + i / 64 * 3) % 16 - 8) as f32 * (1.0 + (i / 64) as f32 / 64.0));
    let mut extremes = vec![0.0; 6 * 32];
    extremes[32] = -0.0;
    extremes[64..96].fill(f32::from_bits(1));
    extremes[96] = f32::MAX;
    extremes[97] = f32::MIN;
    extremes[128..160].fill(-1e-37);
    extremes[160] = 1.0;
    extremes[161] = -1e-30;
    vec![
        ("codes", layout(64, 64), codes.collect()),
        ("extremes", layout(2, 96), extremes),
        ("normal", layout(48, 192), (0..48 * 192).map(|_| normal()).collect()),
        // Three groups, the last of 11 columns in words of 8 and 3.
        ("ragged", layout(7, 75), (0..7 * 75).map(|_| normal()).collect()),
    ]
}

/// The INT4 cases as a checkpoint file, in the tensors of Kimi-K2-Thinking.
fn int4_file() -> Vec<u8> {
    let mut tensors = BTreeMap::new();
    for (name, layout, values) in int4_cases() {
        let (stored, _) = encode(layout, &values, None);
        let [rows, groups] = layout.scale_shape().unwrap();
        let shape = [layout.rows, layout.cols].map(|n| (n as i32).to_le_bytes()).concat();
        let packed = vec![rows, layout.row_bytes() / 4];
        tensors.insert(format!("{name}.weight_packed"), (Dtype::I32, packed, stored.weight));
        tensors.insert(format!("{name}.weight_scale"), (Dtype::BF16, vec![rows, groups], stored.scale));
        tensors.insert(format!("{name}.weight_shape"), (Dtype::I32, vec![2], shape));
    }
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// The golden file speaks of these bytes. `SNAPSHOTS=overwrite` writes them anew; then tools/make_int4_golden.py has to run.
#[test]
fn int4_encoding_is_what_compressed_tensors_was_given() {
    let path = common::root().join("tests/fixtures/int4/encoded.safetensors");
    let now = int4_file();
    if std::env::var_os("SNAPSHOTS").is_some_and(|v| v == "overwrite") {
        std::fs::write(&path, &now).unwrap();
    }
    assert!(std::fs::read(&path).unwrap() == now, "{} is not what is encoded now", path.display());
}

/// Codes as unpacked, and weights as decompressed, by compressed-tensors (tools/make_int4_golden.py).
#[test]
fn int4_decodes_as_compressed_tensors_does() {
    let read = |name: &str| std::fs::read(common::root().join("tests/fixtures/int4").join(name)).unwrap();
    let (encoded, golden) = (read("encoded.safetensors"), read("golden.safetensors"));
    let encoded = SafeTensors::deserialize(&encoded).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let mut compared = 0;
    for (name, layout, _) in int4_cases() {
        let tensor = |what: &str| encoded.tensor(&format!("{name}.weight_{what}")).unwrap().data().to_vec();
        let stored = Stored { weight: tensor("packed"), scale: tensor("scale") };
        let decoded = decode(layout, &stored);

        let codes = golden.tensor(&format!("{name}.codes")).unwrap();
        assert_eq!((codes.dtype(), codes.shape()), (Dtype::I8, &[layout.rows, layout.cols][..]), "{name}");
        let groups = layout.cols.div_ceil(32);
        for (i, &code) in codes.data().iter().enumerate() {
            let (row, col) = (i / layout.cols, i % layout.cols);
            let scale = bf16::from_le_bytes(stored.scale.as_chunks().0[row * groups + col / 32]).to_f32();
            assert_eq!(decoded[i], f32::from(code as i8) * scale, "{name} [{row}, {col}]");
        }
        let Ok(weight) = golden.tensor(&format!("{name}.weight")) else { continue };
        assert_eq!(
            (weight.dtype(), weight.shape()),
            (Dtype::BF16, &[layout.rows, layout.cols][..]),
            "{name}"
        );
        for (i, raw) in weight.data().as_chunks().0.iter().enumerate() {
            // It multiplies in BF16, we in f32: ours rounded is theirs.
            assert_eq!(
                bf16::from_f32(decoded[i]).to_f32(),
                bf16::from_le_bytes(*raw).to_f32(),
                "{name} at {i}"
            );
        }
        compared += 1;
    }
    assert_eq!(compared, 3, "every case of whole groups was decompressed too");
}
