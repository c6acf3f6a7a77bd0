//! The dot products of all rows of one matrix with all rows of another.
//!
//! Without fused multiply-adds: what is decided from these numbers must not depend on the processor.

use rayon::prelude::*;

use crate::simd::{Isa, Kernel, Simd, sum_lanes};

/// Rows of `a` in a task; `b` is read once for all of them.
const TASK_ROWS: usize = 64;

/// Columns at a time: a task's rows of them stay in the second-level cache, a tile's in the first.
const WIDTH: usize = 512;

/// Rows of `a` and of `b` whose products are summed in registers at once.
const TILE: [usize; 2] = [4, 2];

/// Partial sums of one dot product, a vector register of AVX-512.
const LANES: usize = 16;

/// Calls `combine(i, j, a[i] · b[j], &mut out[i, j])` for every pair, each once. `a` is [n, cols], `b` [m, cols], `out`
/// [n, m]. Takes memory for 64 rows of `out` a thread.
///
/// # Panics
/// If the slices do not have those sizes.
pub(super) fn dots(
    a: &[f32],
    b: &[f32],
    cols: usize,
    out: &mut [f32],
    combine: impl Fn(usize, usize, f32, &mut f32) + Sync,
) {
    let [n, m] = [a.len() / cols, b.len() / cols];
    assert!(
        a.len() == n * cols && b.len() == m * cols && out.len() == n * m,
        "dot products of {cols} columns"
    );
    if out.is_empty() {
        return;
    }
    let isa = Isa::detect();
    out.par_chunks_mut(TASK_ROWS * m).enumerate().for_each(|(task, out)| {
        let first = task * TASK_ROWS;
        let mut dots = vec![0.0; out.len()];
        isa.run(Task { a: &a[first * cols..][..out.len() / m * cols], b, cols, dots: &mut dots });
        for (at, (out, dot)) in out.iter_mut().zip(dots).enumerate() {
            combine(first + at / m, at % m, dot, out);
        }
    });
}

/// A few rows of `a` with all of `b`; `dots` is [rows of a, rows of b] and zero.
struct Task<'a> {
    a: &'a [f32],
    b: &'a [f32],
    cols: usize,
    dots: &'a mut [f32],
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Task { a, b, cols, dots } = self;
        let [n, m] = [a.len() / cols, b.len() / cols];
        for from in (0..cols).step_by(WIDTH) {
            let width = WIDTH.min(cols - from);
            // A row beyond the last is the last once more; what it gives is not looked at.
            let row = |of: &'_ [f32], row: usize, rows: usize| row.min(rows - 1) * cols + from..of.len();
            for j in (0..m).step_by(TILE[1]) {
                let mut right: [&[f32]; TILE[1]] = [&[]; TILE[1]];
                for (c, right) in right.iter_mut().enumerate() {
                    *right = &b[row(b, j + c, m)][..width];
                }
                for i in (0..n).step_by(TILE[0]) {
                    let mut left: [&[f32]; TILE[0]] = [&[]; TILE[0]];
                    for (r, left) in left.iter_mut().enumerate() {
                        *left = &a[row(a, i + r, n)][..width];
                    }
                    let sums = tile(left, right);
                    for r in 0..TILE[0].min(n - i) {
                        for c in 0..TILE[1].min(m - j) {
                            dots[(i + r) * m + j + c] += sums[r][c];
                        }
                    }
                }
            }
        }
    }
}

/// Every row of `a` with both rows of `b`, all of one length.
#[inline(always)]
fn tile(a: [&[f32]; TILE[0]], b: [&[f32]; TILE[1]]) -> [[f32; TILE[1]]; TILE[0]] {
    // An array for each row of `b`: the compiler keeps these in registers, nested ones it does not.
    let (mut first, mut second) = ([[0.0f32; LANES]; TILE[0]], [[0.0f32; LANES]; TILE[0]]);
    let chunks = a[0].len() / LANES;
    let [b0, b1] = [&b[0].as_chunks::<LANES>().0[..chunks], &b[1].as_chunks::<LANES>().0[..chunks]];
    for at in 0..chunks {
        for r in 0..TILE[0] {
            let a = &a[r].as_chunks::<LANES>().0[at];
            for lane in 0..LANES {
                first[r][lane] += a[lane] * b0[at][lane];
            }
            for lane in 0..LANES {
                second[r][lane] += a[lane] * b1[at][lane];
            }
        }
    }
    let mut totals = [[0.0; TILE[1]]; TILE[0]];
    for r in 0..TILE[0] {
        totals[r] = [sum_lanes(first[r]), sum_lanes(second[r])];
        for at in chunks * LANES..a[r].len() {
            totals[r][0] += a[r][at] * b[0][at];
            totals[r][1] += a[r][at] * b[1][at];
        }
    }
    totals
}

/// 1 / |row| for every row; 0 for a row of zeros, which is thereby like no other.
pub(super) fn inverse_norms(rows: &[f32], cols: usize) -> Vec<f32> {
    let inverse = |row: &[f32]| {
        let square: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
        if square > 0.0 { square.sqrt().recip() as f32 } else { 0.0 }
    };
    rows.par_chunks(cols).map(inverse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_once_and_right_at_ragged_sizes() {
        for (n, m, cols) in [(1, 1, 1), (3, 5, 17), (37, 70, 530), (64, 2, 1024), (5, 33, 512)] {
            let value = |i: usize| ((i * 37 + 11) % 41) as f32 / 20.0 - 1.0;
            let a: Vec<f32> = (0..n * cols).map(value).collect();
            let b: Vec<f32> = (0..m * cols).map(|i| value(i * 3 + 1)).collect();
            let mut out = vec![1.0; n * m];
            dots(&a, &b, cols, &mut out, |i, j, dot, out| *out += dot + (1000 * i + 100_000 * j) as f32);
            for (at, got) in out.iter().enumerate() {
                let (i, j) = (at / m, at % m);
                let (a, b) = (&a[i * cols..][..cols], &b[j * cols..][..cols]);
                let dot: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                let want = 1.0 + dot + (1000 * i + 100_000 * j) as f64;
                assert!(
                    (f64::from(*got) - want).abs() < 1e-6 * want.abs() + 1e-3,
                    "[{i}, {j}]: {got} for {want}"
                );
            }
        }
    }
}
