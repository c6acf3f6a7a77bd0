//! One GPU: its context, its stream, its loaded code, and the only call that launches a kernel.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cudarc::driver::{CudaContext, CudaStream, result, sys};

use super::copies::Copies;
use super::images::{self, Image, Kernel};
use super::{describe_error, failed};
use crate::error::{Error, Result};

/// Shared memory a block gets without asking the driver for more, in bytes.
const DEFAULT_SHARED: u32 = 48 << 10;

/// A GPU in use. Cheap to clone; what is allocated from it keeps it alive.
#[derive(Clone)]
pub struct Gpu {
    inner: Arc<Inner>,
}

struct Inner {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    copies: Copies,
    /// By image; loaded when the first of its kernels is launched.
    modules: Mutex<Vec<Option<sys::CUmodule>>>,
    functions: RwLock<HashMap<(usize, &'static str), Function>>,
    /// Code to load instead of an image's own.
    replacements: HashMap<&'static str, Vec<u8>>,
    name: String,
    multiprocessors: u32,
}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory it may take by now.
    shared: u32,
}

// SAFETY: modules and functions are handles of the context, which may be used from any thread that has made it current;
// every call here does so first.
unsafe impl Send for Inner {}
// SAFETY: as above; the tables are behind locks.
unsafe impl Sync for Inner {}

/// Grid and block of a launch.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared: u32,
}

impl Launch {
    /// `blocks` × `threads`, no dynamic shared memory.
    pub fn linear(blocks: u32, threads: u32) -> Launch {
        Launch { grid: [blocks, 1, 1], block: threads, shared: 0 }
    }
}

impl Gpu {
    /// Opens GPU `ordinal`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without a driver, for a GPU that is not there or not of compute capability 9.0;
    /// [`Error::Cuda`] if the driver fails.
    pub fn open(ordinal: usize) -> Result<Gpu> {
        Gpu::open_with(ordinal, HashMap::new())
    }

    /// As [`Gpu::open`], with other code for some images, by name: how tests run deliberately broken kernels.
    #[doc(hidden)]
    pub fn open_with(ordinal: usize, replacements: HashMap<&'static str, Vec<u8>>) -> Result<Gpu> {
        let gpus = super::gpus()?;
        let Some(description) = gpus.get(ordinal) else {
            return Err(Error::Unsupported {
                what: format!("GPU {ordinal}"),
                instead: match gpus.len() {
                    0 => {
                        "no GPU is here; use `--device cpu`, or ABRUZZI_EMULATE=1 for the emulated one".into()
                    }
                    n => format!("this machine has {n}, numbered from 0"),
                },
            });
        };
        if description.capability != (9, 0) {
            let (major, minor) = description.capability;
            return Err(Error::Unsupported {
                what: format!("{} (compute capability {major}.{minor})", description.name),
                instead: "the kernels are written for 9.0 (H100, H200); use `--device cpu`".into(),
            });
        }
        let context = CudaContext::new(ordinal).map_err(failed("cuDevicePrimaryCtxRetain"))?;
        // SAFETY: this module orders its own work: one compute stream, and fences of its own beside it.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed("cuStreamCreate"))?;
        context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        let copies = Copies::new()?;
        Ok(Gpu {
            inner: Arc::new(Inner {
                context,
                stream,
                copies,
                modules: Mutex::new(vec![None; images::COUNT]),
                functions: RwLock::default(),
                replacements,
                name: description.name.clone(),
                multiprocessors: description.multiprocessors as u32,
            }),
        })
    }

    /// Bytes of its memory that nobody uses.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn memory_free(&self) -> Result<u64> {
        self.bind()?;
        result::mem_get_info().map(|(free, _)| free as u64).map_err(failed("cuMemGetInfo"))
    }

    /// Product name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Streaming multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.inner.multiprocessors
    }

    /// Makes the context current in this thread. Every use of the driver begins with it.
    pub(super) fn bind(&self) -> Result<()> {
        self.inner.context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))
    }

    /// The stream that kernels and copies are ordered on.
    pub(super) fn stream(&self) -> sys::CUstream {
        self.inner.stream.cu_stream()
    }

    /// What copies beside the computing go by.
    pub(super) fn copies(&self) -> &Copies {
        &self.inner.copies
    }

    /// Waits for all computing issued so far.
    ///
    /// # Errors
    /// [`Error::Cuda`]: the first failure of anything issued.
    pub fn synchronize(&self) -> Result<()> {
        self.inner.stream.synchronize().map_err(failed("cuStreamSynchronize"))
    }

    /// Launches a kernel on the stream.
    ///
    /// # Errors
    /// [`Error::Cuda`] naming the kernel.
    ///
    /// # Safety
    /// `params` must be what the kernel takes, and every address in it must be device memory of this GPU, large enough
    /// for what the kernel does with it, alive until the stream has passed the launch, and written by nobody else
    /// meanwhile.
    pub(super) unsafe fn launch<P>(&self, kernel: Kernel, launch: Launch, params: &P) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.launch_raw(kernel, launch, &mut [std::ptr::from_ref(params).cast_mut().cast()]) }
    }

    /// [`Gpu::launch`] with any list of parameters.
    ///
    /// # Safety
    /// As for [`Gpu::launch`], for every pointer of the list.
    pub(super) unsafe fn launch_raw(
        &self,
        kernel: Kernel,
        launch: Launch,
        params: &mut [*mut c_void],
    ) -> Result<()> {
        let [x, y, z] = launch.grid;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        self.bind()?;
        let function = self.function(kernel, launch.shared)?;
        let (grid, block) = ((x, y, z), (launch.block, 1, 1));
        // SAFETY: the function and the stream belong to the current context; the rest is the caller's promise.
        unsafe { result::launch_kernel(function, grid, block, launch.shared, self.stream(), params) }
            .map_err(|e| cuda_error("cuLaunchKernel", kernel, e))
    }

    fn function(&self, kernel: Kernel, shared: u32) -> Result<sys::CUfunction> {
        let key = (kernel.image.index, kernel.name());
        let known = self.inner.functions.read().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        let mut function = match known {
            Some(function) => function,
            None => {
                let module = self.module(kernel.image)?;
                // SAFETY: the module is loaded and stays so.
                let handle = unsafe { result::module::get_function(module, kernel.name.to_owned()) }
                    .map_err(|e| cuda_error("cuModuleGetFunction", kernel, e))?;
                Function { handle, shared: DEFAULT_SHARED }
            }
        };
        if shared > function.shared {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to the current context.
            unsafe { result::function::set_function_attribute(function.handle, attribute, shared as i32) }
                .map_err(|e| cuda_error("cuFuncSetAttribute", kernel, e))?;
            function.shared = shared;
        } else if known.is_some() {
            return Ok(function.handle);
        }
        self.inner.functions.write().unwrap_or_else(PoisonError::into_inner).insert(key, function);
        Ok(function.handle)
    }

    fn module(&self, image: &'static Image) -> Result<sys::CUmodule> {
        let mut modules = self.inner.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules[image.index] {
            return Ok(module);
        }
        let code = self.inner.replacements.get(image.name).map_or(&image.bytes.0, Vec::as_slice);
        // SAFETY: an image is a whole fatbin, a replacement whole PTX with its final zero.
        let module = unsafe { result::module::load_data(code.as_ptr().cast()) }.map_err(|e| Error::Cuda {
            call: "cuModuleLoadData",
            reason: format!("cuda/{}.cu: {}", image.name, describe_error(e)),
        })?;
        modules[image.index] = Some(module);
        Ok(module)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_err() {
            self.copies.forget();
            return;
        }
        let _ = self.stream.synchronize();
        // SAFETY: the context is current, and nobody has the GPU any more.
        unsafe { self.copies.close() };
        for module in self.modules.get_mut().unwrap_or_else(PoisonError::into_inner).iter().flatten() {
            // SAFETY: loaded by this object, and nothing runs any more. A context that failed may refuse; the driver
            // then takes the module down with the context.
            let _ = unsafe { result::module::unload(*module) };
        }
    }
}

fn cuda_error(call: &'static str, kernel: Kernel, error: cudarc::driver::DriverError) -> Error {
    Error::Cuda { call, reason: format!("kernel {}: {}", kernel.name(), describe_error(error)) }
}
