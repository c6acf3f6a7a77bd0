//! Rows of weights times one token, which is as fast as memory brings the weights, or a few (`narrow.rs`).
//!
//! A row is decoded where it lies and multiplied before the next is looked at. One row at a time means one stream of addresses,
//! which is prefetched (`format.rs`).

use super::format::{Lines, Prepared, RowBytes, Weights, with_weights};
use super::narrow::{self, MOST};
use crate::quant::MatrixView;
use crate::simd::{Kernel, Simd, silu};

/// Where results go: out[t, r] at `t · stride + r`.
#[derive(Clone, Copy)]
pub(super) struct Output {
    first: *mut f32,
    len: usize,
    stride: usize,
    /// Element that is meant by token 0, row 0.
    origin: isize,
}

// SAFETY: elements are reached only through `put` and `get`, whose callers see to it that one task alone does.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// Of [tokens, `stride`].
    pub(super) fn new(out: &mut [f32], stride: usize) -> Output {
        Output { first: out.as_mut_ptr(), len: out.len(), stride, origin: 0 }
    }

    /// The same memory, with `row` of token 0 being what `column` of `token` was.
    pub(super) fn moved(&self, token: usize, column: usize, row: usize) -> Output {
        let origin = self.origin + (token * self.stride + column) as isize - row as isize;
        Output { origin, ..*self }
    }

    /// Where an element lies.
    #[inline(always)]
    pub(super) fn at(&self, token: usize, row: usize) -> *mut f32 {
        let at = self.origin + (token * self.stride + row) as isize;
        debug_assert!((0..self.len as isize).contains(&at), "row {row} of token {token}");
        self.first.wrapping_offset(at)
    }

    /// # Safety
    /// The slice it was made of lives, is not looked at otherwise meanwhile and has this element, which no other task reaches.
    #[inline(always)]
    pub(super) unsafe fn put(&self, token: usize, row: usize, value: f32) {
        // SAFETY: the caller's.
        unsafe { *self.at(token, row) = value }
    }

    /// The elements of a register's rows from `row` on.
    ///
    /// # Safety
    /// As [`Output::put`], for each of them; inside a kernel for `S`.
    #[inline(always)]
    pub(super) unsafe fn put_lanes<S: Simd>(&self, token: usize, row: usize, values: S::F) {
        // SAFETY: the caller's: rows lie one after another.
        unsafe { S::store(self.at(token, row), values) }
    }

    /// # Safety
    /// As [`Output::put`].
    #[inline(always)]
    pub(super) unsafe fn get(&self, token: usize, row: usize) -> f32 {
        // SAFETY: the caller's.
        unsafe { *self.at(token, row) }
    }
}

/// y[t, r] = w[r]·x[t] for `rows`.
pub(super) struct Rows<'a, 'm> {
    pub w: MatrixView<'a>,
    pub x: Prepared<'a>,
    pub rows: std::ops::Range<usize>,
    /// No other task writes these rows.
    pub out: Output,
    /// This thread's, for several tokens.
    pub tile: &'m mut Lines,
}

impl Kernel for Rows<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Rows { w, x, rows, out, tile } = self;
        for first in rows.clone().step_by(BLOCK) {
            let some = first..rows.end.min(first + BLOCK);
            let mut products = [[0.0; MOST]; BLOCK];
            with_weights!(w.layout().format, block::<S, W>(w, &x, some.clone(), tile, &mut products));
            for (row, products) in some.zip(&products) {
                for (t, &product) in products[..x.tokens].iter().enumerate() {
                    // SAFETY: this row is this task's.
                    unsafe { out.put(t, row, product) }
                }
            }
        }
    }
}

/// h[t, r] = silu(gate[r]·x[t]) · (up[r]·x[t]) for `rows`.
pub(super) struct GatedRows<'a, 'm> {
    pub gate: (MatrixView<'a>, Prepared<'a>),
    pub up: (MatrixView<'a>, Prepared<'a>),
    pub rows: std::ops::Range<usize>,
    /// No other task writes these rows.
    pub out: Output,
    /// This thread's, for several tokens.
    pub tile: &'m mut Lines,
}

impl Kernel for GatedRows<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let GatedRows { gate: (gate, of_gate), up: (up, of_up), rows, out, tile } = self;
        for first in rows.clone().step_by(BLOCK) {
            let some = first..rows.end.min(first + BLOCK);
            let mut products = [[[0.0; MOST]; BLOCK]; 2];
            // One place for both, which halves what is compiled for every format and instruction set.
            for ((w, x), products) in [(gate, &of_gate), (up, &of_up)].into_iter().zip(&mut products) {
                with_weights!(w.layout().format, block::<S, W>(w, x, some.clone(), tile, products));
            }
            let [gates, ups] = &products;
            for (row, (gates, ups)) in some.zip(gates.iter().zip(ups)) {
                for (t, (g, u)) in gates[..of_gate.tokens].iter().zip(ups).enumerate() {
                    // SAFETY: this row is this task's.
                    unsafe { out.put(t, row, silu::<S>(*g) * u) }
                }
            }
        }
    }
}

/// Rows of one matrix before those of the other: long runs of addresses. A multiple of a tile's rows.
const BLOCK: usize = 5 * narrow::ROWS;

/// products[i][t] = w[row]·x[t] for the i-th of `rows`.
#[inline(always)]
fn block<S: Simd, W: Weights<S>>(
    w: MatrixView<'_>,
    x: &Prepared<'_>,
    rows: std::ops::Range<usize>,
    tile: &mut Lines,
    products: &mut [[f32; MOST]; BLOCK],
) {
    if x.tokens == 1 {
        for (row, products) in rows.zip(products) {
            products[0] = dot::<S, W>(w, row, x);
        }
    } else {
        narrow::products::<S, W>(w, x, rows, tile, products);
    }
}

/// w[row]·x of a single token.
#[inline(always)]
fn dot<S: Simd, W: Weights<S>>(w: MatrixView<'_>, row: usize, x: &Prepared<'_>) -> f32 {
    let bytes = RowBytes::of(w, row);
    let (spans, rest) = bytes.spans::<S, W>();
    let needed = (spans + usize::from(rest)) * W::PREPARED;
    assert!(x.tokens == 1 && x.values.len() == needed, "prepared for {:?}", w.layout());

    // SAFETY: called inside a kernel for `S`. The row has `spans` whole spans, and a copy of the last is long enough. There are
    // `needed` prepared floats.
    unsafe {
        let x = x.values.as_ptr();
        let mut sum = S::splat(0.0);
        for span in 0..spans {
            let (from, scale) = bytes.span::<S, W>(span);
            W::multiply(from, scale, x.add(span * W::PREPARED), &mut sum);
        }
        if rest {
            let (tail, scales) = bytes.tail::<S, W>();
            W::multiply(tail.as_ptr(), W::scale(scales.as_ptr()), x.add(spans * W::PREPARED), &mut sum);
        }
        S::sum(sum)
    }
}
