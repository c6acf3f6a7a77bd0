//! Host memory that weights are read into: page-aligned, zero until written, huge pages where the kernel grants
//! them, shared by reference once filled.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::quant::{MatrixLayout, MatrixView};

/// Alignment of an expert record and of every region, in bytes (a page; what direct I/O asks for).
pub const RECORD_ALIGN: usize = 4096;

/// Alignment of each part (weight, scale) inside a record or region: a cache line pair, and more than TMA's 16 bytes.
pub const PART_ALIGN: usize = 128;

/// A page-aligned block of anonymous memory.
#[derive(Debug)]
pub struct HostRegion {
    bytes: memmap2::MmapMut,
}

impl HostRegion {
    /// Reserves `len` zeroed bytes (at least one page); pages are committed when first written.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] naming `what` if the system refuses.
    pub fn new(len: usize, what: &str) -> Result<HostRegion> {
        let len = len.max(1).next_multiple_of(RECORD_ALIGN);
        let bytes = memmap2::MmapMut::map_anon(len).map_err(|_| Error::OutOfMemory {
            what: what.to_owned(),
            needed: len as u64,
            available: 0,
        })?;
        // Advice only: without huge pages a load is slower, never wrong.
        let _ = bytes.advise(memmap2::Advice::HugePage);
        Ok(HostRegion { bytes })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

/// A page-aligned block of anonymous memory that several threads fill and read part by part. Who may do what with
/// which part is not decided here: callers keep a protocol of their own.
#[derive(Debug)]
pub struct SharedRegion {
    memory: memmap2::MmapRaw,
}

impl SharedRegion {
    /// Reserves `len` zeroed bytes as [`HostRegion::new`] does. On a machine of several memory nodes its pages alternate
    /// between them, so that no node's memory bandwidth is the limit of all.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] naming `what` if the system refuses.
    pub fn new(len: usize, what: &str) -> Result<SharedRegion> {
        let HostRegion { bytes } = HostRegion::new(len, what)?;
        let memory = memmap2::MmapRaw::from(bytes);
        interleave(&memory);
        Ok(SharedRegion { memory })
    }

    /// Its first byte.
    pub fn as_ptr(&self) -> *const u8 {
        self.memory.as_ptr()
    }

    /// Its length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a region has at least one page")]
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// A part, to be read.
    ///
    /// # Safety
    /// Nobody writes to the part while the reference lives.
    ///
    /// # Panics
    /// If the part does not lie inside the region.
    pub unsafe fn part(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {}", self.len());
        // SAFETY: the range lies in the mapping, which lives as long as `self` and is initialised (zeroed by the system);
        // the caller excludes writers.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().add(range.start), range.len()) }
    }

    /// A part, to be filled.
    ///
    /// # Safety
    /// Nobody else reads or writes the part while the reference lives.
    ///
    /// # Panics
    /// If the part does not lie inside the region.
    #[allow(clippy::mut_from_ref, reason = "exclusive access to the part is the caller's duty")]
    pub unsafe fn part_mut(&self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {}", self.len());
        // SAFETY: as in `part`; the caller excludes everybody else.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().add(range.start), range.len()) }
    }

    /// Has the system commit the pages of a part now, without changing what they hold. Kernels before 5.14 cannot;
    /// pages then come with their first use.
    pub fn commit(&self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {}", self.len());
        let range = range.start / RECORD_ALIGN * RECORD_ALIGN..range.end;
        // SAFETY: the range lies in the mapping and MADV_POPULATE_WRITE only faults pages in as a write would, without
        // writing.
        let _ = unsafe {
            libc::madvise(
                self.memory.as_mut_ptr().add(range.start).cast(),
                range.len(),
                libc::MADV_POPULATE_WRITE,
            )
        };
    }
}

/// Memory nodes of the machine, as a mask of the first 64. One node where the system does not tell.
pub fn memory_nodes() -> u64 {
    let list = std::fs::read_to_string("/sys/devices/system/node/has_memory").unwrap_or_default();
    let mut mask = 0u64;
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            (first..=last.min(63)).for_each(|node| mask |= 1 << node);
        }
    }
    mask.max(1)
}

/// Advice only: with all pages on one node the engine is slower, never wrong.
fn interleave(memory: &memmap2::MmapRaw) {
    const MPOL_INTERLEAVE: libc::c_ulong = 3;
    let mask = memory_nodes();
    if mask.count_ones() < 2 {
        return;
    }
    // SAFETY: mbind changes where pages of this mapping of ours come from, not their content; the mask is one word of 64
    // bits, of which the system reads one fewer than it is told.
    let _ = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            memory.as_mut_ptr(),
            memory.len() as libc::c_ulong,
            MPOL_INTERLEAVE,
            &raw const mask,
            65 as libc::c_ulong,
            0 as libc::c_ulong,
        )
    };
}

/// A matrix inside a filled region.
#[derive(Debug, Clone)]
pub struct HostMatrix {
    /// The memory, shared with the matrices beside it.
    pub region: Arc<HostRegion>,
    /// Format and size.
    pub layout: MatrixLayout,
    /// Where the weights lie, in bytes.
    pub weight: Range<usize>,
    /// Where the scales lie, in bytes; empty for formats without.
    pub scale: Range<usize>,
}

impl HostMatrix {
    /// The matrix as a borrowed view.
    pub fn view(&self) -> MatrixView<'_> {
        let bytes = self.region.bytes();
        MatrixView::new(self.layout, &bytes[self.weight.clone()], &bytes[self.scale.clone()])
    }
}
