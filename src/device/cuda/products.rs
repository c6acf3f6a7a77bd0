//! Which kernel multiplies what: by format, and by how many tokens there are.

use super::copies::CudaFence;
use super::device::CudaDevice;
use super::kernels::dequant;
use super::kernels::expert_bf16::{self, ExpertBf16Scratch};
use super::kernels::expert_gemm::{self, ExpertScratch};
use super::kernels::expert_gemv::{self, ExpertGemvScratch};
use super::kernels::{gemm, gemv};
use super::scratch::{fit, fit_tensor};
use super::tensor::ColumnsMut;
use super::{CudaMatrix, CudaRouting, CudaSlots, CudaTensor, CudaWeights};
use crate::device::{Pass, Shape};
use crate::error::Result;
use crate::quant::Format;

/// Tokens up to which a matrix is read once for all of them by the memory-bound kernels; beyond, tensor cores work on
/// tiles of tokens.
const SMALL_BATCH: usize = 16;

/// Mean rows an expert from which tensor cores take over from the memory-bound kernels, which read weights anew for every 16
/// rows of an expert. By bytes of weights from memory: BF16 is read once for 128 rows then, so anything beyond 16 gains.
/// INT4 (4.5 bits with its scales, 0.56 bytes) is read once, and 2 bytes are written and read back: 4.56 bytes, which eight
/// passes over 0.56 bytes cost as well. Means suffice, as the host does not know the counts: uneven ones only add passes.
const MANY_ROWS_BF16: usize = 16;
/// See [`MANY_ROWS_BF16`].
const MANY_ROWS_INT4: usize = 8 * 16;

impl CudaDevice {
    /// y = W·x by the kernel that suits the format and the number of tokens.
    ///
    /// FP8 weights are multiplied with bf16 activations here, many tokens or few: the trunk is a small part of a model's
    /// work, and rounding its activations to FP8 costs more accuracy than all experts together
    /// (docs/notes/kernels.md has the figures). The routed experts, where the work is, do round theirs.
    pub(super) fn multiply(
        &self,
        x: &CudaTensor,
        w: &CudaWeights,
        decoded: &mut Option<CudaTensor>,
        out: &mut CudaTensor,
    ) -> Result<()> {
        out.resize(x.rows());
        self.each_piece(w, |w, first| {
            let rows = w.layout().rows;
            self.multiply_piece(x, w, decoded, &out.columns_mut(first..first + rows))
        })
    }

    fn multiply_piece(
        &self,
        x: &CudaTensor,
        w: &CudaMatrix,
        decoded: &mut Option<CudaTensor>,
        out: &ColumnsMut<'_>,
    ) -> Result<()> {
        let (gpu, rows, cols) = (self.gpu(), w.layout().rows, w.layout().cols);
        match w.layout().format {
            // The tensor core's copies move 16 bytes at a time.
            _ if x.rows() <= SMALL_BATCH || !cols.is_multiple_of(16) => gemv::linear_columns(gpu, x, w, out),
            Format::Bf16 => gemm::linear_columns(gpu, x, w, out),
            Format::Fp8Block => {
                let decoded = fit_tensor(gpu, decoded, rows, cols)?;
                dequant::fp8_to_bf16(gpu, w, decoded)?;
                gemm::linear_columns(gpu, x, &*decoded, out)
            }
            Format::F32 | Format::F16 | Format::Int4Group32 => gemv::linear_columns(gpu, x, w, out),
        }
    }

    /// The experts of a pass by the kernels that suit their format and the number of rows; `down` is what computing waits for
    /// before it reads a down matrix, where those come later than gate and up.
    #[allow(clippy::too_many_arguments, reason = "a pass over experts, and when the rest of them is there")]
    pub(super) fn pass(
        &self,
        x: &CudaTensor,
        slots: &CudaSlots,
        layer: usize,
        pass: Pass<'_>,
        down: Option<&CudaFence>,
        routing: &CudaRouting,
        pairs: &mut CudaTensor,
    ) -> Result<()> {
        // Held to the end: launches with a pass's table follow its upload.
        let scratch = &mut *self.scratch();
        let layer = slots.pass(layer, pass, down, &mut scratch.pass)?;
        let parts = layer.layout().parts();
        let (count, width) = (routing.pairs(), parts.gate.layout.rows);
        if layer.named() == 0 {
            pairs.resize(count);
            return Ok(());
        }
        if layer.format() == Format::Fp8Block
            && x.rows() > SMALL_BATCH
            && x.cols().is_multiple_of(16)
            && width.is_multiple_of(16)
        {
            let make = || ExpertScratch::new(self.gpu(), count, x.cols(), width);
            let scratch = fit(&mut scratch.experts, |s| s.reshape(count, x.cols(), width), make)?;
            return expert_gemm::experts_fp8(self.gpu(), x, layer, routing, scratch, pairs);
        }
        let many = match layer.format() {
            Format::Bf16 => Some(MANY_ROWS_BF16),
            Format::Int4Group32 => Some(MANY_ROWS_INT4),
            _ => None,
        };
        if many.is_some_and(|rows| layer.mean_rows(routing) > rows) && expert_bf16::suits(layer) {
            let make = || ExpertBf16Scratch::new(self.gpu(), count, layer, expert_bf16::DECODED_BYTES);
            let scratch = fit(&mut scratch.expert_bf16, |s| s.fits(count, layer), make)?;
            return expert_bf16::experts_bf16(self.gpu(), x, layer, routing, scratch, pairs);
        }
        let make = || ExpertGemvScratch::new(self.gpu(), count, width);
        let scratch = fit(&mut scratch.expert_gemv, |s| s.reshape(count, width), make)?;
        expert_gemv::experts(self.gpu(), x, layer, routing, scratch, pairs)
    }
}
