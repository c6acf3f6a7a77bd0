//! Rows of weights times many tokens: prefill, which is as fast as multiply-adds are.
//!
//! Tokens stand in the lanes. x is packed once a call into panels of 2·LANES tokens ([`pack`]); a task decodes a block of
//! rows, [`DEPTH`] columns at a time, into a tile that stays in the second-level cache and multiplies it with every panel, whose
//! part stays in the first. So a weight is decoded once whatever the number of tokens, and a multiply-add waits for memory
//! only at a tile's edges. Columns are taken in the order in which a span decodes ([`Weights::column`]), on both sides.

use super::format::{LARGEST_SPAN, Lines, RowBytes, Weights, with_weights};
use super::rows::Output;
use crate::quant::{MatrixLayout, MatrixView};
use crate::simd::{Kernel, STEPS_A_LINE, Simd, TileCall, silu};

/// Columns of a tile: a panel's part, 256·32 floats, is 32 KiB.
const DEPTH: usize = 256;

/// Rows of a tile: a multiple of [`ROWS_AT_ONCE`]. More rows bring activations from memory less often.
pub(super) const TILE_ROWS: usize = 144;

/// A multiple of every set's `TILE_ROWS`.
pub(super) const ROWS_AT_ONCE: usize = 12;

/// Activations packed for [`Tiles`]: [panels, columns in a format's order, 2·LANES tokens].
#[derive(Debug, Clone, Copy)]
pub(super) struct Packed<'a> {
    values: &'a [f32],
    panels: usize,
    tokens: usize,
}

/// The tokens of one panel, packed. Panels are independent, so threads can divide them.
pub(super) struct Pack<'a> {
    pub layout: MatrixLayout,
    /// [tokens, cols] of which row `token` is x[rows[token]], or x[token].
    pub x: &'a [f32],
    pub rows: Option<&'a [u32]>,
    pub tokens: usize,
    pub panel: usize,
    /// The whole of [`PackedSize`]'s floats; only this panel is written.
    pub into: Output,
}

/// Floats of packed activations, and their panels.
pub(super) struct PackedSize {
    pub layout: MatrixLayout,
    pub tokens: usize,
}

impl Kernel for PackedSize {
    /// Floats, panels.
    type Output = (usize, usize);

    #[inline(always)]
    fn run<S: Simd>(self) -> (usize, usize) {
        let panels = self.tokens.div_ceil(2 * S::LANES);
        (panels * self.layout.cols.next_multiple_of(8 * S::LANES) * 2 * S::LANES, panels)
    }
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        with_weights!(self.layout.format, pack::<S, W>(self));
    }
}

/// The most lanes of any set.
const MOST_LANES: usize = 16;

#[inline(always)]
fn pack<S: Simd, W: Weights<S>>(call: Pack<'_>) {
    let (cols, width) = (call.layout.cols, 2 * S::LANES);
    let depth = cols.next_multiple_of(W::SPAN);
    let mut order = [0; LARGEST_SPAN];
    for (i, column) in order[..W::SPAN].iter_mut().enumerate() {
        *column = W::column(i);
    }
    for span in 0..depth / W::SPAN {
        for first in (0..width).step_by(S::LANES) {
            let mut parts = [[0.0; LARGEST_SPAN]; MOST_LANES];
            for (lane, part) in parts[..S::LANES].iter_mut().enumerate() {
                let token = call.panel * width + first + lane;
                // Beyond the last token and the last column there are zeros.
                if token < call.tokens {
                    let row = call.rows.map_or(token, |rows| rows[token] as usize);
                    let from = &call.x[row * cols..][span * W::SPAN..cols.min((span + 1) * W::SPAN)];
                    part[..from.len()].copy_from_slice(from);
                }
            }
            let at = (call.panel * depth + span * W::SPAN) * width + first;
            for (i, &column) in order[..W::SPAN].iter().enumerate() {
                let mut lanes = [0.0; MOST_LANES];
                for (lane, part) in lanes[..S::LANES].iter_mut().zip(&parts) {
                    *lane = part[column % LARGEST_SPAN];
                }
                // SAFETY: inside a kernel for `S`; this panel is this task's, and `PackedSize` has room for it.
                unsafe { call.into.put_lanes::<S>(0, at + i * width, S::load(lanes.as_ptr())) }
            }
        }
    }
}

impl<'a> Packed<'a> {
    /// What [`Pack`] has filled.
    pub(super) fn new(values: &'a [f32], panels: usize, tokens: usize) -> Packed<'a> {
        Packed { values, panels, tokens }
    }
}

/// y[t, r] = w[r]·x[t] for a block of at most [`TILE_ROWS`] rows; or silu(first) · second of two matrices.
pub(super) struct Tiles<'a, 'm> {
    pub w: MatrixView<'a>,
    pub x: Packed<'a>,
    pub up: Option<(MatrixView<'a>, Packed<'a>)>,
    pub rows: std::ops::Range<usize>,
    /// No other task writes these rows.
    pub out: Output,
    /// This thread's.
    pub scratch: &'m mut Scratch,
}

/// A thread's memory for [`Tiles`], reused.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    tile: Lines,
    /// Of either matrix.
    sums: [Lines; 2],
}

impl Kernel for Tiles<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Tiles { w, x, up, rows, out, scratch } = self;
        let Scratch { tile, sums: [first, second] } = scratch;
        let stride = sums_stride(x.panels, 2 * S::LANES);
        // One place for both, which halves what is compiled for every format and instruction set.
        for (operands, sums) in [Some((w, x)), up].into_iter().zip([&mut *first, &mut *second]) {
            if let Some((w, x)) = operands {
                let call = Block { w, x, rows: rows.clone(), tile, sums };
                with_weights!(w.layout().format, block::<S, W>(call));
            }
        }
        let sums = first.take(rows.len() * stride);
        if up.is_some() {
            for (gate, up) in sums.iter_mut().zip(second.take(rows.len() * stride)) {
                *gate = silu::<S>(*gate) * *up;
            }
        }
        // A token's results lie side by side, those of two tokens in different pages.
        for t in 0..x.tokens {
            for (r, row) in rows.clone().enumerate() {
                // SAFETY: this row is this task's.
                unsafe { out.put(t, row, sums[r * stride + t]) }
            }
        }
    }
}

/// Floats from one row of sums to the next: whole panels of tokens, and a cache line so that rows do not share a set.
fn sums_stride(panels: usize, width: usize) -> usize {
    panels * width + 16
}

struct Block<'a, 'm> {
    w: MatrixView<'a>,
    x: Packed<'a>,
    rows: std::ops::Range<usize>,
    tile: &'m mut Lines,
    /// Becomes [rows of the tile, [`sums_stride`]].
    sums: &'m mut Lines,
}

/// The products of a block of rows.
#[inline(always)]
fn block<S: Simd, W: Weights<S>>(call: Block<'_, '_>) {
    let Block { w, x, rows, tile, sums } = call;
    let layout = w.layout();
    let width = 2 * S::LANES;
    let (panels, all) = (x.panels, layout.cols.next_multiple_of(W::SPAN));
    assert!(rows.len() <= TILE_ROWS && rows.end <= layout.rows, "rows {rows:?} of {layout:?}");
    assert!(
        panels == x.tokens.div_ceil(width) && x.values.len() == panels * all * width,
        "packed for {layout:?}"
    );
    let padded = rows.len().next_multiple_of(S::TILE_ROWS);
    let tile = tile.take(TILE_ROWS * DEPTH);
    let stride = sums_stride(panels, width);
    let sums = sums.take(padded * stride);
    sums.fill(0.0);
    tile[rows.len() * DEPTH..padded * DEPTH].fill(0.0);
    for from in (0..all).step_by(DEPTH) {
        let depth = DEPTH.min(all - from);
        for (r, row) in rows.clone().enumerate() {
            let row = RowBytes::of(w, row);
            for (i, out) in tile[r * DEPTH..][..depth].chunks_exact_mut(W::SPAN).enumerate() {
                // SAFETY: called inside a kernel for `S`, for spans that have columns of the row.
                unsafe { row.decode_into::<S, W>(from / W::SPAN + i, out) }
            }
        }
        for panel in 0..panels {
            let wide = x.tokens - panel * width > S::LANES;
            let part = &x.values[(panel * all + from) * width..][..depth * width];
            // The rows of the tile share the lines of the panel that is next.
            let next = if panel + 1 < panels { (panel + 1) * all + from } else { from + depth };
            for (i, r) in (0..padded).step_by(S::TILE_ROWS).enumerate() {
                let line = i * (depth / STEPS_A_LINE) * 16;
                let ahead = if line < part.len() {
                    x.values.as_ptr().wrapping_add(next * width + line)
                } else {
                    part.as_ptr()
                };
                // SAFETY: called inside a kernel for `S`; the tile has `padded` rows of DEPTH, the panel `depth` rows from
                // `from` on, the sums `padded` rows of all panels, as asserted and taken above.
                unsafe {
                    S::tile(
                        TileCall {
                            w: tile.as_ptr().add(r * DEPTH),
                            w_stride: DEPTH,
                            x: part.as_ptr(),
                            depth,
                            out: sums.as_mut_ptr().add(r * stride + panel * width),
                            out_stride: stride,
                            ahead: ahead.cast(),
                        },
                        wide,
                    );
                }
            }
        }
    }
}
