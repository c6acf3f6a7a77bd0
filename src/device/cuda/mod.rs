//! NVIDIA GPUs through the CUDA driver, which is looked for at run time: this code also runs where there is none.
//!
//! With `ABRUZZI_EMULATE=1` the stand-in driver of the `cuda-emulator` crate takes its place. Types of the driver
//! binding stay in this module.

mod copies;
mod device;
mod gpu;
mod images;
pub mod kernels;
mod kv;
mod memory;
#[allow(
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    reason = "generated from a header that documents itself"
)]
#[rustfmt::skip]
mod params;
mod products;
mod routing;
mod scratch;
mod slots;
mod staging;
mod tensor;
mod timing;
mod trunk;

pub use copies::CudaFence;
pub use device::{CudaDevice, CudaGuard};
pub use gpu::Gpu;
pub use kv::{CudaKvCache, KvPages};
pub use memory::{Buffer, Slice, SliceMut};
pub use routing::CudaRouting;
pub use slots::{CudaSlots, LayerSlots};
pub use tensor::{CudaMatrix, CudaRows, CudaTensor};
pub use trunk::{CudaWeights, HostedMatrix};

use cudarc::driver::{CudaContext, DriverError, sys};

use crate::error::{Error, Result};

/// A GPU as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpuDescription {
    /// Product name.
    pub name: String,
    /// What `CUDA_VISIBLE_DEVICES` takes to choose it: `GPU-` or, for a MIG slice, `MIG-` and its UUID.
    pub id: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes not in use by anybody.
    pub memory_free: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
}

/// The GPUs of this machine; none without a driver.
///
/// # Errors
/// [`Error::Cuda`] if there is a driver and it fails.
pub fn gpus() -> Result<Vec<GpuDescription>> {
    // SAFETY: only looks for the library by its names; loading it runs the driver's own initialisers.
    if !unsafe { sys::is_culib_present() } {
        return Ok(Vec::new());
    }
    let count = CudaContext::device_count().map_err(failed("cuDeviceGetCount"))?;
    (0..count).map(|ordinal| describe(ordinal as usize)).collect()
}

fn describe(ordinal: usize) -> Result<GpuDescription> {
    let device = CudaContext::new(ordinal).map_err(failed("cuDevicePrimaryCtxRetain"))?;
    let (free, total) = device.mem_get_info().map_err(failed("cuMemGetInfo"))?;
    let count = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    let name = device.name().map_err(failed("cuDeviceGetName"))?;
    let uuid = device.uuid().map_err(failed("cuDeviceGetUuid"))?;
    Ok(GpuDescription {
        id: identifier(&name, uuid.bytes.map(|byte| byte as u8)),
        name,
        capability: device.compute_capability().map_err(failed("cuDeviceGetAttribute"))?,
        memory: total as u64,
        memory_free: free as u64,
        multiprocessors: device.attribute(count).map_err(failed("cuDeviceGetAttribute"))?,
    })
}

/// A UUID as the driver's tools write it. A slice is told by its name: "NVIDIA H100 80GB HBM3 MIG 1g.10gb".
fn identifier(name: &str, uuid: [u8; 16]) -> String {
    let kind = if name.contains(" MIG ") { "MIG" } else { "GPU" };
    let hex =
        |range: std::ops::Range<usize>| uuid[range].iter().map(|b| format!("{b:02x}")).collect::<String>();
    format!("{kind}-{}-{}-{}-{}-{}", hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16))
}

fn failed(call: &'static str) -> impl FnOnce(DriverError) -> Error {
    move |error| Error::Cuda { call, reason: describe_error(error) }
}

/// The driver's name for an error and its explanation.
fn describe_error(error: DriverError) -> String {
    match (error.error_name(), error.error_string()) {
        (Ok(name), Ok(text)) => format!("{} ({})", name.to_string_lossy(), text.to_string_lossy()),
        _ => format!("error {:?}", error.0),
    }
}

/// Puts the stand-in driver in place of a real one if `ABRUZZI_EMULATE=1` asks for it. Call it before anything of
/// CUDA. Returns whether it did; whoever shows figures to people must then say that they are modelled.
///
/// # Errors
/// [`Error::Unsupported`] if the stand-in is not there or a real driver is.
pub fn emulate_if_asked() -> Result<bool> {
    if std::env::var_os("ABRUZZI_EMULATE").is_none_or(|v| v != "1") {
        return Ok(false);
    }
    cuda_emulator::install::install(false)
        .map(|_| true)
        .map_err(|e| Error::Unsupported { what: "ABRUZZI_EMULATE=1".into(), instead: e.to_string() })
}
