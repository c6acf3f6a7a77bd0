//! The thread that brings bytes to the disk and then says so in the journal.
//!
//! Writing goes on meanwhile. What is not yet synced is bounded: by then a slow disk slows the writers down, not the
//! machine's whole page cache.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use blake3::Hash;

use super::disk;
use super::journal::{Finished, Journal};
use super::layout::Layout;
use crate::error::{Error, Result};

/// How often to sync.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// After so many bytes.
    pub bytes: u64,
    /// And after so long, so that a slow producer's units are not at risk for longer.
    pub interval: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { bytes: 256 << 20, interval: Duration::from_secs(2) }
    }
}

/// Unsynced bytes at which writers wait, in multiples of [`Pace::bytes`].
const DIRTY: u64 = 4;

/// What the syncing thread is told.
pub(super) enum Message {
    /// All bytes of a unit are written.
    Finished(Finished),
    /// It is time to sync, or to close shards.
    Now,
}

/// An open shard.
pub(super) struct ShardFile {
    pub path: PathBuf,
    pub file: File,
}

/// The shards that are being written, and how much of them is not yet on the disk.
pub(super) struct Shards<'a> {
    folder: &'a Path,
    layout: &'a Layout<'a>,
    pace: Pace,
    /// How many may be open: with this many, at least one is whole and about to be closed.
    most: usize,
    open: Mutex<HashMap<usize, Arc<ShardFile>>>,
    /// A shard was closed or bytes were synced.
    changed: Condvar,
    written: AtomicU64,
    synced: AtomicU64,
}

impl<'a> Shards<'a> {
    /// For `threads` writers that begin units in their order.
    pub(super) fn new(folder: &'a Path, layout: &'a Layout<'a>, pace: Pace, threads: usize) -> Shards<'a> {
        Shards {
            folder,
            layout,
            pace,
            most: 2 * threads + 1,
            open: Mutex::default(),
            changed: Condvar::new(),
            written: AtomicU64::new(0),
            synced: AtomicU64::new(0),
        }
    }

    /// The file of a shard, which is made if it is not there. Waits while too many are open; `go_on` ends the wait with
    /// its error.
    pub(super) fn file(
        &self,
        shard: usize,
        messages: &Sender<Message>,
        go_on: impl Fn() -> Result<()>,
    ) -> Result<Arc<ShardFile>> {
        let mut open = lock(&self.open);
        while !open.contains_key(&shard) && open.len() >= self.most {
            go_on()?;
            // If nobody listens any more, `go_on` knows why.
            let _ = messages.send(Message::Now);
            open = self.wait(open);
        }
        if let Some(file) = open.get(&shard) {
            return Ok(file.clone());
        }
        let file = Arc::new(self.create(shard)?);
        open.insert(shard, file.clone());
        Ok(file)
    }

    fn create(&self, shard: usize) -> Result<ShardFile> {
        let plan = &self.layout.shards[shard];
        let path = self.folder.join(&plan.name);
        let file = disk::open(&path, true).map_err(Error::io(&path, "create"))?;
        let write = || {
            file.set_len(plan.len())?;
            std::os::unix::fs::FileExt::write_all_at(&file, &self.layout.header(shard), 0)
        };
        write().map_err(Error::io(&path, "write"))?;
        disk::sync_folder(self.folder)?;
        Ok(ShardFile { path, file })
    }

    /// Counts bytes that were written; true if it is time to sync.
    pub(super) fn wrote(&self, bytes: u64) -> bool {
        let before = self.written.fetch_add(bytes, Ordering::Release);
        before / self.pace.bytes != (before + bytes) / self.pace.bytes
    }

    fn dirty(&self) -> u64 {
        // Synced first: it never exceeds what was written by then.
        let synced = self.synced.load(Ordering::Acquire);
        self.written.load(Ordering::Relaxed) - synced
    }

    /// Waits while too much is not yet on the disk; `go_on` ends the wait with its error.
    pub(super) fn make_room(&self, go_on: impl Fn() -> Result<()>) -> Result<()> {
        while self.dirty() > DIRTY * self.pace.bytes {
            go_on()?;
            drop(self.wait(lock(&self.open)));
        }
        Ok(())
    }

    fn wait<'m>(
        &self,
        open: MutexGuard<'m, HashMap<usize, Arc<ShardFile>>>,
    ) -> MutexGuard<'m, HashMap<usize, Arc<ShardFile>>> {
        // Not without a limit: cancellation is a flag that wakes nobody.
        let waited = self.changed.wait_timeout(open, Duration::from_millis(50));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Receives finished units until nobody can send any more, syncs and notes them. `known` are the units that are finished
    /// already; returns those of both.
    ///
    /// # Errors
    /// [`Error::Io`] if syncing or the journal fails; nothing more is noted then.
    pub(super) fn keep(
        &self,
        messages: Receiver<Message>,
        journal: &mut Journal,
        mut known: Vec<Option<Box<[Hash]>>>,
    ) -> Result<Vec<Option<Box<[Hash]>>>> {
        let unmade = |units: std::ops::Range<usize>| known[units].iter().filter(|u| u.is_none()).count();
        let mut left: Vec<usize> = self.layout.shards.iter().map(|s| unmade(s.units.clone())).collect();
        let mut waiting = Vec::new();
        let mut last = Instant::now();
        loop {
            let mut now = false;
            match messages.recv_timeout(self.pace.interval.saturating_sub(last.elapsed())) {
                Ok(Message::Finished(unit)) => waiting.push(unit),
                Ok(Message::Now) => now = true,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.settle(waiting, journal, &mut known, &mut left)?;
                    return Ok(known);
                }
            }
            if now || last.elapsed() >= self.pace.interval {
                // What came in meanwhile can be noted with it.
                waiting.extend(messages.try_iter().filter_map(|message| match message {
                    Message::Finished(unit) => Some(unit),
                    Message::Now => None,
                }));
                self.settle(std::mem::take(&mut waiting), journal, &mut known, &mut left)?;
                last = Instant::now();
            }
        }
    }

    /// Syncs what is written, then notes the units, then closes the shards that are whole.
    fn settle(
        &self,
        units: Vec<Finished>,
        journal: &mut Journal,
        known: &mut [Option<Box<[Hash]>>],
        left: &mut [usize],
    ) -> Result<()> {
        let written = self.written.load(Ordering::Acquire);
        if !units.is_empty() || written != self.synced.load(Ordering::Relaxed) {
            let open: Vec<Arc<ShardFile>> = lock(&self.open).values().cloned().collect();
            for shard in open {
                shard.file.sync_data().map_err(Error::io(&shard.path, "sync"))?;
            }
        }
        for Finished { unit, hashes } in &units {
            known[*unit] = Some(hashes.clone());
            left[self.layout.places[*unit].shard] -= 1;
        }
        if !units.is_empty() {
            journal.note(units)?;
        }
        lock(&self.open).retain(|&shard, _| left[shard] > 0);
        self.synced.store(written, Ordering::Release);
        self.changed.notify_all();
        Ok(())
    }
}

/// What the lock guards is whole between any two statements, also where a panic went through.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
