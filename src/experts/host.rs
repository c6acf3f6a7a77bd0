//! The routed experts in host memory, and on disk below it.
//!
//! A [`HostStore`] has as many slots as its budget allows, each as large as the largest record, in a few large regions.
//! Where every expert has a slot, all are read at once, in parallel, and stay; where not, slots are a cache above the
//! **file tier**: the checkpoint's own files, read directly into place. Both are the same code.
//!
//! Nothing is believed: each read looks at every value, as loading does; checksums taken at an expert's first read are
//! compared at every later one where they are asked for; a failed, short or corrupt read is repeated once and then is
//! an [`Error::Expert`], after which the store works on. Slots follow the protocol of [`super::slots`]: a
//! [`HostRecord`] is a lease, and what is leased is neither evicted nor overwritten.
//!
//! Whoever needs an expert reads it itself; reader threads only do what was [requested](HostStore::request) ahead
//! and the first filling. So a reader thread that dies costs speed, not answers.
//!
//! What computes in host memory needs neither slots nor records where memory holds the whole checkpoint: [`MappedExperts`] are
//! used in the files themselves.

mod load;
mod mapped;
mod memory;
mod read;
mod state;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::ExpertId;
use super::fault::Faults;
use super::policy::Policy;
use crate::checkpoint::{Checkpoint, LoadOptions, RecordLayout};
use crate::error::{Error, Fault, FaultList, Result, Tier};

pub use mapped::MappedExperts;
pub use memory::HostChunk;
pub use state::HostRecord;

use load::Worker;
use state::Shared;

/// How a [`HostStore`] works.
#[derive(Clone)]
#[non_exhaustive]
pub struct StoreOptions {
    /// Reading threads, progress and cancellation of the first filling. At most 16 threads are started.
    pub load: LoadOptions,
    /// Whether [`HostStore::new`] returns before all is read, where everything fits.
    pub background: bool,
    /// Whether records that are read again must have the checksum of their first read, and [`HostStore::verify`]
    /// compares. Debug builds do.
    pub checksums: bool,
    /// How long [`HostStore::get`] waits for a slot while all are leased.
    pub patience: Duration,
    /// Faults on purpose.
    #[doc(hidden)]
    pub faults: Faults,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            load: LoadOptions::default(),
            background: false,
            checksums: cfg!(debug_assertions),
            patience: Duration::from_secs(10),
            faults: Faults::none(),
        }
    }
}

/// What a store has done.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct HostStats {
    /// Records read from the file tier, repeated reads counted once.
    pub reads: u64,
    /// Bytes of those records.
    pub bytes: u64,
    /// Seconds spent in these reads, summed over the threads.
    pub seconds: f64,
    /// Reads that failed or brought wrong bytes and were repeated.
    pub repeats: u64,
    /// Records that were in memory when they were asked for.
    pub hits: u64,
    /// Records that were not.
    pub misses: u64,
    /// Times that someone waited for another thread's read or for a slot.
    pub waits: u64,
    /// Records that made room for others.
    pub evictions: u64,
    /// Records in memory.
    pub resident: u64,
    /// Slots.
    pub slots: u64,
    /// Reader threads at work or waiting for it.
    pub workers: u64,
    /// Bytes of all slots.
    pub capacity: u64,
}

/// The routed experts of a model in host memory, above the checkpoint's files.
pub struct HostStore {
    shared: Arc<Shared>,
    workers: Vec<std::thread::JoinHandle<()>>,
}

impl HostStore {
    /// A store of at most `budget` bytes of records; `None` takes what the machine has free, if it is needed. `policy`
    /// decides what stays where not everything fits.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; where everything fits and is not read in the background, all errors of
    /// [`HostStore::wait_loaded`].
    pub fn new(
        checkpoint: Arc<Checkpoint>,
        budget: Option<u64>,
        policy: Box<dyn Policy>,
        options: StoreOptions,
    ) -> Result<Arc<HostStore>> {
        let background = options.background;
        let threads = match options.load.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let shared = Shared::new(checkpoint, budget, policy, options)?;
        let mut workers = Vec::new();
        for i in 0..threads.min(MAX_READERS) {
            let work = Worker::new(&shared);
            // Those that can be started do; without any, whoever asks reads.
            workers.extend(std::thread::Builder::new().name(format!("experts-{i}")).spawn(|| work.run()));
        }
        let store = Arc::new(HostStore { shared, workers });
        if !background {
            store.wait_loaded()?;
        }
        Ok(store)
    }

    /// The expert's record, from memory or read now. Threads that ask for the same expert share one read.
    ///
    /// # Errors
    /// [`Error::Expert`] if it could not be read, or in the background could not be, or if all slots stayed leased;
    /// [`Error::Argument`] if there is no such expert. The store stays usable; asking again tries again.
    pub fn get(&self, id: ExpertId) -> Result<HostRecord> {
        self.shared.get(id)
    }

    /// The expert's record if it is in memory. Tells the policy nothing.
    pub fn peek(&self, id: ExpertId) -> Option<HostRecord> {
        self.shared.peek(id)
    }

    /// Has the expert read ahead by a reader thread. An error is kept for the next [`HostStore::get`] of the expert. False
    /// if it was not noted because too many are or no reader thread is left.
    pub fn request(&self, id: ExpertId) -> bool {
        self.shared.request(id)
    }

    /// Says that another tier has the expert: where memory is short its slot goes first. [`HostStore::get`] ends that.
    pub fn demote(&self, id: ExpertId) {
        self.shared.demote(id);
    }

    /// Ends [`HostStore::demote`]: the other tier has the expert no longer.
    pub fn promote(&self, id: ExpertId) {
        self.shared.promote(id);
    }

    /// Where the expert is: [`Tier::Host`] or [`Tier::File`].
    pub fn tier(&self, id: ExpertId) -> Tier {
        if self.shared.is_resident(id) { Tier::Host } else { Tier::File }
    }

    /// Layout of the records of a layer; `None` for dense layers.
    pub fn layout(&self, layer: usize) -> Option<&RecordLayout> {
        self.shared.layouts().get(layer)?.as_ref()
    }

    /// Bytes of a slot: the largest record.
    pub fn slot_bytes(&self) -> usize {
        self.shared.reading.memory.slot_bytes()
    }

    /// Whether every expert has a slot.
    pub fn holds_all(&self) -> bool {
        self.shared.holds_all()
    }

    /// Waits until everything that is to be read at the start has been, and helps with it.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with all damaged tensors found and not read soundly since, [`Error::Expert`] for another
    /// trouble, [`Error::Cancelled`].
    pub fn wait_loaded(&self) -> Result<()> {
        self.shared.wait_loaded()
    }

    /// Calls `f` with each of the store's regions as soon as its memory is committed, so that a device can page-lock one
    /// while the next is committed and records are being read.
    ///
    /// # Errors
    /// The first that `f` returns.
    pub fn on_chunk(&self, f: &mut dyn FnMut(HostChunk) -> Result<()>) -> Result<()> {
        self.shared.reading.memory.on_chunk(f)
    }

    /// Compares bytes that were brought elsewhere with the checksum of the expert's first read. Without checksums, or
    /// before that read, nothing can be said and nothing is.
    ///
    /// # Errors
    /// [`Error::Expert`] naming `tier` and `slot`.
    pub fn verify(&self, id: ExpertId, bytes: &[u8], tier: Tier, slot: Option<u32>) -> Result<()> {
        self.shared.verify(id, bytes, tier, slot)
    }

    /// What it has done so far.
    pub fn stats(&self) -> HostStats {
        self.shared.stats()
    }

    /// Where the records are and how they are read, in words.
    pub fn describe(&self) -> String {
        self.shared.describe()
    }
}

impl Drop for HostStore {
    fn drop(&mut self) {
        self.shared.stop();
        for worker in self.workers.drain(..) {
            // A reader thread that panicked has been counted as gone; there is nobody to tell.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for HostStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("HostStore").field(&self.describe()).finish()
    }
}

/// Reads in flight that saturate any disk, at half a megabyte each.
const MAX_READERS: usize = 16;

/// [`Error::Expert`] for an expert of this store.
fn trouble(id: ExpertId, tier: Tier, slot: Option<u32>, problem: impl Into<String>) -> Error {
    Error::Expert {
        layer: id.layer as usize,
        expert: id.expert as usize,
        tier,
        slot,
        problem: problem.into(),
    }
}

/// An error with all damage that a first filling found. A changed file is a fault of each expert in it, and told once.
fn no_damage(dir: &Path, mut faults: Vec<Fault>) -> Result<()> {
    let mut seen = Vec::new();
    faults.retain(|fault| {
        fault.tensor.is_some()
            || !seen.contains(fault) && {
                seen.push(fault.clone());
                true
            }
    });
    if faults.is_empty() {
        return Ok(());
    }
    Err(Error::Checkpoint { dir: dir.to_owned(), faults: FaultList(faults) })
}
