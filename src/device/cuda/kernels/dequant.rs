//! Between number formats: `cuda/dequant.cu`.

use crate::device::cuda::gpu::{Gpu, Launch};
use crate::device::cuda::images::{DEQUANT, Kernel};
use crate::device::cuda::memory::{Buffer, Slice};
use crate::device::cuda::params::QuantiseParams;
use crate::device::cuda::tensor::CudaTensor;
use crate::device::{Precision, Shape};
use crate::error::Result;
use crate::quant::fp8;

const QUANTISE_FP8: Kernel = Kernel::new(&DEQUANT, c"quantise_fp8");
const THREADS: u32 = 256;
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

impl QuantisedTensor {
    /// Room for `max_rows` rows; none are in use yet, and none is initialised.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`], [`crate::Error::Cuda`].
    pub fn new(gpu: &Gpu, max_rows: usize, cols: usize) -> Result<QuantisedTensor> {
        let (row_stride, scale_stride) = (cols.next_multiple_of(16), max_rows.next_multiple_of(ROW_QUAD));
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
