//! Row-wise kernels of the trunk: `cuda/norm_rope.cu`.

use crate::device::cuda::gpu::{Gpu, Launch};
use crate::device::cuda::images::{Kernel, NORM_ROPE};
use crate::device::cuda::memory::Slice;
use crate::device::cuda::params::{AddRmsNormParams, RmsNormParams};
use crate::device::cuda::tensor::CudaTensor;
use crate::device::{Precision, Shape};
use crate::error::Result;

const RMS_NORM_F32: Kernel = Kernel::new(&NORM_ROPE, c"rms_norm_f32");
const RMS_NORM_BF16: Kernel = Kernel::new(&NORM_ROPE, c"rms_norm_bf16");
const ADD_RMS_NORM_F32_F32: Kernel = Kernel::new(&NORM_ROPE, c"add_rms_norm_f32_f32");
const ADD_RMS_NORM_BF16_F32: Kernel = Kernel::new(&NORM_ROPE, c"add_rms_norm_bf16_f32");
const ADD_RMS_NORM_F32_BF16: Kernel = Kernel::new(&NORM_ROPE, c"add_rms_norm_f32_bf16");
const ADD_RMS_NORM_BF16_BF16: Kernel = Kernel::new(&NORM_ROPE, c"add_rms_norm_bf16_bf16");
const THREADS: u32 = 256;

/// out = x / √(mean(x²) + eps) ⊙ weight, by row; x of either precision, `out` bf16.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If the shapes differ, `out` is not bf16 or `weight` does not begin on 16 bytes.
pub fn rms_norm(
    gpu: &Gpu,
    x: &CudaTensor,
    weight: Slice<'_, f32>,
    eps: f32,
    out: &mut CudaTensor,
) -> Result<()> {
    assert!(x.cols() == out.cols() && weight.len() == x.cols(), "columns of x, weight and out");
    assert_eq!(out.precision(), Precision::Working);
    assert_eq!(weight.address() % 16, 0, "weights begin on 16 bytes");
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

/// sum += x, then out = sum / √(mean(sum²) + eps) ⊙ weight, by row: what [`super::elementwise::add`] and [`rms_norm`]
/// give one after the other, to the bit, with `sum` read and written once.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If the shapes differ, `out` is not bf16 or `weight` does not begin on 16 bytes.
pub fn add_rms_norm(
    gpu: &Gpu,
    x: &CudaTensor,
    sum: &mut CudaTensor,
    weight: Slice<'_, f32>,
    eps: f32,
    out: &mut CudaTensor,
) -> Result<()> {
    assert!(x.rows() == sum.rows() && x.cols() == sum.cols(), "x and sum have one shape");
    assert!(x.cols() == out.cols() && weight.len() == x.cols(), "columns of x, weight and out");
    assert_eq!(out.precision(), Precision::Working);
    assert_eq!(weight.address() % 16, 0, "weights begin on 16 bytes");
    out.resize(x.rows());
    let params = AddRmsNormParams {
        x: x.address(),
        sum: sum.address(),
        weight: weight.address(),
        out: out.address(),
        x_stride: x.stride() as u32,
        sum_stride: sum.stride() as u32,
        out_stride: out.stride() as u32,
        rows: x.rows() as u32,
        cols: x.cols() as u32,
        eps,
    };
    let kernel = match (x.precision(), sum.precision()) {
        (Precision::Full, Precision::Full) => ADD_RMS_NORM_F32_F32,
        (Precision::Working, Precision::Full) => ADD_RMS_NORM_BF16_F32,
        (Precision::Full, Precision::Working) => ADD_RMS_NORM_F32_BF16,
        (Precision::Working, Precision::Working) => ADD_RMS_NORM_BF16_BF16,
    };
    // SAFETY: the kernel reads `rows` rows of x and the weights, reads and writes as many of `sum` and writes as many of
    // `out`, all of which exist.
    unsafe { gpu.launch(kernel, Launch::linear(x.rows() as u32, THREADS), &params) }
}
