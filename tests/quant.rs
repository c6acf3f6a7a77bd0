//! Encoding and decoding belong together: what was decoded once is given back, and nothing else is accepted.

use abruzzi::quant::{Encoded, Format, MatrixLayout, MatrixView};
use half::{bf16, f16};
use proptest::prelude::*;

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
