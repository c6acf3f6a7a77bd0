//! INT4 in groups of 32, compressed-tensors' `pack-quantized`, as Kimi-K2-Thinking and K2.5 ship their experts.
//!
//! Word w of a row holds columns 8w … 8w+7, column 8w+i in bits 4i … 4i+3, stored as q + 8 with q in −8 … 7.
//! w[r, c] = q · scale[r, c / 32], scale in BF16.

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
        let scale = half::bf16::from_le_bytes(scales[col / GROUP]).to_f32();
        for (i, value) in now.iter_mut().enumerate() {
            let word = u32::from_le_bytes(words[(col + i) / PER_WORD]);
            *value = nibble(word, col + i) as f32 * scale;
        }
        (col, out) = (col + within_group, later);
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
        let scale: Vec<u8> = [0.0f32, 0.0, 0.0, 1.0, 2.0, 4.0]
            .iter()
            .flat_map(|&s| half::bf16::from_f32(s).to_le_bytes())
            .collect();
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
