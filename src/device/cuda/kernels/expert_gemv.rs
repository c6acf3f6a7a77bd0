//! Routed experts for few tokens: `cuda/expert_gemv.cu`.

use std::ffi::CStr;

use super::gemv::{ROWS, THREADS, shared_bytes, token_tile};
use crate::device::cuda::gpu::{Gpu, Launch};
use crate::device::cuda::images::{EXPERT_GEMV, Kernel};
use crate::device::cuda::params::ExpertGemvParams;
use crate::device::cuda::routing::CudaRouting;
use crate::device::cuda::slots::LayerSlots;
use crate::device::cuda::tensor::CudaTensor;
use crate::device::{Precision, Shape};
use crate::error::Result;
use crate::quant::Format;

/// Rows of gate, and of up, that a block takes.
const GATE_ROWS: usize = ROWS / 2;

/// What [`experts`] keeps between its two kernels: silu(gate·x) ⊙ (up·x) of every pair.
pub struct ExpertGemvScratch {
    hidden: CudaTensor,
}

impl ExpertGemvScratch {
    /// Room for `max_pairs` (token, expert) pairs of experts with this intermediate width.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`], [`crate::Error::Cuda`].
    pub fn new(gpu: &Gpu, max_pairs: usize, intermediate: usize) -> Result<ExpertGemvScratch> {
        Ok(ExpertGemvScratch { hidden: CudaTensor::new(gpu, max_pairs, intermediate, Precision::Working)? })
    }

    /// Gives the memory the shape for `max_pairs` pairs of this width, if it is large enough.
    pub fn reshape(&mut self, max_pairs: usize, intermediate: usize) -> bool {
        self.hidden.reshape(max_pairs, intermediate)
    }
}

/// pairs\[p\] = down·(silu(gate·x) ⊙ (up·x)) for every sorted pair p, not yet weighted; x is that of the pair's token, the
/// weights are those of its expert. Weights are read once for every 16 tokens an expert has. `x` and `pairs` are bf16.
///
/// An expert that is nowhere is left out: its rows stay as they are. One whose slot is stale gives rows of NaN, and [`CudaSlots::stale`](crate::device::cuda::CudaSlots::stale) names it.
///
/// # Errors
/// [`crate::Error::Cuda`] if a launch is refused.
///
/// # Panics
/// If the shapes do not fit, or the scratch is too small.
pub fn experts(
    gpu: &Gpu,
    x: &CudaTensor,
    pool: LayerSlots<'_>,
    routing: &CudaRouting,
    scratch: &mut ExpertGemvScratch,
    pairs: &mut CudaTensor,
) -> Result<()> {
    let parts = pool.layout().parts();
    let (gate, up, down) = (parts.gate.layout, parts.up.layout, parts.down.layout);
    assert_eq!(gate, up, "gate and up");
    assert!(down.cols == gate.rows && down.format == gate.format, "{gate:?} and {down:?}");
    assert!(x.cols() == gate.cols && pairs.cols() == down.rows, "columns of x and pairs for {gate:?}");
    assert!(
        x.rows() == routing.tokens() && pool.experts() == routing.experts(),
        "routing of other tokens or experts"
    );
    assert!(
        x.precision() == Precision::Working && pairs.precision() == Precision::Working,
        "bf16 in and out"
    );
    assert_eq!(scratch.hidden.cols(), gate.rows, "scratch of another width");
    pairs.resize(routing.pairs());
    scratch.hidden.resize(routing.pairs());
    if routing.pairs() == 0 {
        return Ok(());
    }
    let gate_up_params = ExpertGemvParams {
        experts: pool.gate_up_params(),
        x: x.address(),
        sorted_tokens: routing.sorted_tokens().address(),
        offsets: routing.offsets().address(),
        hidden: scratch.hidden.address(),
        pairs: pairs.address(),
        x_stride: x.stride() as u32,
        hidden_stride: scratch.hidden.stride() as u32,
        pairs_stride: pairs.stride() as u32,
        reserved: 0,
    };
    // No expert has more tokens than there are: ids are distinct within a token.
    let token_tile = token_tile(routing.tokens());
    let (gate_up_name, down_name) = names(pool.format(), token_tile);
    // No more experts than pairs can have any; blocks beyond those that do end at once.
    let active = routing.pairs().min(pool.named()) as u32;
    let launch = |row_tiles: usize| Launch {
        grid: [row_tiles as u32, active, 1],
        block: THREADS,
        shared: shared_bytes(pool.format(), token_tile),
    };
    // SAFETY: the kernel reads x at the routed tokens, the routing and the pool's slots, and writes the pairs' rows of the
    // scratch, for which there is room, and the stale word.
    unsafe {
        gpu.launch(
            Kernel::new(&EXPERT_GEMV, gate_up_name),
            launch(gate.rows.div_ceil(GATE_ROWS)),
            &gate_up_params,
        )?;
    }
    pool.await_down()?;
    let params = ExpertGemvParams { experts: pool.down_params(), ..gate_up_params };
    // SAFETY: as above; it reads the scratch and writes the rows of `pairs` in use.
    unsafe { gpu.launch(Kernel::new(&EXPERT_GEMV, down_name), launch(down.rows.div_ceil(ROWS)), &params) }
}

/// The two kernels for a format and a token tile.
fn names(format: Format, token_tile: usize) -> (&'static CStr, &'static CStr) {
    match (format, token_tile) {
        (Format::F32, 8) => (c"gate_up_f32_8", c"down_f32_8"),
        (Format::F32, _) => (c"gate_up_f32_16", c"down_f32_16"),
        (Format::F16, 8) => (c"gate_up_f16_8", c"down_f16_8"),
        (Format::F16, _) => (c"gate_up_f16_16", c"down_f16_16"),
        (Format::Bf16, 8) => (c"gate_up_bf16_8", c"down_bf16_8"),
        (Format::Bf16, _) => (c"gate_up_bf16_16", c"down_bf16_16"),
        (Format::Fp8Block, 8) => (c"gate_up_fp8_8", c"down_fp8_8"),
        (Format::Fp8Block, _) => (c"gate_up_fp8_16", c"down_fp8_16"),
        (Format::Int4Group32, 8) => (c"gate_up_int4_8", c"down_int4_8"),
        (Format::Int4Group32, _) => (c"gate_up_int4_16", c"down_int4_16"),
    }
}
