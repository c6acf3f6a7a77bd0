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
