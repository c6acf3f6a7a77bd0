//! How long work takes on the device, by the driver's own clock.

use cudarc::driver::{result, sys};

use super::failed;
use super::gpu::Gpu;
use crate::error::Result;

/// An event that goes when this goes.
struct Event(sys::CUevent);

impl Event {
    fn new() -> Result<Event> {
        result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
            .map(Event)
            .map_err(failed("cuEventCreate"))
    }

    fn record(&self, gpu: &Gpu) -> Result<()> {
        // SAFETY: event and stream are alive and belong to the current context.
        unsafe { result::event::record(self.0, gpu.stream()) }.map_err(failed("cuEventRecord"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by `Event::new`, destroyed once. The driver keeps what a pending record still needs.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

impl Gpu {
    /// Milliseconds that the device spends on what `work` issues, after everything issued before. On the emulated GPU
    /// they are modelled.
    ///
    /// On a real one the time from the first event to a kernel counts too, some 2 µs, more if the device had run dry:
    /// have it busy (with clearing a buffer, say) when this is called.
    ///
    /// # Errors
    /// What `work` returns; [`crate::Error::Cuda`], also for what failed before.
    pub fn timed(&self, work: impl FnOnce(&Gpu) -> Result<()>) -> Result<f64> {
        self.bind()?;
        let (start, end) = (Event::new()?, Event::new()?);
        start.record(self)?;
        work(self)?;
        // `work` may have used another GPU.
        self.bind()?;
        end.record(self)?;
        self.synchronize()?;
        // SAFETY: both events are alive, recorded, and passed.
        let ms = unsafe { result::event::elapsed(start.0, end.0) }.map_err(failed("cuEventElapsedTime"))?;
        Ok(f64::from(ms))
    }

    /// Bytes a second of copying `bytes` within device memory, those read and those written together: what a kernel
    /// that streams can hope for. The best of ten.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`], [`crate::Error::Cuda`].
    pub fn copy_rate(&self, bytes: usize) -> Result<f64> {
        let source = self.alloc_zeroed::<u8>(bytes, "a copy to time")?;
        let mut target = self.alloc::<u8>(bytes, "a copy to time")?;
        let (from, to) = (source.all().address(), target.all_mut().address());
        let mut best = f64::INFINITY;
        for _ in 0..10 {
            let ms = self.timed(|gpu| {
                // SAFETY: both buffers hold `bytes` bytes and outlive the copy, which `timed` waits for.
                unsafe { result::memcpy_dtod_async(to, from, bytes, gpu.stream()) }
                    .map_err(failed("cuMemcpyDtoDAsync"))
            })?;
            best = best.min(ms);
        }
        Ok(2.0 * bytes as f64 / (best * 1e-3))
    }
}
