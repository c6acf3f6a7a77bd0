//! Which 32-byte sectors of device memory a launch touched: what must cross the DRAM interface at least once.

use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapMut, MmapOptions};

use crate::memory::Arena;

/// Bytes of a sector.
pub(super) const SECTOR: u64 = 32;

/// One bit a sector, for reads, for writes, and for writes that covered it whole: what those left need not come from DRAM
/// when it is read. Committed by the page as bits are set; made anew for each launch.
pub(super) struct Sectors {
    base: u64,
    span: u64,
    read: MmapMut,
    write: MmapMut,
    whole: MmapMut,
}

impl Sectors {
    pub fn new(arena: &Arena) -> Option<Sectors> {
        let len = (arena.span() / SECTOR / 8 + 8) as usize;
        let map = || MmapOptions::new().len(len).no_reserve_swap().map_anon().ok();
        Some(Sectors { base: arena.base(), span: arena.span(), read: map()?, write: map()?, whole: map()? })
    }

    /// Marks the sectors of [address, address + len) and returns how many were new.
    pub fn touch(&self, address: u64, len: u64, write: bool) -> u64 {
        let Some(first) = address.checked_sub(self.base).filter(|o| len > 0 && o + len <= self.span) else {
            return 0;
        };
        let end = first + len;
        let (from, to) = (first / SECTOR, end.div_ceil(SECTOR));
        if !write {
            return mark(&self.read, from, to, Some(&self.whole));
        }
        mark(&self.whole, first.div_ceil(SECTOR), end / SECTOR, None);
        mark(&self.write, from, to, None)
    }
}

/// Marks the sectors from `sector` to `end` in `map`; returns how many were new there and are not in `known`.
fn mark(map: &MmapMut, mut sector: u64, end: u64, known: Option<&MmapMut>) -> u64 {
    // SAFETY: sectors are below span / 32, and a map has a bit for each, in whole aligned words; maps are only ever accessed
    // through these atomics.
    let word = |map: &MmapMut, sector: u64| unsafe {
        &*map.as_ptr().cast::<AtomicU64>().add((sector / 64) as usize)
    };
    let mut fresh = 0;
    while sector < end {
        let count = (64 - sector % 64).min(end - sector);
        let bits = u64::MAX >> (64 - count) << (sector % 64);
        let seen = word(map, sector);
        if seen.load(Ordering::Relaxed) & bits != bits {
            let before = seen.fetch_or(bits, Ordering::Relaxed);
            let known = known.map_or(0, |known| word(known, sector).load(Ordering::Relaxed));
            fresh += u64::from((bits & !before & !known).count_ones());
        }
        sector += count;
    }
    fresh
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    #[test]
    fn what_a_launch_wrote_whole_is_not_read_from_dram() {
        let memory = Memory::new(1 << 20).unwrap();
        let sectors = Sectors::new(memory.arena()).unwrap();
        let base = memory.arena().base();
        // Sectors 1 and 2 whole, 0 and 3 in part.
        assert_eq!(sectors.touch(base + 31, 66, true), 4);
        assert_eq!(sectors.touch(base, 128, false), 2);
        assert_eq!(sectors.touch(base, 128, false), 0);
        // Two halves of a sector are no whole one; a read before the write counts.
        assert_eq!(sectors.touch(base + 128, 16, true) + sectors.touch(base + 144, 16, true), 1);
        assert_eq!(sectors.touch(base + 128, 32, false), 1);
        assert_eq!(sectors.touch(base + 160, 64 * 32, false), 64);
        assert_eq!(sectors.touch(base + 160, 64 * 32, true), 64);
    }
}
