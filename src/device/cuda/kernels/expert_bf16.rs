//! Routed experts for many tokens, in bf16: weights in BF16 as they stand, in INT4 decoded a batch of experts at a time.
//!
//! The products are those of `cuda/gemm.cu`. The host knows neither which experts have rows nor how many: every batch is
//! issued, and kernels end at once where there is nothing to do.

use std::ops::Range;

use super::dequant::{dequantised_layout, slots_to_bf16};
use super::elementwise::swiglu;
use super::gemm::{GroupedWeights, gather_rows, grouped_bf16};
use crate::checkpoint::Placed;
use crate::device::cuda::gpu::{Gpu, Launch};
use crate::device::cuda::images::{GEMM, Kernel};
use crate::device::cuda::memory::Buffer;
use crate::device::cuda::params::{ExpertSlots, GemmConstant, GroupSlotsParams};
use crate::device::cuda::routing::CudaRouting;
use crate::device::cuda::slots::LayerSlots;
use crate::device::cuda::tensor::CudaTensor;
use crate::device::{Precision, Shape};
use crate::error::Result;
use crate::quant::Format;

const GROUP_SLOTS: Kernel = Kernel::new(&GEMM, c"group_slots");
const THREADS: u32 = 128;
/// Columns are a multiple of it: 16 bytes of bf16.
const COLUMN_ALIGN: usize = 8;

/// Memory for decoded matrices that keeps a GPU busy: nine of K2's, so 72 tiles of gate (256 columns) for every 128 rows that
/// an expert has.
pub const DECODED_BYTES: usize = 256 << 20;

/// What [`experts_bf16`] needs between its kernels.
pub struct ExpertBf16Scratch {
    /// The tokens of the sorted pairs: \[pairs, hidden\].
    x: CudaTensor,
    /// gate·x, up·x and silu(gate·x) ⊙ (up·x): \[pairs, intermediate\].
    gate: CudaTensor,
    up: CudaTensor,
    h: CudaTensor,
    groups: Groups,
}

/// Where the experts of the grouped products are.
struct Groups {
    /// The slot of each expert, and its place among the decoded; none for those without rows or nowhere.
    slots: Buffer<u32>,
    places: Buffer<u32>,
    /// A matrix of each expert of a batch; empty for weights in BF16.
    decoded: Buffer<u8>,
    /// Experts of a product.
    batch: usize,
}

/// hidden and intermediate width.
fn widths(pool: LayerSlots<'_>) -> (usize, usize) {
    let gate = pool.layout().parts().gate.layout;
    (gate.cols, gate.rows)
}

/// Experts whose matrices are decoded at a time, and the bytes of one.
fn batch(pool: LayerSlots<'_>, decoded_bytes: usize) -> (usize, usize) {
    let most = pool.experts().clamp(1, GemmConstant::GEMM_MAX_GROUPS as usize);
    match pool.format() {
        Format::Bf16 => (most, 0),
        _ => {
            let each = dequantised_layout(pool.layout().parts().gate.layout).weight_bytes();
            ((decoded_bytes / each).clamp(1, most), each)
        }
    }
}

impl ExpertBf16Scratch {
    /// Room for `max_pairs` (token, rank) pairs on the experts of pools like this one. Weights are decoded in batches of as
    /// many experts as have a matrix each in `decoded_bytes`, at least one.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`], [`crate::Error::Cuda`].
    pub fn new(
        gpu: &Gpu,
        max_pairs: usize,
        pool: LayerSlots<'_>,
        decoded_bytes: usize,
    ) -> Result<ExpertBf16Scratch> {
        let (hidden, intermediate) = widths(pool);
        let (batch, each) = batch(pool, decoded_bytes);
        // All are read whole, also rows of experts that are left out.
        let tensor = |cols| {
            let mut tensor = CudaTensor::new(gpu, max_pairs, cols, Precision::Working)?;
            tensor.memory_mut().all_mut().clear(gpu)?;
            Ok::<_, crate::error::Error>(tensor)
        };
        Ok(ExpertBf16Scratch {
            x: tensor(hidden)?,
            gate: tensor(intermediate)?,
            up: tensor(intermediate)?,
            h: tensor(intermediate)?,
            groups: Groups {
                slots: gpu.alloc(pool.experts(), "slots of experts")?,
                places: gpu.alloc(pool.experts(), "places of experts")?,
                decoded: gpu.alloc(batch * each, &format!("decoded weights of {batch} experts"))?,
                batch,
            },
        })
    }

    /// Whether it will do for `pairs` pairs on the experts of this pool.
    pub fn fits(&self, pairs: usize, pool: LayerSlots<'_>) -> bool {
        let (hidden, intermediate) = widths(pool);
        let (_, each) = batch(pool, 0);
        self.x.max_rows() >= pairs
            && (self.x.cols(), self.h.cols()) == (hidden, intermediate)
            && self.groups.slots.len() == pool.experts()
            && self.groups.decoded.len() == self.groups.batch * each
    }
}

/// Whether [`experts_bf16`] can multiply with the experts of this pool.
pub fn suits(pool: LayerSlots<'_>) -> bool {
    let (hidden, intermediate) = widths(pool);
    matches!(pool.format(), Format::Bf16 | Format::Int4Group32)
        && hidden.is_multiple_of(COLUMN_ALIGN)
        && intermediate.is_multiple_of(COLUMN_ALIGN)
}

/// `pairs`\[p\] = mlp(x\[token of sorted pair p\]) by the expert of the pair, not weighted; `x` and `pairs` bf16. An expert that
/// is nowhere is left out: its rows stay as they are. One that is not in its slot makes its rows NaN and shows in [`CudaSlots::stale`](crate::device::cuda::CudaSlots::stale).
///
/// # Errors
/// [`crate::Error::Cuda`] if a launch is refused.
///
/// # Panics
/// If shapes do not fit, a tensor is not bf16, the experts neither BF16 nor INT4, their widths not multiples of 8 or the
/// scratch is for other pools or fewer pairs.
pub fn experts_bf16(
    gpu: &Gpu,
    x: &CudaTensor,
    pool: LayerSlots<'_>,
    routing: &CudaRouting,
    scratch: &mut ExpertBf16Scratch,
    pairs: &mut CudaTensor,
) -> Result<()> {
    let parts = pool.layout().parts();
    let (hidden, intermediate) = widths(pool);
    assert!(suits(pool), "{:?} experts {hidden} × {intermediate}", pool.format());
    assert_eq!(pool.experts(), routing.experts(), "experts of pool and routing");
    assert_eq!(parts.gate.layout, parts.up.layout, "gate and up");
    assert_eq!((parts.down.layout.rows, parts.down.layout.cols), (hidden, intermediate), "gate and down");
    assert_eq!((x.cols(), pairs.cols()), (hidden, hidden), "columns of x and pairs");
    assert_eq!((x.rows(), pairs.precision()), (routing.tokens(), Precision::Working));
    assert!(scratch.fits(routing.pairs(), pool), "scratch for others");
    pairs.resize(routing.pairs());
    if routing.pairs() == 0 {
        return Ok(());
    }
    let first = if pool.awaits_down() { pool.gate_up_params() } else { pool.down_params() };
    let ExpertBf16Scratch { x: gathered, gate, up, h, groups } = scratch;
    groups.look_up(gpu, first, routing)?;
    gather_rows(gpu, x, routing.sorted_tokens(), gathered)?;
    groups.multiply(gpu, pool, &parts.gate, routing, gathered, gate)?;
    groups.multiply(gpu, pool, &parts.up, routing, gathered, up)?;
    swiglu(gpu, gate, up, h)?;
    if pool.awaits_down() {
        pool.await_down()?;
        groups.look_up(gpu, pool.down_params(), routing)?;
    }
    groups.multiply(gpu, pool, &parts.down, routing, h, pairs)
}

impl Groups {
    /// Looks up where experts with rows are.
    fn look_up(&mut self, gpu: &Gpu, experts: ExpertSlots, routing: &CudaRouting) -> Result<()> {
        let params = GroupSlotsParams {
            experts,
            offsets: routing.offsets().address(),
            slots: self.slots.all_mut().address(),
            places: self.places.all_mut().address(),
            batch: self.batch as u32,
            reserved: 0,
        };
        // SAFETY: table, offsets and both lists have an entry for each of the pool's experts (the offsets one more), as has been
        // checked; the kernel compares slots with the number of generations there are.
        unsafe {
            gpu.launch(
                GROUP_SLOTS,
                Launch::linear(params.experts.experts.div_ceil(THREADS), THREADS),
                &params,
            )
        }
    }

    /// out\[p\] = matrix · x\[p\] for every sorted pair p, the matrix that of the pair's expert.
    fn multiply(
        &mut self,
        gpu: &Gpu,
        pool: LayerSlots<'_>,
        matrix: &Placed,
        routing: &CudaRouting,
        x: &CudaTensor,
        out: &mut CudaTensor,
    ) -> Result<()> {
        let stored = weights(pool, matrix);
        let batch = self.batch;
        for Range { start, end } in batches(pool.experts(), batch).filter(|batch| pool.names_any(batch)) {
            let slots = self.slots.slice(start..end);
            let offsets = routing.offsets().part(start..end + 1);
            if pool.format() == Format::Bf16 {
                grouped_bf16(gpu, x, &stored, slots, offsets, out)?;
                continue;
            }
            // One matrix of many experts, not all three of a few: a product has the more tiles to share out.
            slots_to_bf16(gpu, &stored, slots, &mut self.decoded.all_mut())?;
            let layout = dequantised_layout(matrix.layout);
            let pitch = layout.weight_bytes();
            let dense = GroupedWeights::new(self.decoded.all(), layout, 0, 0, batch, pitch);
            grouped_bf16(gpu, x, &dense, self.places.slice(start..end), offsets, out)?;
        }
        Ok(())
    }
}

/// 0 .. experts in runs of `batch`.
fn batches(experts: usize, batch: usize) -> impl Iterator<Item = Range<usize>> {
    (0..experts).step_by(batch).map(move |first| first..(first + batch).min(experts))
}

/// A matrix of the expert in every slot.
fn weights<'a>(pool: LayerSlots<'a>, matrix: &Placed) -> GroupedWeights<'a> {
    GroupedWeights::new(
        pool.memory(),
        matrix.layout,
        matrix.weight.start,
        matrix.scale.start,
        pool.count(),
        pool.pitch(),
    )
}
