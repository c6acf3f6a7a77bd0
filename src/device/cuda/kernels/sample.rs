//! The draw of a token: `cuda/sample.cu`.

use crate::device::cuda::gpu::{Gpu, Launch};
use crate::device::cuda::images::{Kernel, SAMPLE};
use crate::device::cuda::memory::{Slice, SliceMut};
use crate::device::cuda::params::SampleParams;
use crate::device::cuda::tensor::CudaTensor;
use crate::device::{Precision, SampleSettings, Shape};
use crate::error::Result;

const KERNEL: Kernel = Kernel::new(&SAMPLE, c"sample");
const THREADS: u32 = 1024;
/// Most tokens of a vocabulary.
const MOST_TOKENS: usize = 1 << 24;

/// The id of a row that could not be drawn from. No vocabulary has it.
pub const NO_TOKEN: u32 = u32::MAX;
/// What a fault word holds while every row could be drawn from.
pub const NO_FAULT: u32 = u32::MAX;

/// Draws one id for each row of `logits` (f32 [rows, vocabulary]), as [`SampleSettings::token`] does. The same logits and
/// word give the same id.
///
/// A row that holds a NaN or nothing above −∞ gets [`NO_TOKEN`], and `fault`, one word that begins as [`NO_FAULT`],
/// becomes the least such row. +∞ outweighs every finite logit.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If `logits` is not f32 or empty of columns or wider than 2²⁴, words and ids are not one a row, `fault` is not one
/// word, or a setting is out of its range.
pub fn sample(
    gpu: &Gpu,
    logits: &CudaTensor,
    settings: &SampleSettings,
    words: Slice<'_, u64>,
    ids: SliceMut<'_, u32>,
    fault: SliceMut<'_, u32>,
) -> Result<()> {
    let SampleSettings { temperature, top_k, top_p, min_p } = *settings;
    assert_eq!(logits.precision(), Precision::Full);
    assert!((1..=MOST_TOKENS).contains(&logits.cols()), "a vocabulary of {}", logits.cols());
    assert!(words.len() == logits.rows() && ids.len() == logits.rows(), "a word and an id a row");
    assert_eq!(fault.len(), 1, "one word");
    assert!(temperature >= 0.0 && temperature.is_finite(), "temperature {temperature}");
    assert!(top_p > 0.0 && top_p <= 1.0, "top-p {top_p}");
    assert!((0.0..=1.0).contains(&min_p), "min-p {min_p}");
    let params = SampleParams {
        logits: logits.address(),
        words: words.address(),
        ids: ids.address(),
        fault: fault.address(),
        stride: logits.stride() as u32,
        rows: logits.rows() as u32,
        vocab: logits.cols() as u32,
        top_k: top_k.min(MOST_TOKENS) as u32,
        temperature,
        top_p,
        min_p,
        reserved: 0,
    };
    // SAFETY: the kernel reads the rows of logits and a word a row, writes an id a row, and reads and writes the fault's
    // word, all of which exist.
    unsafe { gpu.launch(KERNEL, Launch::linear(logits.rows() as u32, THREADS), &params) }
}
