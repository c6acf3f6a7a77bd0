//! One record from the file tier into a slot: read, looked at, compared, and repeated once if that fails.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustc_hash::FxHashMap;
use xxhash_rust::xxh3::xxh3_64;

use super::memory::Memory;
use super::{StoreOptions, trouble};
use crate::checkpoint::{Checkpoint, DirectIo, LoadOptions, LoadProgress, ReadBuffer};
use crate::error::{Error, Result, Tier};
use crate::experts::ExpertId;
use crate::experts::fault::{Faults, Point};

/// What reading needs and no lock guards.
pub(super) struct Reading {
    checkpoint: Arc<Checkpoint>,
    pub(super) memory: Memory,
    faults: Faults,
    /// Checksums of first reads, if they are taken.
    sums: Option<Mutex<FxHashMap<ExpertId, u64>>>,
    /// Buffers that nobody reads through just now.
    buffers: Mutex<Vec<ReadBuffer>>,
    load: LoadOptions,
    begun: Instant,
    /// Of the first filling.
    bytes_total: u64,
    bytes_done: AtomicU64,
}

impl Reading {
    pub(super) fn new(
        checkpoint: Arc<Checkpoint>,
        memory: Memory,
        options: StoreOptions,
        bytes_total: u64,
    ) -> Reading {
        Reading {
            checkpoint,
            memory,
            faults: options.faults,
            sums: options.checksums.then(Mutex::default),
            buffers: Mutex::default(),
            load: options.load,
            begun: Instant::now(),
            bytes_total,
            bytes_done: AtomicU64::new(0),
        }
    }

    /// Fills `into` with the expert's record. Says how often it had to be repeated.
    pub(super) fn read(&self, id: ExpertId, slot: u32, into: &mut [u8]) -> (Result<()>, u64) {
        let mut buffer = locked(&self.buffers).pop();
        if buffer.is_none() {
            // Without memory for a buffer, through the file cache.
            buffer = ReadBuffer::new().ok();
        }
        let mut once = || self.read_once(id, slot, into, buffer.as_mut());
        let (result, repeats) = match once() {
            Ok(()) => (Ok(()), 0),
            Err(_) => (once(), 1),
        };
        locked(&self.buffers).extend(buffer);
        (result, repeats)
    }

    fn read_once(
        &self,
        id: ExpertId,
        slot: u32,
        into: &mut [u8],
        buffer: Option<&mut ReadBuffer>,
    ) -> Result<()> {
        let (layer, expert) = (id.layer as usize, id.expert as usize);
        let failed = |kind: std::io::ErrorKind| Error::io(self.dir(), "read")(kind.into());
        if self.faults.strikes(Point::Read) {
            return Err(failed(std::io::ErrorKind::Other));
        }
        match buffer {
            Some(buffer) => self.checkpoint.read_expert_direct(layer, expert, into, buffer)?,
            None => self.checkpoint.read_expert(layer, expert, into)?,
        }
        if self.faults.strikes(Point::ShortRead) {
            let half = into.len() / 2;
            into[half..].fill(0);
            return Err(failed(std::io::ErrorKind::UnexpectedEof));
        }
        let Some(sums) = &self.sums else { return Ok(()) };
        let expected = locked(sums).get(&id).copied();
        // The first read is all there is to compare with: it can be damaged in no way that a checksum would tell.
        if expected.is_some() && self.faults.strikes(Point::Corrupt) {
            let middle = into.len() / 2;
            into[middle] ^= 1;
        }
        let sum = xxh3_64(into);
        match expected {
            None => locked(sums).insert(id, sum),
            Some(expected) if expected == sum => return Ok(()),
            Some(expected) => return Err(trouble(id, Tier::File, Some(slot), mismatch(sum, expected))),
        };
        Ok(())
    }

    /// An error of [`Reading::read`] as whoever asks for the expert is told it.
    pub(super) fn told(&self, id: ExpertId, slot: u32, error: Error) -> Error {
        match error {
            Error::Expert { .. } => error,
            other => trouble(id, Tier::File, Some(slot), other.to_string()),
        }
    }

    /// What is wrong with bytes that should be the expert's record, as far as checksums can tell.
    pub(super) fn verify(&self, id: ExpertId, bytes: &[u8]) -> Result<(), String> {
        let expected = self.sums.as_ref().and_then(|sums| locked(sums).get(&id).copied());
        let Some(expected) = expected else { return Ok(()) };
        let sum = xxh3_64(bytes);
        if sum == expected { Ok(()) } else { Err(mismatch(sum, expected)) }
    }

    /// Notes a record of the first filling.
    pub(super) fn progress(&self, bytes: usize) {
        let bytes = bytes as u64;
        let bytes_done = self.bytes_done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(progress) = &self.load.progress {
            let seconds = self.begun.elapsed().as_secs_f64();
            progress(LoadProgress { bytes_done, bytes_total: self.bytes_total, seconds });
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.load.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }

    /// Whether the thread that asks dies on purpose.
    pub(super) fn worker_dies(&self) -> bool {
        self.faults.strikes(Point::Worker)
    }

    pub(super) fn dir(&self) -> &Path {
        self.checkpoint.dir()
    }

    /// Experts a layer.
    pub(super) fn experts(&self) -> usize {
        self.checkpoint.config().moe.num_experts
    }

    /// How records are read, in words.
    pub(super) fn describe(&self) -> String {
        let way = match self.checkpoint.direct_io() {
            Ok(DirectIo::Queued) => "read from the file cache or around it by io_uring".to_owned(),
            Ok(DirectIo::Single(why)) => {
                format!("read from the file cache or around it, one block at a time (no io_uring: {why})")
            }
            Err(why) => format!("read through the file cache ({why})"),
        };
        if self.sums.is_some() { format!("{way}, checksums compared") } else { way }
    }
}

fn mismatch(sum: u64, expected: u64) -> String {
    format!(
        "checksum is {sum:016x}, expected {expected:016x} as at the first read: the memory, the link or the disk is damaged"
    )
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Maps and lists of buffers are sound at every point where a panic could have left them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
