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
    // AVX-512's shuffles make this half as fast as AVX2's (measured: 4.8 against 2.7 µs for 256 rows of bf16).
    let isa = if Isa::best() == Isa::Avx512 { Isa::Avx2 } else { Isa::best() };
    decode_transposed_with(isa, element, rows, out, stride);
}

dispatch! {
    /// [`decode_transposed`] with a given instruction set.
    pub fn decode_transposed_with(element: Element, rows: &[[u8; 32]], out: &mut [f32], stride: usize)
        = transposed_body, transposed_body, transposed_body
}

#[inline(always)]
fn transposed_body(element: Element, rows: &[[u8; 32]], out: &mut [f32], stride: usize) {
    if rows.is_empty() || stride < rows.len() || out.len() < (element.per_step() - 1) * stride + rows.len() {
        return;
    }
    match element {
        Element::F16 => halves(rows, out, stride, f16_to_f32),
        Element::Bf16 => halves(rows, out, stride, bf16_to_f32),
        Element::Tf32 => words(rows, out, stride),
        Element::E4m3 => bytes(rows, out, stride, e4m3_to_f32),
        Element::E5m2 => bytes(rows, out, stride, e5m2_to_f32),
        Element::S8 => bytes(rows, out, stride, |b| f32::from(b as i8)),
        Element::U8 => bytes(rows, out, stride, f32::from),
    }
}

/// Rows taken at a time.
const BLOCK: usize = 16;

/// Up to [`BLOCK`] rows as eight columns of 32-bit words: word w of row r at [w][r].
#[inline(always)]
fn columns(rows: &[[u8; 32]]) -> [[u32; BLOCK]; 8] {
    let mut out = [[0u32; BLOCK]; 8];
    for (r, row) in rows.iter().take(BLOCK).enumerate() {
        for (w, word) in row.as_chunks::<4>().0.iter().enumerate() {
            out[w][r] = u32::from_le_bytes(*word);
        }
    }
    out
}

/// Writes what `f` makes of each word of a column.
#[inline(always)]
fn put(out: &mut [f32], column: &[u32; BLOCK], count: usize, f: impl Fn(u32) -> f32) {
    let mut values = [0f32; BLOCK];
    for (v, word) in values.iter_mut().zip(column) {
        *v = f(*word);
    }
    if count == BLOCK {
        out[..BLOCK].copy_from_slice(&values);
    } else {
        out[..count].copy_from_slice(&values[..count]);
    }
}

#[inline(always)]
fn halves(rows: &[[u8; 32]], out: &mut [f32], stride: usize, decode: impl Fn(u16) -> f32 + Copy) {
    for (i, block) in rows.chunks(BLOCK).enumerate() {
        for (w, column) in columns(block).iter().enumerate() {
            let at = 2 * w * stride + i * BLOCK;
            put(&mut out[at..], column, block.len(), |word| decode(word as u16));
            put(&mut out[at + stride..], column, block.len(), |word| decode((word >> 16) as u16));
        }
    }
}

#[inline(always)]
fn words(rows: &[[u8; 32]], out: &mut [f32], stride: usize) {
    for (i, block) in rows.chunks(BLOCK).enumerate() {
        for (w, column) in columns(block).iter().enumerate() {
            put(&mut out[w * stride + i * BLOCK..], column, block.len(), tf32_to_f32);
        }
    }
}

#[inline(always)]
fn bytes(rows: &[[u8; 32]], out: &mut [f32], stride: usize, decode: impl Fn(u8) -> f32 + Copy) {
    for (i, block) in rows.chunks(BLOCK).enumerate() {
        for (w, column) in columns(block).iter().enumerate() {
            for byte in 0..4 {
                let at = (4 * w + byte) * stride + i * BLOCK;
                put(&mut out[at..], column, block.len(), |word| decode((word >> (8 * byte)) as u8));
            }
        }
    }
}
