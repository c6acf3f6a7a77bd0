//! How fast a checkpoint's files can be read, the two ways there are.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::Checkpoint;
use super::read::CHUNK;
use super::region::OwnRegion;
use crate::error::{Error, Result};

/// What is read at most, each way.
const MOST_BYTES: u64 = 1 << 30;
const MOST_TIME: Duration = Duration::from_secs(1);

/// Bytes a second, by all cores together.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReadRates {
    /// Through the system's file cache, which may have had the bytes.
    pub cached: f64,
    /// Around it, from the disk; or why that cannot be done.
    pub direct: Result<f64, String>,
}

impl Checkpoint {
    /// Reads the beginning of the files, around the file cache and through it, for a second and a GiB each at most.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::OutOfMemory`] for the buffers.
    pub fn read_rates(&self) -> Result<ReadRates> {
        let shards = &self.catalogue.shards;
        // Around the cache first: the other way would leave the bytes in it.
        let direct = match self.direct.get(shards) {
            Ok(files) => Ok(self.read_rate(&files.iter().collect::<Vec<_>>())?),
            Err(why) => Err(why.to_owned()),
        };
        let cached = self.read_rate(&shards.iter().map(|shard| &shard.file).collect::<Vec<_>>())?;
        Ok(ReadRates { cached, direct })
    }

    fn read_rate(&self, files: &[&File]) -> Result<f64> {
        let blocks = self
            .catalogue
            .shards
            .iter()
            .enumerate()
            .flat_map(|(i, shard)| (0..shard.stamp.len).step_by(CHUNK).map(move |at| (i, at)));
        let blocks: Vec<(usize, u64)> = blocks.take((MOST_BYTES / CHUNK as u64) as usize).collect();
        let (begun, done) = (Instant::now(), AtomicU64::new(0));
        blocks.par_iter().try_for_each_init(Vec::new, |buffers, &(file, at)| {
            // One for many blocks, made with the first; what direct reads need is aligned.
            if buffers.is_empty() {
                buffers.push(OwnRegion::new(CHUNK, "a read buffer")?);
            }
            if begun.elapsed() < MOST_TIME {
                let read = files[file].read_at(buffers[0].bytes_mut(), at);
                let name = &self.catalogue.shards[file].name;
                let bytes = read.map_err(|e| Error::io(self.dir.join(name), "read")(e))?;
                done.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            Ok::<(), Error>(())
        })?;
        Ok(done.into_inner() as f64 / begun.elapsed().as_secs_f64())
    }
}
