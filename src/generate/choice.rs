//! The device that computes: what was asked for, and what was opened.

use std::sync::Arc;

use super::engine::AnyModel;
use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::config::ModelConfig;
use crate::device::Device;
use crate::device::cpu::CpuDevice;
#[cfg(feature = "cuda")]
use crate::device::cuda::{CudaDevice, Gpu};
#[cfg(not(feature = "cuda"))]
use crate::error::Error;
use crate::error::Result;
use crate::experts::residency::Placement;
use crate::model::Model;

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// The best device of this build and machine.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of this number, counted from 0; needs a build with the feature `cuda`.
    Cuda(usize),
}

/// A device that was opened.
pub(super) enum Chosen {
    /// The processor, and why it is not a GPU where one was hoped for.
    Cpu(CpuDevice, Option<String>),
    #[cfg(feature = "cuda")]
    Cuda(Box<CudaDevice>),
}

impl Chosen {
    pub(super) fn new(choice: DeviceChoice, threads: usize) -> Result<Chosen> {
        match choice {
            DeviceChoice::Cpu => Ok(Chosen::Cpu(CpuDevice::new(threads)?, None)),
            #[cfg(feature = "cuda")]
            DeviceChoice::Cuda(ordinal) => Ok(Chosen::Cuda(Box::new(CudaDevice::new(Gpu::open(ordinal)?)))),
            #[cfg(not(feature = "cuda"))]
            DeviceChoice::Cuda(_) => Err(Error::Unsupported {
                what: "a GPU".to_owned(),
                instead: "this build has no CUDA; build with `--features cuda`, or compute on the CPU"
                    .to_owned(),
            }),
            #[cfg(feature = "cuda")]
            DeviceChoice::Auto => match Gpu::open(0) {
                Ok(gpu) => Ok(Chosen::Cuda(Box::new(CudaDevice::new(gpu)))),
                Err(why) => Ok(Chosen::Cpu(CpuDevice::new(threads)?, Some(why.to_string()))),
            },
            #[cfg(not(feature = "cuda"))]
            DeviceChoice::Auto => Ok(Chosen::Cpu(CpuDevice::new(threads)?, None)),
        }
    }

    pub(super) fn supports(&self, config: &ModelConfig) -> Result<()> {
        match self {
            Chosen::Cpu(device, _) => device.supports(&config.attention, &config.moe),
            #[cfg(feature = "cuda")]
            Chosen::Cuda(device) => device.supports(&config.attention, &config.moe),
        }
    }

    pub(super) fn memory_free(&self) -> Result<Option<u64>> {
        match self {
            Chosen::Cpu(device, _) => device.memory_free(),
            #[cfg(feature = "cuda")]
            Chosen::Cuda(device) => device.memory_free(),
        }
    }

    pub(super) fn fallback(&self) -> Option<String> {
        match self {
            Chosen::Cpu(_, why) => why.clone(),
            #[cfg(feature = "cuda")]
            Chosen::Cuda(_) => None,
        }
    }

    pub(super) fn model(
        self,
        checkpoint: &Arc<Checkpoint>,
        load: &LoadOptions,
        placement: &Placement,
    ) -> Result<Arc<dyn AnyModel>> {
        Ok(match self {
            Chosen::Cpu(device, _) => Arc::new(Model::load(checkpoint, device, load, placement)?),
            #[cfg(feature = "cuda")]
            Chosen::Cuda(device) => Arc::new(Model::load(checkpoint, *device, load, placement)?),
        })
    }
}
