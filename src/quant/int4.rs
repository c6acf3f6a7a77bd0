//! INT4 in groups of 32, compressed-tensors' `pack-quantized`, as Kimi-K2-Thinking and K2.5 ship their experts.
//!
//! Word w of a row holds columns 8w … 8w+7, column 8w+i in bits 4i … 4i+3, stored as q + 8 with q in −8 … 7.
//! w[r, c] = q · scale[r, c / 32], scale in BF16.

use half::bf16;

use super::encode::{Encoded, largest};
use super::int4_scale::{self, HUGEST_SCALE};
use super::kept::Trail;

/// Columns that share a scale.
pub const GROUP: usize = 32;

/// Columns in a 32-bit word.
pub const PER_WORD: usize = 8;

/// The quantised value in nibble `column % 8` of a word.
#[inline(always)]
pub fn nibble(word: u32, column: usize) -> i32 {
    (word >> (4 * (column % PER_WORD)) & 0xf) as i32 - 8
}

/// Packs eight values, each −8 … 7, into a word.
///
/// ```
/// assert_eq!(abruzzi::quant::int4::pack([-8, -7, -1, 0, 1, 2, 3, 7]), 0xfba98710);
/// ```
pub fn pack(values: [i32; PER_WORD]) -> u32 {
    values.iter().enumerate().fold(0, |word, (i, q)| word | ((q + 8) as u32 & 0xf) << (4 * i))
}

/// Decodes columns `col ..` of row `row`; `cols` is the matrix's width, `scale` all its scales.
#[inline(always)]
pub fn decode_row(packed: &[u8], scale: &[u8], row: usize, col: usize, cols: usize, out: &mut [f32]) {
    let groups = cols.div_ceil(GROUP);
    let scales = &scale[row * groups * 2..][..groups * 2].as_chunks::<2>().0;
    let words = packed.as_chunks::<4>().0;
    let (mut col, mut out) = (col, out);
    while !out.is_empty() {
        let within_group = (GROUP - col % GROUP).min(out.len());
        let (now, later) = out.split_at_mut(within_group);
        let scale = bf16::from_le_bytes(scales[col / GROUP]).to_f32();
        for (i, value) in now.iter_mut().enumerate() {
            let word = u32::from_le_bytes(words[(col + i) / PER_WORD]);
            *value = nibble(word, col + i) as f32 * scale;
        }
        (col, out) = (col + within_group, later);
    }
}

/// Encodes whole rows. `values` is [rows, `cols`] and finite; `kept`, if there is one, is as long as `scale`.
///
/// The nibbles beyond the last column are 0, as compressed-tensors leaves them.
#[inline(always)]
pub(super) fn encode_rows(
    values: &[f32],
    cols: usize,
    kept: Option<&[u8]>,
    packed: &mut [u8],
    scale: &mut [u8],
) -> Encoded {
    let mut encoded = Encoded::default();
    let mut kept = kept.map(|kept| kept.as_chunks::<2>().0.iter());
    let mut scales = scale.as_chunks_mut::<2>().0.iter_mut();
    let row_bytes = cols.div_ceil(PER_WORD) * 4;
    for (row, packed) in values.chunks(cols).zip(packed.chunks_mut(row_bytes)) {
        for (group, packed) in row.chunks(GROUP).zip(packed.chunks_mut(GROUP / 2)) {
            let mut x = [0.0; GROUP];
            x[..group.len()].copy_from_slice(group);
            let kept = kept.as_mut().and_then(Iterator::next).map(|&raw| bf16::from_le_bytes(raw).to_f32());
            let (chosen, codes) = encode_group(&x, kept, &mut encoded);
            if let Some(scale) = scales.next() {
                // The lower half of a BF16 number's f32 is zero.
                *scale = ((chosen.to_bits() >> 16) as u16).to_le_bytes();
            }
            write_words(&codes, group.len(), packed);
        }
    }
    encoded
}

/// Chooses a group's scale, a BF16 number, and its integers, each −8 … 7.
#[inline(always)]
fn encode_group(x: &[f32; GROUP], kept: Option<f32>, encoded: &mut Encoded) -> (f32, [i32; GROUP]) {
    let mut codes = [0; GROUP];
    if let Some(scale) = kept {
        let mut trail = Trail::new();
        for i in 0..GROUP {
            let code = int4_scale::code(x[i] / scale);
            trail.note(x[i], code * scale);
            codes[i] = code as i32;
        }
        if trail.holds() && scale.is_normal() {
            encoded.kept_scales += 1;
            return (scale, codes);
        }
        encoded.fresh_scales += 1;
    }
    let scale = int4_scale::best_scale(x, largest(x));
    if scale == HUGEST_SCALE {
        encoded.saturated += x.iter().filter(|&x| (x / scale).abs() > 7.5).count() as u64;
    }
    let per_step = 1.0 / scale;
    for i in 0..GROUP {
        codes[i] = int4_scale::code(x[i] * per_step) as i32;
    }
    (scale, codes)
}

/// Packs the first `columns` codes of a group; the other nibbles of the last word are 0.
#[inline(always)]
fn write_words(codes: &[i32; GROUP], columns: usize, packed: &mut [u8]) {
    for (i, (raw, codes)) in packed.as_chunks_mut::<4>().0.iter_mut().zip(codes.as_chunks().0).enumerate() {
        let there = (columns - i * PER_WORD).min(PER_WORD);
        let mask = u32::MAX >> (32 - 4 * there);
        *raw = (pack(*codes) & mask).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_16_codes_in_every_place() {
        for place in 0..PER_WORD {
            for q in -8..8 {
                let mut values = [0; PER_WORD];
                values[place] = q;
                let word = pack(values);
                assert_eq!(word >> (4 * place) & 0xf, (q + 8) as u32);
                for (i, want) in values.iter().enumerate() {
                    assert_eq!(nibble(word, i), *want);
                }
            }
        }
    }

    #[test]
    fn a_row_starts_anywhere_and_changes_scale_at_32() {
        let cols = 96;
        let values: Vec<i32> = (0..cols).map(|c| c as i32 % 16 - 8).collect();
        let packed: Vec<u8> =
            values.chunks(PER_WORD).flat_map(|c| pack(c.try_into().unwrap()).to_le_bytes()).collect();
        let scale: Vec<u8> =
            [0.0f32, 0.0, 0.0, 1.0, 2.0, 4.0].iter().flat_map(|&s| bf16::from_f32(s).to_le_bytes()).collect();
        for col in [0, 5, 31, 32, 33, 95] {
            let mut out = vec![0.0; cols - col];
            decode_row(&packed, &scale, 1, col, cols, &mut out);
            for (i, value) in out.iter().enumerate() {
                let c = col + i;
                assert_eq!(*value, values[c] as f32 * [1.0, 2.0, 4.0][c / GROUP], "column {c}");
            }
        }
    }
}
