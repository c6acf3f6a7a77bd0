//! What plain reads of the model's memory reach: the limit of decoding on the CPU.

use std::fs::File;
use std::sync::Arc;

use abruzzi::checkpoint::region::MappedFile;
use abruzzi::device::cpu::{Workers, ceiling};
use abruzzi::{Checkpoint, Error};

/// Bytes read at most, the same share of every shard: beyond any cache, and soon read.
const MOST: u64 = 4 << 30;

/// Passes, of which the fastest is the rate: the first maps what it touches.
const PASSES: usize = 3;

/// The engine's threads, and the files of its weights, mapped as the engine maps them: how fast memory is depends on
/// where in it the file cache lies, and on the size of its pages.
pub struct Reads {
    workers: Arc<Workers>,
    shards: Vec<MappedFile>,
}

impl Reads {
    /// The checkpoint's shards. A small model lies in a cache, and is held to the cache's rate.
    ///
    /// # Errors
    /// [`Error::Io`] naming what can't be opened or mapped.
    pub fn new(workers: Arc<Workers>, checkpoint: &Checkpoint) -> abruzzi::Result<Reads> {
        let dir = checkpoint.dir();
        let failed = |path: &std::path::Path| {
            let path = path.to_path_buf();
            move |source| Error::Io { path, action: "map", source }
        };
        let mut shards = Vec::new();
        for item in std::fs::read_dir(dir).map_err(failed(dir))? {
            let path = item.map_err(failed(dir))?.path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                let file = File::open(&path).map_err(failed(&path))?;
                let len = file.metadata().map_err(failed(&path))?.len();
                let share = (MOST as f64 / checkpoint.bytes() as f64).min(1.0);
                let len = ((len as f64 * share) as usize).max(1);
                shards.push(MappedFile::new(&file, len).map_err(failed(&path))?);
            }
        }
        Ok(Reads { workers, shards })
    }

    /// Bytes a second.
    pub fn rate(&self) -> f64 {
        let bytes: usize = self.shards.iter().map(|shard| shard.bytes().len()).sum();
        let pass = |_| self.shards.iter().map(|shard| ceiling::read(&self.workers, shard.bytes())).sum();
        bytes as f64 / (0..PASSES).map(pass).fold(f64::INFINITY, f64::min)
    }
}
