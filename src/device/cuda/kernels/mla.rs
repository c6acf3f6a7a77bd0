//! Multi-head latent attention: `cuda/mla_decode.cu` (absorbed, few queries) and `cuda/mla_prefill.cu` (expanded, many).

use bytemuck::Pod;

use crate::config::AttentionConfig;
use crate::device::cuda::gpu::{Gpu, Launch};
use crate::device::cuda::images::{Kernel, MLA_DECODE, MLA_PREFILL};
use crate::device::cuda::kv::KvPages;
use crate::device::cuda::memory::{Buffer, Slice};
use crate::device::cuda::params::{
    LatentPages, MlaAbsorbParams, MlaAttendParams, MlaCombineParams, MlaExpandParams, MlaPrefillParams,
    MlaProjectParams,
};
use crate::device::cuda::tensor::{CudaMatrix, CudaTensor};
use crate::device::{KV_PAGE, Precision, Shape};
use crate::error::{Error, Result};
use crate::quant::Format;

/// Latent and rotary widths that attention kernels exist for.
const WIDTHS: [(usize, usize); 2] = [(512, 64), (128, 32)];
/// The widest part of a head.
const MAX_HEAD: usize = 256;
/// Bytes of a tile in shared memory: 64 rows of 64 bf16.
const TILE: usize = 64 * 64 * 2;
/// Columns of the latent a block of the absorbing and the combining kernel takes.
const COLUMNS: usize = 128;
/// Heads of an attention block.
const HEADS: usize = 64;
/// Value rows of a projecting block.
const PROJECT_ROWS: usize = 32;

/// Queries of a block of the expanded form.
const QUERIES: usize = 128;
/// Rows of kv_b a block expands.
const EXPAND_ROWS: usize = 128;
/// Shared memory a block may have, in bytes.
const SHARED: usize = 227 << 10;
/// Bytes of expanded keys and values at a time: 2048 positions of Kimi-K2.
const EXPANDED: usize = 64 << 20;

/// Device memory that attention works in; grows to what the largest call needs.
pub struct MlaScratch {
    expanded_bytes: usize,
    splits: usize,
    expanded: Option<Buffer<u16>>,
    sums: Option<Buffer<f32>>,
    norms: Option<Buffer<f32>>,
    query: Option<Buffer<u16>>,
    partial: Option<Buffer<f32>>,
    log_sum: Option<Buffer<f32>>,
    mixed: Option<Buffer<f32>>,
}

impl Default for MlaScratch {
    fn default() -> MlaScratch {
        MlaScratch::with_limits(EXPANDED, usize::MAX)
    }
}

impl MlaScratch {
    /// Scratch memory of which expanded keys and values take about `expanded_bytes`, at least two pages of them; absorbed
    /// attention divides a token's pages into at most `splits` parts.
    pub fn with_limits(expanded_bytes: usize, splits: usize) -> MlaScratch {
        MlaScratch {
            expanded_bytes,
            splits,
            expanded: None,
            sums: None,
            norms: None,
            query: None,
            partial: None,
            log_sum: None,
            mixed: None,
        }
    }
}

/// At least `len` elements of a scratch buffer.
fn room<'a, T: Pod>(gpu: &Gpu, buffer: &'a mut Option<Buffer<T>>, len: usize) -> Result<Slice<'a, T>> {
    if buffer.as_ref().is_none_or(|b| b.len() < len) {
        *buffer = None;
        *buffer = Some(gpu.alloc(len, "attention's scratch memory")?);
    }
    match buffer {
        Some(buffer) => Ok(buffer.slice(..len)),
        None => unreachable!("filled above"),
    }
}

/// Kernels of a weight format, which `kv_b` must be in.
fn by_format<const N: usize>(
    kv_b: &CudaMatrix,
    f32: [Kernel; N],
    f16: [Kernel; N],
    bf16: [Kernel; N],
    fp8: [Kernel; N],
) -> Result<[Kernel; N]> {
    match kv_b.layout().format {
        Format::F32 => Ok(f32),
        Format::F16 => Ok(f16),
        Format::Bf16 => Ok(bf16),
        Format::Fp8Block => Ok(fp8),
        Format::Int4Group32 => Err(Error::Unsupported {
            what: "kv_b_proj in int4-g32".into(),
            instead: "store it as fp8-block, bf16, fp16 or f32; published checkpoints do".into(),
        }),
    }
}

/// Refuses heads that the kernels are not made for.
///
/// # Errors
/// [`Error::Unsupported`] naming the fields of the configuration.
pub fn check_widths(attention: &AttentionConfig) -> Result<()> {
    let &AttentionConfig { kv_lora_rank, rope_head_dim, nope_head_dim, v_head_dim, .. } = attention;
    if !WIDTHS.contains(&(kv_lora_rank, rope_head_dim)) {
        return Err(Error::Unsupported {
            what: format!("kv_lora_rank {kv_lora_rank} with qk_rope_head_dim {rope_head_dim} on a GPU"),
            instead: "kernels exist for 512 with 64 and 128 with 32; use `--device cpu`".into(),
        });
    }
    let fits = |width| (16..=MAX_HEAD).contains(&width) && width % 16 == 0;
    if !fits(nope_head_dim) || !fits(v_head_dim) {
        return Err(Error::Unsupported {
            what: format!("qk_nope_head_dim {nope_head_dim} with v_head_dim {v_head_dim} on a GPU"),
            instead: format!("kernels take multiples of 16 up to {MAX_HEAD}; use `--device cpu`"),
        });
    }
    Ok(())
}

/// Holds the arguments of an attention call to each other.
fn check_shapes(
    q: &CudaTensor,
    kv_b: &CudaMatrix,
    pages: &KvPages<'_>,
    start: usize,
    attention: &AttentionConfig,
    out: &CudaTensor,
) {
    let a = attention;
    let layout = kv_b.layout();
    assert_eq!(
        (q.precision(), out.precision()),
        (Precision::Working, Precision::Working),
        "q and out are bf16"
    );
    assert_eq!(q.cols(), a.num_heads * a.qk_head_dim(), "columns of q");
    assert_eq!(out.cols(), a.num_heads * a.v_head_dim, "columns of out");
    assert_eq!(
        (layout.rows, layout.cols),
        (a.num_heads * (a.nope_head_dim + a.v_head_dim), a.kv_lora_rank),
        "rows and columns of kv_b"
    );
    let cached = start + q.rows();
    assert!(cached <= pages.tokens as usize, "{cached} tokens, pages for {}", pages.tokens);
    assert!(
        cached <= pages.table.len() * KV_PAGE,
        "{cached} tokens, {} pages in the table",
        pages.table.len()
    );
    assert!(pages.stride as usize >= a.cached_dim() && pages.stride.is_multiple_of(8), "row of the cache");
    // Positions are 32-bit on the device.
    assert!(cached <= i32::MAX as usize / 2, "{cached} tokens");
}

fn latent_pages(pages: &KvPages<'_>) -> LatentPages {
    LatentPages {
        table: pages.table.address(),
        layer_offset: pages.layer_offset,
        stride: pages.stride,
        reserved: 0,
    }
}

const fn decode_kernel(name: &'static std::ffi::CStr) -> Kernel {
    Kernel::new(&MLA_DECODE, name)
}

/// Absorbed attention of few query tokens; any number is right. Row i of `q` (as `rope_query` left it) stands at position
/// `start + i` and sees positions `0 ..= start + i` of the cache; `out` [tokens, heads · v].
///
/// # Errors
/// [`Error::Unsupported`] for head widths or weight formats without a kernel; [`Error::OutOfMemory`], [`Error::Cuda`].
///
/// # Panics
/// If shapes do not fit each other or the cache has no room for those positions.
#[allow(clippy::too_many_arguments, reason = "one operation of the model, each argument distinct in type")]
pub fn decode(
    gpu: &Gpu,
    q: &CudaTensor,
    kv_b: &CudaMatrix,
    pages: &KvPages<'_>,
    start: usize,
    attention: &AttentionConfig,
    scratch: &mut MlaScratch,
    out: &mut CudaTensor,
) -> Result<()> {
    check_widths(attention)?;
    let &AttentionConfig { num_heads: heads, kv_lora_rank: latent, rope_head_dim: rope, .. } = attention;
    let wide = latent == WIDTHS[0].0;
    let of_width = |[wide_kernel, narrow_kernel]: [Kernel; 2]| if wide { wide_kernel } else { narrow_kernel };
    let [absorb] = by_format(
        kv_b,
        [decode_kernel(c"mla_absorb_f32")],
        [decode_kernel(c"mla_absorb_f16")],
        [decode_kernel(c"mla_absorb_bf16")],
        [decode_kernel(c"mla_absorb_fp8")],
    )?;
    let project = of_width(by_format(
        kv_b,
        [decode_kernel(c"mla_project_f32_512"), decode_kernel(c"mla_project_f32_128")],
        [decode_kernel(c"mla_project_f16_512"), decode_kernel(c"mla_project_f16_128")],
        [decode_kernel(c"mla_project_bf16_512"), decode_kernel(c"mla_project_bf16_128")],
        [decode_kernel(c"mla_project_fp8_512"), decode_kernel(c"mla_project_fp8_128")],
    )?);
    let attend = of_width([decode_kernel(c"mla_attend_512_64"), decode_kernel(c"mla_attend_128_32")]);
    check_shapes(q, kv_b, pages, start, attention, out);
    let tokens = q.rows();
    out.resize(tokens);
    if tokens == 0 {
        return Ok(());
    }

    let rows = tokens * heads;
    let head_tiles = heads.div_ceil(HEADS);
    // A split for every multiprocessor, none without a page.
    let splits = gpu.multiprocessors() as usize / (head_tiles * tokens);
    let splits = splits.min(scratch.splits).clamp(1, start / KV_PAGE + 1);
    let query = room(gpu, &mut scratch.query, rows * (latent + rope))?.address();
    let partial = room(gpu, &mut scratch.partial, splits * rows * latent)?.address();
    let log_sum = room(gpu, &mut scratch.log_sum, splits * rows)?.address();
    let mixed = room(gpu, &mut scratch.mixed, rows * latent)?.address();
    let (nope, v) = (attention.nope_head_dim as u32, attention.v_head_dim as u32);

    let params = MlaAbsorbParams {
        kv_b: kv_b.params(),
        q: q.address(),
        query,
        q_stride: q.stride() as u32,
        tokens: tokens as u32,
        heads: heads as u32,
        nope,
        rope: rope as u32,
        v,
    };
    let launch = Launch { grid: [heads as u32, (latent / COLUMNS) as u32, 1], block: 256, shared: 0 };
    // SAFETY: reads `tokens` rows of q and all of kv_b, writes tokens · heads rows of the query buffer; shapes were checked.
    unsafe { gpu.launch(absorb, launch, &params)? };

    let stages = if wide { 2 } else { 4 };
    let row_tiles = (latent + rope).div_ceil(64) * TILE;
    let params = MlaAttendParams {
        pages: latent_pages(pages),
        query,
        partial,
        log_sum,
        start: start as u32,
        tokens: tokens as u32,
        heads: heads as u32,
        splits: splits as u32,
        scale: attention.softmax_scale * std::f32::consts::LOG2_E,
        reserved: 0,
    };
    let launch = Launch {
        grid: [head_tiles as u32, tokens as u32, splits as u32],
        block: 384,
        shared: ((1 + stages) * row_tiles + 2 * stages * 8) as u32,
    };
    // SAFETY: reads the query buffer and the pages of positions 0 .. start + tokens, which the table has (checked; that its
    // addresses are alive is the borrow of the cache), writes splits · rows means and sums.
    unsafe { gpu.launch(attend, launch, &params)? };

    if splits > 1 {
        let params = MlaCombineParams { partial, log_sum, mixed, rows: rows as u32, splits: splits as u32 };
        let launch = Launch { grid: [rows as u32, (latent / COLUMNS) as u32, 1], block: 128, shared: 0 };
        // SAFETY: reads what the attention wrote, writes `rows` rows of `mixed`.
        unsafe { gpu.launch(decode_kernel(c"mla_combine"), launch, &params)? };
    }

    let params = MlaProjectParams {
        kv_b: kv_b.params(),
        // One split's means are the result.
        mixed: if splits > 1 { mixed } else { partial },
        out: out.address(),
        out_stride: out.stride() as u32,
        tokens: tokens as u32,
        heads: heads as u32,
        nope,
        v,
        reserved: 0,
    };
    let blocks = (v as usize).div_ceil(PROJECT_ROWS);
    let launch = Launch { grid: [heads as u32, blocks as u32, 1], block: 256, shared: 0 };
    // SAFETY: reads `rows` rows of mixed latents and all of kv_b, writes `tokens` rows of `out`.
    unsafe { gpu.launch(project, launch, &params) }
}

const fn prefill_kernel(name: &'static std::ffi::CStr) -> Kernel {
    Kernel::new(&MLA_PREFILL, name)
}

/// Expanded attention of many query tokens; the arguments and the result are those of [`decode`].
///
/// # Errors
/// [`Error::Unsupported`] for head widths or weight formats without a kernel; [`Error::OutOfMemory`], [`Error::Cuda`].
///
/// # Panics
/// If shapes do not fit each other or the cache has no room for those positions.
#[allow(clippy::too_many_arguments, reason = "one operation of the model, each argument distinct in type")]
pub fn prefill(
    gpu: &Gpu,
    q: &CudaTensor,
    kv_b: &CudaMatrix,
    pages: &KvPages<'_>,
    start: usize,
    attention: &AttentionConfig,
    scratch: &mut MlaScratch,
    out: &mut CudaTensor,
) -> Result<()> {
    check_widths(attention)?;
    let &AttentionConfig { num_heads: heads, kv_lora_rank: latent, rope_head_dim: rope, .. } = attention;
    let (nope, v) = (attention.nope_head_dim, attention.v_head_dim);
    let expand = by_format(
        kv_b,
        [prefill_kernel(c"mla_expand_f32_512"), prefill_kernel(c"mla_expand_f32_128")],
        [prefill_kernel(c"mla_expand_f16_512"), prefill_kernel(c"mla_expand_f16_128")],
        [prefill_kernel(c"mla_expand_bf16_512"), prefill_kernel(c"mla_expand_bf16_128")],
        [prefill_kernel(c"mla_expand_fp8_512"), prefill_kernel(c"mla_expand_fp8_128")],
    )?[usize::from(latent != WIDTHS[0].0)];
    let (attend, value_width) = match v {
        0..=64 => (prefill_kernel(c"mla_prefill_64"), 64),
        65..=128 => (prefill_kernel(c"mla_prefill_128"), 128),
        _ => (prefill_kernel(c"mla_prefill_256"), 256),
    };
    check_shapes(q, kv_b, pages, start, attention, out);
    let (tokens, rows) = (q.rows(), kv_b.layout().rows);
    out.resize(tokens);
    if tokens == 0 {
        return Ok(());
    }

    let cached = start + tokens;
    // Positions at a time: whole pairs of pages.
    let pair = 2 * KV_PAGE;
    let range = (scratch.expanded_bytes / (rows * size_of::<u16>())).max(pair) / pair * pair;
    let range = range.min(cached.next_multiple_of(KV_PAGE));
    let expanded = room(gpu, &mut scratch.expanded, range * rows)?.address();
    // What one range leaves for the next.
    let (kept_sums, kept_norms) =
        if range < cached { (tokens * heads * v, tokens * heads * 2) } else { (0, 0) };
    let sums = room(gpu, &mut scratch.sums, kept_sums)?.address();
    let norms = room(gpu, &mut scratch.norms, kept_norms)?.address();

    let row_blocks = rows.div_ceil(EXPAND_ROWS);
    let key_tiles = nope.div_ceil(64) + 1;
    let stage = (key_tiles + value_width / 64) * TILE;
    let fixed = 2 * key_tiles * TILE + value_width * size_of::<i32>();
    let stages = ((SHARED - fixed) / (stage + 16)).min(4);
    for first in (0..cached).step_by(range) {
        let end = cached.min(first + range);
        let params = MlaExpandParams {
            kv_b: kv_b.params(),
            pages: latent_pages(pages),
            expanded,
            first: first as u32,
            end: end as u32,
        };
        let pairs = (end - first).div_ceil(pair);
        let shares = (gpu.multiprocessors() as usize / row_blocks).clamp(1, pairs);
        let launch = Launch {
            grid: [row_blocks as u32, shares as u32, 1],
            block: 384,
            shared: (EXPAND_ROWS * latent * 2 + 3 * (4 * TILE + 16)) as u32,
        };
        // SAFETY: reads kv_b and the pages of positions first .. end, which the table has (checked; that its addresses are
        // alive is the borrow of the cache), writes end - first rows, rounded up to a page, of the expanded buffer.
        unsafe { gpu.launch(expand, launch, &params)? };

        let params = MlaPrefillParams {
            pages: latent_pages(pages),
            q: q.address(),
            expanded,
            sums,
            norms,
            out: out.address(),
            q_stride: q.stride() as u32,
            out_stride: out.stride() as u32,
            start: start as u32,
            tokens: tokens as u32,
            heads: heads as u32,
            latent: latent as u32,
            nope: nope as u32,
            rope: rope as u32,
            v: v as u32,
            first: first as u32,
            end: end as u32,
            resume: u32::from(first > 0),
            finish: u32::from(end == cached),
            scale: attention.softmax_scale * std::f32::consts::LOG2_E,
            stages: stages as u32,
            reserved: 0,
        };
        let launch = Launch {
            grid: [heads as u32, tokens.div_ceil(QUERIES) as u32, 1],
            block: 384,
            shared: (fixed + stages * (stage + 16)) as u32,
        };
        // SAFETY: reads `tokens` rows of q, the expanded rows just written and the same pages, and writes `tokens` rows of
        // `out` after the last range, else of the sums and norms, for which there is room.
        unsafe { gpu.launch(attend, launch, &params)? };
    }
    Ok(())
}
