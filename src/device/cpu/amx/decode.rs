//! Weights as left tiles: rows of bfloat16, columns in their order.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::format::Lines;
use super::pack::{TILE, split};
use crate::quant::{Format, MatrixView, int4};
use crate::simd::Simd;
use crate::simd::amx::{self, ROWS};
use crate::simd::avx512::{self, Avx512};

/// Parts of a decoded weight: one where bfloat16 holds it, a block's scale left to the sums; two where scales are of fewer columns
/// than a product sums up.
///
/// # Panics
/// If the format has no tiles: F16 and F32 have more digits.
fn parts(format: Format) -> usize {
    match format {
        Format::Fp8Block | Format::Bf16 => 1,
        Format::Int4Group32 => 2,
        Format::F16 | Format::F32 => panic!("{format:?} has no tiles"),
    }
}

/// Columns that are decoded at a time.
const STEP: usize = 2 * amx::DEPTH;

/// Some columns of some rows on their way into left tiles, [rows / 16, columns / 32, parts, 16, 32] bfloat16. Rows and columns that
/// the matrix does not have become finite.
pub(super) struct Decoding<'a, 'm> {
    w: MatrixView<'a>,
    first: usize,
    columns: Range<usize>,
    /// Bytes from what is read to what is prefetched meanwhile, if anything is.
    ahead: Option<isize>,
    /// Rows that are decoded, and that were asked for.
    done: usize,
    asked: usize,
    count: usize,
    of_group: usize,
    into: &'m mut [f32],
}

impl<'a, 'm> Decoding<'a, 'm> {
    /// Of `count` rows from `first` on, a multiple of 16.
    ///
    /// # Panics
    /// If the format has no tiles or `columns` does not begin at a multiple of 64.
    pub(super) fn new(
        w: MatrixView<'a>,
        (first, count): (usize, usize),
        columns: Range<usize>,
        ahead: Option<isize>,
        into: &'m mut Lines,
    ) -> Decoding<'a, 'm> {
        let of_group = group_floats(w.layout().format, columns.len());
        let into = into.take(count / ROWS * of_group);
        assert!(columns.start.is_multiple_of(STEP));
        Decoding { w, first, columns, ahead, done: 0, asked: 0, count, of_group, into }
    }

    /// Rows that are still to be decoded.
    pub(super) fn left(&self) -> usize {
        self.count - self.done
    }

    /// Has so many rows more brought near.
    #[inline]
    pub(super) fn ask(&mut self, rows: usize) {
        let layout = self.w.layout();
        let bytes = |columns: usize| columns * layout.row_bytes() / layout.cols;
        let (from, to) = (bytes(self.columns.start), bytes(self.columns.end.min(layout.cols)));
        for _ in 0..rows {
            let row = self.w.bytes().0.as_ptr().wrapping_add((self.first + self.asked) * layout.row_bytes());
            for line in (from..to).step_by(64) {
                // SAFETY: a prefetch may go anywhere.
                unsafe { <Avx512<true>>::prefetch_second(row.wrapping_add(line)) }
            }
            self.asked += 1;
        }
    }

    /// Decodes so many rows more, or those that are left.
    #[inline]
    #[target_feature(enable = "avx512dq,avx512vl,avx512vbmi")]
    pub(super) fn some(&mut self, rows: usize) {
        let to = self.count.min(self.done.saturating_add(rows));
        while self.done < to {
            match self.w.layout().format {
                Format::Fp8Block => self.row::<Fp8>(),
                Format::Bf16 => self.row::<Bf16>(),
                _ => self.row::<Int4>(),
            }
            self.done += 1;
        }
    }

    #[target_feature(enable = "avx512dq,avx512vl,avx512vbmi")]
    fn row<D: Decode>(&mut self) {
        let steps = self.columns.len().div_ceil(STEP);
        let (weights, scales) = row(self.w, self.first + self.done);
        let weights = &weights[(self.columns.start / STEP * D::BYTES).min(weights.len())..];
        let whole = (weights.len() / D::BYTES).min(steps);
        let to = &mut self.into[self.done / ROWS * self.of_group..][..self.of_group];
        let to = to[self.done % ROWS * ROWS..].as_mut_ptr().cast::<u8>();
        // SAFETY: these are the features; a whole step is readable, as is a copy of a short one, and there is this row of two tiles
        // of each part for each step.
        unsafe {
            for step in 0..whole {
                let from = weights.as_ptr().add(step * D::BYTES);
                if let Some(ahead) = self.ahead {
                    for line in (0..D::BYTES).step_by(64) {
                        <Avx512<true>>::prefetch_second(from.wrapping_offset(ahead).wrapping_add(line));
                    }
                }
                put::<D>(to, step, D::step(from, scales, self.columns.start + step * STEP));
            }
            for step in whole..steps {
                let mut short = [0; 2 * STEP];
                let left = &weights[(step * D::BYTES).min(weights.len())..];
                short[..left.len()].copy_from_slice(left);
                put::<D>(to, step, D::step(short.as_ptr(), scales, self.columns.start + step * STEP));
            }
        }
    }
}

/// Floats' room that so many columns of 16 rows take.
///
/// # Panics
/// If the format has no tiles.
pub(super) fn group_floats(format: Format, columns: usize) -> usize {
    columns.div_ceil(STEP) * 2 * parts(format) * TILE
}

/// A format that is decoded into tiles.
trait Decode {
    /// See [`parts`].
    const PARTS: usize;
    /// Bytes of [`STEP`] columns.
    const BYTES: usize;
    /// Rows of two tiles of the first part, and of two of the second.
    ///
    /// # Safety
    /// In a function with the features that [`Amx`](amx::Amx) says are there. [`Decode::BYTES`] are readable.
    unsafe fn step(weights: *const u8, scales: &[u8], column: usize) -> [[__m512i; 2]; 2];
}

/// A row's weights and, with INT4, its scales; nothing if there is no such row.
#[inline]
fn row(w: MatrixView<'_>, row: usize) -> (&[u8], &[u8]) {
    let layout = w.layout();
    let (weights, scales) = w.bytes();
    if row >= layout.rows {
        return (&[], &[]);
    }
    let of_row = layout.cols.div_ceil(int4::GROUP) * 2;
    let scales = if layout.format == Format::Int4Group32 { &scales[row * of_row..][..of_row] } else { &[] };
    (&weights[row * layout.row_bytes()..][..layout.row_bytes()], scales)
}

/// The row of a step's tiles.
///
/// # Safety
/// In a function with the features of [`Decode::step`]. They are writable.
#[inline(always)]
unsafe fn put<D: Decode>(to: *mut u8, step: usize, [first, second]: [[__m512i; 2]; 2]) {
    // SAFETY: the caller's.
    unsafe {
        for (tile, (first, second)) in first.into_iter().zip(second).enumerate() {
            let to = to.add((step * 2 + tile) * D::PARTS * amx::BYTES);
            _mm512_storeu_si512(to.cast(), first);
            if D::PARTS == 2 {
                _mm512_storeu_si512(to.add(amx::BYTES).cast(), second);
            }
        }
    }
}

struct Fp8;
struct Bf16;
struct Int4;

impl Decode for Fp8 {
    const PARTS: usize = 1;
    const BYTES: usize = STEP;

    #[inline(always)]
    unsafe fn step(weights: *const u8, _: &[u8], _: usize) -> [[__m512i; 2]; 2] {
        // SAFETY: the caller's.
        unsafe {
            // Interleaving takes eight bytes of each sixteen: eights change places so that columns come out in order.
            let order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
            let codes = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(weights.cast()));
            let [low, high] = avx512::bf16_bytes(codes);
            [[_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)], [_mm512_setzero_si512(); 2]]
        }
    }
}

impl Decode for Bf16 {
    const PARTS: usize = 1;
    const BYTES: usize = 2 * STEP;

    #[inline(always)]
    unsafe fn step(weights: *const u8, _: &[u8], _: usize) -> [[__m512i; 2]; 2] {
        // SAFETY: the caller's.
        unsafe {
            let both = [_mm512_loadu_si512(weights.cast()), _mm512_loadu_si512(weights.add(64).cast())];
            [both, [_mm512_setzero_si512(); 2]]
        }
    }
}

impl Decode for Int4 {
    const PARTS: usize = 2;
    const BYTES: usize = STEP / 2;

    #[inline(always)]
    unsafe fn step(weights: *const u8, scales: &[u8], column: usize) -> [[__m512i; 2]; 2] {
        // SAFETY: the caller's.
        unsafe {
            let values =
                _mm512_setr_ps(-8., -7., -6., -5., -4., -3., -2., -1., 0., 1., 2., 3., 4., 5., 6., 7.);
            let mut tiles = [[_mm512_setzero_si512(); 2]; 2];
            for (tile, parts) in tiles.iter_mut().enumerate() {
                let scale = scales.get((column / int4::GROUP + tile) * 2..).and_then(|s| s.first_chunk());
                let scale = scale.map_or(0.0, |&s| f32::from_bits(u32::from(u16::from_le_bytes(s)) << 16));
                let mut scaled = [_mm512_set1_ps(scale); 2];
                for (half, scaled) in scaled.iter_mut().enumerate() {
                    // A byte's low nibble at the low end of 32 bits, its high nibble at that of the next. A permutation looks at
                    // four bits.
                    let bytes = _mm_loadl_epi64(weights.add(16 * tile + 8 * half).cast());
                    let wide = _mm512_cvtepu8_epi64(bytes);
                    let nibbles = _mm512_or_si512(wide, _mm512_slli_epi64::<28>(wide));
                    *scaled = _mm512_mul_ps(_mm512_permutexvar_ps(nibbles, values), *scaled);
                }
                // Eight bits of a scale times four of a value are twelve: the third part is zero.
                let [first, second, _] = split(scaled);
                *parts = [first, second];
            }
            let [[a, b], [c, d]] = tiles;
            [[a, c], [b, d]]
        }
    }
}
