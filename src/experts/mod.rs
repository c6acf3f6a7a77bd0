//! Which expert is where, how it gets there, and who computes it.
//!
//! The arithmetic and the protocol stand in `docs/how-it-works.md`, the plan and its reasons in `docs/notes/experts.md`. This module
//! knows devices and records, not models: the forward pass asks it for the experts of a layer.

pub mod cache;
pub mod host;
pub mod plan;
pub mod policy;
pub mod prefetch;
pub mod schedule;
pub mod simulate;
pub mod slots;
#[cfg(test)]
mod slots_tests;
mod sync;
pub mod trace;

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
}

impl std::fmt::Display for ExpertId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "expert {} of layer {}", self.expert, self.layer)
    }
}
