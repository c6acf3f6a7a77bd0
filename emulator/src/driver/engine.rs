//! What the driver needs from whoever executes kernels.
//!
//! The driver knows streams, memory and handles; it does not know PTX. An engine turns an image into a module and runs
//! its kernels. The seam lets the driver be tested with a fake, and the execution core be built without it.

use std::sync::{Arc, RwLock};

use thiserror::Error;

use crate::{Counters, Finding, Memory, Settings};

/// A kernel of a module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelInfo {
    /// Name, mangled as in the PTX.
    pub name: String,
    /// Offset and bytes of each parameter.
    pub params: Vec<(u32, u32)>,
    /// Bytes of all parameters.
    pub param_bytes: u32,
    /// Static shared memory.
    pub static_shared: u32,
    /// Local memory of a thread.
    pub local_bytes: u32,
    /// Most threads of a block (`.maxntid`), where the kernel says so.
    pub max_threads: Option<u32>,
    /// Registers of a thread (`.maxnreg` or an estimate), where known.
    pub registers: Option<u32>,
    /// Line of the PTX text.
    pub line: u32,
}

pub use crate::exec::Launch;

/// A loaded module. Dropping it gives its global variables back.
pub trait Module: Send + Sync {
    /// Its kernels, always in the same order.
    fn kernels(&self) -> Vec<KernelInfo>;
    /// Address and bytes of a global variable.
    fn global(&self, name: &str) -> Option<(u64, u64)>;
    /// Runs a kernel to its end. `params` has the kernel's `param_bytes`.
    ///
    /// # Errors
    /// The first finding; memory is left as it was then.
    fn launch(
        &self,
        kernel: usize,
        launch: &Launch,
        params: &[u8],
        memory: &Memory,
        settings: &Settings,
    ) -> Result<Counters, Box<Finding>>;
}

/// Why an image cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct LoadError {
    /// Which CUresult it becomes.
    pub code: LoadCode,
    /// Where and why.
    pub message: String,
}

/// Kinds of [`LoadError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadCode {
    /// The PTX is wrong, or uses what the engine has not got.
    InvalidPtx,
    /// Machine code only.
    NoBinary,
    /// Neither PTX nor a fatbin.
    InvalidImage,
    /// The PTX version is newer than the engine.
    UnsupportedPtx,
    /// Its global variables do not fit the device.
    OutOfMemory,
}

/// Arguments of cuTensorMapEncodeTiled; entries behind `rank` are 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "CUDA's names")]
pub struct TensorMapRequest {
    pub data_type: u32,
    pub rank: u32,
    pub address: u64,
    pub dims: [u64; 5],
    /// `rank - 1` of them, in bytes.
    pub strides: [u64; 5],
    pub boxes: [u32; 5],
    pub element_strides: [u32; 5],
    pub interleave: u32,
    pub swizzle: u32,
    pub l2_promotion: u32,
    pub oob_fill: u32,
}

/// Executes PTX.
pub trait Engine: Send + Sync {
    /// Loads an image: PTX text (without its terminating 0) or a fatbin.
    ///
    /// # Errors
    /// See [`LoadError`].
    fn load(&self, image: &[u8], memory: &Arc<Memory>) -> Result<Arc<dyn Module>, LoadError>;

    /// The 128 bytes of a tensor map, in whatever form this engine's kernels read. `None` from engines that have no
    /// tensor maps.
    ///
    /// # Errors
    /// What is wrong with the request, for people.
    fn encode_tensor_map(&self, request: &TensorMapRequest) -> Option<Result<[u8; 128], String>> {
        let _ = request;
        None
    }
}

static ENGINE: RwLock<Option<&'static dyn Engine>> = RwLock::new(None);

/// Sets what executes modules loaded from now on.
pub fn set_engine(engine: &'static dyn Engine) {
    *ENGINE.write().unwrap_or_else(|e| e.into_inner()) = Some(engine);
}

/// What executes modules: the interpreter, unless [`set_engine`] said otherwise.
pub(super) fn engine() -> Option<&'static dyn Engine> {
    let set = *ENGINE.read().unwrap_or_else(|e| e.into_inner());
    Some(set.unwrap_or(&super::interpreter::Interpreter))
}
