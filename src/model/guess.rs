//! The next layer's routing, guessed from this layer's hidden state.
//!
//! What lies between is the routed experts' contribution and the next attention. The shared experts' contribution is known
//! in time and is added first. Where layers without experts come first, the first one with experts is guessed from the token's
//! embedding: the link has nothing else to do while they are computed. A guess decides what is worth copying early, never what
//! is computed.

use super::Model;
use crate::checkpoint::weights::Mlp;
use crate::device::{Device, Precision, Shape};
use crate::error::Result;
use crate::experts::residency::ONE_BY_ONE as MAX_GUESSED;

/// Tensors of a guess.
pub(super) struct Guess<D: Device> {
    hidden: D::Tensor,
    normed: D::Tensor,
    logits: D::Tensor,
    routing: D::Routing,
}

/// What the next layer decides with.
pub(super) struct NextRouter<'a, D: Device> {
    norm: &'a D::Vector,
    router: &'a D::Matrix,
    bias: &'a D::Vector,
}

impl<D: Device> Model<D> {
    /// The router of the layer after `layer`, if it has one.
    pub(super) fn next_router(&self, layer: usize) -> Option<NextRouter<'_, D>> {
        let next = self.weights.layers.get(layer + 1)?;
        let Mlp::Experts { router, bias, .. } = &next.mlp else { return None };
        Some(NextRouter { norm: &next.post_attention_norm, router, bias })
    }
}

impl<D: Device> Guess<D> {
    /// What was guessed last, posted.
    pub(super) fn routing(&self) -> &D::Routing {
        &self.routing
    }

    pub(super) fn new(model: &Model<D>) -> Result<Guess<D>> {
        let (c, device) = (&model.config, &model.device);
        Ok(Guess {
            hidden: device.tensor(MAX_GUESSED, c.hidden_size, Precision::Full)?,
            normed: device.tensor(MAX_GUESSED, c.hidden_size, Precision::Working)?,
            logits: device.tensor(MAX_GUESSED, c.moe.num_experts, Precision::Full)?,
            routing: device.routing(MAX_GUESSED, &c.moe)?,
        })
    }

    /// Routes hidden + shared as the next layer would, and posts the result.
    pub(super) fn make(
        &mut self,
        model: &Model<D>,
        next: &NextRouter<'_, D>,
        hidden: &D::Tensor,
        shared: Option<&D::Tensor>,
    ) -> Result<&D::Routing> {
        let (c, device) = (&model.config, &model.device);
        device.rows(hidden, 0..hidden.rows(), &mut self.hidden)?;
        if let Some(shared) = shared {
            device.add(shared, &mut self.hidden)?;
        }
        device.rms_norm(&self.hidden, next.norm, c.rms_norm_eps, &mut self.normed)?;
        device.linear(&self.normed, next.router, &mut self.logits)?;
        device.route(&self.logits, next.bias, &c.moe, &mut self.routing)?;
        device.post_routing(&mut self.routing)?;
        Ok(&self.routing)
    }
}
