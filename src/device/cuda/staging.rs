//! Page-locked host memory: what small copies go through, and what records that are not page-locked themselves do.
//!
//! The driver copies from and to page-locked memory while the host goes on; with other memory the host waits.

use std::ffi::c_void;
use std::slice;

use bytemuck::Pod;
use cudarc::driver::{result, sys};

use super::copies::{CudaFence, locked};
use super::failed;
use super::gpu::Gpu;
use super::memory::Slice;
use crate::device::HostBytes;
use crate::error::{Error, Result};

/// Smallest block of the store: a page.
const LEAST: usize = 4096;
/// Bytes of a piece of the ring, and pieces. One is filled by the host while the others are copied: at 50 GB/s a piece takes
/// 80 µs, many times what issuing it does.
const PIECE: usize = 4 << 20;
const PIECES: usize = 4;

/// Page-locked memory.
struct Block {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: an allocation of the driver, reached through its one owner.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// In the current context, for any context.
    fn new(bytes: usize) -> Result<Block> {
        // SAFETY: a plain allocation.
        let start = unsafe { result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_PORTABLE) }
            .map_err(failed("cuMemHostAlloc"))?;
        let start = start.cast::<u8>();
        // SAFETY: that many bytes are there; what the driver leaves in them is anything.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Block { start, bytes })
    }

    /// # Safety
    /// No copy is using it, and nobody will.
    unsafe fn free(&self) {
        // SAFETY: allocated by `new`; the caller's promise.
        let _ = unsafe { result::free_host(self.start.cast()) };
    }

    /// # Safety
    /// No copy is using it.
    unsafe fn bytes(&self, len: usize) -> &[u8] {
        assert!(len <= self.bytes);
        // SAFETY: that many initialised bytes are there; the caller's promise.
        unsafe { slice::from_raw_parts(self.start, len) }
    }

    /// # Safety
    /// No copy is using it.
    unsafe fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= self.bytes);
        // SAFETY: as above, and borrowed from the one owner.
        unsafe { slice::from_raw_parts_mut(self.start, len) }
    }
}

/// Blocks that nobody has; a copy may still be using them.
#[derive(Default)]
pub(super) struct Store {
    blocks: Vec<(Block, sys::CUevent)>,
}

// SAFETY: events are handles of the context, used from threads that have made it current.
unsafe impl Send for Store {}

impl Store {
    /// Frees the blocks and their events.
    ///
    /// # Safety
    /// The context is current, and no copy is under way.
    pub unsafe fn free(&mut self) {
        for (block, event) in self.blocks.drain(..) {
            // SAFETY: the caller's promise.
            unsafe { free(&block, event) };
        }
    }
}

/// # Safety
/// As for [`Store::free`].
unsafe fn free(block: &Block, event: sys::CUevent) {
    // SAFETY: the caller's promise.
    unsafe { block.free() };
    if !event.is_null() {
        // SAFETY: alive, and in this place only.
        let _ = unsafe { result::event::destroy(event) };
    }
}

/// Whether what the event was recorded behind is done; null was behind nothing.
///
/// # Safety
/// The context is current and the event alive, or null.
unsafe fn idle(event: sys::CUevent) -> bool {
    // SAFETY: the caller's promise.
    event.is_null() || unsafe { result::event::query(event) }.is_ok()
}

/// Page-locked memory on loan from the store, with a copy from or to it under way on the computing stream.
pub(super) struct Staging {
    gpu: Gpu,
    /// None once it is back in the store.
    block: Option<Block>,
    len: usize,
    /// Behind the copy.
    fence: Option<CudaFence>,
}

impl Staging {
    fn take(gpu: &Gpu, len: usize) -> Result<Staging> {
        gpu.bind()?;
        let bytes = len.max(LEAST).next_power_of_two();
        let store = &mut locked(&gpu.copies().store).blocks;
        // In the order they came back, which is that of their copies.
        let fitting = |(block, _): &(Block, _)| (bytes..=4 * bytes).contains(&block.bytes);
        let block = match store.iter().position(fitting) {
            // SAFETY: the context is current, and the store's events live.
            Some(i) if unsafe { idle(store[i].1) } => {
                let (block, event) = store.remove(i);
                gpu.copies().release(event);
                block
            }
            _ => Block::new(bytes)?,
        };
        Ok(Staging { gpu: gpu.clone(), block: Some(block), len, fence: None })
    }

    /// Records the fence behind the copy that was just issued.
    fn issued(mut self) -> Result<Staging> {
        match CudaFence::of_computing(&self.gpu) {
            Ok(fence) => {
                self.fence = Some(fence);
                Ok(self)
            }
            Err(error) => {
                // Nobody knows when the copy is done: the memory is not used again.
                self.block = None;
                Err(error)
            }
        }
    }

    /// Starts copying device memory to the host.
    pub fn download<T: Pod>(gpu: &Gpu, from: Slice<'_, T>) -> Result<Staging> {
        let mut staging = Staging::take(gpu, from.len() * size_of::<T>())?;
        if let Some(block) = &mut staging.block
            && staging.len > 0
        {
            // SAFETY: the block is idle, and the copy ends before anybody sees it: `bytes` waits, the store asks its event.
            unsafe { result::memcpy_dtoh_async(block.bytes_mut(staging.len), from.address(), gpu.stream()) }
                .map_err(failed("cuMemcpyDtoHAsync"))?;
        }
        staging.issued()
    }

    /// Starts copying what `fill` writes into `len` bytes to device memory.
    ///
    /// # Safety
    /// That many bytes of device memory are at `to`, and nobody else has a reference to them.
    pub unsafe fn upload(gpu: &Gpu, to: u64, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<()> {
        let mut staging = Staging::take(gpu, len)?;
        if let Some(block) = &mut staging.block
            && len > 0
        {
            // SAFETY: the block is idle.
            let bytes = unsafe { block.bytes_mut(len) };
            fill(bytes);
            // SAFETY: the target is the caller's promise; the store asks the copy's event before it gives the block away.
            unsafe { result::memcpy_htod_async(to, bytes, gpu.stream()) }
                .map_err(failed("cuMemcpyHtoDAsync"))?;
        }
        staging.issued().map(drop)
    }

    /// What was copied to the host, once it is there.
    pub fn bytes(&self) -> Result<&[u8]> {
        if let Some(fence) = &self.fence {
            fence.wait()?;
        }
        // SAFETY: the copy is done.
        Ok(unsafe { self.copied() })
    }

    /// What was copied to the host, if it is there.
    pub fn ready(&self) -> Option<&[u8]> {
        let there = self.fence.as_ref().is_none_or(|fence| fence.passed().unwrap_or(false));
        // SAFETY: the copy is done.
        there.then(|| unsafe { self.copied() })
    }

    /// # Safety
    /// The copy is done.
    unsafe fn copied(&self) -> &[u8] {
        // SAFETY: no other copy is issued while this is out of the store.
        self.block.as_ref().map_or(&[], |block| unsafe { block.bytes(self.len) })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            let event = self.fence.take().map_or(std::ptr::null_mut(), CudaFence::into_event);
            locked(&self.gpu.copies().store).blocks.push((block, event));
        }
    }
}

/// Pieces of page-locked memory that records go through, one after the other.
#[derive(Default)]
pub(super) struct Ring {
    pieces: Vec<(Block, sys::CUevent)>,
    next: usize,
}

// SAFETY: as for the store.
unsafe impl Send for Ring {}

impl Ring {
    /// Frees the pieces and their events.
    ///
    /// # Safety
    /// As for [`Store::free`].
    pub unsafe fn free(&mut self) {
        for (block, event) in self.pieces.drain(..) {
            // SAFETY: the caller's promise.
            unsafe { free(&block, event) };
        }
    }

    /// Copies a record to device memory on the stream of copies; when it returns, the host memory has been read. After an
    /// error parts of it may have been copied; nothing is under way.
    ///
    /// # Safety
    /// There is that much device memory at `to`, and nobody else uses it until the copies are done.
    pub unsafe fn copy(&mut self, gpu: &Gpu, to: u64, record: &[u8]) -> Result<()> {
        gpu.bind()?;
        let stream = gpu.copies().stream();
        for (i, part) in record.chunks(PIECE).enumerate() {
            if self.next == self.pieces.len() {
                self.pieces.push((Block::new(PIECE)?, std::ptr::null_mut()));
            }
            let (block, event) = &mut self.pieces[self.next];
            if !event.is_null() {
                // SAFETY: the context is current and the event recorded.
                unsafe { result::event::synchronize(*event) }.map_err(failed("cuEventSynchronize"))?;
            }
            gpu.copies().release(std::mem::replace(event, std::ptr::null_mut()));
            // SAFETY: what was copied from the piece is done.
            let bytes = unsafe { block.bytes_mut(part.len()) };
            bytes.copy_from_slice(part);
            // SAFETY: the target is the caller's promise; the piece is not written before the event behind this has passed.
            unsafe { result::memcpy_htod_async(to + (i * PIECE) as u64, bytes, stream) }
                .map_err(failed("cuMemcpyHtoDAsync"))?;
            match CudaFence::of_copies(gpu, None) {
                Ok(fence) => *event = fence.into_event(),
                Err(error) => {
                    // Without an event the piece is idle when the stream is. If that fails nothing is copied any more.
                    // SAFETY: the stream is alive.
                    let _ = unsafe { result::stream::synchronize(stream) };
                    return Err(error);
                }
            }
            self.next = (self.next + 1) % PIECES;
        }
        Ok(())
    }
}

/// Host memory that is page-locked while this lives.
pub(super) struct Pin {
    gpu: Gpu,
    start: usize,
    /// Keeps the memory where it is.
    _bytes: HostBytes,
}

impl Pin {
    /// Page-locks the memory.
    pub fn new(gpu: &Gpu, bytes: HostBytes) -> Result<Pin> {
        gpu.bind()?;
        let memory = (*bytes).as_ref();
        let (start, len) = (memory.as_ptr() as usize, memory.len());
        let mut pinned = locked(&gpu.copies().pinned);
        // SAFETY: the memory is there until it is unregistered: the pin keeps it.
        unsafe { sys::cuMemHostRegister_v2(start as *mut c_void, len, sys::CU_MEMHOSTREGISTER_PORTABLE) }
            .result()
            .map_err(|error| {
                refused(len, pinned.values().sum(), memlock_limit(), failed("cuMemHostRegister")(error))
            })?;
        pinned.insert(start, len);
        drop(pinned);
        Ok(Pin { gpu: gpu.clone(), start, _bytes: bytes })
    }
}

/// The system's limit on locked memory in bytes, if there is one.
fn memlock_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes the struct it is given.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) } == 0;
    (known && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Why `len` bytes were not locked beside the `held` that are: because of the limit if they are beyond it.
fn refused(len: usize, held: usize, limit: Option<u64>, error: Error) -> Error {
    let Some(limit) = limit.filter(|&limit| (len + held) as u64 > limit) else { return error };
    Error::Unsupported {
        what: format!("page-locking {len} bytes of host memory"),
        instead: format!(
            "RLIMIT_MEMLOCK allows {limit} bytes, {held} are locked; raise it (ulimit -l unlimited) for faster copies \
             ({error})"
        ),
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pinned = locked(&self.gpu.copies().pinned);
        pinned.remove(&self.start);
        if self.gpu.bind().is_ok() {
            // SAFETY: the stream is alive. Copies from this memory end before it is unlocked; the lock is held, so that
            // none begins meanwhile.
            let _ = unsafe { result::stream::synchronize(self.gpu.copies().stream()) };
            // SAFETY: registered by `new`, once.
            let _ = unsafe { sys::cuMemHostUnregister(self.start as *mut c_void) }.result();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_limit_where_that_is_why() {
        let error = || Error::Cuda { call: "cuMemHostRegister", reason: "CUDA_ERROR_OUT_OF_MEMORY".into() };
        let said = refused(1 << 20, 4096, Some(65536), error()).to_string();
        for part in ["1048576 bytes", "RLIMIT_MEMLOCK allows 65536", "4096 are locked", "OUT_OF_MEMORY"] {
            assert!(said.contains(part), "{part:?} in {said:?}");
        }
        for limit in [None, Some((1 << 20) + 4096)] {
            assert!(matches!(refused(1 << 20, 4096, limit, error()), Error::Cuda { .. }));
        }
    }
}
