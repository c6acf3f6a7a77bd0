//! The simulated clock: what the work would have cost on the device a profile describes.
//!
//! The emulator executes at its own pace; this module says when things would have started and ended. It knows streams,
//! engines and operations with a duration, nothing of CUDA. Times are microseconds since the clock was made. They are
//! *modelled*, from public figures, never measured, and are for comparing schedules (does this copy hide behind that
//! kernel?) and for catching regressions in what kernels do, not for predicting a benchmark.
//!
//! Invariant: an operation starts no earlier than the host issued it, its stream's previous operation ended, every
//! operation it waits for ended, and its engine was free.

mod kernel;
mod occupancy;
mod profile;
mod report;
mod timeline;
mod trace;

pub use kernel::{KernelCost, kernel_cost};
pub use occupancy::{Footprint, blocks_per_sm};
pub use profile::{Limits, Profile, ProfileError};
pub use report::{KernelRow, table};
pub use timeline::{Clock, Engine, OpId, Span, StreamId, Work};
pub use trace::chrome_trace;
