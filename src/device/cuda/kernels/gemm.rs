//! bf16 products on tensor cores: `cuda/gemm.cu`.

use crate::device::cuda::gpu::{Gpu, Launch};
use crate::device::cuda::images::{GEMM, Kernel};
use crate::device::cuda::memory::Slice;
use crate::device::cuda::params::{ActivationType, GatherParams, GemmConstant, GemmParams};
use crate::device::cuda::tensor::{ColumnsMut, CudaMatrix, CudaTensor, MapElement, MapShape};
use crate::device::{Precision, Shape};
use crate::error::Result;
use crate::quant::{Format, MatrixLayout};

/// A width of tile: its columns, and the kernels that have it.
struct Width {
    cols: usize,
    linear: Kernel,
    grouped: Kernel,
}

const WIDTHS: [Width; 3] = [
    Width {
        cols: 64,
        linear: Kernel::new(&GEMM, c"gemm_bf16_n64"),
        grouped: Kernel::new(&GEMM, c"grouped_bf16_n64"),
    },
    Width {
        cols: 128,
        linear: Kernel::new(&GEMM, c"gemm_bf16_n128"),
        grouped: Kernel::new(&GEMM, c"grouped_bf16_n128"),
    },
    Width {
        cols: 256,
        linear: Kernel::new(&GEMM, c"gemm_bf16_n256"),
        grouped: Kernel::new(&GEMM, c"grouped_bf16_n256"),
    },
];
const GATHER_ROWS: Kernel = Kernel::new(&GEMM, c"gather_rows");
const TILE_ROWS: usize = GemmConstant::GEMM_TILE_ROWS as usize;
/// Bytes of a bf16 element.
const ELEMENT: usize = 2;

/// bf16 weights \[rows, cols\], row-major without gaps: a matrix in that format, or a tensor that one was decoded to.
#[derive(Clone, Copy)]
pub struct DenseWeights<'a> {
    address: u64,
    rows: usize,
    cols: usize,
    source: std::marker::PhantomData<&'a ()>,
}

impl<'a> From<&'a CudaMatrix> for DenseWeights<'a> {
    /// # Panics
    /// If the matrix is not bf16.
    fn from(matrix: &'a CudaMatrix) -> DenseWeights<'a> {
        let MatrixLayout { format, rows, cols } = matrix.layout();
        assert_eq!(format, Format::Bf16, "the matrix's format");
        DenseWeights { address: matrix.params().weight, rows, cols, source: std::marker::PhantomData }
    }
}

impl<'a> From<&'a CudaTensor> for DenseWeights<'a> {
    /// # Panics
    /// If the tensor is not bf16.
    fn from(tensor: &'a CudaTensor) -> DenseWeights<'a> {
        assert_eq!(tensor.precision(), Precision::Working);
        DenseWeights {
            address: tensor.address(),
            rows: tensor.rows(),
            cols: tensor.cols(),
            source: std::marker::PhantomData,
        }
    }
}

/// Matrices of one size in slots of equal pitch: matrix s is `slot_pitch` bytes behind matrix s − 1.
#[derive(Clone, Copy)]
pub struct GroupedWeights<'a> {
    memory: Slice<'a, u8>,
    layout: MatrixLayout,
    weight: usize,
    scale: usize,
    slots: usize,
    slot_pitch: usize,
}

impl<'a> GroupedWeights<'a> {
    /// `slots` matrices in `memory`, with the weights of slot 0 at byte `weight` and its scales, if any, at byte `scale`.
    ///
    /// # Panics
    /// If they leave the memory, or weights or pitch are not multiples of 16 bytes.
    pub fn new(
        memory: Slice<'a, u8>,
        layout: MatrixLayout,
        weight: usize,
        scale: usize,
        slots: usize,
        slot_pitch: usize,
    ) -> GroupedWeights<'a> {
        let end = (weight + layout.weight_bytes()).max(scale + layout.scale_bytes());
        assert!(
            slots == 0 || (slots - 1) * slot_pitch + end <= memory.len(),
            "{slots} slots leave the memory"
        );
        let align = |n: usize| n.is_multiple_of(16);
        assert!(align(memory.address() as usize + weight) && align(slot_pitch), "aligned to 16 bytes");
        assert!((memory.address() as usize + scale).is_multiple_of(4), "scales aligned to 4 bytes");
        GroupedWeights { memory, layout, weight, scale, slots, slot_pitch }
    }

    /// Format and size of each matrix.
    pub fn layout(&self) -> MatrixLayout {
        self.layout
    }

    /// How many there are.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Bytes from one to the next.
    pub fn slot_pitch(&self) -> usize {
        self.slot_pitch
    }

    /// First byte of slot 0's weights.
    pub(super) fn weight_address(&self) -> u64 {
        self.memory.address() + self.weight as u64
    }

    /// First byte of slot 0's scales.
    pub(super) fn scale_address(&self) -> u64 {
        self.memory.address() + self.scale as u64
    }
}

/// out = W·x by row: x bf16, sums in f32, out bf16 or f32.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If shapes differ, x is not bf16, or its columns are no multiple of 8.
pub fn linear_bf16<'w>(
    gpu: &Gpu,
    x: &CudaTensor,
    w: impl Into<DenseWeights<'w>>,
    out: &mut CudaTensor,
) -> Result<()> {
    out.resize(x.rows());
    linear_columns(gpu, x, w, &out.columns_mut(0..out.cols()))
}

/// [`linear_bf16`] into some columns of a tensor, of which the first is a multiple of 8.
pub(in crate::device::cuda) fn linear_columns<'w>(
    gpu: &Gpu,
    x: &CudaTensor,
    w: impl Into<DenseWeights<'w>>,
    out: &ColumnsMut<'_>,
) -> Result<()> {
    let w = w.into();
    assert_eq!(
        (x.cols(), out.cols),
        (w.cols, w.rows),
        "columns of x and out, of a matrix {}×{}",
        w.rows,
        w.cols
    );
    assert_eq!(x.rows(), out.rows, "rows of x and out");
    if x.rows() == 0 {
        return Ok(());
    }
    let width = width(gpu, x.rows().div_ceil(TILE_ROWS), w.rows);
    let params = params(x, w.address, w.rows, 1, w.rows * w.cols * ELEMENT, width, out)?;
    let tiles = x.rows().div_ceil(TILE_ROWS) * w.rows.div_ceil(width.cols);
    // SAFETY: both tensor maps describe memory that exists, the kernel reads through them alone; `out` has as many rows as x
    // and the matrix's columns, whose stride 16-byte stores don't leave.
    unsafe { gpu.launch(width.linear, launch(gpu, tiles), &params) }
}

/// out\[r\] = Wᵍ·x\[r\] for rows r in `offsets[g] .. offsets[g + 1]`; Wᵍ is the bf16 matrix in slot `slot_of_group[g]`.
/// `offsets` has one element more than there are groups and does not decrease; rows of `out` outside all groups stay as they
/// are, as do those of a group with `SLOT_NONE` for a slot; those of a group with `SLOT_STALE` become NaN. Numbers of rows are known to the device alone.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If shapes differ, x or the weights are not bf16, their columns are no multiple of 8, or there are too many groups.
pub fn grouped_bf16(
    gpu: &Gpu,
    x: &CudaTensor,
    weights: &GroupedWeights<'_>,
    slot_of_group: Slice<'_, u32>,
    offsets: Slice<'_, u32>,
    out: &mut CudaTensor,
) -> Result<()> {
    let MatrixLayout { format, rows, cols } = weights.layout();
    assert_eq!(format, Format::Bf16, "the weights' format");
    assert_eq!((x.cols(), out.cols()), (cols, rows), "columns of x and out, of matrices {rows}×{cols}");
    let groups = slot_of_group.len();
    assert_eq!(offsets.len(), groups + 1, "offsets of {groups} groups");
    assert!(groups <= GemmConstant::GEMM_MAX_GROUPS as usize, "{groups} groups");
    out.resize(x.rows());
    if x.rows() == 0 || groups == 0 {
        return Ok(());
    }
    let out = out.columns_mut(0..rows);
    // As many row tiles as there can be.
    let row_tiles = x.rows() / TILE_ROWS + groups.min(x.rows());
    let width = width(gpu, row_tiles, rows);
    let params = GemmParams {
        offsets: offsets.address(),
        slots: slot_of_group.address(),
        groups: groups as u32,
        ..params(x, weights.weight_address(), rows, weights.slots(), weights.slot_pitch(), width, &out)?
    };
    // SAFETY: both tensor maps describe memory that exists (slots beyond the last read as zeros); offsets and slots have been
    // checked to be as long as the kernel reads them; offsets end at most at x's rows, by contract, and `out` has as many.
    unsafe { gpu.launch(width.grouped, launch(gpu, row_tiles * rows.div_ceil(width.cols)), &params) }
}

/// out\[i\] = x\[rows_map\[i\]\], both bf16. The map's values are rows of x.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If columns differ or are no multiple of 8, or a tensor is not bf16.
pub fn gather_rows(gpu: &Gpu, x: &CudaTensor, rows_map: Slice<'_, u32>, out: &mut CudaTensor) -> Result<()> {
    assert_eq!((x.precision(), out.precision()), (Precision::Working, Precision::Working));
    assert!(x.cols() == out.cols() && x.cols().is_multiple_of(8), "{} and {} columns", x.cols(), out.cols());
    out.resize(rows_map.len());
    let params = GatherParams {
        x: x.address(),
        rows_map: rows_map.address(),
        out: out.address(),
        x_stride: x.stride() as u32,
        out_stride: out.stride() as u32,
        rows: out.rows() as u32,
        cols: x.cols() as u32,
    };
    // SAFETY: the map's values are rows of x, by contract; `out` has a row for each of them.
    unsafe { gpu.launch(GATHER_ROWS, Launch::linear(params.rows, 256), &params) }
}

/// The tile width that finishes first: whole waves of tiles, each at the cost of its columns and what comes on top of any.
fn width(gpu: &Gpu, row_tiles: usize, cols: usize) -> &'static Width {
    const BESIDES: usize = 64;
    let blocks = gpu.multiprocessors() as usize;
    let cost = |w: &&Width| (row_tiles * cols.div_ceil(w.cols)).div_ceil(blocks) * (w.cols + BESIDES);
    WIDTHS.iter().min_by_key(cost).expect("three widths")
}

fn launch(gpu: &Gpu, tiles: usize) -> Launch {
    let blocks = tiles.min(gpu.multiprocessors() as usize);
    Launch {
        grid: [blocks as u32, 1, 1],
        block: GemmConstant::GEMM_THREADS,
        shared: GemmConstant::GEMM_SHARED_BYTES,
    }
}

/// Parameters without the grouped kernel's own.
fn params(
    x: &CudaTensor,
    weights: u64,
    cols: usize,
    slots: usize,
    slot_pitch: usize,
    width: &Width,
    out: &ColumnsMut<'_>,
) -> Result<GemmParams> {
    let (rows, k) = (x.rows(), x.cols());
    assert_eq!(x.precision(), Precision::Working);
    assert!(k > 0 && k.is_multiple_of(8), "{k} columns of x");
    let map = |address, extent: [usize; 3], pitch: [usize; 2], tile_rows: u32| {
        MapShape {
            element: MapElement::Bf16,
            extent: extent.map(|n| n as u64),
            pitch: pitch.map(|n| n as u64),
            tile: [GemmConstant::GEMM_BLOCK_K, tile_rows, 1],
            swizzle: true,
        }
        .encode(address)
    };
    let (x_pitch, w_pitch) = (x.stride() * ELEMENT, k * ELEMENT);
    Ok(GemmParams {
        x: map(x.address(), [k, rows, 1], [x_pitch, rows * x_pitch], GemmConstant::GEMM_BOX_ROWS)?,
        w: map(weights, [k, cols, slots], [w_pitch, slot_pitch], width.cols as u32)?,
        out: out.address,
        rows: rows as u32,
        cols: cols as u32,
        k: k as u32,
        groups: 1,
        out_stride: out.stride as u32,
        out_type: match out.precision {
            Precision::Working => ActivationType::ACTIVATION_BF16,
            Precision::Full => ActivationType::ACTIVATION_F32,
        },
        ..GemmParams::default()
    })
}
