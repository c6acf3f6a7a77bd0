//! The memory of all slots: a few large regions.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::checkpoint::region::{SharedRegion, memory_nodes};
use crate::error::{Error, Result};
use crate::experts::fault::{Faults, Point};
use crate::experts::slots::{Lease, SlotRef};

/// A region is at most this large (or one record): what a device page-locks at a time.
const CHUNK_BYTES: usize = 1 << 30;

/// What one thread commits at a time.
const COMMIT_BYTES: usize = 64 << 20;

/// Slots of equal size.
#[derive(Debug)]
pub(super) struct Memory {
    chunks: Vec<Arc<SharedRegion>>,
    slot_bytes: usize,
    slots_per_chunk: usize,
    slots: usize,
}

/// A region of a store's slots, to be page-locked. It lives as long as anybody holds it.
#[derive(Debug, Clone)]
pub struct HostChunk(Arc<SharedRegion>);

/// What [`HostChunk::bytes`] gives.
struct Bytes(Arc<SharedRegion>);

impl HostChunk {
    /// Its first byte. Slots in it are being filled and read meanwhile: only the address is for the caller.
    pub fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }

    /// Its length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a region has at least one page")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The region as shared bytes, for interfaces that take these.
    ///
    /// # Safety
    /// The bytes are never looked at: of the slice only address and length may be used, since slots are filled
    /// meanwhile.
    pub unsafe fn bytes(&self) -> Arc<dyn AsRef<[u8]> + Send + Sync> {
        Arc::new(Bytes(self.0.clone()))
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: whoever made this has promised to use address and length only, so nothing is read while written.
        unsafe { self.0.part(0..self.0.len()) }
    }
}

impl Memory {
    /// Reserves memory for `slots` slots. If the system refuses some and `fewer` allows it, there are fewer slots, but
    /// one at least.
    pub(super) fn new(slots: usize, slot_bytes: usize, fewer: bool, faults: &Faults) -> Result<Memory> {
        let slots_per_chunk = (CHUNK_BYTES / slot_bytes).max(1);
        let mut memory = Memory { chunks: Vec::new(), slot_bytes, slots_per_chunk, slots: 0 };
        while memory.slots < slots {
            let count = slots_per_chunk.min(slots - memory.slots);
            let region = if faults.strikes(Point::HostAlloc) {
                Err(Error::OutOfMemory {
                    what: WHAT.into(),
                    needed: (count * slot_bytes) as u64,
                    available: 0,
                })
            } else {
                SharedRegion::new(count * slot_bytes, WHAT)
            };
            match region {
                Ok(region) => memory.chunks.push(Arc::new(region)),
                Err(_) if fewer && memory.slots > 0 => break,
                Err(e) => return Err(e),
            }
            memory.slots += count;
        }
        Ok(memory)
    }

    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    pub(super) fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.slots * self.slot_bytes) as u64
    }

    fn place(&self, slot: u32, len: usize) -> (&Arc<SharedRegion>, Range<usize>) {
        assert!(len <= self.slot_bytes, "{len} of {}", self.slot_bytes);
        let (chunk, index) = (slot as usize / self.slots_per_chunk, slot as usize % self.slots_per_chunk);
        let start = index * self.slot_bytes;
        (&self.chunks[chunk], start..start + len)
    }

    /// The first `len` bytes of a slot, to be filled.
    ///
    /// # Safety
    /// The caller has moved the slot to Loading and ends that only after the reference's life.
    #[allow(clippy::mut_from_ref, reason = "the slot's protocol makes the access exclusive")]
    pub(super) unsafe fn fill(&self, at: SlotRef, len: usize) -> &mut [u8] {
        let (region, range) = self.place(at.slot, len);
        // SAFETY: slots do not overlap, and a Loading slot is touched by its loader alone.
        unsafe { region.part_mut(range) }
    }

    /// The first `len` bytes of the slot that the lease is of.
    pub(super) fn read<'a>(&'a self, lease: &'a Lease, len: usize) -> &'a [u8] {
        let (region, range) = self.place(lease.at().slot, len);
        // SAFETY: slots do not overlap, and a slot is not written while a lease on it lives, which the borrow ensures.
        unsafe { region.part(range) }
    }

    /// See [`super::HostStore::on_chunk`].
    pub(super) fn on_chunk(&self, f: &mut dyn FnMut(HostChunk) -> Result<()>) -> Result<()> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        for region in &self.chunks {
            let next = AtomicUsize::new(0);
            let commit = || loop {
                let start = next.fetch_add(COMMIT_BYTES, Ordering::Relaxed);
                if start >= region.len() {
                    break;
                }
                region.commit(start..(start + COMMIT_BYTES).min(region.len()));
            };
            std::thread::scope(|scope| {
                for _ in 1..threads.min(region.len().div_ceil(COMMIT_BYTES)) {
                    // A thread that cannot be started leaves its share to the others.
                    let _ = std::thread::Builder::new().spawn_scoped(scope, commit);
                }
                commit();
            });
            f(HostChunk(region.clone()))?;
        }
        Ok(())
    }

    /// How the memory is laid out, in words.
    pub(super) fn describe(&self) -> String {
        match memory_nodes().count_ones() {
            1 => "on one memory node".to_owned(),
            nodes => format!("interleaved over {nodes} memory nodes"),
        }
    }
}

const WHAT: &str = "expert records in host memory";
