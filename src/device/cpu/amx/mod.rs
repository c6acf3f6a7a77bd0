//! Rows of weights times several tokens with AMX: sixteen times the multiply-adds of AVX-512, if they are bfloat16.
//!
//! A weight of FP8 or bfloat16 is one bfloat16, one of INT4 times its scale is the sum of two, an activation of three (`decode.rs`,
//! `pack.rs`), all without loss. So results are those of f32, for three or five products instead of one.
//!
//! A block of rows is decoded, [`SLAB`] columns at a time, into left tiles that stay in the second-level cache; the activations of 32
//! tokens and [`DEPTH`] columns, which stay in the first, meet them two by two. Sums of [`DEPTH`] columns leave the tiles and are
//! scaled and added up while the next are in them. With few tokens the next slab is decoded between products; with many, where
//! that would empty the tiles' pipeline, it is brought near between them and decoded at once.

mod decode;
mod pack;
#[cfg(test)]
mod tests;

use std::arch::x86_64::*;
use std::ops::Range;

pub(super) use pack::Packed;

use super::format::Lines;
use super::rows::Output;
use crate::quant::{Format, MatrixView, fp8};
use crate::simd::amx::{self, Amx, Meeting, ROWS, Tiles};
use crate::simd::avx512::Avx512;
use crate::simd::{Simd, silu};
use decode::Decoding;
use pack::{TILE, transpose};

/// Columns that products are summed up over before a block's scale: those of an FP8 block.
const DEPTH: usize = fp8::BLOCK;

/// Columns that are decoded at a time.
const SLAB: usize = 4 * DEPTH;

/// Rows that blocks are made of: four left tiles.
pub(super) const ROWS_AT_ONCE: usize = 4 * ROWS;

/// Rows of a block with many tokens. More rows bring activations from memory less often.
pub(super) const BLOCK: usize = 512;

/// Groups of 16 tokens whose sums a block of rows keeps: 512 tokens.
const GROUPS: usize = 32;

/// A matrix and what it is multiplied with.
pub(super) type Operand<'a> = (MatrixView<'a>, Packed<'a>);

/// A thread's memory for [`multiply`], reused.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Of a slab, and of the one that is decoded meanwhile.
    weights: [Lines; 2],
    /// Of either matrix: [groups of 16 rows, groups of 16 tokens, 16, 16].
    sums: [Lines; 2],
    /// Two times four tiles.
    unscaled: Lines,
}

/// Tokens from which tiles are faster than what a format is multiplied with otherwise (`narrow.rs`), as measured; none if it has no
/// tiles. A weight of INT4 takes longest to decode.
pub(super) fn fewest(format: Format) -> Option<usize> {
    match format {
        Format::Fp8Block | Format::Bf16 => Some(5),
        Format::Int4Group32 => Some(10),
        Format::F16 | Format::F32 => None,
    }
}

/// y[t, r] = w[r]·x[t] for `rows`, which no other task writes; or silu(w[r]·x[t]) · (up[r]·x[t]).
///
/// # Panics
/// If a format has no tiles ([`fewest`]), activations were packed for other columns, `rows` is empty, begins at no multiple of 64
/// or ends beyond the matrix.
pub(super) fn multiply(
    amx: Amx,
    w: Operand<'_>,
    up: Option<Operand<'_>>,
    rows: Range<usize>,
    out: Output,
    scratch: &mut Scratch,
) {
    let (tokens, cols) = (w.1.tokens, w.0.layout().cols);
    for (matrix, x) in [Some(w), up].into_iter().flatten() {
        let layout = matrix.layout();
        assert!(layout.cols == cols && x.is_of(cols) && x.tokens == tokens, "packed for {layout:?}");
        let fits = rows.start.is_multiple_of(ROWS_AT_ONCE) && rows.end <= layout.rows;
        assert!(fits && !rows.is_empty(), "{rows:?} of {layout:?}");
    }
    // SAFETY: `Amx` says that the processor has what this is compiled for.
    unsafe { blocks(amx, w, up, rows, out, scratch) }
}

#[target_feature(enable = "avx512dq,avx512vl,avx512vbmi")]
fn blocks(
    amx: Amx,
    w: Operand<'_>,
    up: Option<Operand<'_>>,
    rows: Range<usize>,
    out: Output,
    scratch: &mut Scratch,
) {
    let tiles = Tiles::new(amx);
    let Scratch { weights: [here, there], sums, unscaled } = scratch;
    let (mut now, mut then) = (here, there);
    let groups = w.1.groups();
    for from in (0..groups).step_by(GROUPS) {
        let groups = from..groups.min(from + GROUPS);
        let plan = Plan { w, up, rows: rows.clone(), few: is_few(&groups) };
        let mut slab = plan.first();
        plan.decoding(slab, now).some(usize::MAX);
        loop {
            let next = plan.after(slab);
            let block = Block { tiles: &tiles, rows: plan.rows_of(slab), groups: groups.clone() };
            let of_operand = sums[usize::from(slab.second)].take(block.floats());
            if slab.column == 0 {
                of_operand.fill(0.0);
            }
            let mut decoding = next.map(|next| plan.decoding(next, then));
            let columns = plan.columns_of(slab);
            block.add(slab.operand, columns, now, unscaled.take(8 * TILE), of_operand, &mut decoding);
            if let Some(mut decoding) = decoding {
                decoding.some(usize::MAX);
            }
            if next.is_none_or(|next| next.row != slab.row) {
                block.finish(sums, up.is_some(), w.1.tokens, out);
            }
            let Some(next) = next else { break };
            slab = next;
            std::mem::swap(&mut now, &mut then);
        }
    }
}

/// Whether groups are so few that decoding, not multiplying, takes most of the time.
fn is_few(groups: &Range<usize>) -> bool {
    groups.len() <= 2
}

/// In which order slabs are multiplied: those of both matrices in turn, which share activations, along a block of rows, then the next
/// block.
struct Plan<'a> {
    w: Operand<'a>,
    up: Option<Operand<'a>>,
    rows: Range<usize>,
    /// See [`is_few`].
    few: bool,
}

/// Some columns of a block of rows of one of the matrices.
#[derive(Clone, Copy)]
struct Slab<'a> {
    operand: Operand<'a>,
    /// Whether that is `up`.
    second: bool,
    row: usize,
    column: usize,
}

impl<'a> Plan<'a> {
    /// Rows of a block: with few tokens as few as there can be, so that what is decoded stays near.
    fn size(&self) -> usize {
        if self.few { ROWS_AT_ONCE } else { BLOCK }
    }

    fn first(&self) -> Slab<'a> {
        self.slab(self.rows.start, 0)
    }

    fn slab(&self, row: usize, column: usize) -> Slab<'a> {
        Slab { operand: self.w, second: false, row, column }
    }

    fn after(&self, slab: Slab<'a>) -> Option<Slab<'a>> {
        if let Some(up) = self.up
            && !slab.second
        {
            return Some(Slab { operand: up, second: true, ..slab });
        }
        let (row, column) = (slab.row, slab.column + SLAB);
        if column < self.w.0.layout().cols {
            return Some(self.slab(row, column));
        }
        (row + self.size() < self.rows.end).then(|| self.slab(row + self.size(), 0))
    }

    fn rows_of(&self, slab: Slab<'a>) -> Range<usize> {
        slab.row..self.rows.end.min(slab.row + self.size())
    }

    fn columns_of(&self, slab: Slab<'a>) -> Range<usize> {
        let cols = slab.operand.0.layout().cols;
        slab.column..cols.next_multiple_of(DEPTH).min(slab.column + SLAB)
    }

    /// Begins to decode a slab. With few tokens, what follows it in its matrix is asked for meanwhile; otherwise the slab itself
    /// is before, between products.
    fn decoding<'m>(&self, slab: Slab<'a>, into: &'m mut Lines) -> Decoding<'a, 'm> {
        let w = slab.operand.0;
        let layout = w.layout();
        let columns = self.columns_of(slab);
        let byte = |row: usize, column: usize| {
            (row * layout.row_bytes() + column * layout.row_bytes() / layout.cols) as isize
        };
        let next = if columns.end < layout.cols {
            byte(slab.row, columns.end)
        } else {
            byte(slab.row + self.size(), 0)
        };
        let ahead = self.few.then_some(next - byte(slab.row, slab.column));
        let rows = self.rows_of(slab).len().next_multiple_of(ROWS_AT_ONCE);
        Decoding::new(w, (slab.row, rows), columns, ahead, into)
    }
}

/// Some rows and some tokens.
struct Block<'a> {
    tiles: &'a Tiles,
    rows: Range<usize>,
    groups: Range<usize>,
}

impl Block<'_> {
    /// Groups of 16 rows, a multiple of four.
    fn row_groups(&self) -> usize {
        self.rows.len().div_ceil(ROWS_AT_ONCE) * 4
    }

    /// Sums of one matrix.
    fn floats(&self) -> usize {
        self.row_groups() * self.groups.len() * TILE
    }

    /// sums += products of a slab's columns. Meanwhile what is multiplied next is decoded or asked for, a few rows at a time.
    fn add(
        &self,
        operand: Operand<'_>,
        columns: Range<usize>,
        weights: &mut Lines,
        unscaled: &mut [f32],
        sums: &mut [f32],
        next: &mut Option<Decoding<'_, '_>>,
    ) {
        // SAFETY: tiles were set up, so the processor has what this is compiled for.
        unsafe {
            match operand.0.layout().format {
                Format::Fp8Block | Format::Bf16 => {
                    self.add_as::<1>(operand, columns, weights, unscaled, sums, next)
                }
                _ => self.add_as::<2>(operand, columns, weights, unscaled, sums, next),
            }
        }
    }

    /// Weights are in `PARTS`.
    #[target_feature(enable = "avx512dq,avx512vl,avx512vbmi")]
    fn add_as<const PARTS: usize>(
        &self,
        (w, x): Operand<'_>,
        columns: Range<usize>,
        weights: &mut Lines,
        unscaled: &mut [f32],
        sums: &mut [f32],
        next: &mut Option<Decoding<'_, '_>>,
    ) {
        const STEPS: usize = DEPTH / amx::DEPTH;
        let of_group = decode::group_floats(w.layout().format, columns.len());
        let weights = weights.take(self.row_groups() * of_group);
        let (pairs, single) = (self.groups.len() / 2, self.groups.len() % 2);
        let blocks = columns.len() / DEPTH * self.row_groups() * (2 * pairs + single) / 4;
        let mut pace = Pace::new(next.as_ref().map_or(0, Decoding::left), blocks * STEPS);
        let (even, odd) = unscaled.split_at_mut(4 * TILE);
        let unscaled = [even.as_mut_ptr(), odd.as_mut_ptr()];
        let few = is_few(&self.groups);
        // The one way to the sums from here on.
        assert_eq!(sums.len(), self.floats(), "sums of {:?}", self.rows);
        let sums = sums.as_mut_ptr();
        let mut before: Option<Unscaled> = None;
        for depth in columns.clone().step_by(DEPTH) {
            let part = (depth - columns.start) / amx::DEPTH * PARTS * TILE;
            for pair in 0..pairs + single {
                let group = 2 * pair;
                let two = pair < pairs;
                let right = |i: usize| x.tile(self.groups.start + group + i, depth);
                let (height, width) = if two { (2, 2) } else { (4, 1) };
                // What is met next lies behind.
                let mut ahead = right(0).wrapping_add(width * pack::OF_DEPTH * size_of::<f32>());
                let right_lines = (width * pack::OF_DEPTH / 16).div_ceil(self.row_groups() / height * STEPS);
                for row_group in (0..self.row_groups()).step_by(height) {
                    let left = |i: usize| weights[(row_group + i) * of_group + part..].as_ptr().cast::<u8>();
                    let sum = |i: usize, j: usize| ((row_group + i) * self.groups.len() + group + j) * TILE;
                    let (meeting, at) = if two {
                        let meeting = Meeting::TwoByTwo([left(0), left(1)], [right(0), right(1)]);
                        (meeting, [sum(0, 0), sum(0, 1), sum(1, 0), sum(1, 1)])
                    } else {
                        let meeting = Meeting::FourByOne([left(0), left(1), left(2), left(3)], right(0));
                        (meeting, [sum(0, 0), sum(1, 0), sum(2, 0), sum(3, 0)])
                    };
                    // SAFETY: the tiles of DEPTH columns lie behind each other on both sides; there is a tile of sums for each of the
                    // block's groups of rows and of tokens; two times four tiles take turns as what is not scaled yet.
                    unsafe {
                        let sums = [sums.add(at[0]), sums.add(at[1]), sums.add(at[2]), sums.add(at[3])];
                        self.tiles.clear();
                        for step in 0..STEPS {
                            self.tiles.multiply::<PARTS>(
                                meeting.further(step * PARTS * amx::BYTES, step * pack::STEP),
                            );
                            for _ in 0..right_lines {
                                <Avx512<true>>::prefetch(ahead);
                                ahead = ahead.wrapping_add(64);
                            }
                            if let Some(before) = &before {
                                before.add(step);
                            }
                            match next {
                                Some(next) if few => next.some(pace.step()),
                                Some(next) => next.ask(pace.step()),
                                None => {}
                            }
                        }
                        let turn = usize::from(before.as_ref().is_some_and(|b| b.from == unscaled[0]));
                        let from = unscaled[turn];
                        self.tiles.store([from, from.add(TILE), from.add(2 * TILE), from.add(3 * TILE)]);
                        let scale = scale(w, self.rows.start + row_group * ROWS, depth);
                        before = Some(Unscaled { from, scale, sums });
                    }
                }
            }
        }
        if let Some(before) = before {
            for tile in 0..4 {
                // SAFETY: as above.
                unsafe { before.add(tile) }
            }
        }
    }

    /// Results of the block's rows and tokens, from [rows, tokens] in tiles to where they go.
    #[target_feature(enable = "avx512dq,avx512vl,avx512vbmi")]
    fn finish(&self, sums: &mut [Lines; 2], gated: bool, tokens: usize, out: Output) {
        let [first, second] = sums;
        let sums = first.take(self.floats());
        if gated {
            for (gate, up) in sums.iter_mut().zip(second.take(self.floats())) {
                *gate = silu::<Avx512<true>>(*gate) * *up;
            }
        }
        for (i, tile) in sums.chunks_exact(TILE).enumerate() {
            let (row_group, group) = (i / self.groups.len(), i % self.groups.len() + self.groups.start);
            let row = self.rows.start + row_group * ROWS;
            let mask = pack::mask(self.rows.end.saturating_sub(row));
            if mask == 0 {
                return;
            }
            let mut rows = [_mm512_setzero_si512(); ROWS];
            for (row, floats) in rows.iter_mut().zip(tile.chunks_exact(ROWS)) {
                // SAFETY: sixteen floats.
                *row = unsafe { _mm512_loadu_si512(floats.as_ptr().cast()) };
            }
            transpose(&mut rows);
            for (token, values) in (group * ROWS..tokens).zip(rows) {
                // SAFETY: these rows are this task's; what the mask leaves out is not written.
                unsafe { _mm512_mask_storeu_epi32(out.at(token, row).cast(), mask, values) }
            }
        }
    }
}

/// Products that are not in their sums yet.
struct Unscaled {
    /// Four tiles.
    from: *mut f32,
    scale: f32,
    sums: [*mut f32; 4],
}

impl Unscaled {
    /// Adds one of the tiles.
    ///
    /// # Safety
    /// All are where this says, and nobody else looks at them.
    #[inline]
    #[target_feature(enable = "avx512dq,avx512vl,avx512vbmi")]
    unsafe fn add(&self, tile: usize) {
        let scale = _mm512_set1_ps(self.scale);
        for at in (0..TILE).step_by(ROWS) {
            // SAFETY: the caller's.
            unsafe {
                let (from, to) = (self.from.add(tile * TILE + at), self.sums[tile].add(at));
                _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_loadu_ps(from), scale, _mm512_loadu_ps(to)));
            }
        }
    }
}

/// Multiply-adds that [`alone`] makes.
pub(super) const ALONE: usize = 4 * PRODUCTS * ROWS * ROWS * amx::DEPTH;

/// Products of [`alone`] on each of four sums.
const PRODUCTS: usize = 1 << 17;

/// Products on tiles alone, to see what they take.
pub(super) fn alone(amx: Amx) {
    Tiles::new(amx).multiply_alone(PRODUCTS);
}

/// The scale that products of a row's block are still to be multiplied with: that of FP8.
fn scale(w: MatrixView<'_>, row: usize, column: usize) -> f32 {
    let (layout, (_, scales)) = (w.layout(), w.bytes());
    if layout.format != Format::Fp8Block {
        return 1.0;
    }
    let at = row.min(layout.rows - 1) / fp8::BLOCK * layout.cols.div_ceil(fp8::BLOCK) + column / fp8::BLOCK;
    f32::from_le_bytes(scales.as_chunks::<4>().0[at])
}

/// Divides rows among steps.
struct Pace {
    whole: usize,
    rest: usize,
    steps: usize,
    carry: usize,
}

impl Pace {
    fn new(rows: usize, steps: usize) -> Pace {
        Pace { whole: rows / steps, rest: rows % steps, steps, carry: 0 }
    }

    /// Rows of the next step.
    fn step(&mut self) -> usize {
        self.carry += self.rest;
        let one = self.carry >= self.steps;
        self.carry -= if one { self.steps } else { 0 };
        self.whole + usize::from(one)
    }
}
