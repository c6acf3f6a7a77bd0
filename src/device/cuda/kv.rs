//! The paged latent cache in device memory.
//!
//! A page is [`KV_PAGE`] tokens of every layer: `[layers][64][stride]` bf16, latent then rotated key part, rows padded to
//! 16 bytes. Pages come in slabs; kernels find them through a table of addresses, so a cache grows without moving and
//! pages can be shared later.

use super::gpu::Gpu;
use super::memory::{Buffer, Slice};
use crate::device::KV_PAGE;
use crate::error::Result;

/// Latent cache of one sequence.
pub struct CudaKvCache {
    gpu: Gpu,
    layers: usize,
    dim: usize,
    slabs: Vec<Buffer<u16>>,
    /// Addresses of the pages, in order of position.
    pages: Vec<u64>,
    /// The same on the device.
    table: Buffer<u64>,
}

/// One layer of a cache, as kernels take it.
#[derive(Clone, Copy)]
pub struct KvPages<'a> {
    /// Address of each page.
    pub table: Slice<'a, u64>,
    /// Bytes from a page's start to this layer's rows.
    pub layer_offset: u64,
    /// Elements from row to row.
    pub stride: u32,
    /// Tokens there is room for.
    pub tokens: u32,
}

impl CudaKvCache {
    /// An empty cache of `layers` layers, `dim` elements a token.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    pub fn new(gpu: &Gpu, layers: usize, dim: usize) -> Result<CudaKvCache> {
        let table = gpu.alloc(0, "a page table")?;
        Ok(CudaKvCache { gpu: gpu.clone(), layers, dim, slabs: Vec::new(), pages: Vec::new(), table })
    }

    fn stride(&self) -> usize {
        self.dim.next_multiple_of(8)
    }

    /// Makes room for `tokens` tokens.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`], [`crate::Error::Cuda`]; what the cache held stays.
    pub fn reserve(&mut self, tokens: usize) -> Result<()> {
        let needed = tokens.div_ceil(KV_PAGE);
        if needed <= self.pages.len() {
            return Ok(());
        }
        // Half as much again, so that a long generation allocates seldom; what is needed, if there is no more.
        let page = self.layers * KV_PAGE * self.stride();
        let missing = needed - self.pages.len();
        let what = format!("key/value pages for {tokens} tokens");
        let roomy = missing.max(self.pages.len() / 2);
        let slab = match self.gpu.alloc::<u16>(roomy * page, &what) {
            Ok(slab) => slab,
            Err(_) if roomy > missing => self.gpu.alloc(missing * page, &what)?,
            Err(error) => return Err(error),
        };
        let first = slab.all().address();
        let mut pages = self.pages.clone();
        pages.extend((0..slab.len() / page).map(|p| first + (p * page * size_of::<u16>()) as u64));
        self.table = self.gpu.upload(&pages, "a page table")?;
        self.pages = pages;
        self.slabs.push(slab);
        Ok(())
    }

    /// One layer.
    pub fn layer(&self, layer: usize) -> KvPages<'_> {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        KvPages {
            table: self.table.all(),
            layer_offset: (layer * KV_PAGE * self.stride() * size_of::<u16>()) as u64,
            stride: self.stride() as u32,
            tokens: (self.pages.len() * KV_PAGE) as u32,
        }
    }

    /// Fills all pages with a byte; for tests that poison what was not written.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    #[doc(hidden)]
    pub fn fill_bytes(&mut self, byte: u8) -> Result<()> {
        let gpu = self.gpu.clone();
        self.slabs.iter_mut().try_for_each(|slab| slab.all_mut().fill_bytes(&gpu, byte))
    }
}
