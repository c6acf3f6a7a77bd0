//! Rows of weights times a few tokens: decoding, which is as fast as memory brings the weights.
//!
//! A row is decoded where it lies and multiplied with up to [`Simd::TOKENS`] tokens before the next is looked at. One row at a
//! time means one stream of addresses, which is prefetched (`format.rs`).

use super::format::{Prepared, RowBytes, Weights, with_weights};
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

    #[inline(always)]
    fn at(&self, token: usize, row: usize) -> *mut f32 {
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
pub(super) struct Rows<'a> {
    pub w: MatrixView<'a>,
    pub x: Prepared<'a>,
    pub rows: std::ops::Range<usize>,
    /// No other task writes these rows.
    pub out: Output,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        with_weights!(self.w.layout().format, rows::<S, W>(self));
    }
}

/// h[t, r] = silu(gate[r]·x[t]) · (up[r]·x[t]) for `rows`.
pub(super) struct GatedRows<'a> {
    pub gate: (MatrixView<'a>, Prepared<'a>),
    pub up: (MatrixView<'a>, Prepared<'a>),
    pub rows: std::ops::Range<usize>,
    /// No other task writes these rows.
    pub out: Output,
}

impl Kernel for GatedRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let tokens = self.gate.1.tokens;
        let end = self.rows.end;
        for block in self.rows.step_by(BLOCK) {
            let rows = block..(block + BLOCK).min(end);
            for first in (0..tokens).step_by(S::TOKENS) {
                let n = (tokens - first).min(S::TOKENS);
                let mut gate = [[0.0; MOST_TOKENS]; BLOCK];
                let mut up = [[0.0; MOST_TOKENS]; BLOCK];
                for (row, sums) in rows.clone().zip(&mut gate) {
                    some_tokens::<S>(self.gate.0, row, &self.gate.1, first, &mut sums[..n]);
                }
                for (row, sums) in rows.clone().zip(&mut up) {
                    some_tokens::<S>(self.up.0, row, &self.up.1, first, &mut sums[..n]);
                }
                for (row, (gate, up)) in rows.clone().zip(gate.iter().zip(&up)) {
                    for (t, (g, u)) in gate[..n].iter().zip(up).enumerate() {
                        // SAFETY: this row is this task's.
                        unsafe { self.out.put(first + t, row, silu::<S>(*g) * u) }
                    }
                }
            }
        }
    }
}

/// Rows of one matrix before those of the other: long runs of addresses.
const BLOCK: usize = 64;

/// The largest [`Simd::TOKENS`].
const MOST_TOKENS: usize = 8;

#[inline(always)]
fn rows<S: Simd, W: Weights<S>>(call: Rows<'_>) {
    let tokens = call.x.tokens;
    for row in call.rows {
        for first in (0..tokens).step_by(S::TOKENS) {
            let mut sums = [0.0; MOST_TOKENS];
            let n = (tokens - first).min(S::TOKENS);
            by_count::<S, W>(call.w, row, &call.x, first, &mut sums[..n]);
            for (t, &sum) in sums[..n].iter().enumerate() {
                // SAFETY: this row is this task's.
                unsafe { call.out.put(first + t, row, sum) }
            }
        }
    }
}

#[inline(always)]
fn some_tokens<S: Simd>(w: MatrixView<'_>, row: usize, x: &Prepared<'_>, first: usize, out: &mut [f32]) {
    with_weights!(w.layout().format, by_count::<S, W>(w, row, x, first, out));
}

/// Cuts a count of tokens into counts that code is compiled for.
#[inline(always)]
fn by_count<S: Simd, W: Weights<S>>(
    w: MatrixView<'_>,
    row: usize,
    x: &Prepared<'_>,
    first: usize,
    out: &mut [f32],
) {
    let mut done = 0;
    while done < out.len() {
        let at = first + done;
        match out.len() - done {
            8.. => done += store(&mut out[done..], dot::<S, W, 8>(w, row, x, at)),
            4.. => done += store(&mut out[done..], dot::<S, W, 4>(w, row, x, at)),
            2.. => done += store(&mut out[done..], dot::<S, W, 2>(w, row, x, at)),
            _ => done += store(&mut out[done..], dot::<S, W, 1>(w, row, x, at)),
        }
    }
}

#[inline(always)]
fn store<const T: usize>(out: &mut [f32], sums: [f32; T]) -> usize {
    out[..T].copy_from_slice(&sums);
    T
}

/// w[row]·x[first + t] for T tokens.
#[inline(always)]
fn dot<S: Simd, W: Weights<S>, const T: usize>(
    w: MatrixView<'_>,
    row: usize,
    x: &Prepared<'_>,
    first: usize,
) -> [f32; T] {
    let bytes = RowBytes::of(w, row);
    let (spans, rest) = bytes.spans::<S, W>();
    let needed = (spans + usize::from(rest)) * W::PREPARED;
    assert!((first + T) * x.stride <= x.values.len() && needed <= x.stride, "prepared for {:?}", w.layout());

    // SAFETY: called inside a kernel for `S`. The row has `spans` whole spans, and a copy of the last is long enough. Every
    // token has `needed` prepared floats.
    unsafe {
        let x_first = x.values.as_ptr().add(first * x.stride);
        let mut sums = [S::splat(0.0); T];
        for span in 0..spans {
            let (from, scale) = bytes.span::<S, W>(span);
            W::multiply::<T>(from, scale, x_first.add(span * W::PREPARED), x.stride, &mut sums);
        }
        if rest {
            let (tail, scales) = bytes.tail::<S, W>();
            let from = x_first.add(spans * W::PREPARED);
            W::multiply::<T>(tail.as_ptr(), W::scale(scales.as_ptr()), from, x.stride, &mut sums);
        }
        let mut totals = [0.0; T];
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total = S::sum(sum);
        }
        totals
    }
}
