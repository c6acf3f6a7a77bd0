//! Device memory: typed buffers that free themselves, and borrowed parts of them.

use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};

use bytemuck::Pod;
use cudarc::driver::{result, sys};

use super::gpu::Gpu;
use super::{describe_error, failed};
use crate::error::{Error, Result};

/// `len` elements of device memory, aligned to 256 bytes. Fresh memory is not initialised.
pub struct Buffer<T> {
    gpu: Gpu,
    address: sys::CUdeviceptr,
    len: usize,
    element: PhantomData<T>,
}

/// Part of a buffer, to be read by a kernel.
pub struct Slice<'a, T> {
    address: u64,
    len: usize,
    element: PhantomData<&'a [T]>,
}

/// Part of a buffer, to be written by a kernel.
pub struct SliceMut<'a, T> {
    address: u64,
    len: usize,
    element: PhantomData<&'a mut [T]>,
}

impl<T> Clone for Slice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slice<'_, T> {}

// SAFETY: an address in device memory; Rust never dereferences it.
unsafe impl<T: Send> Send for Buffer<T> {}
// SAFETY: as above; copies through a shared reference only read.
unsafe impl<T: Sync> Sync for Buffer<T> {}

impl Gpu {
    /// Allocates `len` elements for `what`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] saying what was needed, what is free and what it was for; [`Error::Cuda`].
    pub fn alloc<T: Pod>(&self, len: usize, what: &str) -> Result<Buffer<T>> {
        self.bind()?;
        let bytes = len * size_of::<T>();
        // SAFETY: a plain allocation in the current context.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(address) => Ok(Buffer { gpu: self.clone(), address, len, element: PhantomData }),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let free = result::mem_get_info().map_or(0, |(free, _)| free);
                Err(Error::OutOfMemory {
                    what: format!("{what}, on the GPU"),
                    needed: bytes as u64,
                    available: free as u64,
                })
            }
            Err(error) => {
                Err(Error::Cuda { call: "cuMemAlloc", reason: format!("{what}: {}", describe_error(error)) })
            }
        }
    }

    /// Allocates zeroed memory.
    ///
    /// # Errors
    /// As for [`Gpu::alloc`].
    pub fn alloc_zeroed<T: Pod>(&self, len: usize, what: &str) -> Result<Buffer<T>> {
        let mut buffer = self.alloc(len, what)?;
        buffer.all_mut().clear(self)?;
        Ok(buffer)
    }

    /// Allocates a copy of host memory.
    ///
    /// # Errors
    /// As for [`Gpu::alloc`].
    pub fn upload<T: Pod>(&self, host: &[T], what: &str) -> Result<Buffer<T>> {
        let mut buffer = self.alloc(host.len(), what)?;
        buffer.all_mut().write(self, host)?;
        Ok(buffer)
    }
}

impl<T: Pod> Buffer<T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it.
    pub fn all(&self) -> Slice<'_, T> {
        self.slice(..)
    }

    /// All of it, to be written.
    pub fn all_mut(&mut self) -> SliceMut<'_, T> {
        self.slice_mut(..)
    }

    /// The elements of a range.
    ///
    /// # Panics
    /// If it leaves the buffer.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Slice<'_, T> {
        let (address, len) = self.part(range);
        Slice { address, len, element: PhantomData }
    }

    /// The elements of a range, to be written.
    ///
    /// # Panics
    /// If it leaves the buffer.
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> SliceMut<'_, T> {
        let (address, len) = self.part(range);
        SliceMut { address, len, element: PhantomData }
    }

    fn part(&self, range: impl RangeBounds<usize>) -> (u64, usize) {
        let start = match range.start_bound() {
            Bound::Included(&n) => n,
            Bound::Excluded(&n) => n + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&n) => n + 1,
            Bound::Excluded(&n) => n,
            Bound::Unbounded => self.len,
        };
        assert!(start <= end && end <= self.len, "{start}..{end} of {} elements", self.len);
        (self.address + (start * size_of::<T>()) as u64, end - start)
    }

    /// Copies everything to the host, after all that was issued before.
    ///
    /// # Errors
    /// [`Error::Cuda`], also for a failure of a kernel before.
    pub fn download(&self) -> Result<Vec<T>> {
        self.all().download(&self.gpu)
    }
}

impl<'a, T: Pod> Slice<'a, T> {
    /// First byte, as kernels take it.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same bytes as elements of another type.
    ///
    /// # Panics
    /// If they are not whole elements of it, or not aligned for it.
    pub fn cast<U: Pod>(self) -> Slice<'a, U> {
        let bytes = self.len * size_of::<T>();
        assert!(bytes.is_multiple_of(size_of::<U>()) && self.address.is_multiple_of(align_of::<U>() as u64));
        Slice { address: self.address, len: bytes / size_of::<U>(), element: PhantomData }
    }

    /// A part of this part.
    ///
    /// # Panics
    /// If it leaves it.
    pub fn part(&self, range: std::ops::Range<usize>) -> Slice<'a, T> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} elements", self.len);
        Slice {
            address: self.address + (range.start * size_of::<T>()) as u64,
            len: range.len(),
            element: PhantomData,
        }
    }

    /// Copies it to the host, after all that was issued before.
    ///
    /// # Errors
    /// [`Error::Cuda`], also for a failure of a kernel before.
    pub fn download(&self, gpu: &Gpu) -> Result<Vec<T>> {
        let mut host = vec![T::zeroed(); self.len];
        self.read(gpu, &mut host)?;
        Ok(host)
    }

    /// Copies it into host memory of the same length, after all that was issued before.
    ///
    /// # Errors
    /// [`Error::Cuda`], also for a failure of a kernel before.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn read(&self, gpu: &Gpu, host: &mut [T]) -> Result<()> {
        assert_eq!(host.len(), self.len, "elements to read");
        gpu.bind()?;
        if !self.is_empty() {
            // SAFETY: the borrow keeps the memory alive; the synchronisation below ends the copy before `host` can move.
            unsafe { result::memcpy_dtoh_async(host, self.address, gpu.stream()) }
                .map_err(failed("cuMemcpyDtoHAsync"))?;
        }
        gpu.synchronize()
    }
}

impl<'a, T: Pod> SliceMut<'a, T> {
    /// The same bytes as elements of another type.
    ///
    /// # Panics
    /// If they are not whole elements of it, or not aligned for it.
    pub fn cast<U: Pod>(self) -> SliceMut<'a, U> {
        let shared = Slice::<T> { address: self.address, len: self.len, element: PhantomData };
        let Slice { address, len, .. } = shared.cast::<U>();
        SliceMut { address, len, element: PhantomData }
    }

    /// First byte, as kernels take it.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies host memory of the same length into it. The host memory may be reused at once.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn write(&mut self, gpu: &Gpu, host: &[T]) -> Result<()> {
        assert_eq!(host.len(), self.len, "elements to write");
        if self.is_empty() {
            return Ok(());
        }
        gpu.bind()?;
        // SAFETY: this is the only reference to that memory. Host memory that is not pinned has been read when the call
        // returns (it is staged); ordering with kernels is the stream's.
        unsafe { result::memcpy_htod_async(self.address, host, gpu.stream()) }
            .map_err(failed("cuMemcpyHtoDAsync"))
    }

    /// Copies device memory of the same length into it.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn copy_from(&mut self, gpu: &Gpu, other: Slice<'_, T>) -> Result<()> {
        assert_eq!(other.len(), self.len, "elements to copy");
        gpu.bind()?;
        // SAFETY: both parts are as long as that; this is the only reference to the target, and the stream orders the copy
        // before whatever frees the source.
        unsafe {
            result::memcpy_dtod_async(self.address, other.address(), self.len * size_of::<T>(), gpu.stream())
        }
        .map_err(failed("cuMemcpyDtoDAsync"))
    }

    /// Fills it with zero bytes.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn clear(&mut self, gpu: &Gpu) -> Result<()> {
        self.fill_bytes(gpu, 0)
    }

    /// Fills it with a byte.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn fill_bytes(&mut self, gpu: &Gpu, byte: u8) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        gpu.bind()?;
        // SAFETY: this is the only reference to that memory.
        unsafe { result::memset_d8_async(self.address, byte, self.len * size_of::<T>(), gpu.stream()) }
            .map_err(failed("cuMemsetD8Async"))
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // Nothing in flight loses its memory: cuMemFree waits for the device in practice, but its contract does not say so.
        // After an illegal access the driver refuses, and so may this; the context's end then frees everything.
        let _ = self.gpu.synchronize();
        if self.gpu.bind().is_ok() {
            // SAFETY: allocated by `Gpu::alloc`, freed once.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}
