//! What copies beside the computing need: a stream of their own, fences, and the bytes they read kept alive.
//!
//! Invariant: bytes that a copy reads are held by its fence or, once that is dropped, by the list of those retired, until
//! the copy's event has passed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::{DriverError, result, sys};

use super::failed;
use super::gpu::Gpu;
use super::staging::{Ring, Store};
use crate::device::HostBytes;
use crate::error::Result;

/// A GPU's part of all that.
pub(super) struct Copies {
    stream: sys::CUstream,
    /// Events that nobody holds.
    events: Mutex<Vec<sys::CUevent>>,
    /// Bytes whose fences were dropped before their copies were done, in the order of the stream.
    retired: Mutex<VecDeque<(sys::CUevent, HostBytes)>>,
    /// Page-locked memory for small things.
    pub(super) store: Mutex<Store>,
    /// Page-locked memory that unpinned records go through.
    pub(super) ring: Mutex<Ring>,
    /// Host memory that was pinned: first byte and length. Held while a copy from it is issued.
    pub(super) pinned: Mutex<BTreeMap<usize, usize>>,
}

// SAFETY: stream and events are handles of the context, used from threads that have made it current; the tables are
// behind locks.
unsafe impl Send for Copies {}
// SAFETY: as above.
unsafe impl Sync for Copies {}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Copies {
    /// In the current context. The stream is as urgent as can be: its copies go before those of the computing stream.
    pub fn new() -> Result<Copies> {
        let (_, greatest) =
            result::stream::get_priority_range().map_err(failed("cuCtxGetStreamPriorityRange"))?;
        let kind = result::stream::StreamKind::NonBlocking;
        let stream = result::stream::create_with_priority(kind, greatest)
            .map_err(failed("cuStreamCreateWithPriority"))?;
        Ok(Copies {
            stream,
            events: Mutex::default(),
            retired: Mutex::default(),
            store: Mutex::default(),
            ring: Mutex::default(),
            pinned: Mutex::default(),
        })
    }

    /// The stream of copies.
    pub fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Takes back an event.
    pub fn release(&self, event: sys::CUevent) {
        if !event.is_null() {
            locked(&self.events).push(event);
        }
    }

    fn event(&self) -> Result<sys::CUevent> {
        match locked(&self.events).pop() {
            Some(event) => Ok(event),
            None => {
                result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(failed("cuEventCreate"))
            }
        }
    }

    fn retire(&self, event: sys::CUevent, bytes: HostBytes) {
        locked(&self.retired).push_back((event, bytes));
    }

    /// Lets go of what was retired and is done. The context is current.
    fn sweep(&self) {
        let mut retired = locked(&self.retired);
        while let Some(&(event, _)) = retired.front() {
            // SAFETY: alive, and recorded.
            if unsafe { result::event::query(event) }.is_err() {
                break;
            }
            retired.pop_front();
            self.release(event);
        }
    }

    /// Where the context cannot be reached: keeps for good what copies may still read.
    pub fn forget(&mut self) {
        let retired = self.retired.get_mut().unwrap_or_else(PoisonError::into_inner);
        std::mem::forget(std::mem::take(retired));
    }

    /// Waits for the copies and frees everything.
    ///
    /// # Safety
    /// The context is current, and nothing is issued any more.
    pub unsafe fn close(&mut self) {
        // SAFETY: created by `new`. If this fails the context has failed and copies nothing any more.
        let _ = unsafe { result::stream::synchronize(self.stream) };
        let retired = std::mem::take(self.retired.get_mut().unwrap_or_else(PoisonError::into_inner));
        let events = std::mem::take(self.events.get_mut().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: each event is in one place only.
        events.into_iter().chain(retired.into_iter().map(|(event, _)| event)).for_each(|event| unsafe {
            let _ = result::event::destroy(event);
        });
        // SAFETY: nothing uses the memory any more, as nothing runs.
        unsafe { self.store.get_mut().unwrap_or_else(PoisonError::into_inner).free() };
        // SAFETY: as above.
        unsafe { self.ring.get_mut().unwrap_or_else(PoisonError::into_inner).free() };
        // SAFETY: created by `new`, destroyed once.
        let _ = unsafe { result::stream::destroy(self.stream) };
    }
}

/// A point in the GPU's work, and what must be kept until it has passed.
pub struct CudaFence {
    gpu: Gpu,
    event: sys::CUevent,
    bytes: Option<HostBytes>,
}

// SAFETY: the event is a handle of the context, used from threads that have made it current.
unsafe impl Send for CudaFence {}
// SAFETY: as above; through a shared reference it is only asked.
unsafe impl Sync for CudaFence {}

impl CudaFence {
    /// Behind everything issued to the stream so far, the last of which reads `bytes`.
    pub(super) fn record(gpu: &Gpu, stream: sys::CUstream, bytes: Option<HostBytes>) -> Result<CudaFence> {
        gpu.bind()?;
        let fence = CudaFence { gpu: gpu.clone(), event: gpu.copies().event()?, bytes };
        // SAFETY: event and stream are alive and belong to the current context.
        unsafe { result::event::record(fence.event, stream) }.map_err(failed("cuEventRecord"))?;
        Ok(fence)
    }

    /// Behind everything issued for computing so far.
    pub(super) fn of_computing(gpu: &Gpu) -> Result<CudaFence> {
        CudaFence::record(gpu, gpu.stream(), None)
    }

    /// Behind all copies so far, the last of which reads `bytes`.
    pub(super) fn of_copies(gpu: &Gpu, bytes: Option<HostBytes>) -> Result<CudaFence> {
        gpu.bind()?;
        gpu.copies().sweep();
        CudaFence::record(gpu, gpu.copies().stream(), bytes)
    }

    /// Whether it has been passed.
    pub(super) fn passed(&self) -> Result<bool> {
        self.gpu.bind()?;
        // SAFETY: alive, and recorded.
        match unsafe { result::event::query(self.event) } {
            Ok(()) => Ok(true),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(error) => Err(failed("cuEventQuery")(error)),
        }
    }

    /// Seconds of the device's clock until `later`; both have been passed.
    pub(super) fn seconds_until(&self, later: &CudaFence) -> Result<f64> {
        self.gpu.bind()?;
        // SAFETY: both are alive, and recorded.
        let milliseconds = unsafe { result::event::elapsed(self.event, later.event) }
            .map_err(failed("cuEventElapsedTime"))?;
        Ok(f64::from(milliseconds) / 1e3)
    }

    /// Waits until it has been passed.
    pub(super) fn wait(&self) -> Result<()> {
        self.gpu.bind()?;
        // SAFETY: alive, and recorded.
        unsafe { result::event::synchronize(self.event) }.map_err(failed("cuEventSynchronize"))
    }

    /// Makes computing issued from here on wait for it.
    pub(super) fn before_computing(&self) -> Result<()> {
        self.before(self.gpu.stream())
    }

    /// Makes what is issued to a stream of this GPU from here on wait for it.
    pub(super) fn before(&self, stream: sys::CUstream) -> Result<()> {
        self.gpu.bind()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are alive and belong to the current context. What the stream waits for is fixed by this call,
        // whatever the event is recorded for later.
        unsafe { result::stream::wait_event(stream, self.event, flags) }.map_err(failed("cuStreamWaitEvent"))
    }
}

impl CudaFence {
    /// Its event, for one of the GPU's own tables; it does not keep bytes.
    pub(super) fn into_event(mut self) -> sys::CUevent {
        assert!(self.bytes.is_none());
        std::mem::replace(&mut self.event, std::ptr::null_mut())
    }
}

impl Drop for CudaFence {
    fn drop(&mut self) {
        if self.event.is_null() {
            return;
        }
        let copies = self.gpu.copies();
        match self.bytes.take() {
            // If the context has failed the bytes stay until it is closed.
            Some(bytes) if !self.passed().unwrap_or(false) => copies.retire(self.event, bytes),
            _ => copies.release(self.event),
        }
    }
}
