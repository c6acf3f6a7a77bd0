//! Activations as right tiles: pairs of columns down, tokens across.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::format::Lines;
use super::super::pool::Pool;
use super::super::rows::Output;
use super::DEPTH;
use crate::simd::amx::{self, Amx, RIGHT_PARTS as PARTS, ROWS};

/// Floats' room that a tile takes.
pub(super) const TILE: usize = amx::BYTES / size_of::<f32>();

/// Columns that a task packs at least.
const TASK: usize = 1024;

/// Activations as sums of three bfloat16, [columns / 128, groups of 16 tokens, 4, parts, 16 pairs of columns, 16 tokens, 2].
///
/// The parts add up to the activation exactly ([`split`]), but tiles take parts below 2^-126 as zero. What is not finite becomes parts
/// that are not finite. Tokens and columns that are missing are zeros.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Packed<'a> {
    tiles: &'a [f32],
    cols: usize,
    pub tokens: usize,
}

impl<'a> Packed<'a> {
    /// `x` is [tokens, cols], or its rows `rows`.
    pub(in super::super) fn new(
        amx: Amx,
        pool: &Pool,
        x: &[f32],
        rows: Option<&[u32]>,
        cols: usize,
        into: &'a mut Lines,
    ) -> Packed<'a> {
        let tokens = rows.map_or(x.len() / cols, <[u32]>::len);
        let groups = tokens.div_ceil(ROWS);
        let tiles = into.take(groups * cols.div_ceil(DEPTH) * OF_DEPTH);
        let to = Output::new(tiles, OF_DEPTH);
        let parts = cols.div_ceil(TASK);
        pool.run(groups * parts, &|task| {
            let (group, part) = (task / parts, task % parts);
            let columns = part * TASK..((part + 1) * TASK).min(cols.next_multiple_of(DEPTH));
            // SAFETY: `Amx` says that the processor has what `pack` is compiled for.
            unsafe { pack(amx, Group { x, rows, cols, tokens, groups, group }, columns, to) }
        });
        Packed { tiles, cols, tokens }
    }

    /// Groups of tokens.
    pub(super) fn groups(&self) -> usize {
        self.tokens.div_ceil(ROWS)
    }

    /// The first tile of a group's columns from `column` on, a multiple of 128. Those of the next group lie behind them.
    ///
    /// # Panics
    /// If there is none.
    #[inline]
    pub(super) fn tile(&self, group: usize, column: usize) -> *const u8 {
        let at = column / DEPTH * self.groups() + group;
        self.tiles[at * OF_DEPTH..].as_ptr().cast()
    }

    /// Whether it was made for rows of so many columns.
    pub(super) fn is_of(&self, cols: usize) -> bool {
        self.cols == cols && self.tiles.len() == self.groups() * cols.div_ceil(DEPTH) * OF_DEPTH
    }
}

/// Bytes from a right tile to that of the next columns.
pub(super) const STEP: usize = PARTS * amx::BYTES;

/// Floats' room that a group takes of 128 columns.
pub(super) const OF_DEPTH: usize = DEPTH / amx::DEPTH * PARTS * TILE;

/// Sixteen tokens, the last of which may be missing.
struct Group<'a> {
    x: &'a [f32],
    rows: Option<&'a [u32]>,
    cols: usize,
    tokens: usize,
    groups: usize,
    group: usize,
}

#[target_feature(enable = "avx512dq,avx512vl,avx512vbmi")]
fn pack(_: Amx, of: Group<'_>, columns: Range<usize>, to: Output) {
    let mut tokens: [&[f32]; ROWS] = [&[]; ROWS];
    for (i, token) in tokens.iter_mut().enumerate() {
        let at = of.group * ROWS + i;
        if at < of.tokens {
            let row = of.rows.map_or(at, |rows| rows[at] as usize);
            *token = &of.x[row * of.cols..][..of.cols];
        }
    }
    for column in columns.step_by(amx::DEPTH) {
        let mut parts = [[_mm512_setzero_si512(); ROWS]; PARTS];
        for (i, token) in tokens.iter().enumerate() {
            let left = &token[column.min(token.len())..];
            let mask = |from: usize| mask(left.len().saturating_sub(from));
            // SAFETY: what the masks leave out is not read.
            let halves = unsafe {
                [
                    _mm512_maskz_loadu_ps(mask(0), left.as_ptr()),
                    _mm512_maskz_loadu_ps(mask(ROWS), left.as_ptr().wrapping_add(ROWS)),
                ]
            };
            [parts[0][i], parts[1][i], parts[2][i]] = split(halves);
        }
        for (part, mut rows) in parts.into_iter().enumerate() {
            transpose(&mut rows);
            for (pair, row) in rows.into_iter().enumerate() {
                let at = (column % DEPTH / amx::DEPTH * PARTS + part) * TILE + pair * ROWS;
                // SAFETY: this group's columns are this task's, and there are 16 floats of a tile's row.
                unsafe { _mm512_storeu_si512(to.at(column / DEPTH * of.groups + of.group, at).cast(), row) }
            }
        }
    }
}

/// The first so many of sixteen.
#[inline]
pub(super) fn mask(count: usize) -> u16 {
    ((1u32 << count.min(ROWS)) - 1) as u16
}

/// Odd words of one register, then of another.
static ODD: [u16; 32] = {
    let mut odd = [0; 32];
    let mut i = 0;
    while i < 32 {
        odd[i] = 2 * i as u16 + 1;
        i += 1;
    }
    odd
};

/// 32 values as sums of three bfloat16: the upper half of an f32, that of what is left, and what is left then, which is 8 bits and
/// so nothing but an upper half.
#[inline]
#[target_feature(enable = "avx512dq,avx512vl,avx512vbmi")]
pub(super) fn split(values: [__m512; 2]) -> [__m512i; PARTS] {
    // SAFETY: a register's worth is readable.
    let odd = unsafe { _mm512_loadu_si512(ODD.as_ptr().cast()) };
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let mut parts = [_mm512_setzero_si512(); PARTS];
    let mut left = values;
    for part in &mut parts {
        let [a, b] = left;
        let (bits_a, bits_b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
        *part = _mm512_permutex2var_epi16(bits_a, odd, bits_b);
        left = [
            _mm512_sub_ps(a, _mm512_castsi512_ps(_mm512_and_si512(bits_a, upper))),
            _mm512_sub_ps(b, _mm512_castsi512_ps(_mm512_and_si512(bits_b, upper))),
        ];
    }
    parts
}

/// Rows become columns.
#[inline]
#[target_feature(enable = "avx512dq,avx512vl,avx512vbmi")]
pub(super) fn transpose(rows: &mut [__m512i; ROWS]) {
    let mut pairs = [_mm512_setzero_si512(); ROWS];
    for i in (0..ROWS).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // In each 128 bits, columns 4k + j of rows 4i to 4i + 3, k being the 128 bits' place.
    let mut fours = [_mm512_setzero_si512(); ROWS];
    for i in (0..ROWS).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    for j in 0..4 {
        let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
        let even = [_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(c, d, 0x88)];
        let odd = [_mm512_shuffle_i32x4(a, b, 0xdd), _mm512_shuffle_i32x4(c, d, 0xdd)];
        rows[j] = _mm512_shuffle_i32x4(even[0], even[1], 0x88);
        rows[8 + j] = _mm512_shuffle_i32x4(even[0], even[1], 0xdd);
        rows[4 + j] = _mm512_shuffle_i32x4(odd[0], odd[1], 0x88);
        rows[12 + j] = _mm512_shuffle_i32x4(odd[0], odd[1], 0xdd);
    }
}
