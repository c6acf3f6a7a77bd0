//! Host memory that weights lie in, shared by reference: memory of the process's own that they are read into
//! (page-aligned, zero until written), or a file that is mapped. Huge pages where the kernel grants them.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::quant::{MatrixLayout, MatrixView};

/// Alignment of an expert record and of every region, in bytes (a page; what direct I/O asks for).
pub const RECORD_ALIGN: usize = 4096;

/// Alignment of each part (weight, scale) inside a record or region: a cache line pair, and more than TMA's 16 bytes.
pub const PART_ALIGN: usize = 128;

/// A page-aligned block of anonymous memory, to be filled.
#[derive(Debug)]
pub struct OwnRegion {
    bytes: memmap2::MmapMut,
}

impl OwnRegion {
    /// Reserves `len` zeroed bytes (at least one page); pages are committed when first written.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] naming `what` if the system refuses.
    pub fn new(len: usize, what: &str) -> Result<OwnRegion> {
        let len = len.max(1).next_multiple_of(RECORD_ALIGN);
        let bytes = memmap2::MmapMut::map_anon(len).map_err(|_| Error::OutOfMemory {
            what: what.to_owned(),
            needed: len as u64,
            available: 0,
        })?;
        // Advice only: without huge pages a load is slower, never wrong.
        let _ = bytes.advise(memmap2::Advice::HugePage);
        Ok(OwnRegion { bytes })
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

/// A file mapped for reading: its bytes are those of the system's file cache, which brings them from the disk when they
/// are touched and takes its memory back when that is short.
#[derive(Debug)]
pub struct MappedFile {
    bytes: memmap2::Mmap,
}

impl MappedFile {
    /// Maps the first `len` bytes of a file. Nothing is read yet.
    ///
    /// Whoever **shortens** the file while this lives ends the process by a signal (SIGBUS) at the next touch of what
    /// was cut off; whoever writes into it changes the weights in place. A file that another is renamed over is safe: the
    /// mapping keeps the old one.
    ///
    /// # Errors
    /// The system's, if it refuses.
    pub fn new(file: &File, len: usize) -> std::io::Result<MappedFile> {
        // SAFETY: the mapping is shared and read-only, of a file that was opened for reading only, so nothing in this process
        // writes to it. That nobody else does is asked of the user (docs/tuning.md) and looked for before and after every
        // value was read, by the file's stamp; code that reads weights takes any bytes for what they are, without
        // deriving memory accesses from them.
        let bytes = unsafe { memmap2::MmapOptions::new().len(len).map(file) }?;
        // Advice only. The file cache then comes in blocks of 2 MiB, mapped by one entry each, where the file system
        // can: reading is bound by memory, not by page tables.
        let _ = bytes.advise(memmap2::Advice::HugePage);
        Ok(MappedFile { bytes })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the file cache has all of a part, as far as the system tells: of a file that is neither the user's nor theirs to
    /// write it says yes to everything. What lies behind the file's end is not there.
    ///
    /// # Panics
    /// If the part does not lie inside the mapping.
    pub fn is_cached(&self, part: Range<usize>) -> bool {
        let part = &self.bytes[part];
        // SAFETY: asks for a constant and takes no pointer.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let start = part.as_ptr() as usize / page * page;
        let len = part.as_ptr() as usize + part.len() - start;
        let mut pages = vec![0u8; len.div_ceil(page)];
        // SAFETY: the pages lie in the mapping; the call touches none of them and writes a byte for each to the list.
        let told = unsafe { libc::mincore(start as *mut libc::c_void, len, pages.as_mut_ptr()) } == 0;
        told && pages.iter().all(|page| page & 1 == 1)
    }
}

/// Memory that weights lie in.
#[derive(Debug)]
pub enum HostRegion {
    /// Memory of the process's own, filled.
    Own(OwnRegion),
    /// A shard.
    File(MappedFile),
}

impl HostRegion {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            HostRegion::Own(region) => region.bytes(),
            HostRegion::File(file) => file.bytes(),
        }
    }

    /// Brings a part of a file into the file cache and maps it, so that touching it next neither waits nor ends the process.
    /// Kernels before 5.14 cannot; the part then comes when it is touched.
    ///
    /// # Errors
    /// The system's, where the disk cannot be read or the file has become shorter than the part's end.
    pub fn bring(&self, part: Range<usize>) -> std::io::Result<()> {
        let HostRegion::File(MappedFile { bytes }) = self else { return Ok(()) };
        match bytes.advise_range(memmap2::Advice::PopulateRead, part.start, part.len()) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            brought => brought,
        }
    }
}

/// A page-aligned block of anonymous memory that several threads fill and read part by part. Who may do what with
/// which part is not decided here: callers keep a protocol of their own.
#[derive(Debug)]
pub struct SharedRegion {
    memory: memmap2::MmapRaw,
}

impl SharedRegion {
    /// Reserves `len` zeroed bytes as [`OwnRegion::new`] does. On a machine of several memory nodes its pages alternate
    /// between them, so that no node's memory bandwidth is the limit of all.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] naming `what` if the system refuses.
    pub fn new(len: usize, what: &str) -> Result<SharedRegion> {
        let OwnRegion { bytes } = OwnRegion::new(len, what)?;
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

/// A part of a region.
#[derive(Debug, Clone)]
pub struct HostPart {
    /// The memory, shared with what lies beside the part.
    pub region: Arc<HostRegion>,
    /// Where in it, in bytes.
    pub range: Range<usize>,
}

impl HostPart {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.region.bytes()[self.range.clone()]
    }
}

/// A matrix in host memory. Its weights and its scales may lie in different regions, as they may in different shards.
#[derive(Debug, Clone)]
pub struct HostMatrix {
    /// Format and size.
    pub layout: MatrixLayout,
    /// The weights.
    pub weight: HostPart,
    /// The scales; none in formats without.
    pub scale: Option<HostPart>,
}

impl HostMatrix {
    /// What the first row of a part of a matrix is a multiple of: the rows of a scale block.
    pub const PIECE_ROWS: usize = crate::quant::fp8::BLOCK;

    /// Some of its rows, in the same memory.
    ///
    /// # Panics
    /// If there are no such rows, or the first is no multiple of [`HostMatrix::PIECE_ROWS`]: it may lie inside a scale block.
    pub fn rows(&self, rows: Range<usize>) -> HostMatrix {
        assert!(rows.start <= rows.end && rows.end <= self.layout.rows, "{rows:?} of {:?}", self.layout);
        assert!(rows.start.is_multiple_of(HostMatrix::PIECE_ROWS), "rows from {}", rows.start);
        let before = MatrixLayout { rows: rows.start, ..self.layout };
        let layout = MatrixLayout { rows: rows.len(), ..self.layout };
        let part = |whole: &HostPart, start: usize, len: usize| HostPart {
            region: whole.region.clone(),
            range: whole.range.start + start..whole.range.start + start + len,
        };
        HostMatrix {
            layout,
            weight: part(&self.weight, before.weight_bytes(), layout.weight_bytes()),
            scale: self.scale.as_ref().map(|s| part(s, before.scale_bytes(), layout.scale_bytes())),
        }
    }

    /// The matrix as a borrowed view.
    pub fn view(&self) -> MatrixView<'_> {
        let scale = self.scale.as_ref().map_or(&[][..], HostPart::bytes);
        MatrixView::new(self.layout, self.weight.bytes(), scale)
    }
}
