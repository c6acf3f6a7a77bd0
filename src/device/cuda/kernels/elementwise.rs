//! Kernels that treat each element by itself: `cuda/elementwise.cu`.

use std::ops::Range;

use crate::device::cuda::gpu::{Gpu, Launch};
use crate::device::cuda::images::{ELEMENTWISE, Kernel};
use crate::device::cuda::memory::Slice;
use crate::device::cuda::params::{AddParams, CombineParams, CopyRowsParams, EmbedParams, SwigluParams};
use crate::device::cuda::tensor::{CudaMatrix, CudaTensor};
use crate::device::{Precision, Shape};
use crate::error::Result;
use crate::quant::Format;

const EMBED_F32: Kernel = Kernel::new(&ELEMENTWISE, c"embed_f32");
const EMBED_BF16: Kernel = Kernel::new(&ELEMENTWISE, c"embed_bf16");
const ADD_F32_F32: Kernel = Kernel::new(&ELEMENTWISE, c"add_f32_f32");
const ADD_BF16_F32: Kernel = Kernel::new(&ELEMENTWISE, c"add_bf16_f32");
const ADD_F32_BF16: Kernel = Kernel::new(&ELEMENTWISE, c"add_f32_bf16");
const ADD_BF16_BF16: Kernel = Kernel::new(&ELEMENTWISE, c"add_bf16_bf16");
const COPY_ROWS_F32: Kernel = Kernel::new(&ELEMENTWISE, c"copy_rows_f32");
const COPY_ROWS_BF16: Kernel = Kernel::new(&ELEMENTWISE, c"copy_rows_bf16");
const COMBINE_F32: Kernel = Kernel::new(&ELEMENTWISE, c"combine_f32");
const COMBINE_BF16: Kernel = Kernel::new(&ELEMENTWISE, c"combine_bf16");
const SWIGLU: Kernel = Kernel::new(&ELEMENTWISE, c"swiglu");

const THREADS: u32 = 256;
/// Columns a thread handles.
const VECTOR: u32 = 8;

/// A row of the grid for each row of the tensor, with a block for every 2048 of its columns.
pub(super) fn by_row(rows: usize, cols: usize) -> Launch {
    Launch { grid: [rows as u32, (cols as u32).div_ceil(THREADS * VECTOR), 1], block: THREADS, shared: 0 }
}

/// out\[i\] = table\[ids\[i\]\]; a table in F32, F16 or BF16, `out` of either precision. A row the table does not have
/// is NaN.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If the columns differ, the table is quantised or `out` has no room.
pub fn embed(gpu: &Gpu, table: &CudaMatrix, ids: Slice<'_, u32>, out: &mut CudaTensor) -> Result<()> {
    let layout = table.layout();
    assert_eq!(layout.cols, out.cols(), "columns of table and out");
    assert!(
        matches!(layout.format, Format::F32 | Format::F16 | Format::Bf16),
        "an embedding table in {:?}",
        layout.format
    );
    out.resize(ids.len());
    let params = EmbedParams {
        table: table.params(),
        ids: ids.address(),
        out: out.address(),
        out_stride: out.stride() as u32,
        tokens: ids.len() as u32,
    };
    let kernel = match out.precision() {
        Precision::Full => EMBED_F32,
        Precision::Working => EMBED_BF16,
    };
    // SAFETY: the kernel reads the ids and only rows that the table has, and writes a row of `out` for each id.
    unsafe { gpu.launch(kernel, by_row(ids.len(), layout.cols), &params) }
}

/// sum += x; each of either precision.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If the shapes differ.
pub fn add(gpu: &Gpu, x: &CudaTensor, sum: &mut CudaTensor) -> Result<()> {
    assert!(x.rows() == sum.rows() && x.cols() == sum.cols(), "x and sum have one shape");
    let params = AddParams {
        x: x.address(),
        sum: sum.address(),
        x_stride: x.stride() as u32,
        sum_stride: sum.stride() as u32,
        rows: x.rows() as u32,
        cols: x.cols() as u32,
    };
    let kernel = match (x.precision(), sum.precision()) {
        (Precision::Full, Precision::Full) => ADD_F32_F32,
        (Precision::Working, Precision::Full) => ADD_BF16_F32,
        (Precision::Full, Precision::Working) => ADD_F32_BF16,
        (Precision::Working, Precision::Working) => ADD_BF16_BF16,
    };
    // SAFETY: the kernel reads `rows` rows of x and reads and writes as many of `sum`, all of which exist.
    unsafe { gpu.launch(kernel, by_row(x.rows(), x.cols()), &params) }
}

/// out = rows `range` of x, bit by bit.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If the range leaves x, or columns or precision differ.
pub fn copy_rows(gpu: &Gpu, x: &CudaTensor, range: Range<usize>, out: &mut CudaTensor) -> Result<()> {
    assert!(range.start <= range.end && range.end <= x.rows(), "{range:?} of {} rows", x.rows());
    assert!(x.cols() == out.cols() && x.precision() == out.precision(), "x and out of one kind");
    out.resize(range.len());
    let (kernel, element) = match x.precision() {
        Precision::Full => (COPY_ROWS_F32, 4),
        Precision::Working => (COPY_ROWS_BF16, 2),
    };
    let params = CopyRowsParams {
        x: x.address() + (range.start * x.stride() * element) as u64,
        out: out.address(),
        x_stride: x.stride() as u32,
        out_stride: out.stride() as u32,
        rows: range.len() as u32,
        cols: x.cols() as u32,
    };
    // SAFETY: the kernel reads the rows of the range and writes as many of `out`, all of which exist.
    unsafe { gpu.launch(kernel, by_row(range.len(), x.cols()), &params) }
}

/// out = silu(gate) ⊙ up, silu(z) = z / (1 + e^-z); all bf16.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If the shapes differ or one is not bf16.
pub fn swiglu(gpu: &Gpu, gate: &CudaTensor, up: &CudaTensor, out: &mut CudaTensor) -> Result<()> {
    assert!(gate.rows() == up.rows(), "rows of gate and up");
    assert!(gate.cols() == up.cols() && gate.cols() == out.cols(), "columns of gate, up and out");
    for precision in [gate.precision(), up.precision(), out.precision()] {
        assert_eq!(precision, Precision::Working);
    }
    out.resize(gate.rows());
    let params = SwigluParams {
        gate: gate.address(),
        up: up.address(),
        out: out.address(),
        gate_stride: gate.stride() as u32,
        up_stride: up.stride() as u32,
        out_stride: out.stride() as u32,
        rows: gate.rows() as u32,
        cols: gate.cols() as u32,
        reserved: 0,
    };
    // SAFETY: the kernel reads `rows` rows of gate and up and writes as many of `out`, all of which exist.
    unsafe { gpu.launch(SWIGLU, by_row(gate.rows(), gate.cols()), &params) }
}

/// sum\[t\] += Σⱼ weights\[t, j\] · pairs\[positions\[t, j\]\], j in rank order; pairs of either precision, `sum` f32. A
/// position beyond the pairs counts as NaN.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If the columns differ, weights or positions are not `top_k` for each row of `sum`, or `sum` is not f32.
pub fn combine(
    gpu: &Gpu,
    pairs: &CudaTensor,
    weights: Slice<'_, f32>,
    positions: Slice<'_, u32>,
    top_k: usize,
    sum: &mut CudaTensor,
) -> Result<()> {
    assert_eq!(pairs.cols(), sum.cols(), "columns of pairs and sum");
    assert_eq!(sum.precision(), Precision::Full);
    let expected = sum.rows() * top_k;
    assert!(weights.len() == expected && positions.len() == expected, "{top_k} pairs a token");
    let params = CombineParams {
        pairs: pairs.address(),
        weights: weights.address(),
        positions: positions.address(),
        sum: sum.address(),
        pairs_stride: pairs.stride() as u32,
        sum_stride: sum.stride() as u32,
        pairs_rows: pairs.rows() as u32,
        tokens: sum.rows() as u32,
        cols: sum.cols() as u32,
        top_k: top_k as u32,
    };
    let kernel = match pairs.precision() {
        Precision::Full => COMBINE_F32,
        Precision::Working => COMBINE_BF16,
    };
    // SAFETY: the kernel reads `top_k` weights and positions a token and only rows that `pairs` has, and reads and
    // writes the rows of `sum`.
    unsafe { gpu.launch(kernel, by_row(sum.rows(), sum.cols()), &params) }
}
