//! How fast a checkpoint's files can be read, the three ways there are.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::Checkpoint;
use super::catalogue::Shard;
use super::read::CHUNK;
use super::region::OwnRegion;
use super::ring::Ring;
use crate::error::{Error, Result};

/// What is read at most, each way.
const MOST_BYTES: u64 = 1 << 30;
const MOST_TIME: Duration = Duration::from_secs(1);

/// Bytes a second.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReadRates {
    /// Through the system's file cache, which may have had the bytes, by all cores together.
    pub cached: f64,
    /// Around it, from the disk, by one thread and one block after another; or why that cannot be done.
    pub direct: Result<f64, String>,
    /// Around it by one thread and io_uring, several blocks at once, as experts are read; or why that cannot be done.
    pub queued: Result<f64, String>,
}

/// Some bytes of a shard, [`CHUNK`] at most.
#[derive(Debug, Clone, Copy)]
struct Block {
    shard: usize,
    at: u64,
    len: usize,
}

impl Checkpoint {
    /// Reads the files, a third of them each way, for a second and a GiB at most.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::OutOfMemory`] for the buffers.
    pub fn read_rates(&self) -> Result<ReadRates> {
        let blocks: Vec<Block> = self.catalogue.shards.iter().enumerate().flat_map(blocks).collect();
        // Other bytes each way: what a disk's own cache has kept of one would make the next look fast.
        let third = blocks.len().div_ceil(3).max(1);
        let most = (MOST_BYTES / CHUNK as u64) as usize;
        let part =
            |i: usize| blocks.chunks(third).nth(i).map_or(&blocks[..], |part| &part[..part.len().min(most)]);
        // Around the cache first: the other way may find a block that lies on a border in it.
        let (direct, queued) = match self.direct.get(&self.catalogue.shards) {
            Ok(files) => (Ok(self.direct_rate(files, part(0))?), self.queued_rate(files, part(1))?),
            Err(why) => (Err(why.to_owned()), Err(why.to_owned())),
        };
        Ok(ReadRates { cached: self.cached_rate(part(2))?, direct, queued })
    }

    fn cached_rate(&self, blocks: &[Block]) -> Result<f64> {
        let (begun, done) = (Instant::now(), AtomicU64::new(0));
        blocks.par_iter().try_for_each_init(
            || vec![0; CHUNK],
            |buffer, block| {
                if begun.elapsed() < MOST_TIME {
                    let read = self.catalogue.shards[block.shard].file.read_at(buffer, block.at);
                    done.fetch_add(self.told(block, read)? as u64, Ordering::Relaxed);
                }
                Ok::<(), Error>(())
            },
        )?;
        Ok(done.into_inner() as f64 / begun.elapsed().as_secs_f64())
    }

    fn direct_rate(&self, files: &[File], blocks: &[Block]) -> Result<f64> {
        let mut buffer = OwnRegion::new(CHUNK, "a read buffer")?;
        let (begun, mut done) = (Instant::now(), 0);
        for block in blocks {
            if begun.elapsed() >= MOST_TIME {
                break;
            }
            done += self.told(block, files[block.shard].read_at(buffer.bytes_mut(), block.at))?;
        }
        Ok(done as f64 / begun.elapsed().as_secs_f64())
    }

    /// The inner error is that there is no io_uring.
    fn queued_rate(&self, files: &[File], blocks: &[Block]) -> Result<Result<f64, String>> {
        let mut ring = match Ring::new() {
            Ok(ring) => ring,
            Err(why) => return Ok(Err(why.to_string())),
        };
        let (begun, mut done) = (Instant::now(), 0);
        let mut waiting = blocks.iter().enumerate();
        loop {
            while !ring.is_full()
                && begun.elapsed() < MOST_TIME
                && let Some((i, block)) = waiting.next()
            {
                if !ring.begin(i, &files[block.shard], block.at, block.len) {
                    let why = ring.refusal().map_or_else(|| "it is full".to_owned(), |e| e.to_string());
                    return Ok(Err(why));
                }
            }
            let Some((i, read)) = ring.end() else { break };
            done += self.told(&blocks[i], read.map(<[u8]>::len))?;
        }
        Ok(Ok(done as f64 / begun.elapsed().as_secs_f64()))
    }

    fn told(&self, block: &Block, read: std::io::Result<usize>) -> Result<usize> {
        let file = || self.dir.join(&self.catalogue.shards[block.shard].name);
        read.map_err(|e| Error::io(file(), "read")(e))
    }
}

fn blocks((shard, file): (usize, &Shard)) -> impl Iterator<Item = Block> {
    let len = file.stamp.len;
    let starts = (0..len).step_by(CHUNK);
    starts.map(move |at| Block { shard, at, len: (len - at).min(CHUNK as u64) as usize })
}
