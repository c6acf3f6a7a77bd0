//! FP8 products as Hopper's tensor cores sum them: a model.
//!
//! DeepSeek-V3's report (arXiv 2412.19437, section 3.5.2) describes it: the 32 products of a step are aligned by
//! right shifts to their largest exponent, keep 14 bits, and what is beyond is cut off before the addition. Here the
//! accumulator takes part in the alignment, each addend is truncated towards zero to [`FRACTION_BITS`] below the
//! largest exponent, and the sum is exact. Real hardware may differ in a bit or two and in how it groups products;
//! what the model is for is to show kernels that do not promote their sums to f32 every 128 k.

use super::gemm::{Isa, dispatch, multiply_with};
use crate::settings::Fp8Accumulation;

/// Bits kept below the largest exponent of a step.
pub const FRACTION_BITS: u32 = 14;

/// Products of one step.
const STEP: usize = 32;

/// Columns computed at a time.
const WIDTH: usize = 64;

/// The least exponent field to align to, so that the scales stay normal numbers. FP8 products are ≥ 2^-32.
const LEAST_FIELD: u32 = 32;

/// `acc[M][N] += a[M][K] · b[K][N]` of FP8 values widened to f32.
pub fn multiply(how: Fp8Accumulation, a: &[f32], b: &[f32], acc: &mut [f32], m: usize, n: usize, k: usize) {
    match how {
        Fp8Accumulation::Exact => multiply_with(Isa::best(), a, b, acc, m, n, k),
        Fp8Accumulation::Truncated => truncated_with(Isa::best(), a, b, acc, m, n, k),
    }
}

dispatch! {
    /// The truncated sum with a given instruction set.
    pub fn truncated_with(a: &[f32], b: &[f32], acc: &mut [f32], m: usize, n: usize, k: usize)
        = body, body, body
}

#[inline(always)]
fn body(a: &[f32], b: &[f32], acc: &mut [f32], m: usize, n: usize, k: usize) {
    if a.len() < m * k || b.len() < k * n || acc.len() < m * n || m == 0 || n == 0 || k == 0 {
        return;
    }
    for first in (0..k).step_by(STEP) {
        let depth = STEP.min(k - first);
        for column in (0..n).step_by(WIDTH) {
            let width = WIDTH.min(n - column);
            // Short blocks are padded with zeros so that the arithmetic has one width.
            let mut block = [[0f32; WIDTH]; STEP];
            for (i, b_row) in block.iter_mut().enumerate().take(depth) {
                b_row[..width].copy_from_slice(&b[(first + i) * n + column..][..width]);
            }
            for row in 0..m {
                let mut factors = [0f32; STEP];
                factors[..depth].copy_from_slice(&a[row * k + first..][..depth]);
                let mut sums = [0f32; WIDTH];
                let target = &mut acc[row * n + column..][..width];
                sums[..width].copy_from_slice(target);
                sums = step(&factors, &block, sums);
                target.copy_from_slice(&sums[..width]);
            }
        }
    }
}

/// One step of 32 products into 64 sums.
#[inline(always)]
fn step(factors: &[f32; STEP], b: &[[f32; WIDTH]; STEP], sums: [f32; WIDTH]) -> [f32; WIDTH] {
    let mut largest = [0u32; WIDTH];
    for c in 0..WIDTH {
        largest[c] = sums[c].to_bits() & 0x7f80_0000;
    }
    for (factor, row) in factors.iter().zip(b) {
        for c in 0..WIDTH {
            largest[c] = largest[c].max((factor * row[c]).to_bits() & 0x7f80_0000);
        }
    }
    // Scaled by these, the last bit kept is worth 1; whole numbers below 2^15 add up exactly in f32.
    let mut up = [0f32; WIDTH];
    let mut down = [0f32; WIDTH];
    let mut whole = [0f32; WIDTH];
    let mut special = sums;
    for c in 0..WIDTH {
        let field = (largest[c] >> 23).clamp(LEAST_FIELD, 254);
        up[c] = f32::from_bits((254 + FRACTION_BITS - field) << 23);
        down[c] = f32::from_bits((field - FRACTION_BITS) << 23);
        whole[c] = (sums[c] * up[c]).trunc();
    }
    for (factor, row) in factors.iter().zip(b) {
        for c in 0..WIDTH {
            let product = factor * row[c];
            whole[c] += (product * up[c]).trunc();
            special[c] += product;
        }
    }
    let mut out = [0f32; WIDTH];
    for c in 0..WIDTH {
        // Infinities and NaN have no exponent to align to: the plain sum says what they give.
        // −0 plus 0 is 0: a whole number has no sign then.
        out[c] = if largest[c] == 0x7f80_0000 { special[c] } else { (whole[c] + 0.0) * down[c] };
    }
    out
}
