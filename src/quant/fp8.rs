//! FP8 e4m3 with one F32 scale per 128×128 block, as DeepSeek-V3 and Kimi-K2 ship it.
//!
//! w[r, c] = e4m3(code[r, c]) · scale[r / 128, c / 128], also at ragged edges: a matrix of 576 rows has five block
//! rows, the last of 64. e4m3 here is the `fn` variant of the OCP 8-bit float specification (bias 7, no infinities):
//! codes 0x7F and 0xFF are NaN, the largest value is 448, the smallest 2^-9.

use super::encode::{Encoded, largest};
use super::kept::Trail;
use super::narrow::{E4m3, Narrow};

/// Rows and columns of a scale block.
pub const BLOCK: usize = 128;

/// The largest finite e4m3 value.
pub const MAX: f32 = 448.0;

/// Decodes one code, NaN codes included.
#[inline(always)]
pub fn decode(code: u8) -> f32 {
    let magnitude = u32::from(code & 0x7f);
    let sign = u32::from(code & 0x80) << 24;
    // Exponent and mantissa land in f32's fields with a bias of 7 in place of 127; the multiplication by 2^120
    // mends that exactly, subnormal codes included (they are subnormal f32 before it).
    let finite = f32::from_bits(magnitude << 20) * f32::from_bits(247 << 23);
    let value = if magnitude == 0x7f { f32::NAN } else { finite };
    f32::from_bits(value.to_bits() | sign)
}

/// The bits of the bfloat16 that a magnitude (a code below 0x80) is, exactly.
pub(crate) const fn bf16_bits(magnitude: u8) -> u16 {
    let (exponent, mantissa) = (magnitude as u16 >> 3, magnitude as u16 & 7);
    if magnitude == 0x7f {
        0x7fc0
    } else if exponent > 0 {
        (exponent + 120) << 7 | mantissa << 4
    } else if mantissa > 0 {
        // mantissa · 2^-9: the leading bit becomes implicit.
        let top = mantissa.ilog2() as u16;
        (top + 118) << 7 | ((mantissa << (7 - top)) & 0x7f)
    } else {
        0
    }
}

/// Decodes columns `col ..` of row `row`; `cols` is the matrix's width, `scale` all its scales.
#[inline(always)]
pub fn decode_row(codes: &[u8], scale: &[u8], row: usize, col: usize, cols: usize, out: &mut [f32]) {
    let scales = &scale[row / BLOCK * cols.div_ceil(BLOCK) * 4..].as_chunks::<4>().0;
    let (mut col, mut out) = (col, out);
    while !out.is_empty() {
        let within_block = (BLOCK - col % BLOCK).min(out.len());
        let (now, later) = out.split_at_mut(within_block);
        let scale = f32::from_le_bytes(scales[col / BLOCK]);
        for (value, &code) in now.iter_mut().zip(&codes[col..]) {
            *value = decode(code) * scale;
        }
        (col, out) = (col + within_block, later);
    }
}

/// The code of the nearest value, ties to even. What rounds to more than [`MAX`], infinities too, becomes ±[`MAX`]; a NaN
/// becomes a NaN.
#[inline(always)]
pub fn encode(value: f32) -> u8 {
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    let code = if value.is_nan() { 0x7f } else { E4m3::unbounded(value).min(E4m3::LARGEST) as u8 };
    code | sign
}

/// Encodes rows that begin and end with a block. `values` is [rows, `cols`] and finite; `kept`, if there is one, is as long
/// as `scale`.
#[inline(always)]
pub(super) fn encode_rows(
    values: &[f32],
    cols: usize,
    kept: Option<&[u8]>,
    codes: &mut [u8],
    scale: &mut [u8],
) -> Encoded {
    let mut encoded = Encoded::default();
    let band = cols * BLOCK;
    let per_band = cols.div_ceil(BLOCK);
    for (b, (values, codes)) in values.chunks(band).zip(codes.chunks_mut(band)).enumerate() {
        for block in 0..per_band {
            let columns = block * BLOCK..cols.min((block + 1) * BLOCK);
            let at = b * per_band + block;
            let kept = kept.map(|kept| f32::from_le_bytes(kept.as_chunks().0[at]));
            let chosen = encode_block(values, cols, columns, kept, codes, &mut encoded);
            scale.as_chunks_mut().0[at] = chosen.to_le_bytes();
        }
    }
    encoded
}

/// Encodes some columns of rows that share their scale, and returns it.
#[inline(always)]
fn encode_block(
    values: &[f32],
    cols: usize,
    columns: std::ops::Range<usize>,
    kept: Option<f32>,
    codes: &mut [u8],
    encoded: &mut Encoded,
) -> f32 {
    if let Some(scale) = kept {
        let mut trail = Trail::new();
        for (values, codes) in values.chunks(cols).zip(codes.chunks_mut(cols)) {
            for (&value, code) in values[columns.clone()].iter().zip(&mut codes[columns.clone()]) {
                *code = encode(value / scale);
                trail.note(value, decode(*code) * scale);
            }
        }
        // A scale of zero, infinity or NaN gives back nothing but its like: NaN codes are not values.
        if trail.holds() && scale.is_normal() {
            encoded.kept_scales += 1;
            return scale;
        }
        encoded.fresh_scales += 1;
    }
    let scale = scale_of(values.chunks(cols).map(|row| largest(&row[columns.clone()])).fold(0.0, f32::max));
    let mut vanished = 0u32;
    for (values, codes) in values.chunks(cols).zip(codes.chunks_mut(cols)) {
        for (&value, code) in values[columns.clone()].iter().zip(&mut codes[columns.clone()]) {
            *code = encode(value / scale);
            vanished += u32::from(*code & 0x7f == 0) & u32::from(value != 0.0);
        }
    }
    encoded.vanished += u64::from(vanished);
    scale
}

/// The scale under which the largest magnitude of a block becomes [`MAX`].
fn scale_of(largest: f32) -> f32 {
    if largest == 0.0 {
        return 1.0;
    }
    // Subnormal scales would be zero to a processor that flushes them.
    let scale = (largest / MAX).max(f32::MIN_POSITIVE);
    // Rounded up, the quotient can be one unit too much for f32 itself.
    if (scale * MAX).is_finite() { scale } else { scale.next_down() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magnitudes_are_bfloat16() {
        for code in 0..=0x7f {
            let value = f32::from_bits(u32::from(bf16_bits(code)) << 16);
            assert!(value == decode(code) || code == 0x7f && value.is_nan(), "{code:#x}: {value}");
        }
    }

    #[test]
    fn all_256_codes_against_an_independent_implementation() {
        for code in 0..=255u8 {
            let (got, want) = (decode(code), float8::F8E4M3::from_bits(code).to_f32());
            assert_eq!(got.is_nan(), code & 0x7f == 0x7f, "{code:#x}");
            if !got.is_nan() {
                assert_eq!(got.to_bits(), want.to_bits(), "{code:#x}: {got} for {want}");
            }
        }
        assert_eq!(decode(0x7e), MAX);
        assert_eq!(decode(0x01), 2f32.powi(-9));
    }

    /// The finite code whose value is nearest; the even one of two.
    fn nearest(value: f32) -> u8 {
        let distance = |code: u8| (f64::from(decode(code)) - f64::from(value.abs())).abs();
        let code = (0..0x7f).min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))));
        code.unwrap() | if value.is_sign_negative() { 0x80 } else { 0 }
    }

    #[test]
    fn encoding_against_an_independent_implementation_and_a_search() {
        // Every upper half of an f32, with nothing, a little and almost a whole step below it. No tie of e4m3 needs more
        // bits, so these are all values, all ties, and both neighbours of each.
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x8000, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let got = encode(value);
                if value.is_nan() {
                    assert!(decode(got).is_nan(), "{value}");
                    continue;
                }
                assert_eq!(got, float8::F8E4M3::from_f32(value).to_bits(), "{value:e}");
                if value.abs() < 1000.0 && value.abs() > 1e-4 {
                    assert_eq!(got, nearest(value), "{value:e}");
                }
            }
        }
        for code in (0..=255).filter(|code| code & 0x7f != 0x7f) {
            assert_eq!(encode(decode(code)), code);
        }
        assert_eq!((encode(464.0), encode(f32::INFINITY), encode(f32::MIN)), (0x7e, 0x7e, 0xfe));
    }

    #[test]
    fn the_scale_makes_the_largest_value_448_and_nothing_infinite() {
        for largest in [1.0, 3.3, 448.0, 1e-30, 1e30, f32::MAX, f32::MAX.next_down()] {
            let scale = scale_of(largest);
            assert_eq!(encode(largest / scale), 0x7e, "{largest:e}");
            assert!((scale * MAX).is_finite(), "{largest:e}");
        }
        assert_eq!(scale_of(0.0), 1.0);
        assert_eq!(scale_of(f32::from_bits(1)), f32::MIN_POSITIVE);
    }

    #[test]
    fn a_row_starts_anywhere_and_changes_scale_at_128() {
        let cols = 300;
        let codes = vec![0x38u8; cols];
        let scale: Vec<u8> =
            [1.0f32, 2.0, 4.0, 8.0, 16.0, 32.0].iter().flat_map(|s| s.to_le_bytes()).collect();
        for col in [0, 1, 127, 128, 255, 256, 299] {
            let mut out = vec![0.0; cols - col];
            decode_row(&codes, &scale, 130, col, cols, &mut out);
            for (i, value) in out.iter().enumerate() {
                assert_eq!(*value, [8.0, 16.0, 32.0][(col + i) / BLOCK], "column {}", col + i);
            }
        }
    }
}
