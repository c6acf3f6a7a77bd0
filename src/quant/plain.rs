//! F32, F16 and BF16: little-endian elements, no scales.

use half::f16;

use super::encode::Encoded;
use super::narrow::{Bf16, F16, Narrow};

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

/// Encodes little-endian f32: the values as they are.
#[inline(always)]
pub(super) fn encode_f32(values: &[f32], out: &mut [u8]) -> Encoded {
    for (raw, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *raw = value.to_le_bytes();
    }
    Encoded::default()
}

/// Encodes little-endian f16. Values from 65,520 on become 65,504, values up to 2^-25 zero; both are counted.
#[inline(always)]
pub(super) fn encode_f16(values: &[f32], out: &mut [u8]) -> Encoded {
    encode_half::<F16>(values, out)
}

/// Encodes little-endian bfloat16, with saturation and counts like [`encode_f16`].
#[inline(always)]
pub(super) fn encode_bf16(values: &[f32], out: &mut [u8]) -> Encoded {
    encode_half::<Bf16>(values, out)
}

#[inline(always)]
fn encode_half<N: Narrow>(values: &[f32], out: &mut [u8]) -> Encoded {
    // Counted in 32 bits a piece, so that counting stays in vector registers.
    const PIECE: usize = 1 << 16;
    let mut encoded = Encoded::default();
    for (values, out) in values.chunks(PIECE).zip(out.chunks_mut(PIECE * 2)) {
        let (mut saturated, mut vanished) = (0u32, 0u32);
        for (raw, &value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
            let bits = N::unbounded(value);
            saturated += u32::from(bits > N::LARGEST);
            vanished += u32::from(bits == 0) & u32::from(value != 0.0);
            let sign = value.to_bits() >> 16 & 0x8000;
            *raw = ((bits.min(N::LARGEST) | sign) as u16).to_le_bytes();
        }
        encoded.saturated += u64::from(saturated);
        encoded.vanished += u64::from(vanished);
    }
    encoded
}
