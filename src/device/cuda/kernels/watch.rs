//! The detector of non-finite values: `cuda/watch.cu`.

use crate::device::cuda::gpu::Gpu;
use crate::device::cuda::images::{Kernel, WATCH};
use crate::device::cuda::memory::SliceMut;
use crate::device::cuda::params::WatchParams;
use crate::device::cuda::tensor::CudaTensor;
use crate::device::{Precision, Shape};
use crate::error::Result;

const WATCH_F32: Kernel = Kernel::new(&WATCH, c"watch_f32");
const WATCH_BF16: Kernel = Kernel::new(&WATCH, c"watch_bf16");

/// What a guard holds before anything was found.
pub const CLEAR: u64 = u64::MAX;

/// Notes the first NaN or infinity of `x` in `guard`, one word that begins as [`CLEAR`]. The guard keeps the finding of
/// the lowest `site`, then row, then column; with sites numbered in the order of issue that is the first.
///
/// # Errors
/// [`crate::Error::Cuda`] if the launch is refused.
///
/// # Panics
/// If `guard` is not one word, `site` is not below 2¹⁶ − 1 or a row or column not below 2²⁴.
pub fn watch(gpu: &Gpu, x: &CudaTensor, site: u32, guard: SliceMut<'_, u64>) -> Result<()> {
    assert_eq!(guard.len(), 1, "one word");
    // The last site, row and column together would look like a guard that is clear.
    assert!(site < (1 << 16) - 1, "site {site}");
    assert!(x.rows() < 1 << 24 && x.cols() < 1 << 24, "[{}, {}]", x.rows(), x.cols());
    let params = WatchParams {
        x: x.address(),
        guard: guard.address(),
        stride: x.stride() as u32,
        rows: x.rows() as u32,
        cols: x.cols() as u32,
        site,
    };
    let kernel = match x.precision() {
        Precision::Full => WATCH_F32,
        Precision::Working => WATCH_BF16,
    };
    // SAFETY: the kernel reads the rows of x and reads and writes the guard's word.
    unsafe { gpu.launch(kernel, super::elementwise::by_row(x.rows(), x.cols()), &params) }
}

/// Site, row and column that a guard's word names; `None` if nothing was found.
pub fn unpack(word: u64) -> Option<(u32, usize, usize)> {
    let low = |bits: u64| (bits & 0xff_ffff) as usize;
    (word != CLEAR).then(|| ((word >> 48) as u32, low(word >> 24), low(word)))
}
