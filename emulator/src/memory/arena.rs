//! The device arena: first-fit allocation with red zones and a quarantine, and the shadow.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard};

use memmap2::{MmapMut, MmapOptions};

use super::Allocation;
use super::fill::{LARGE, fill};

/// Alignment of every allocation, as `cuMemAlloc` guarantees it.
const ALIGN: u64 = 256;
/// Unallocated bytes behind every allocation.
const RED_ZONE: u64 = 256;
/// Freed allocations are kept unreachable until this many bytes have been freed after them.
const QUARANTINE: u64 = 64 << 20;
/// What device memory holds before anything is written: a NaN in every float format, an impossible index.
const POISON: u8 = 0xff;

/// What a shadow byte says of its byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Never allocated, or a red zone.
    Unallocated = 0,
    /// Allocated, never written.
    Uninitialised = 1,
    /// Allocated and written.
    Valid = 2,
    /// Freed, in quarantine.
    Freed = 3,
}

/// Reserved address space with a shadow of the same size. Pages of both cost memory when they are first written, and
/// large ones none before: poison and states of whole allocations are mapped, not written (see `fill`).
pub struct Arena {
    bytes: MmapMut,
    shadow: MmapMut,
    capacity: u64,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    /// Live and quarantined blocks by start: bytes with red zone.
    blocks: BTreeMap<u64, Block>,
    quarantine: VecDeque<u64>,
    quarantined: u64,
    used: u64,
    peak: u64,
}

struct Block {
    allocation: Allocation,
    span: u64,
    freed: bool,
}

impl Arena {
    pub(super) fn new(capacity: u64) -> std::io::Result<Arena> {
        let len = usize::try_from(capacity).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
        // Quarantine and red zones must not eat into what the profile promises.
        let len = len + len / 8 + (QUARANTINE as usize) * 2;
        let map = || MmapOptions::new().len(len).no_reserve_swap().map_anon();
        Ok(Arena { bytes: map()?, shadow: map()?, capacity, book: Mutex::default() })
    }

    /// Address of the first byte.
    pub fn base(&self) -> u64 {
        self.bytes.as_ptr() as u64
    }

    /// Bytes of address space.
    pub fn span(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Bytes the device has.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes allocated now.
    pub fn used(&self) -> u64 {
        self.book().used
    }

    /// Most bytes that were allocated at one time.
    pub fn peak(&self) -> u64 {
        self.book().peak
    }

    /// Whether `address` lies in device memory, allocated or not.
    #[inline(always)]
    pub fn contains(&self, address: u64) -> bool {
        address.wrapping_sub(self.base()) < self.span()
    }

    /// Shadow bytes of an address; follows the address one to one.
    ///
    /// # Panics
    /// If the address is outside the arena.
    #[inline(always)]
    pub fn shadow(&self, address: u64) -> *mut u8 {
        assert!(self.contains(address), "address {address:#x} outside device memory");
        // In bounds by the assertion; written by several threads, each byte only ever whole.
        self.shadow.as_ptr().wrapping_add((address - self.base()) as usize).cast_mut()
    }

    /// Allocates `len` poisoned bytes, 256-byte aligned; `None` if the device has not as much left.
    pub fn allocate(&self, len: u64, label: String) -> Option<u64> {
        let mut book = self.book();
        if len == 0 || book.used + len > self.capacity {
            return None;
        }
        let span = len.next_multiple_of(ALIGN) + RED_ZONE;
        let start = loop {
            match book.first_fit(self.base().next_multiple_of(ALIGN), self.base() + self.span(), span) {
                Some(start) => break start,
                None => self.release_oldest(&mut book)?,
            }
        };
        book.used += len;
        book.peak = book.peak.max(book.used);
        let allocation = Allocation { start, len, label };
        book.blocks.insert(start, Block { allocation, span, freed: false });
        self.renew(start, len, State::Uninitialised);
        self.poison(start, len);
        Some(start)
    }

    /// Frees an allocation by its start. `false` if there is none (or it was freed before).
    pub fn free(&self, start: u64) -> bool {
        let mut book = self.book();
        let Some(block) = book.blocks.get_mut(&start).filter(|b| !b.freed) else { return false };
        block.freed = true;
        let len = block.allocation.len;
        book.used -= len;
        book.quarantined += len;
        book.quarantine.push_back(start);
        self.renew(start, len, State::Freed);
        if len as usize >= LARGE {
            // Gives the host's memory back.
            self.poison(start, len);
        }
        while book.quarantined > QUARANTINE && self.release_oldest(&mut book).is_some() {}
        true
    }

    /// The live or quarantined allocation that contains or, within the red zone, precedes `address`.
    pub fn allocation(&self, address: u64) -> Option<(Allocation, bool)> {
        let book = self.book();
        let (_, block) = book.blocks.range(..=address).next_back()?;
        (address - block.allocation.start < block.span).then(|| (block.allocation.clone(), block.freed))
    }

    /// Whether [address, address + len) lies in one live allocation.
    pub fn is_live(&self, address: u64, len: u64) -> bool {
        self.allocation(address).is_some_and(|(a, freed)| {
            !freed && address - a.start <= a.len && len <= a.len - (address - a.start)
        })
    }

    /// Live allocations, for leak reports.
    pub fn live(&self) -> Vec<Allocation> {
        self.book().blocks.values().filter(|b| !b.freed).map(|b| b.allocation.clone()).collect()
    }

    /// Marks bytes as written, after a copy or memset.
    pub fn mark_valid(&self, address: u64, len: u64) {
        self.set(address, len, State::Valid);
    }

    /// Carries what is known of `len` bytes over, after a copy within the device. Ranges may overlap.
    pub fn copy_states(&self, from: u64, to: u64, len: u64) {
        if len == 0 {
            return;
        }
        assert!(self.contains(from + len - 1) && self.contains(to + len - 1), "range outside device memory");
        // SAFETY: both ranges are inside the shadow, checked at both ends; bytes are copied whole.
        unsafe { std::ptr::copy(self.shadow(from), self.shadow(to), len as usize) };
    }

    /// First byte of [address, address + len) whose state is not `wanted`.
    pub fn first_other(&self, address: u64, len: u64, wanted: State) -> Option<(u64, State)> {
        if len == 0 {
            return None;
        }
        if !self.contains(address) || !self.contains(address + len - 1) {
            return Some((address, State::Unallocated));
        }
        let shadow = self.shadow(address);
        // SAFETY: the whole range was just checked to lie inside the shadow; bytes are read whole.
        let states = unsafe { std::slice::from_raw_parts(shadow, len as usize) };
        let at = states.iter().position(|&s| s != wanted as u8)?;
        let state = match states[at] {
            1 => State::Uninitialised,
            2 => State::Valid,
            3 => State::Freed,
            _ => State::Unallocated,
        };
        Some((address + at as u64, state))
    }

    fn set(&self, start: u64, len: u64, state: State) {
        if len == 0 {
            return;
        }
        assert!(self.contains(start + len - 1), "range outside device memory");
        // SAFETY: both ends are inside the shadow; concurrent writers only write whole bytes.
        unsafe { std::ptr::write_bytes(self.shadow(start), state as u8, len as usize) };
    }

    /// As [`Arena::set`], for an allocation that begins or ends.
    fn renew(&self, start: u64, len: u64, state: State) {
        assert!(self.contains(start + len - 1), "range outside device memory");
        // SAFETY: both ends are inside the shadow, a private mapping; kernels have no business with an allocation that
        // begins or ends, and if they write all the same, they write whole bytes.
        unsafe { fill(self.shadow(start), len as usize, state as u8) };
    }

    /// Fills an allocation that begins or ends, none of whose bytes anybody may rely on.
    fn poison(&self, start: u64, len: u64) {
        assert!(self.contains(start) && self.contains(start + len - 1), "range outside device memory");
        // SAFETY: both ends are inside the arena, a private mapping; the range is one allocation's.
        unsafe { fill(start as *mut u8, len as usize, POISON) };
    }

    fn release_oldest(&self, book: &mut Book) -> Option<()> {
        let start = book.quarantine.pop_front()?;
        let block = book.blocks.remove(&start)?;
        book.quarantined -= block.allocation.len;
        self.renew(start, block.allocation.len, State::Unallocated);
        Some(())
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Book {
    /// The lowest gap of `span` bytes between `from` and `to`.
    fn first_fit(&self, from: u64, to: u64, span: u64) -> Option<u64> {
        let mut start = from;
        for (&at, block) in &self.blocks {
            if at >= start + span {
                return Some(start);
            }
            start = (at + block.span).next_multiple_of(ALIGN);
        }
        (start + span <= to).then_some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shadow_follows_an_allocation_through_its_life() {
        let arena = Arena::new(1 << 20).unwrap();
        let a = arena.allocate(1000, "a".into()).unwrap();
        let b = arena.allocate(1000, "b".into()).unwrap();
        assert_eq!(a % ALIGN, 0);
        assert!(b >= a + 1000 + RED_ZONE || a >= b + 1000 + RED_ZONE);
        assert_eq!(arena.first_other(a, 1000, State::Uninitialised), None);
        assert_eq!(arena.first_other(a, 1001, State::Uninitialised), Some((a + 1000, State::Unallocated)));
        arena.mark_valid(a, 10);
        assert_eq!(arena.first_other(a, 11, State::Valid), Some((a + 10, State::Uninitialised)));
        assert!(arena.is_live(a + 500, 500) && !arena.is_live(a + 500, 501));
        assert!(arena.free(a) && !arena.free(a) && !arena.free(a + 1));
        assert_eq!(arena.first_other(a, 1, State::Valid), Some((a, State::Freed)));
        assert_eq!(arena.live().len(), 1);
        assert_eq!((arena.used(), arena.peak()), (1000, 2000));
    }

    /// KiB of memory that this process has for itself.
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn an_allocation_costs_what_is_touched_of_it() {
        const GIB: u64 = 1 << 30;
        let arena = Arena::new(40 * GIB).unwrap();
        let before = resident();
        let a = arena.allocate(20 * GIB + 5, "large".into()).unwrap();
        let read = |at: u64| {
            // SAFETY: callers stay inside the allocation.
            unsafe { *(at as *const u8) }
        };
        for at in (a..a + 20 * GIB).step_by(GIB as usize / 2).chain([a + 20 * GIB + 4]) {
            assert_eq!(read(at), POISON);
            assert_eq!(arena.first_other(at, 1, State::Uninitialised), None);
        }
        let end = a + 20 * GIB + 5;
        assert_eq!(arena.first_other(end - 1, 2, State::Uninitialised), Some((end, State::Unallocated)));
        let written = 100u64 << 20;
        // SAFETY: inside the allocation.
        unsafe { std::ptr::write_bytes((a + GIB) as *mut u8, 7, written as usize) };
        arena.mark_valid(a + GIB, written);
        assert_eq!(arena.first_other(a + GIB, written + 1, State::Valid).unwrap().0, a + GIB + written);
        assert_eq!((read(a + GIB - 1), read(a + GIB), read(a + GIB + written)), (POISON, 7, POISON));
        let cost = resident() - before;
        assert!(cost < 300 << 10, "{cost} KiB for 100 MiB");
        assert!(arena.free(a));
        assert_ne!(arena.first_other(a + GIB, 1, State::Valid).unwrap().1, State::Uninitialised);
        let kept = resident().saturating_sub(before);
        assert!(kept < 100 << 10, "{kept} KiB after it was freed");
        // The same place again is poisoned again.
        let b = arena.allocate(20 * GIB, "again".into()).unwrap();
        assert_eq!((b, read(b + GIB)), (a, POISON));
        assert_eq!(arena.first_other(b + GIB, written, State::Uninitialised), None);
    }

    #[test]
    fn the_device_ends_where_its_profile_says() {
        let arena = Arena::new(1 << 20).unwrap();
        assert_eq!(arena.allocate((1 << 20) + 1, "x".into()), None);
        assert_eq!(arena.allocate(0, "x".into()), None);
        let all = arena.allocate(1 << 20, "x".into()).unwrap();
        assert_eq!(arena.allocate(1, "x".into()), None);
        assert!(arena.free(all));
        // Quarantine gives way when the space is needed.
        for _ in 0..100 {
            let again = arena.allocate(1 << 20, "x".into()).unwrap();
            assert!(arena.free(again));
        }
    }
}
