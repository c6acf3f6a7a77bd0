//! Many tokens times FP8 weights: `cuda/expert_gemm.cu`.
//!
//! Activations are quantised per row and 128 columns first, so both operands are FP8. How many rows an expert has is only
//! known on the device: the grid is for the most tiles there can be, and blocks find their tiles themselves.

use crate::device::cuda::gpu::{Gpu, Launch};
use crate::device::cuda::images::{EXPERT_GEMM, Kernel};
use crate::device::cuda::kernels::dequant::{self, QuantisedTensor};
use crate::device::cuda::params::{
    ActivationType, ExpertGemm, ExpertGemmParams, ExpertMatrix, ExpertSlots, TensorMap,
};
use crate::device::cuda::routing::CudaRouting;
use crate::device::cuda::slots::LayerSlots;
use crate::device::cuda::tensor::{CudaMatrix, CudaTensor, MapElement, MapShape};
use crate::device::{Precision, Shape};
use crate::error::Result;
use crate::quant::{Format, fp8};

/// One box of weights a stage: tiles of 128 columns.
const LINEAR_NARROW: Kernel = Kernel::new(&EXPERT_GEMM, c"expert_linear_fp8_narrow");
/// Two boxes: tiles of 256 columns.
const LINEAR: Kernel = Kernel::new(&EXPERT_GEMM, c"expert_linear_fp8");
/// A box of gate and one of up: tiles of 128 columns.
const GATED: Kernel = Kernel::new(&EXPERT_GEMM, c"expert_gated_fp8");

const TILE: usize = ExpertGemm::EXPERT_GEMM_TILE as usize;
const BLOCK: usize = ExpertGemm::EXPERT_GEMM_BLOCK as usize;
/// TMA's unit: columns of weights are a multiple of it.
const COLUMN_ALIGN: usize = 16;

/// What [`experts_fp8`] needs between its kernels.
pub struct ExpertScratch {
    /// The tokens of the sorted pairs, quantised: \[pairs, hidden\].
    pub x: QuantisedTensor,
    /// silu(gate·x) ⊙ (up·x), quantised: \[pairs, intermediate\].
    pub h: QuantisedTensor,
}

impl ExpertScratch {
    /// Room for `max_pairs` (token, rank) pairs.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`], [`crate::Error::Cuda`].
    pub fn new(gpu: &Gpu, max_pairs: usize, hidden: usize, intermediate: usize) -> Result<ExpertScratch> {
        let x = QuantisedTensor::new(gpu, max_pairs, hidden)?;
        let mut h = QuantisedTensor::new(gpu, max_pairs, intermediate)?;
        // Tiles reach into the rows of other experts, which nobody writes if those are left out.
        h.codes.all_mut().clear(gpu)?;
        h.scales.all_mut().clear(gpu)?;
        Ok(ExpertScratch { x, h })
    }

    /// Gives the memory the shape for `max_pairs` pairs of these widths, if it is large enough.
    pub fn reshape(&mut self, max_pairs: usize, hidden: usize, intermediate: usize) -> bool {
        self.x.reshape(max_pairs, hidden) && self.h.reshape(max_pairs, intermediate)
    }
}

/// out = W·x with FP8 weights; `out` of either precision. x is left quantised in `scratch`.
///
/// # Errors
/// [`crate::Error::Cuda`] if a launch is refused.
///
/// # Panics
/// If shapes do not fit, x is not bf16, the matrix not FP8 or its columns not a multiple of 16.
pub fn linear_fp8(
    gpu: &Gpu,
    x: &CudaTensor,
    w: &CudaMatrix,
    scratch: &mut QuantisedTensor,
    out: &mut CudaTensor,
) -> Result<()> {
    let layout = w.layout();
    assert_eq!(layout.format, Format::Fp8Block);
    assert_eq!((x.cols(), out.cols()), (layout.cols, layout.rows), "columns of x and out");
    out.resize(x.rows());
    if x.rows() == 0 {
        return Ok(());
    }
    dequant::quantise_fp8(gpu, x, None, scratch)?;

    // The matrix is the only slot of a pool without a table.
    let matrix = w.params();
    let down =
        ExpertMatrix { weight: 0, scale: matrix.scale - matrix.weight, rows: matrix.rows, cols: matrix.cols };
    let slots = ExpertSlots {
        pool: matrix.weight,
        slot_bytes: (layout.rows * layout.cols) as u64,
        down,
        experts: 1,
        slots: 1,
        format: matrix.format,
        ..Default::default()
    };
    // Wide tiles want less of the second-level cache, narrow ones keep more multiprocessors busy.
    let row_tiles = x.rows().div_ceil(TILE);
    let wide = row_tiles * layout.rows.div_ceil(2 * BLOCK) >= gpu.multiprocessors() as usize;
    let params = ExpertGemmParams {
        out: out.address(),
        out_stride: out.stride() as u32,
        out_type: match out.precision() {
            Precision::Working => ActivationType::ACTIVATION_BF16,
            Precision::Full => ActivationType::ACTIVATION_F32,
        },
        ..params(scratch, slots, down, if wide { 2 } else { 1 })?
    };
    // SAFETY: the matrix, the quantised rows and as many rows of `out` exist; there is no table and no list of offsets.
    unsafe { launch(gpu, if wide { LINEAR } else { LINEAR_NARROW }, row_tiles, &params) }
}

/// `pairs`\[p\] = mlp(x\[token of sorted pair p\]) by the expert of the pair, not weighted; `pairs` bf16. An expert that is
/// nowhere is left out: its rows stay as they are. One that is not in its slot makes its rows NaN and shows in [`CudaSlots::stale`](crate::device::cuda::CudaSlots::stale).
///
/// # Errors
/// [`crate::Error::Cuda`] if a launch is refused.
///
/// # Panics
/// If shapes do not fit, a tensor is not bf16, the experts not FP8 or their widths not multiples of 16.
pub fn experts_fp8(
    gpu: &Gpu,
    x: &CudaTensor,
    pool: LayerSlots<'_>,
    routing: &CudaRouting,
    scratch: &mut ExpertScratch,
    pairs: &mut CudaTensor,
) -> Result<()> {
    let slots = pool.gate_up_params();
    let (gate, down) = (slots.gate, slots.down);
    assert_eq!(pool.format(), Format::Fp8Block);
    assert_eq!(pool.experts(), routing.experts(), "experts of pool and routing");
    assert_eq!((gate.rows, gate.cols), (slots.up.rows, slots.up.cols), "gate and up");
    assert_eq!((down.rows, down.cols), (gate.cols, gate.rows), "gate and down");
    assert_eq!((x.cols(), pairs.cols()), (gate.cols as usize, down.rows as usize), "columns of x and pairs");
    assert_eq!((x.rows(), pairs.precision()), (routing.tokens(), Precision::Working));
    pairs.resize(routing.pairs());
    if routing.pairs() == 0 {
        return Ok(());
    }
    dequant::quantise_fp8(gpu, x, Some(routing.sorted_tokens()), &mut scratch.x)?;

    // Every group begins a tile of its own.
    let row_tiles = routing.pairs() / TILE + routing.pairs().min(pool.named());
    let ExpertScratch { x, h } = scratch;
    assert!(routing.pairs() * h.row_stride <= h.codes.len() && routing.pairs() <= h.scale_stride, "no room");
    h.rows = routing.pairs();
    let gated = ExpertGemmParams {
        up: weight_map(&slots, slots.up)?,
        offsets: routing.offsets().address(),
        out: h.codes.all_mut().address(),
        out_scale: h.scales.all_mut().address(),
        out_stride: h.row_stride as u32,
        out_scale_stride: h.scale_stride as u32,
        ..params(x, slots, gate, 1)?
    };
    // SAFETY: pool, table and offsets are whole; the offsets end at the number of pairs, so rows up to there are read and
    // written, which exist in `x` and in `h`.
    unsafe { launch(gpu, GATED, row_tiles, &gated)? };
    pool.await_down()?;
    let linear = ExpertGemmParams {
        offsets: routing.offsets().address(),
        out: pairs.address(),
        out_stride: pairs.stride() as u32,
        out_type: ActivationType::ACTIVATION_BF16,
        ..params(h, pool.down_params(), down, 2)?
    };
    // SAFETY: as above, of `h` and `pairs`.
    unsafe { launch(gpu, LINEAR, row_tiles, &linear) }
}

/// Everything but the output: x times `matrix`, in tiles of `boxes` · 128 columns.
fn params(
    x: &QuantisedTensor,
    slots: ExpertSlots,
    matrix: ExpertMatrix,
    boxes: usize,
) -> Result<ExpertGemmParams> {
    assert_eq!(x.cols, matrix.cols as usize, "columns of x and the weights");
    assert!(x.cols.is_multiple_of(COLUMN_ALIGN), "{} columns, not a multiple of {COLUMN_ALIGN}", x.cols);
    let depth_blocks = x.cols.div_ceil(fp8::BLOCK);
    let codes = MapShape {
        element: MapElement::Byte,
        extent: [x.cols as u64, x.rows as u64, 1],
        pitch: [x.row_stride as u64, (x.rows * x.row_stride) as u64],
        tile: [BLOCK as u32, TILE as u32, 1],
        swizzle: true,
    };
    let group = (x.scale_stride * size_of::<f32>()) as u64;
    let scales = MapShape {
        element: MapElement::F32,
        extent: [x.rows as u64, depth_blocks as u64, 1],
        pitch: [group, group * depth_blocks as u64],
        tile: [TILE as u32, 1, 1],
        swizzle: false,
    };
    Ok(ExpertGemmParams {
        x: codes.encode(x.codes.all().address())?,
        x_scale: scales.encode(x.scales.all().address())?,
        weight: weight_map(&slots, matrix)?,
        slots,
        rows: x.rows as u32,
        weight_rows: matrix.rows,
        cols: matrix.cols,
        column_tiles: (matrix.rows as usize).div_ceil(boxes * BLOCK) as u32,
        depth_blocks: depth_blocks as u32,
        ..Default::default()
    })
}

/// A matrix in every slot.
fn weight_map(slots: &ExpertSlots, matrix: ExpertMatrix) -> Result<TensorMap> {
    let shape = MapShape {
        element: MapElement::Byte,
        extent: [matrix.cols.into(), matrix.rows.into(), slots.slots.into()],
        pitch: [matrix.cols.into(), slots.slot_bytes],
        tile: [BLOCK as u32, BLOCK as u32, 1],
        swizzle: true,
    };
    shape.encode(slots.pool + matrix.weight)
}

/// # Safety
/// As for [`Gpu::launch`]. There are at most `row_tiles` tiles down.
unsafe fn launch(gpu: &Gpu, kernel: Kernel, row_tiles: usize, params: &ExpertGemmParams) -> Result<()> {
    let tiles = row_tiles * params.column_tiles as usize;
    let blocks = tiles.min(gpu.multiprocessors() as usize);
    let narrow = kernel.name() == LINEAR_NARROW.name();
    let launch = Launch {
        grid: [blocks as u32, 1, 1],
        block: ExpertGemm::EXPERT_GEMM_THREADS,
        shared: if narrow { ExpertGemm::EXPERT_GEMM_SHARED_1 } else { ExpertGemm::EXPERT_GEMM_SHARED_2 },
    };
    // SAFETY: the caller's.
    unsafe { gpu.launch(kernel, launch, params) }
}
