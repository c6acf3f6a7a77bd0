//! Which expert is where, how it gets there, and who computes it.
//!
//! The arithmetic and the protocol stand in `docs/how-it-works.md`, the plan and its reasons in `docs/notes/experts.md`. This module
//! knows devices and records, not models: the forward pass asks it for the experts of a layer.

pub mod cache;
#[doc(hidden)]
pub mod fault;
pub mod host;
pub mod plan;
pub mod policy;
pub mod prefetch;
pub mod residency;
pub mod schedule;
pub mod simulate;
pub mod slots;
#[cfg(test)]
mod slots_tests;
pub mod stats;
mod sync;
pub mod trace;

use crate::error::{Error, Tier};

/// A routed expert of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExpertId {
    /// Layer, counted over all layers, dense ones too.
    pub layer: u32,
    /// Expert within the layer.
    pub expert: u32,
}

impl ExpertId {
    /// Expert `expert` of layer `layer`.
    pub fn new(layer: usize, expert: usize) -> ExpertId {
        ExpertId { layer: layer as u32, expert: expert as u32 }
    }

    /// The error of this expert that could not be brought to where it is needed.
    pub(crate) fn error(self, tier: Tier, slot: Option<u32>, problem: impl Into<String>) -> Error {
        let (layer, expert) = (self.layer as usize, self.expert as usize);
        Error::Expert { layer, expert, tier, slot, problem: problem.into() }
    }
}

impl std::fmt::Display for ExpertId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "expert {} of layer {}", self.expert, self.layer)
    }
}
