//! From operands as they lie in shared memory or registers to the f32 panels that `gemm` multiplies.
//!
//! A K step of mma and wgmma is 32 bytes whatever the element, so a K-major operand arrives as one `[u8; 32]` a row.
//! A keeps its rows ([`decode`]); B, stored by column, becomes `[K][N]` ([`decode_transposed`]). B of an m64n256k16 is
//! 4096 elements against 262,144 multiplications: decoding has to run at vector speed to stay out of the way.

use super::gemm::{Isa, dispatch};
use crate::num::small_float::{bf16_to_f32, e4m3_to_f32, e5m2_to_f32, f16_to_f32, tf32_to_f32};

/// An operand's element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// Two bytes.
    F16,
    /// Two bytes.
    Bf16,
    /// Four bytes, of which 19 bits count.
    Tf32,
    /// One byte.
    E4m3,
    /// One byte.
    E5m2,
    /// One byte, signed: for small integer products, exact in f32 up to 2^24.
    S8,
    /// One byte, unsigned.
    U8,
}

impl Element {
    /// Bytes of an element.
    #[inline(always)]
    pub fn size(self) -> usize {
        match self {
            Element::F16 | Element::Bf16 => 2,
            Element::Tf32 => 4,
            Element::E4m3 | Element::E5m2 | Element::S8 | Element::U8 => 1,
        }
    }

    /// Elements in the 32 bytes of a K step.
    #[inline(always)]
    pub fn per_step(self) -> usize {
        32 / self.size()
    }
}

/// Decodes consecutive elements; stops at the shorter of both.
pub fn decode(element: Element, bytes: &[u8], out: &mut [f32]) {
    decode_with(Isa::best(), element, bytes, out);
}

dispatch! {
    /// [`decode`] with a given instruction set.
    pub fn decode_with(element: Element, bytes: &[u8], out: &mut [f32])
        = decode_body, decode_body, decode_body
}

#[inline(always)]
fn decode_body(element: Element, bytes: &[u8], out: &mut [f32]) {
    match element {
        Element::F16 => each(bytes, out, |b: [u8; 2]| f16_to_f32(u16::from_le_bytes(b))),
        Element::Bf16 => each(bytes, out, |b: [u8; 2]| bf16_to_f32(u16::from_le_bytes(b))),
        Element::Tf32 => each(bytes, out, |b: [u8; 4]| tf32_to_f32(u32::from_le_bytes(b))),
        Element::E4m3 => each(bytes, out, |[b]: [u8; 1]| e4m3_to_f32(b)),
        Element::E5m2 => each(bytes, out, |[b]: [u8; 1]| e5m2_to_f32(b)),
        Element::S8 => each(bytes, out, |[b]: [u8; 1]| f32::from(b as i8)),
        Element::U8 => each(bytes, out, |[b]: [u8; 1]| f32::from(b)),
    }
}

#[inline(always)]
fn each<const SIZE: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn([u8; SIZE]) -> f32) {
    for (piece, o) in bytes.as_chunks::<SIZE>().0.iter().zip(out) {
        *o = f(*piece);
    }
}

/// Decodes and transposes one K step: `rows[n]` holds column n of B; element k of it goes to `out[k * stride + n]`.
/// Does nothing if `stride` is less than the rows or `out` is too short.
pub fn decode_transposed(element: Element, rows: &[[u8; 32]], out: &mut [f32], stride: usize) {
    decode_transposed_with(Isa::best(), element, rows, out, stride);
}

/// [`decode_transposed`] with a given instruction set.
pub fn decode_transposed_with(isa: Isa, element: Element, rows: &[[u8; 32]], out: &mut [f32], stride: usize) {
    if rows.is_empty() || stride < rows.len() || out.len() < (element.per_step() - 1) * stride + rows.len() {
        return;
    }
    // The compiler's transposition is faster by AVX2's shuffles than by AVX-512's (measured: by half).
    let shuffles = if isa == Isa::Avx512 { Isa::Avx2 } else { isa };
    let mut words = [[0u32; BLOCK]; 8];
    for (i, block) in rows.chunks(BLOCK).enumerate() {
        transpose_with(shuffles, block, &mut words);
        decode_words_with(isa, element, &words, block.len(), &mut out[i * BLOCK..], stride);
    }
}

/// Rows taken at a time.
const BLOCK: usize = 64;
/// Rows that are transposed together.
const GROUP: usize = 16;

dispatch! {
    /// Up to [`BLOCK`] rows as eight columns of 32-bit words: word w of row r to \[w\]\[r\].
    fn transpose_with(rows: &[[u8; 32]], out: &mut [[u32; BLOCK]; 8]) = transpose, transpose, transpose
}

#[inline(always)]
fn transpose(rows: &[[u8; 32]], out: &mut [[u32; BLOCK]; 8]) {
    for (i, group) in rows.chunks(GROUP).enumerate() {
        let mut columns = [[0u32; GROUP]; 8];
        for (r, row) in group.iter().enumerate() {
            for (w, word) in row.as_chunks::<4>().0.iter().enumerate() {
                columns[w][r] = u32::from_le_bytes(*word);
            }
        }
        for (column, out) in columns.iter().zip(out.iter_mut()) {
            if let Some(out) = out.get_mut(i * GROUP..).and_then(|o| o.first_chunk_mut()) {
                *out = *column;
            }
        }
    }
}

dispatch! {
    /// Decodes the elements of `count` rows, which [`transpose`] turned into columns.
    fn decode_words_with(element: Element, words: &[[u32; BLOCK]; 8], count: usize, out: &mut [f32], stride: usize)
        = decode_words, decode_words, decode_words
}

#[inline(always)]
fn decode_words(element: Element, words: &[[u32; BLOCK]; 8], count: usize, out: &mut [f32], stride: usize) {
    match element {
        Element::F16 => pieces::<2>(words, count, out, stride, |w| f16_to_f32(w as u16)),
        Element::Bf16 => pieces::<2>(words, count, out, stride, |w| f32::from_bits(w << 16)),
        Element::Tf32 => pieces::<1>(words, count, out, stride, tf32_to_f32),
        Element::E4m3 => pieces::<4>(words, count, out, stride, |w| e4m3_to_f32(w as u8)),
        Element::E5m2 => pieces::<4>(words, count, out, stride, |w| e5m2_to_f32(w as u8)),
        Element::S8 => pieces::<4>(words, count, out, stride, |w| f32::from(w as i8)),
        Element::U8 => pieces::<4>(words, count, out, stride, |w| f32::from(w as u8)),
    }
}

/// Words of `PARTS` elements, each of which `decode` finds at the bottom of the word it is given.
#[inline(always)]
fn pieces<const PARTS: usize>(
    words: &[[u32; BLOCK]; 8],
    count: usize,
    out: &mut [f32],
    stride: usize,
    decode: impl Fn(u32) -> f32,
) {
    for (w, column) in words.iter().enumerate() {
        for part in 0..PARTS {
            let row = &mut out[(w * PARTS + part) * stride..][..count];
            for (value, word) in row.iter_mut().zip(column) {
                *value = decode(word >> (32 / PARTS % 32 * part));
            }
        }
    }
}
