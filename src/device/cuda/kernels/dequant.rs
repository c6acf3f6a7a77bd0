//! Between number formats: `cuda/dequant.cu`.

use crate::device::cuda::gpu::{Gpu, Launch};
use crate::device::cuda::images::{DEQUANT, Kernel};
use crate::device::cuda::kernels::gemm::GroupedWeights;
use crate::device::cuda::memory::{Buffer, Slice, SliceMut};
use crate::device::cuda::params::{DequantParams, QuantiseParams};
use crate::device::cuda::tensor::{CudaMatrix, CudaTensor};
use crate::device::{Precision, Shape};
use crate::error::Result;
use crate::quant::{Format, MatrixLayout, fp8, int4};

const QUANTISE_FP8: Kernel = Kernel::new(&DEQUANT, c"quantise_fp8");
const FP8_TO_BF16: Kernel = Kernel::new(&DEQUANT, c"fp8_to_bf16");
const FP8_TO_F16: Kernel = Kernel::new(&DEQUANT, c"fp8_to_f16");
const INT4_TO_BF16: Kernel = Kernel::new(&DEQUANT, c"int4_to_bf16");
const THREADS: u32 = 256;
/// Units a thread of the weight kernels handles, and columns of an FP8 unit (of an INT4 unit: a group).
const UNITS: usize = 2;
const FP8_UNIT: usize = 16;
/// Elements that rows of 16-bit outputs are rounded up to.
const STRIDE: usize = 8;
/// Rows whose scales are stored together.
const ROW_QUAD: usize = 4;
/// Column groups of a block of `quantise_fp8`.
const BLOCK_GROUPS: usize = 8;

/// FP8 activations: x\[r, c\] ≈ codes\[r, c\] · scales\[c / 128, r\].
pub struct QuantisedTensor {
    /// e4m3 \[rows, cols\], rows `row_stride` bytes apart; zero from `cols` to the stride.
    pub codes: Buffer<u8>,
    /// \[⌈cols / 128⌉, rows\], groups `scale_stride` elements apart. Rows up to the next multiple of 4 are written.
    pub scales: Buffer<f32>,
    /// Rows in use.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Bytes from row to row of `codes`: `cols` rounded up to 16.
    pub row_stride: usize,
    /// Elements from group to group of `scales`: the rows there is room for, rounded up to 4.
    pub scale_stride: usize,
}

/// Bytes from row to row of the codes, elements from group to group of the scales.
fn strides(max_rows: usize, cols: usize) -> (usize, usize) {
    (cols.next_multiple_of(16), max_rows.next_multiple_of(ROW_QUAD))
}

impl QuantisedTensor {
    /// Room for `max_rows` rows; none are in use yet, and none is initialised.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`], [`crate::Error::Cuda`].
    pub fn new(gpu: &Gpu, max_rows: usize, cols: usize) -> Result<QuantisedTensor> {
        let (row_stride, scale_stride) = strides(max_rows, cols);
        let what = format!("FP8 activations of {max_rows} tokens");
        Ok(QuantisedTensor {
            codes: gpu.alloc(max_rows * row_stride, &what)?,
            scales: gpu.alloc(cols.div_ceil(fp8::BLOCK) * scale_stride, &what)?,
            rows: 0,
            cols,
            row_stride,
            scale_stride,
        })
    }

    /// Gives the memory another shape, if it is large enough: no rows are in use after it.
    pub fn reshape(&mut self, max_rows: usize, cols: usize) -> bool {
        let (row_stride, scale_stride) = strides(max_rows, cols);
        let fits = max_rows * row_stride <= self.codes.len()
            && cols.div_ceil(fp8::BLOCK) * scale_stride <= self.scales.len();
        if fits {
            (self.rows, self.cols) = (0, cols);
            (self.row_stride, self.scale_stride) = (row_stride, scale_stride);
        }
        fits
    }
}

/// Quantises to FP8 with a scale per row and 128 columns; row i of `out` is row `rows_map[i]` of `x`, or row i without a
/// map. The map's values are rows of `x`.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If the columns differ, `x` is not bf16 or `out` has no room.
pub fn quantise_fp8(
    gpu: &Gpu,
    x: &CudaTensor,
    rows_map: Option<Slice<'_, u32>>,
    out: &mut QuantisedTensor,
) -> Result<()> {
    assert_eq!(x.precision(), Precision::Working);
    assert_eq!(x.cols(), out.cols, "columns of x and out");
    let rows = rows_map.map_or(x.rows(), |map| map.len());
    assert!(rows <= out.scale_stride && rows * out.row_stride <= out.codes.len(), "{rows} rows: no room");
    out.rows = rows;
    let params = QuantiseParams {
        x: x.address(),
        rows_map: rows_map.map_or(0, |map| map.address()),
        codes: out.codes.all_mut().address(),
        scales: out.scales.all_mut().address(),
        x_stride: x.stride() as u32,
        row_stride: out.row_stride as u32,
        scale_stride: out.scale_stride as u32,
        rows: rows as u32,
        cols: out.cols as u32,
        reserved: 0,
    };
    let groups = out.cols.div_ceil(fp8::BLOCK);
    let launch = Launch {
        grid: [rows.div_ceil(ROW_QUAD) as u32, groups.div_ceil(BLOCK_GROUPS) as u32, 1],
        block: THREADS,
        shared: 0,
    };
    // SAFETY: the kernel reads rows of x that exist (the map's values by its contract), and writes `rows` rows of codes and,
    // for every group, that many scales rounded up to 4, for which there is room.
    unsafe { gpu.launch(QUANTISE_FP8, launch, &params) }
}

/// Parameters of a matrix as it stands; the output is filled in by the caller.
fn of_matrix(w: &CudaMatrix, out: u64) -> DequantParams {
    let matrix = w.params();
    DequantParams {
        weight: matrix.weight,
        scale: matrix.scale,
        out,
        rows: matrix.rows,
        cols: matrix.cols,
        out_stride: matrix.cols.next_multiple_of(STRIDE as u32),
        ..DequantParams::default()
    }
}

/// Launches a weight kernel over `matrices` matrices.
///
/// # Safety
/// As [`Gpu::launch`] says of `params`.
unsafe fn launch(
    gpu: &Gpu,
    kernel: Kernel,
    layout: MatrixLayout,
    matrices: usize,
    params: &DequantParams,
) -> Result<()> {
    let unit = if layout.format == Format::Int4Group32 { int4::GROUP } else { FP8_UNIT };
    let elements = layout.rows * layout.cols;
    let units = if layout.cols.is_multiple_of(unit) { elements / unit } else { elements };
    let in_block = THREADS as usize * UNITS;
    assert!(units < u32::MAX as usize - in_block && elements / STRIDE < u32::MAX as usize, "{layout:?}");
    assert!(matrices <= 0xffff, "{matrices} matrices in one launch");
    let grid = [units.div_ceil(in_block) as u32, matrices as u32, 1];
    // SAFETY: as the caller promises.
    unsafe { gpu.launch(kernel, Launch { grid, block: THREADS, shared: 0 }, params) }
}

/// FP8 weights to bf16: e4m3(code) · scale in f32, rounded.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If the formats or columns are others, or `out` has no room.
pub fn fp8_to_bf16(gpu: &Gpu, w: &CudaMatrix, out: &mut CudaTensor) -> Result<()> {
    check_bf16(w, Format::Fp8Block, out);
    // SAFETY: `out` has been checked to have room for every row; the matrix's memory is as long as its layout implies.
    unsafe { launch(gpu, FP8_TO_BF16, w.layout(), 1, &of_matrix(w, out.address())) }
}

/// INT4 weights to bf16: q · scale in f32, rounded.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If the formats or columns are others, or `out` has no room.
pub fn int4_to_bf16(gpu: &Gpu, w: &CudaMatrix, out: &mut CudaTensor) -> Result<()> {
    check_bf16(w, Format::Int4Group32, out);
    // SAFETY: as in `fp8_to_bf16`.
    unsafe { launch(gpu, INT4_TO_BF16, w.layout(), 1, &of_matrix(w, out.address())) }
}

fn check_bf16(w: &CudaMatrix, format: Format, out: &mut CudaTensor) {
    let MatrixLayout { format: found, rows, cols } = w.layout();
    assert_eq!(found, format, "the matrix's format");
    assert_eq!((out.cols(), out.precision()), (cols, Precision::Working), "columns and precision of out");
    out.resize(rows);
}

/// FP8 weights to fp16 \[rows, cols rounded up to 8\]: as [`fp8_to_bf16`], but what rounds beyond ±65504 becomes ±65504.
/// How many elements did is added to the first word of `saturated`; NaN does not count.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If the format is another or a slice is too short.
pub fn fp8_to_f16(
    gpu: &Gpu,
    w: &CudaMatrix,
    out: &mut SliceMut<'_, u16>,
    saturated: &mut SliceMut<'_, u32>,
) -> Result<()> {
    let layout = w.layout();
    assert_eq!(layout.format, Format::Fp8Block, "the matrix's format");
    assert!(out.len() >= layout.rows * layout.cols.next_multiple_of(STRIDE) && !saturated.is_empty());
    assert!(out.address().is_multiple_of(16), "out is aligned to 16 bytes");
    let params = DequantParams { saturated: saturated.address(), ..of_matrix(w, out.address()) };
    // SAFETY: `out` and `saturated` have been checked to have room; the matrix's memory is as long as its layout implies.
    unsafe { launch(gpu, FP8_TO_F16, layout, 1, &params) }
}

/// Weights of the slots in a list, FP8 or INT4, to bf16 matrices one after the other: matrix i is that of slot `slots[i]`; for
/// `SLOT_NONE` and `SLOT_STALE` it stays as it is. [`dequantised_layout`] describes each.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If the weights are neither FP8 nor INT4, columns no multiple of 8 or `out` too short.
pub fn slots_to_bf16(
    gpu: &Gpu,
    weights: &GroupedWeights<'_>,
    slots: Slice<'_, u32>,
    out: &mut SliceMut<'_, u8>,
) -> Result<()> {
    let layout = weights.layout();
    let kernel = match layout.format {
        Format::Fp8Block => FP8_TO_BF16,
        Format::Int4Group32 => INT4_TO_BF16,
        other => panic!("weights in {}", other.name()),
    };
    assert!(layout.cols.is_multiple_of(STRIDE), "{} columns", layout.cols);
    assert!(out.len() >= slots.len() * dequantised_layout(layout).weight_bytes(), "out is too short");
    assert!(out.address().is_multiple_of(16), "out is aligned to 16 bytes");
    let params = DequantParams {
        weight: weights.weight_address(),
        scale: weights.scale_address(),
        slot_pitch: weights.slot_pitch() as u64,
        slots: slots.address(),
        out: out.address(),
        out_pitch: (layout.rows * layout.cols) as u64,
        saturated: 0,
        rows: layout.rows as u32,
        cols: layout.cols as u32,
        out_stride: layout.cols as u32,
        reserved: 0,
    };
    // SAFETY: listed slots exist, by contract; their memory was checked when the weights were described, `out` above.
    unsafe { launch(gpu, kernel, layout, slots.len(), &params) }
}

/// The bf16 matrix that weights become.
pub fn dequantised_layout(layout: MatrixLayout) -> MatrixLayout {
    MatrixLayout { format: Format::Bf16, ..layout }
}
