//! Rows of weights times a few tokens: what a prompt brings to one expert of hundreds.
//!
//! A dozen rows are decoded, [`DEPTH`] columns at a time, into a tile that stays in the first-level cache and meets the same
//! columns of every token there: a weight is decoded once, and what is loaded of a token serves several rows. Columns stand
//! in the lanes, so no activation is rearranged beyond a span's order; with as many tokens as lanes `gemm.rs` is faster.

use std::ops::Range;

use super::format::{Lines, Prepared, RowBytes, Weights};
use crate::quant::MatrixView;
use crate::simd::{DotsCall, Simd};

/// The most tokens.
pub(super) const MOST: usize = 16;

/// Rows of a tile: a multiple of every set's `DOT_ROWS`.
pub(super) const ROWS: usize = 12;

/// Columns of a tile: 12 · 256 floats are 12 KiB, and 16 KiB those of the tokens.
const DEPTH: usize = 256;

/// out[i][t] = w[row]·x[t] for the i-th of `rows`.
///
/// # Panics
/// If there are more than [`MOST`] tokens, fewer elements of `out` than rows, rows that the matrix does not have, or if `x` was
/// prepared for another layout.
#[inline(always)]
pub(super) fn products<S: Simd, W: Weights<S>>(
    w: MatrixView<'_>,
    x: &Prepared<'_>,
    rows: Range<usize>,
    tile: &mut Lines,
    out: &mut [[f32; MOST]],
) {
    let layout = w.layout();
    let depth = layout.cols.next_multiple_of(W::SPAN);
    let all = x.values.len() == x.tokens * x.stride;
    assert!(x.tokens <= MOST && x.stride >= depth && all, "prepared for {layout:?}");
    assert!(rows.end <= layout.rows && out.len() >= rows.len(), "rows {rows:?} of {layout:?}");
    let tile = tile.take(ROWS * DEPTH);
    for (set, out) in rows.clone().step_by(ROWS).zip(out.chunks_mut(ROWS)) {
        let set = set..rows.end.min(set + ROWS);
        // Rows that are missing meet zeros.
        tile[set.len() * DEPTH..].fill(0.0);
        // SAFETY: inside a kernel for `S`; so below.
        let mut sums = [[unsafe { S::splat(0.0) }; MOST]; ROWS];
        for from in (0..depth).step_by(DEPTH) {
            let columns = from..depth.min(from + DEPTH);
            for (r, row) in set.clone().enumerate() {
                let next = if columns.end < depth { (row, columns.end) } else { (row + ROWS, 0) };
                let ask = if next.0 < rows.end { Some(next) } else { None };
                decode::<S, W>(w, row, columns.start, ask, &mut tile[r * DEPTH..][..columns.len()]);
            }
            for r in (0..set.len()).step_by(S::DOT_ROWS) {
                // SAFETY: the tile has ROWS rows, of which these are some, each token `depth` floats, and `sums` a row for each
                // of the tile with room for all tokens, as asserted.
                unsafe {
                    S::dots(DotsCall {
                        w: tile.as_ptr().add(r * DEPTH),
                        w_stride: DEPTH,
                        x: x.values.as_ptr().add(from),
                        x_stride: x.stride,
                        depth: columns.len(),
                        tokens: x.tokens,
                        sums: sums[r].as_mut_ptr(),
                        sums_stride: MOST,
                    });
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(&sums) {
            for (out, &sum) in out.iter_mut().zip(&sums[..x.tokens]) {
                // SAFETY: as above.
                *out = unsafe { S::sum(sum) };
            }
        }
    }
}

/// Decodes whole spans of a row from column `from` on, scaled; as many bytes from a row and column to `ask` for are prefetched.
#[inline(always)]
fn decode<S: Simd, W: Weights<S>>(
    w: MatrixView<'_>,
    row: usize,
    from: usize,
    ask: Option<(usize, usize)>,
    out: &mut [f32],
) {
    // No closures: they would not have the kernel's instructions.
    let bytes = RowBytes::of(w, row);
    let here = bytes.address::<S, W>(from / W::SPAN);
    let ahead = match ask {
        Some((row, column)) => RowBytes::of(w, row).address::<S, W>(column / W::SPAN),
        None => here,
    };
    for (i, out) in out.chunks_exact_mut(W::SPAN).enumerate() {
        // SAFETY: inside a kernel for `S`, for spans that have columns of the row; a prefetch may go anywhere; a span decodes
        // to as many floats as `out` has.
        unsafe {
            for line in (0..W::BYTES).step_by(64) {
                S::prefetch(ahead.wrapping_add(i * W::BYTES + line));
            }
            bytes.decode_into::<S, W>(from / W::SPAN + i, out);
        }
    }
}
