//! Memory between kernels.

use super::gpu::Gpu;
use super::kernels::expert_bf16::ExpertBf16Scratch;
use super::kernels::expert_gemm::ExpertScratch;
use super::kernels::expert_gemv::ExpertGemvScratch;
use super::kernels::mla::MlaScratch;
use super::memory::Buffer;
use super::tensor::CudaTensor;
use crate::config::RopeConfig;
use crate::device::Precision;
use crate::error::Result;

/// Memory between kernels, as large as anything so far needed it.
#[derive(Default)]
pub(super) struct Scratch {
    pub ids: Option<Buffer<u32>>,
    /// Inverse frequencies on the device, and what they are.
    pub frequencies: Option<(Vec<f32>, Buffer<f32>)>,
    pub gate: Option<CudaTensor>,
    pub up: Option<CudaTensor>,
    pub hidden: Option<CudaTensor>,
    /// A weight matrix in bf16.
    pub decoded: Option<CudaTensor>,
    pub experts: Option<ExpertScratch>,
    pub expert_bf16: Option<ExpertBf16Scratch>,
    pub expert_gemv: Option<ExpertGemvScratch>,
    /// Where the experts of a pass are.
    pub pass: Option<Buffer<u32>>,
    pub mla: MlaScratch,
    pub draw: Option<DrawScratch>,
    /// Of all layers' routings.
    pub faults: Option<Buffer<u64>>,
}

/// What a draw takes and leaves.
pub(super) struct DrawScratch {
    pub word: Buffer<u64>,
    pub id: Buffer<u32>,
    pub fault: Buffer<u32>,
}

/// What `slot` holds if it can be made to fit, else something new in its place.
pub(super) fn fit<T>(
    slot: &mut Option<T>,
    fits: impl FnOnce(&mut T) -> bool,
    make: impl FnOnce() -> Result<T>,
) -> Result<&mut T> {
    // What does not fit is freed first: there may not be room for both.
    let fitting = slot.take().and_then(|mut held| fits(&mut held).then_some(held));
    Ok(slot.insert(match fitting {
        Some(held) => held,
        None => make()?,
    }))
}

/// A bf16 tensor of this width with room for `rows` rows.
pub(super) fn fit_tensor<'a>(
    gpu: &Gpu,
    slot: &'a mut Option<CudaTensor>,
    rows: usize,
    cols: usize,
) -> Result<&'a mut CudaTensor> {
    fit(slot, |t| t.reshape(rows, cols), || CudaTensor::new(gpu, rows, cols, Precision::Working))
}

impl Scratch {
    pub fn frequencies(&mut self, gpu: &Gpu, rope: &RopeConfig) -> Result<&Buffer<f32>> {
        let known = self.frequencies.take().filter(|(known, _)| *known == rope.inv_freq);
        let held = match known {
            Some(held) => held,
            None => (rope.inv_freq.clone(), gpu.upload(&rope.inv_freq, "rotary frequencies")?),
        };
        Ok(&self.frequencies.insert(held).1)
    }
}
