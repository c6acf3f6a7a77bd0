//! Row-wise kernels of the trunk: `cuda/norm_rope.cu`.

use crate::device::cuda::gpu::{Gpu, Launch};
use crate::device::cuda::images::{Kernel, NORM_ROPE};
use crate::device::cuda::memory::Slice;
use crate::device::cuda::params::RmsNormParams;
use crate::device::cuda::tensor::CudaTensor;
use crate::device::{Precision, Shape};
use crate::error::Result;

const RMS_NORM_F32: Kernel = Kernel::new(&NORM_ROPE, c"rms_norm_f32");
const RMS_NORM_BF16: Kernel = Kernel::new(&NORM_ROPE, c"rms_norm_bf16");
const THREADS: u32 = 256;

/// out = x / √(mean(x²) + eps) ⊙ weight, by row; x of either precision, `out` bf16.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If the shapes differ or `out` is not bf16.
pub fn rms_norm(
    gpu: &Gpu,
    x: &CudaTensor,
    weight: Slice<'_, f32>,
    eps: f32,
    out: &mut CudaTensor,
) -> Result<()> {
    assert!(x.cols() == out.cols() && weight.len() == x.cols(), "columns of x, weight and out");
    assert_eq!(out.precision(), Precision::Working);
    out.resize(x.rows());
    let params = RmsNormParams {
        x: x.address(),
        weight: weight.address(),
        out: out.address(),
        x_stride: x.stride() as u32,
        out_stride: out.stride() as u32,
        rows: x.rows() as u32,
        cols: x.cols() as u32,
        eps,
        reserved: 0,
    };
    let kernel = match x.precision() {
        Precision::Full => RMS_NORM_F32,
        Precision::Working => RMS_NORM_BF16,
    };
    // SAFETY: the kernel reads `rows` rows of x and the weights and writes as many rows of `out`, all of which exist.
    unsafe { gpu.launch(kernel, Launch::linear(x.rows() as u32, THREADS), &params) }
}
