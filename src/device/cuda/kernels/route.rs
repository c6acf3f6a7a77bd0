//! The router: `cuda/route.cu`.

use crate::config::MoeConfig;
use crate::device::cuda::gpu::{Gpu, Launch};
use crate::device::cuda::images::{Kernel, ROUTE};
use crate::device::cuda::memory::Slice;
use crate::device::cuda::params::RouteParams;
use crate::device::cuda::routing::{CudaRouting, NO_FAULT};
use crate::device::cuda::tensor::CudaTensor;
use crate::device::{Precision, Shape};
use crate::error::{Error, Result};

/// By the most experts each serves.
const KERNELS: [(usize, Kernel); 4] = [
    (64, Kernel::new(&ROUTE, c"route_64")),
    (256, Kernel::new(&ROUTE, c"route_256")),
    (384, Kernel::new(&ROUTE, c"route_384")),
    (512, Kernel::new(&ROUTE, c"route_512")),
];
const THREADS: u32 = 384;
/// Tokens a block chooses for: at least one a scheduler of the SM, at most one a warp.
const BLOCK_TOKENS: std::ops::RangeInclusive<usize> = 4..=12;
const MAX_TOP_K: usize = 16;
const MAX_GROUPS: usize = 16;

/// Chooses experts for every row of `logits` [tokens, experts], f32, and sorts the pairs by expert; the rules, and the
/// results to the bit, are those of [`Routing::route_row`](crate::device::Routing::route_row) and
/// [`Routing::sort_by_expert`](crate::device::Routing::sort_by_expert). One launch, whatever the number of tokens.
///
/// # Errors
/// [`Error::Unsupported`] for more than 512 experts, 16 experts a token, or 16 groups of which some are left out;
/// [`Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If `logits` is not f32, if the widths of `logits`, `bias`, `moe` and `routing` differ, or if `routing` has no room.
pub fn route(
    gpu: &Gpu,
    logits: &CudaTensor,
    bias: Slice<'_, f32>,
    moe: &MoeConfig,
    routing: &mut CudaRouting,
) -> Result<()> {
    let kernel = kernel_for(moe)?;
    let tokens = logits.rows();
    assert_eq!(logits.precision(), Precision::Full);
    assert!(logits.cols() == moe.num_experts && bias.len() == moe.num_experts, "router width");
    assert!(
        routing.experts() == moe.num_experts && routing.top_k() == moe.top_k,
        "a routing of another layer"
    );
    assert!(moe.top_k <= moe.num_experts, "more experts a token than there are");
    assert!(
        (1..=moe.n_group).contains(&moe.topk_group) && moe.num_experts.is_multiple_of(moe.n_group),
        "groups"
    );
    assert!(tokens * moe.top_k <= i32::MAX as usize, "pairs are counted in 32 bits");
    routing.resize(tokens);
    if tokens == 0 {
        routing.offsets_mut().clear(gpu)?;
        return routing.fault_mut().write(gpu, &[NO_FAULT]);
    }

    let block_tokens =
        tokens.div_ceil(gpu.multiprocessors() as usize).clamp(*BLOCK_TOKENS.start(), *BLOCK_TOKENS.end());
    let outputs = routing.outputs();
    let params = RouteParams {
        logits: logits.address(),
        bias: bias.address(),
        ids: outputs.ids,
        weights: outputs.weights,
        sorted: outputs.sorted,
        sorted_tokens: outputs.sorted_tokens,
        positions: outputs.positions,
        offsets: outputs.offsets,
        fault: outputs.fault,
        progress: routing.progress.all_mut().address(),
        logits_stride: logits.stride() as u32,
        tokens: tokens as u32,
        experts: moe.num_experts as u32,
        top_k: moe.top_k as u32,
        groups: moe.n_group as u32,
        groups_kept: moe.topk_group as u32,
        block_tokens: block_tokens as u32,
        normalise: moe.norm_topk_prob.into(),
        scaling: moe.routed_scaling_factor,
        reserved: 0,
    };
    let launch = Launch::linear(tokens.div_ceil(block_tokens) as u32, THREADS);
    // SAFETY: the kernel reads `tokens` rows of logits and the bias, writes tokens · top_k words of five lists that have
    // room for them, experts + 1 offsets and the fault; `progress` belongs to this routing and launches on it are ordered.
    unsafe { gpu.launch(kernel, launch, &params) }
}

/// Refuses routers that no kernel is made for.
///
/// # Errors
/// [`Error::Unsupported`] naming the field of the configuration.
pub fn check_widths(moe: &MoeConfig) -> Result<()> {
    kernel_for(moe).map(|_| ())
}

fn kernel_for(moe: &MoeConfig) -> Result<Kernel> {
    let refuse = |what: String, most: usize| {
        Err(Error::Unsupported { what, instead: format!("the GPU router takes {most}; use `--device cpu`") })
    };
    if moe.top_k > MAX_TOP_K {
        return refuse(format!("num_experts_per_tok = {}", moe.top_k), MAX_TOP_K);
    }
    if moe.n_group > MAX_GROUPS && moe.topk_group < moe.n_group {
        return refuse(format!("n_group = {}", moe.n_group), MAX_GROUPS);
    }
    match KERNELS.iter().find(|(most, _)| moe.num_experts <= *most) {
        Some((_, kernel)) => Ok(*kernel),
        None => refuse(format!("n_routed_experts = {}", moe.num_experts), KERNELS[KERNELS.len() - 1].0),
    }
}
