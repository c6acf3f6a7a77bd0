//! The paged latent cache in device memory.
//!
//! A page is [`KV_PAGE`] tokens of every layer: `[layers][64][stride]` bf16, latent then rotated key part, rows padded to
//! 16 bytes. Pages come in slabs, or lie in slots that no expert uses; kernels find them through a table of addresses, so a
//! cache grows without moving and pages can be shared later.

use std::sync::Arc;

use super::gpu::Gpu;
use super::memory::{Buffer, Slice};
use super::slots::CudaSlots;
use crate::device::KV_PAGE;
use crate::error::{Error, Result};

/// Latent cache of one sequence.
pub struct CudaKvCache {
    gpu: Gpu,
    layers: usize,
    dim: usize,
    /// Bytes that slabs may take.
    limit: Option<u64>,
    slabs: Vec<Buffer<u16>>,
    /// The memory that adopted slots are part of.
    slots: Option<Arc<Buffer<u8>>>,
    /// In order of position.
    pages: Vec<Page>,
    /// Their addresses on the device, and room for more.
    table: Buffer<u64>,
}

/// Where a page lies.
#[derive(Clone, Copy)]
struct Page {
    address: u64,
    /// The slot it is part of, if it is not part of a slab.
    slot: Option<u32>,
}

/// Entries a table has room for at least: pages of 32,768 tokens. A table that can be kept is memory not asked for when
/// there is none.
const TABLE: usize = 512;

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
        let table = gpu.alloc(TABLE, "a page table")?;
        Ok(CudaKvCache {
            gpu: gpu.clone(),
            layers,
            dim,
            limit: None,
            slabs: Vec::new(),
            slots: None,
            pages: Vec::new(),
            table,
        })
    }

    /// The cache, allocating at most so many bytes from now on.
    pub(super) fn limited(mut self, limit: Option<u64>) -> CudaKvCache {
        self.limit = limit;
        self
    }

    fn stride(&self) -> usize {
        self.dim.next_multiple_of(8)
    }

    /// Elements of a page.
    fn page(&self) -> usize {
        self.layers * KV_PAGE * self.stride()
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
        let page = self.page();
        let missing = needed - self.pages.len();
        let what = format!("key/value pages for {tokens} tokens");
        let roomy = missing.max(self.pages.len() / 2);
        let bytes = |pages: usize| (pages * page * size_of::<u16>()) as u64;
        let taken: u64 = self.slabs.iter().map(|slab| bytes(slab.len() / page)).sum();
        let available = self.limit.map_or(u64::MAX, |limit| limit.saturating_sub(taken));
        if bytes(missing) > available {
            return Err(Error::OutOfMemory { what, needed: bytes(missing), available });
        }
        let slab = match self.gpu.alloc::<u16>(roomy.min((available / bytes(1)) as usize) * page, &what) {
            Ok(slab) => slab,
            Err(_) if roomy > missing => self.gpu.alloc(missing * page, &what)?,
            Err(error) => return Err(error),
        };
        self.extend(slab.all().address(), slab.len() / page, None)?;
        self.slabs.push(slab);
        Ok(())
    }

    /// Adds pages that lie one after another; none if that fails.
    fn extend(&mut self, first: u64, count: usize, slot: Option<u32>) -> Result<()> {
        let bytes = self.page() * size_of::<u16>();
        let mut pages = self.pages.clone();
        pages.extend((0..count).map(|p| Page { address: first + (p * bytes) as u64, slot }));
        self.set_pages(pages)
    }

    /// Replaces the pages; they stay as they are if that fails.
    fn set_pages(&mut self, pages: Vec<Page>) -> Result<()> {
        let addresses: Vec<u64> = pages.iter().map(|page| page.address).collect();
        if pages.len() > self.table.len() {
            let mut table = self.gpu.alloc(pages.len().next_power_of_two(), "a page table")?;
            table.slice_mut(..addresses.len()).write(&self.gpu, &addresses)?;
            self.table = table;
        } else {
            self.table.slice_mut(..addresses.len()).write(&self.gpu, &addresses)?;
        }
        self.pages = pages;
        Ok(())
    }

    /// Adds a slot's memory; see [`crate::device::Device::kv_adopt`].
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`], [`crate::Error::Cuda`]; the slot is not taken then.
    ///
    /// # Panics
    /// If there is no such slot, or slots of another pool were adopted before.
    pub fn adopt(&mut self, slots: &CudaSlots, slot: u32) -> Result<usize> {
        let (memory, part) = slots.lend(slot);
        let count = part.len() / (self.page() * size_of::<u16>());
        if count == 0 {
            return Ok(0);
        }
        let pool = self.slots.get_or_insert_with(|| memory.clone());
        assert!(Arc::ptr_eq(pool, memory), "slots of two pools");
        self.extend(memory.slice(part).address(), count, Some(slot))?;
        Ok(count * KV_PAGE)
    }

    /// Slots that were adopted and not released.
    pub fn adopted(&self) -> usize {
        let mut slots: Vec<u32> = self.pages.iter().filter_map(|page| page.slot).collect();
        // The pages of a slot stand together.
        slots.dedup();
        slots.len()
    }

    /// Takes slots out that lie wholly beyond the first `tokens` tokens; see [`crate::device::Device::kv_release`].
    ///
    /// # Errors
    /// [`crate::Error::Cuda`]; nothing has changed then.
    pub fn release(&mut self, tokens: usize) -> Result<Vec<u32>> {
        let kept = tokens.div_ceil(KV_PAGE).min(self.pages.len());
        // Only the last page kept can share its slot with pages beyond.
        let shared = kept.checked_sub(1).and_then(|last| self.pages[last].slot);
        let (mut pages, beyond) = (self.pages[..kept].to_vec(), &self.pages[kept..]);
        pages.extend(beyond.iter().filter(|page| page.slot.is_none() || page.slot == shared));
        let mut slots: Vec<u32> = beyond.iter().filter_map(|page| page.slot).collect();
        slots.dedup();
        slots.retain(|&slot| Some(slot) != shared);
        self.set_pages(pages)?;
        Ok(slots)
    }

    /// One layer.
    pub fn layer(&self, layer: usize) -> KvPages<'_> {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        KvPages {
            table: self.table.slice(..self.pages.len()),
            layer_offset: (layer * KV_PAGE * self.stride() * size_of::<u16>()) as u64,
            stride: self.stride() as u32,
            tokens: (self.pages.len() * KV_PAGE) as u32,
        }
    }

    /// Fills all pages that do not lie in slots with a byte; for tests that poison what was not written.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    #[doc(hidden)]
    pub fn fill_bytes(&mut self, byte: u8) -> Result<()> {
        let gpu = self.gpu.clone();
        self.slabs.iter_mut().try_for_each(|slab| slab.all_mut().fill_bytes(&gpu, byte))
    }
}
