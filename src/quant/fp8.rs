//! FP8 e4m3 with one F32 scale per 128×128 block, as DeepSeek-V3 and Kimi-K2 ship it.
//!
//! w[r, c] = e4m3(code[r, c]) · scale[r / 128, c / 128], also at ragged edges: a matrix of 576 rows has five block
//! rows, the last of 64. e4m3 here is the `fn` variant of the OCP 8-bit float specification (bias 7, no infinities):
//! codes 0x7F and 0xFF are NaN, the largest value is 448, the smallest 2^-9.

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

#[cfg(test)]
mod tests {
    use super::*;

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
