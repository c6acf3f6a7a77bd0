//! Linear layers for few tokens: `cuda/gemv.cu`.

use crate::device::cuda::gpu::{Gpu, Launch};
use crate::device::cuda::images::{GEMV, Kernel};
use crate::device::cuda::params::{ActivationType, GemvParams, GemvSize};
use crate::device::cuda::tensor::{ColumnsMut, CudaMatrix, CudaTensor};
use crate::device::{Precision, Shape};
use crate::error::Result;
use crate::quant::{Format, MatrixLayout};

/// Threads of a block.
pub(super) const THREADS: u32 = 128;
/// Rows of a block.
pub(super) const ROWS: usize = GemvSize::GEMV_ROWS as usize;
/// Bytes of a row in a stage.
const SPAN: usize = GemvSize::GEMV_SPAN as usize;
/// Stages of the ring.
const STAGES: usize = 4;
/// Blocks an SM that columns are split for.
const BLOCKS_PER_SM: usize = 3;
/// Groups of threads of a wide block, each with a ring; it has an SM to itself.
const WIDE: usize = 3;
/// Fewest spans worth a block of their own: what its ring holds.
const LEAST_SPANS: usize = STAGES;
/// Bytes of weights for each byte of partial sums at least: these are written once, and may be a few hundredths of the traffic.
const WEIGHTS_BY_PARTIAL_SUMS: usize = 24;

/// Tokens a block takes: the smaller tile if they all fit.
pub(super) fn token_tile(tokens: usize) -> usize {
    if tokens <= 8 { 8 } else { 16 }
}

/// Shared memory of a block: the stages of `row_tile.cuh`.
pub(super) fn shared_bytes(format: Format, token_tile: usize) -> u32 {
    let (columns, padding, scales) = match format {
        Format::F32 => (32, 0, 16),
        Format::F16 | Format::Bf16 => (64, 16, 16),
        Format::Fp8Block => (128, 32, 16),
        Format::Int4Group32 => (256, 64, ROWS * 16),
    };
    (STAGES * (ROWS * SPAN + token_tile * (columns * 2 + padding) + scales)) as u32
}

/// How a product is divided among blocks.
struct Division {
    /// Tokens a block takes at most.
    token_tile: usize,
    row_tiles: usize,
    token_tiles: usize,
    /// Spans a block takes.
    spans: usize,
    /// Blocks that share a row.
    splits: usize,
    /// Whether blocks are wide.
    wide: bool,
}

/// Enough blocks to fill the GPU, none without work, and not so many to a row that their partial sums are much traffic: wide
/// blocks then, if all of them run at the same time. `tokens` > 0.
fn divide(layout: MatrixLayout, tokens: usize, multiprocessors: usize) -> Division {
    let token_tile = token_tile(tokens);
    let (row_tiles, token_tiles) = (layout.rows.div_ceil(ROWS), tokens.div_ceil(token_tile));
    let tiles = row_tiles * token_tiles;
    let all_spans = layout.row_bytes().div_ceil(SPAN);
    let blocks = (BLOCKS_PER_SM * multiprocessors).min(GemvSize::GEMV_SPLIT_BLOCKS as usize);
    let wanted = (blocks / tiles).min(all_spans / LEAST_SPANS);
    let row_sums = tokens.min(token_tile) * size_of::<f32>();
    let most = (layout.row_bytes() / (WEIGHTS_BY_PARTIAL_SUMS * row_sums)).max(1);
    let wide = wanted > most && tiles <= multiprocessors;
    let splits = if wide { most.min(blocks.min(multiprocessors) / tiles) } else { wanted.min(most) };
    let spans = all_spans.div_ceil(splits.max(1));
    Division { token_tile, row_tiles, token_tiles, spans, splits: all_spans.div_ceil(spans), wide }
}

/// out = W·x for any number of tokens, meant for up to some dozens; `x` bf16, `out` of either precision. Weights are read
/// once for every 16 tokens. The result is the same in every run.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If the shapes do not fit or `x` is not bf16.
pub fn linear(gpu: &Gpu, x: &CudaTensor, w: &CudaMatrix, out: &mut CudaTensor) -> Result<()> {
    out.resize(x.rows());
    linear_columns(gpu, x, w, &out.columns_mut(0..out.cols()))
}

/// [`linear`] into some columns of a tensor.
pub(in crate::device::cuda) fn linear_columns(
    gpu: &Gpu,
    x: &CudaTensor,
    w: &CudaMatrix,
    out: &ColumnsMut<'_>,
) -> Result<()> {
    let layout = w.layout();
    assert!(x.cols() == layout.cols && out.cols == layout.rows, "columns of x and out for {layout:?}");
    assert_eq!(x.rows(), out.rows, "rows of x and out");
    assert_eq!(x.precision(), Precision::Working, "x is bf16");
    if x.rows() == 0 {
        return Ok(());
    }
    let Division { token_tile, row_tiles, token_tiles, spans, splits, wide } =
        divide(layout, x.rows(), gpu.multiprocessors() as usize);
    let params = GemvParams {
        x: x.address(),
        out: out.address,
        weight: w.params(),
        x_stride: x.stride() as u32,
        out_stride: out.stride as u32,
        tokens: x.rows() as u32,
        out_type: match out.precision {
            Precision::Full => ActivationType::ACTIVATION_F32,
            Precision::Working => ActivationType::ACTIVATION_BF16,
        },
        spans: spans as u32,
        reserved: 0,
    };
    let name = match (layout.format, token_tile, wide) {
        (Format::F32, 8, false) => c"linear_f32_8",
        (Format::F32, 8, true) => c"linear_f32_8_wide",
        (Format::F32, _, false) => c"linear_f32_16",
        (Format::F32, _, true) => c"linear_f32_16_wide",
        (Format::F16, 8, false) => c"linear_f16_8",
        (Format::F16, 8, true) => c"linear_f16_8_wide",
        (Format::F16, _, false) => c"linear_f16_16",
        (Format::F16, _, true) => c"linear_f16_16_wide",
        (Format::Bf16, 8, false) => c"linear_bf16_8",
        (Format::Bf16, 8, true) => c"linear_bf16_8_wide",
        (Format::Bf16, _, false) => c"linear_bf16_16",
        (Format::Bf16, _, true) => c"linear_bf16_16_wide",
        (Format::Fp8Block, 8, false) => c"linear_fp8_8",
        (Format::Fp8Block, 8, true) => c"linear_fp8_8_wide",
        (Format::Fp8Block, _, false) => c"linear_fp8_16",
        (Format::Fp8Block, _, true) => c"linear_fp8_16_wide",
        (Format::Int4Group32, 8, false) => c"linear_int4_8",
        (Format::Int4Group32, 8, true) => c"linear_int4_8_wide",
        (Format::Int4Group32, _, false) => c"linear_int4_16",
        (Format::Int4Group32, _, true) => c"linear_int4_16_wide",
    };
    let groups = if wide { WIDE as u32 } else { 1 };
    let launch = Launch {
        grid: [row_tiles as u32, splits as u32, token_tiles as u32],
        block: groups * THREADS,
        shared: groups * shared_bytes(layout.format, token_tile),
    };
    // SAFETY: the kernel reads the tensors and the matrix within the sizes given, writes the rows of `out` in use, and its
    // own module's partial sums, for which the grid is small enough if columns are split.
    unsafe { gpu.launch(Kernel::new(&GEMV, name), launch, &params) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_cover_every_span_and_fit_the_partial_sums() {
        for multiprocessors in [1usize, 14, 132, 1000] {
            for (rows, cols) in
                [(384, 7168), (576, 7168), (1, 1), (2048, 7168), (7168, 18432), (163_840, 7168), (64, 513)]
            {
                for tokens in [1usize, 8, 16, 17, 200] {
                    for format in [Format::F32, Format::Bf16, Format::Fp8Block, Format::Int4Group32] {
                        let layout = MatrixLayout { format, rows, cols };
                        let Division { row_tiles, token_tiles, spans, splits, wide, .. } =
                            divide(layout, tokens, multiprocessors);
                        let all = layout.row_bytes().div_ceil(SPAN);
                        assert!(spans * splits >= all && spans * (splits - 1) < all, "{layout:?}");
                        let blocks = row_tiles * token_tiles * splits;
                        assert!(splits == 1 || blocks <= GemvSize::GEMV_SPLIT_BLOCKS as usize);
                        assert!(!wide || blocks <= multiprocessors, "{layout:?}: one block an SM");
                        let sums = splits * tokens.min(16) * 4;
                        assert!(splits == 1 || sums * WEIGHTS_BY_PARTIAL_SUMS <= layout.row_bytes());
                    }
                }
            }
        }
        let router = |tokens| {
            let router = divide(MatrixLayout { format: Format::Bf16, rows: 384, cols: 7168 }, tokens, 132);
            (router.splits, router.wide)
        };
        assert_eq!((router(1), router(16)), ((28, false), (9, true)), "the router fills the GPU");
    }
}
