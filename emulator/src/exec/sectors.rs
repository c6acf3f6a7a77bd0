//! Which 32-byte sectors of device memory a launch touched: what must cross the DRAM interface at least once.

use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapMut, MmapOptions};

use crate::memory::Arena;

/// Bytes of a sector.
pub(super) const SECTOR: u64 = 32;

/// One bit a sector, for reads and for writes. Committed by the page as bits are set; made anew for each launch.
pub(super) struct Sectors {
    base: u64,
    span: u64,
    read: MmapMut,
    write: MmapMut,
}

impl Sectors {
    pub fn new(arena: &Arena) -> Option<Sectors> {
        let len = (arena.span() / SECTOR / 8 + 8) as usize;
        let map = || MmapOptions::new().len(len).no_reserve_swap().map_anon().ok();
        Some(Sectors { base: arena.base(), span: arena.span(), read: map()?, write: map()? })
    }

    /// Marks the sectors of [address, address + len) and returns how many were new.
    pub fn touch(&self, address: u64, len: u64, write: bool) -> u64 {
        let Some(first) = address.checked_sub(self.base).filter(|o| len > 0 && o + len <= self.span) else {
            return 0;
        };
        let map = if write { &self.write } else { &self.read };
        let (mut sector, end) = (first / SECTOR, (first + len).div_ceil(SECTOR));
        let mut fresh = 0;
        while sector < end {
            // SAFETY: `sector` is below span / 32, and the map has a bit for each, in whole aligned words; the map
            // is only ever accessed through these atomics.
            let word = unsafe { &*map.as_ptr().cast::<AtomicU64>().add((sector / 64) as usize) };
            let count = (64 - sector % 64).min(end - sector);
            let bits = u64::MAX >> (64 - count) << (sector % 64);
            if word.load(Ordering::Relaxed) & bits != bits {
                let before = word.fetch_or(bits, Ordering::Relaxed);
                fresh += u64::from((bits & !before).count_ones());
            }
            sector += count;
        }
        fresh
    }
}
