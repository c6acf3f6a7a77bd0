//! What plain reads of the model's memory reach: the limit of decoding on the CPU.

use std::sync::Arc;

use abruzzi::Checkpoint;
use abruzzi::checkpoint::region::HostRegion;
use abruzzi::device::cpu::{Workers, ceiling};

/// Bytes read at most, the same share of every shard: beyond any cache, and soon read.
const MOST: u64 = 4 << 30;

/// Passes, of which the fastest is the rate: the first maps what it touches.
const PASSES: usize = 3;

/// The engine's threads, and the files of its weights, mapped as the engine maps them: how fast memory is depends on
/// where in it the file cache lies, and on the size of its pages.
pub struct Reads {
    workers: Arc<Workers>,
    shards: Vec<Arc<HostRegion>>,
    /// Of each shard's bytes.
    share: f64,
}

impl Reads {
    /// A small model lies in a cache, and is held to the cache's rate.
    ///
    /// # Errors
    /// As [`Checkpoint::mapped_shards`].
    pub fn new(workers: Arc<Workers>, checkpoint: &Checkpoint) -> abruzzi::Result<Reads> {
        let share = (MOST as f64 / checkpoint.bytes() as f64).min(1.0);
        Ok(Reads { workers, shards: checkpoint.mapped_shards()?, share })
    }

    /// Bytes a second.
    pub fn rate(&self) -> f64 {
        let parts =
            || self.shards.iter().map(|s| &s.bytes()[..(s.bytes().len() as f64 * self.share) as usize]);
        let bytes: usize = parts().map(<[u8]>::len).sum();
        let pass = |_| parts().map(|part| ceiling::read(&self.workers, part)).sum();
        bytes as f64 / (0..PASSES).map(pass).fold(f64::INFINITY, f64::min)
    }
}
