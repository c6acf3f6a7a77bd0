//! The engine that ships: images to PTX to operations.

use std::collections::HashMap;
use std::sync::Arc;

use super::engine::{Engine, KernelInfo, Launch, LoadCode, LoadError, Module, TensorMapRequest};
use crate::exec;
use crate::memory::Memory;
use crate::ptx::fatbin::{ImageError, ptx_of_image};
use crate::tensor::tensor_map::{self, Request};
use crate::{Counters, Finding, Settings};

/// Runs PTX with [`crate::exec`].
pub(super) struct Interpreter;

struct Loaded {
    module: exec::Module,
    registers: HashMap<String, u32>,
    /// Where its variables lie.
    memory: Arc<Memory>,
}

impl Engine for Interpreter {
    fn load(&self, image: &[u8], memory: &Arc<Memory>) -> Result<Arc<dyn Module>, LoadError> {
        let image = ptx_of_image(image).map_err(|e| {
            let code = match &e {
                ImageError::NoPtx | ImageError::Compressed | ImageError::TooNew(_) | ImageError::Cubin => {
                    LoadCode::NoBinary
                }
                _ => LoadCode::InvalidImage,
            };
            LoadError { code, message: e.to_string() }
        })?;
        let module = exec::Module::load(image.ptx, memory).map_err(|e| {
            let code = match &e {
                exec::LoadError::OutOfMemory { .. } => LoadCode::OutOfMemory,
                _ => LoadCode::InvalidPtx,
            };
            LoadError { code, message: e.to_string() }
        })?;
        Ok(Arc::new(Loaded { module, registers: image.registers(), memory: memory.clone() }))
    }

    fn encode_tensor_map(&self, request: &TensorMapRequest) -> Option<Result<[u8; 128], String>> {
        let rank = request.rank.min(5) as usize;
        Some(tensor_map::encode(&Request {
            data_type: request.data_type,
            rank: request.rank,
            address: request.address,
            dims: &request.dims[..rank],
            strides: &request.strides[..rank.saturating_sub(1)],
            box_dims: &request.boxes[..rank],
            element_strides: &request.element_strides[..rank],
            interleave: request.interleave,
            swizzle: request.swizzle,
            l2_promotion: request.l2_promotion,
            oob_fill: request.oob_fill,
        }))
    }
}

impl Module for Loaded {
    fn kernels(&self) -> Vec<KernelInfo> {
        let info = |k: &Arc<exec::Program>| KernelInfo {
            name: k.name().to_owned(),
            params: k.params().to_vec(),
            param_bytes: k.param_bytes(),
            static_shared: k.shared_bytes(),
            local_bytes: k.local_bytes(),
            max_threads: k.max_threads(),
            registers: self.registers.get(k.name()).copied(),
            line: k.line(),
        };
        self.module.kernels().iter().map(info).collect()
    }

    fn global(&self, name: &str) -> Option<(u64, u64)> {
        self.module.global(name)
    }

    fn launch(
        &self,
        kernel: usize,
        launch: &Launch,
        params: &[u8],
        memory: &Memory,
        settings: &Settings,
    ) -> Result<Counters, Box<Finding>> {
        self.module.kernels()[kernel].launch(launch, params, memory, settings)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.module.unload(&self.memory);
    }
}
