//! What a case of a kernel is: the least that it has to do, and a launch.

use abruzzi::Result;
use abruzzi::device::cuda::Gpu;

/// What a kernel has to do at least.
#[derive(Clone, Copy)]
pub struct Work {
    /// Bytes that cross the memory bus.
    pub bytes: f64,
    /// Floating-point operations, and where they are done.
    pub flops: Option<(f64, Unit)>,
}

/// What does the arithmetic.
#[derive(Clone, Copy)]
#[allow(dead_code, reason = "each kernel uses its own")]
pub enum Unit {
    /// Ordinary f32 lanes.
    F32,
    /// Tensor cores on bf16.
    Bf16,
    /// Tensor cores on FP8.
    Fp8,
}

impl Work {
    /// Reads and writes `bytes`; arithmetic does not count.
    pub fn bytes(bytes: usize) -> Work {
        Work { bytes: bytes as f64, flops: None }
    }

    /// And does so many operations.
    pub fn flops(self, flops: usize, unit: Unit) -> Work {
        Work { flops: Some((flops as f64, unit)), ..self }
    }

    /// Seconds that one core emulates it for, roughly: docs/emulator.md.
    pub fn emulated_seconds(&self) -> f64 {
        self.bytes / 100e6 + self.flops.map_or(0.0, |(flops, _)| flops / 10e9)
    }
}

/// A kernel with its inputs: what is timed.
pub type Launch = Box<dyn FnMut(&Gpu) -> Result<()>>;
