//! Device memory: one reserved arena whose addresses are host addresses, with a shadow byte for every byte.
//!
//! Device pointers are what the arena's bytes have as host addresses, so an access costs no translation. The shadow
//! tells, byte by byte, whether memory is allocated and whether anything was ever written to it; one comparison finds
//! out-of-bounds accesses, use after free and reads of memory nobody wrote. Host memory that was pinned or registered
//! is reachable from kernels too, as on a GPU with unified addressing; it has no shadow, only bounds.

mod arena;
mod fill;

use std::collections::BTreeMap;
use std::sync::RwLock;

pub use arena::{Arena, State};

/// A range of host memory that the device may access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostRange {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Allocated by the driver (`cuMemHostAlloc`) rather than registered.
    pub owned: bool,
}

/// An allocation of device memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// First byte.
    pub start: u64,
    /// Bytes asked for.
    pub len: u64,
    /// What it is, for reports: "cuMemAlloc #12", ".global table".
    pub label: String,
}

/// All memory a kernel can reach outside its block.
pub struct Memory {
    arena: Arena,
    host: RwLock<BTreeMap<u64, HostRange>>,
}

impl Memory {
    /// Reserves (does not commit) `bytes` of device memory.
    ///
    /// # Errors
    /// The system's reason if the address space cannot be reserved.
    pub fn new(bytes: u64) -> std::io::Result<Memory> {
        Ok(Memory { arena: Arena::new(bytes)?, host: RwLock::default() })
    }

    /// Device memory.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Makes a host range reachable. Replaces a range that starts at the same address.
    pub fn register_host(&self, range: HostRange) {
        self.write_host().insert(range.start, range);
    }

    /// Ends a host range's reachability.
    pub fn unregister_host(&self, start: u64) -> Option<HostRange> {
        self.write_host().remove(&start)
    }

    /// The host range that contains `address`.
    pub fn host_range(&self, address: u64) -> Option<HostRange> {
        let host = self.host.read().unwrap_or_else(|e| e.into_inner());
        let (_, range) = host.range(..=address).next_back()?;
        (address - range.start < range.len).then_some(*range)
    }

    fn write_host(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<u64, HostRange>> {
        self.host.write().unwrap_or_else(|e| e.into_inner())
    }
}
