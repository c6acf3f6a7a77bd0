//! y = W·x for every weight format.
//!
//! Rows of W are divided over the threads. A thread decodes a tile of a few rows and [`TILE_COLS`] columns into L1 and
//! multiplies it with every token before it decodes the next, so a weight is read once and decoded once whatever the
//! number of tokens.

use rayon::prelude::*;

use crate::quant::MatrixView;
use crate::simd::{Isa, Kernel, mul_add};

/// Rows of a decoded tile; each token's x is loaded once for all of them.
const TILE_ROWS: usize = 4;

/// Columns of a decoded tile: 4 rows of them and a token's slice stay in a 32 KiB L1.
const TILE_COLS: usize = 1024;

/// Partial sums per row and token, one vector register of AVX-512.
const LANES: usize = 16;

/// Work below this many multiplications is not worth waking another thread.
const PARALLEL_FROM: usize = 1 << 17;

/// Rows a task takes at least.
const TASK_ROWS: usize = 32;

/// y[t, r] = Σ W[r, c]·x[t, c]. `x` is [tokens, cols], `y` [tokens, rows]; every element of `y` is written.
///
/// # Panics
/// If the slices do not have those sizes.
pub(super) fn matmul(isa: Isa, w: MatrixView<'_>, x: &[f32], y: &mut [f32]) {
    let (rows, cols) = (w.layout().rows, w.layout().cols);
    let tokens = x.len() / cols;
    assert!(x.len() == tokens * cols && y.len() == tokens * rows, "matmul of {:?}", w.layout());
    if tokens == 0 {
        return;
    }
    let parallel = rows * cols * tokens >= PARALLEL_FROM;
    let tasks = if parallel { rayon::current_num_threads() * 4 } else { 1 };
    let task_rows = rows.div_ceil(tasks).next_multiple_of(TILE_ROWS).max(TASK_ROWS);

    if tokens == 1 {
        let run = |(task, y): (usize, &mut [f32])| {
            isa.run(RowBlock { w, x, first_row: task * task_rows, out: y, tokens: 1 });
        };
        if parallel {
            y.par_chunks_mut(task_rows).enumerate().for_each(run);
        } else {
            run((0, y));
        }
        return;
    }

    // With several tokens a block's results are strided in y: compute blocks as [rows, tokens], then transpose.
    let blocks: Vec<(usize, Vec<f32>)> = (0..rows.div_ceil(task_rows))
        .into_par_iter()
        .map(|task| {
            let first_row = task * task_rows;
            let mut out = vec![0.0; task_rows.min(rows - first_row) * tokens];
            isa.run(RowBlock { w, x, first_row, out: &mut out, tokens });
            (first_row, out)
        })
        .collect();
    for (first_row, block) in blocks {
        for (r, row) in block.chunks_exact(tokens).enumerate() {
            for (t, value) in row.iter().enumerate() {
                y[t * rows + first_row + r] = *value;
            }
        }
    }
}

/// A block of consecutive rows of W times all tokens; `out` is [rows of the block, tokens].
struct RowBlock<'a> {
    w: MatrixView<'a>,
    x: &'a [f32],
    first_row: usize,
    out: &'a mut [f32],
    tokens: usize,
}

impl Kernel for RowBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let cols = self.w.layout().cols;
        let mut tile = [[0.0f32; TILE_COLS]; TILE_ROWS];
        for (group, out) in self.out.chunks_mut(TILE_ROWS * self.tokens).enumerate() {
            out.fill(0.0);
            let first_row = self.first_row + group * TILE_ROWS;
            let rows = out.len() / self.tokens;
            for col in (0..cols).step_by(TILE_COLS) {
                let width = TILE_COLS.min(cols - col);
                for (r, decoded) in tile[..rows].iter_mut().enumerate() {
                    self.w.decode(first_row + r, col, &mut decoded[..width]);
                }
                for t in 0..self.tokens {
                    let x = &self.x[t * cols + col..][..width];
                    let sums = tile_dot::<FMA>(&tile, x);
                    for r in 0..rows {
                        out[r * self.tokens + t] += sums[r];
                    }
                }
            }
        }
    }
}

/// The dot products of `x` with the first `x.len()` columns of each tile row. Rows that were not decoded give values
/// the caller ignores.
#[inline(always)]
fn tile_dot<const FMA: bool>(tile: &[[f32; TILE_COLS]; TILE_ROWS], x: &[f32]) -> [f32; TILE_ROWS] {
    let mut sums = [[0.0f32; LANES]; TILE_ROWS];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for (i, x) in chunks.iter().enumerate() {
        for r in 0..TILE_ROWS {
            let w = &tile[r].as_chunks::<LANES>().0[i];
            for lane in 0..LANES {
                sums[r][lane] = mul_add::<FMA>(w[lane], x[lane], sums[r][lane]);
            }
        }
    }
    let done = chunks.len() * LANES;
    let mut totals = [0.0; TILE_ROWS];
    for r in 0..TILE_ROWS {
        let tail: f32 = tile[r][done..].iter().zip(rest).map(|(w, x)| w * x).sum();
        totals[r] = sums[r].iter().sum::<f32>() + tail;
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Format, MatrixLayout, fp8, int4};
    use proptest::prelude::*;

    fn naive(w: MatrixView<'_>, x: &[f32]) -> Vec<f64> {
        let (rows, cols) = (w.layout().rows, w.layout().cols);
        let mut row = vec![0.0; cols];
        let tokens = x.len() / cols;
        let mut y = vec![0.0; tokens * rows];
        for r in 0..rows {
            w.decode(r, 0, &mut row);
            for t in 0..tokens {
                y[t * rows + r] =
                    row.iter().zip(&x[t * cols..]).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
            }
        }
        y
    }

    /// Random bytes that are finite in the given format.
    fn weights(layout: MatrixLayout, seed: u64) -> (Vec<u8>, Vec<u8>) {
        use rand_core::Rng;
        let mut rng = rand_pcg::Pcg64Mcg::new(u128::from(seed) | 1);
        let mut uniform = move || (rng.next_u32() >> 8) as f32 / (1 << 24) as f32 - 0.5;
        let mut weight = vec![0u8; layout.weight_bytes()];
        match layout.format {
            Format::F32 => {
                weight.chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&uniform().to_le_bytes()))
            }
            Format::F16 => weight
                .chunks_exact_mut(2)
                .for_each(|b| b.copy_from_slice(&half::f16::from_f32(uniform()).to_le_bytes())),
            Format::Bf16 => weight
                .chunks_exact_mut(2)
                .for_each(|b| b.copy_from_slice(&half::bf16::from_f32(uniform()).to_le_bytes())),
            Format::Fp8Block => weight.iter_mut().for_each(|b| {
                *b = ((uniform() + 0.5) * 256.0) as u8;
                if *b & 0x7f == 0x7f {
                    *b = 0x80;
                }
            }),
            Format::Int4Group32 => weight.iter_mut().for_each(|b| *b = ((uniform() + 0.5) * 256.0) as u8),
        }
        let mut scale = vec![0u8; layout.scale_bytes()];
        if layout.format == Format::Int4Group32 {
            scale
                .chunks_exact_mut(2)
                .for_each(|b| b.copy_from_slice(&half::bf16::from_f32(uniform() / 8.0).to_le_bytes()));
        } else {
            scale.chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&(uniform() / 448.0).to_le_bytes()));
        }
        (weight, scale)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn agrees_with_f64_on_ragged_sizes(rows in 1usize..300, cols in 1usize..1500, tokens in 0usize..6, seed: u64) {
            for format in [Format::F32, Format::F16, Format::Bf16, Format::Fp8Block, Format::Int4Group32] {
                let layout = MatrixLayout { format, rows, cols };
                let (weight, scale) = weights(layout, seed);
                let w = MatrixView::new(layout, &weight, &scale);
                let x: Vec<f32> = (0..tokens * cols).map(|i| ((i * 7919 + seed as usize % 1000) % 1000) as f32 / 500.0 - 1.0).collect();
                let want = naive(w, &x);
                for isa in [Isa::Baseline, Isa::detect()] {
                    let mut y = vec![f32::NAN; tokens * rows];
                    matmul(isa, w, &x, &mut y);
                    for (i, (&got, &want)) in y.iter().zip(&want).enumerate() {
                        let bound = 1e-4 * (1.0 + want.abs()) * (cols as f64).sqrt();
                        prop_assert!((f64::from(got) - want).abs() <= bound, "{format:?} {isa:?} at {i}: {got} for {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn ragged_scale_blocks_use_row_over_128() {
        // 160 rows: the second block has 32 rows and its own scale; dividing by ceil(160/2) = 80 would be wrong.
        let layout = MatrixLayout { format: Format::Fp8Block, rows: 160, cols: 130 };
        let one = 0x38u8;
        assert_eq!(fp8::decode(one), 1.0);
        let weight = vec![one; layout.weight_bytes()];
        let scale: Vec<u8> = [1.0f32, 10.0, 100.0, 1000.0].iter().flat_map(|s| s.to_le_bytes()).collect();
        let w = MatrixView::new(layout, &weight, &scale);
        let mut y = vec![0.0; 160];
        matmul(Isa::detect(), w, &[1.0; 130], &mut y);
        assert_eq!((y[0], y[127], y[128], y[159]), (148.0, 148.0, 14800.0, 14800.0));
    }

    #[test]
    fn int4_matrix_with_known_words() {
        let layout = MatrixLayout { format: Format::Int4Group32, rows: 1, cols: 32 };
        let word = int4::pack([-8, -7, -1, 0, 1, 2, 3, 7]).to_le_bytes();
        let weight: Vec<u8> = word.iter().copied().cycle().take(16).collect();
        let scale = half::bf16::from_f32(0.5).to_le_bytes();
        let mut y = [0.0];
        matmul(Isa::detect(), MatrixView::new(layout, &weight, &scale), &[1.0; 32], &mut y);
        assert_eq!(y[0], -6.0, "4 words of sum -3, scale 0.5");
    }
}
