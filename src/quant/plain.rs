//! F32, F16 and BF16: little-endian elements, no scales.

use half::f16;

/// Decodes elements `col ..` of a row of little-endian f32.
#[inline(always)]
pub fn decode_f32(row: &[u8], col: usize, out: &mut [f32]) {
    for (value, raw) in out.iter_mut().zip(row[col * 4..].as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*raw);
    }
}

/// Decodes elements `col ..` of a row of little-endian f16.
#[inline(always)]
pub fn decode_f16(row: &[u8], col: usize, out: &mut [f32]) {
    for (value, raw) in out.iter_mut().zip(row[col * 2..].as_chunks::<2>().0) {
        *value = f16::from_le_bytes(*raw).to_f32();
    }
}

/// Decodes elements `col ..` of a row of little-endian bfloat16: the upper half of an f32.
#[inline(always)]
pub fn decode_bf16(row: &[u8], col: usize, out: &mut [f32]) {
    for (value, raw) in out.iter_mut().zip(row[col * 2..].as_chunks::<2>().0) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(*raw)) << 16);
    }
}
