//! What plain reads of memory reach: the limit of decoding on the CPU.

use std::sync::Arc;

use abruzzi::checkpoint::region::OwnRegion;
use abruzzi::device::cpu::{Workers, ceiling};

/// Bytes read at most: beyond any cache, and soon read.
const MOST: u64 = 1 << 30;

/// Passes, of which the fastest is the rate: the first finds in the caches what was computed before.
const PASSES: usize = 3;

/// The engine's threads, and memory for them to read.
pub struct Reads {
    workers: Arc<Workers>,
    region: OwnRegion,
}

impl Reads {
    /// As many bytes as the model has: a small model lies in a cache, and is held to the cache's rate.
    ///
    /// # Errors
    /// [`abruzzi::Error::OutOfMemory`].
    pub fn new(workers: Arc<Workers>, model: u64) -> abruzzi::Result<Reads> {
        let mut region = OwnRegion::new(model.min(MOST) as usize, "memory to be read beside the model")?;
        // Memory that nobody has written is one page of zeros, over and over.
        region.bytes_mut().fill(1);
        Ok(Reads { workers, region })
    }

    /// Bytes a second.
    pub fn rate(&self) -> f64 {
        let bytes = self.region.bytes();
        let seconds = (0..PASSES).map(|_| ceiling::read(&self.workers, bytes)).fold(f64::INFINITY, f64::min);
        bytes.len() as f64 / seconds
    }
}
