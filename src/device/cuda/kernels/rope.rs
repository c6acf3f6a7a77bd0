//! Rotary positions and the latent cache: `cuda/norm_rope.cu`.

use crate::device::cuda::gpu::{Gpu, Launch};
use crate::device::cuda::images::{Kernel, NORM_ROPE};
use crate::device::cuda::kv::KvPages;
use crate::device::cuda::memory::Slice;
use crate::device::cuda::params::{KvAppendParams, RopeQueryParams};
use crate::device::cuda::tensor::CudaTensor;
use crate::device::{KV_PAGE, Precision, Shape};
use crate::error::Result;

const ROPE_QUERY: Kernel = Kernel::new(&NORM_ROPE, c"rope_query");
const ROPE_QUERY_RAGGED: Kernel = Kernel::new(&NORM_ROPE, c"rope_query_ragged");
const KV_APPEND: Kernel = Kernel::new(&NORM_ROPE, c"kv_append");
const THREADS: u32 = 256;
/// Tokens of a block of `kv_append`: one a warp.
const TOKENS: u32 = THREADS / 32;
/// Most rotary elements of a head.
const MOST_ROPE: usize = 4096;

/// Rotates the rotary part of every head of `q` [tokens, heads · (nope + rope)] in place, as
/// [`crate::device::Device::rope_query`]; row i stands at position `start + i`.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If the columns of `q` are not `heads` heads, `q` is not bf16, there is not one frequency a pair, or more than 4096
/// rotary elements.
#[allow(clippy::too_many_arguments, reason = "one operation of the model, and the shape of a head")]
pub fn rope_query(
    gpu: &Gpu,
    q: &mut CudaTensor,
    start: usize,
    heads: usize,
    nope: usize,
    rope_dim: usize,
    inv_freq: Slice<'_, f32>,
    amplitude: f32,
) -> Result<()> {
    assert_eq!(q.cols(), heads * (nope + rope_dim), "columns of q");
    assert_eq!(q.precision(), Precision::Working);
    assert!(inv_freq.len() * 2 == rope_dim && rope_dim <= MOST_ROPE, "one frequency a pair");
    let params = RopeQueryParams {
        q: q.address(),
        inv_freq: inv_freq.address(),
        stride: q.stride() as u32,
        tokens: q.rows() as u32,
        heads: heads as u32,
        nope: nope as u32,
        rope: rope_dim as u32,
        start: position(start, q.rows()),
        amplitude,
        reserved: 0,
    };
    // Sixteen elements a lane, a head's lanes in one warp.
    let lanes = rope_dim / 16;
    let even =
        nope.is_multiple_of(8) && rope_dim.is_multiple_of(16) && lanes.is_power_of_two() && lanes <= 32;
    let kernel = if even { ROPE_QUERY } else { ROPE_QUERY_RAGGED };
    // SAFETY: the kernel reads the frequencies and reads and writes the rows of q, all of which exist.
    unsafe { gpu.launch(kernel, Launch::linear(q.rows() as u32, THREADS), &params) }
}

/// Appends `kv_a` [tokens, latent + rope] to a layer of the cache from position `start` on, as
/// [`crate::device::Device::kv_append`]: the latent part, as wide as `norm`, normalised, the key part rotated.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If the columns of `kv_a` are not latent and rotary part, `kv_a` is not bf16, the pages have no room for the positions
/// or the row, or something does not begin on 16 bytes.
#[allow(
    clippy::too_many_arguments,
    reason = "one fused operation of the model, each argument distinct in type"
)]
pub fn kv_append(
    gpu: &Gpu,
    kv_a: &CudaTensor,
    norm: Slice<'_, f32>,
    eps: f32,
    inv_freq: Slice<'_, f32>,
    amplitude: f32,
    start: usize,
    pages: &KvPages<'_>,
) -> Result<()> {
    let (latent, rope_dim) = (norm.len(), inv_freq.len() * 2);
    assert_eq!(kv_a.cols(), latent + rope_dim, "columns of kv_a");
    assert_eq!(kv_a.precision(), Precision::Working);
    assert!(start + kv_a.rows() <= pages.table.len() * KV_PAGE, "{} pages", pages.table.len());
    assert!(
        pages.stride as usize >= kv_a.cols() && pages.stride.is_multiple_of(8),
        "stride {}",
        pages.stride
    );
    assert!(norm.address().is_multiple_of(16) && pages.layer_offset.is_multiple_of(16), "16-byte begins");
    let params = KvAppendParams {
        kv_a: kv_a.address(),
        norm: norm.address(),
        inv_freq: inv_freq.address(),
        pages: pages.table.address(),
        layer_offset: pages.layer_offset,
        kv_stride: kv_a.stride() as u32,
        page_stride: pages.stride,
        tokens: kv_a.rows() as u32,
        latent: latent as u32,
        rope: rope_dim as u32,
        start: position(start, kv_a.rows()),
        eps,
        amplitude,
    };
    let blocks = (kv_a.rows() as u32).div_ceil(TOKENS);
    // SAFETY: the kernel reads the rows of kv_a, the norm, the frequencies and as much of the table as the positions
    // need, and writes those positions; the table holds pages, which is what it is for.
    unsafe { gpu.launch(KV_APPEND, Launch::linear(blocks, THREADS), &params) }
}

/// The first of `rows` positions, as kernels count them: in f32, so exactly only below 2²⁴.
fn position(start: usize, rows: usize) -> u32 {
    assert!(start + rows <= 1 << 24, "position {}", start + rows);
    start as u32
}
