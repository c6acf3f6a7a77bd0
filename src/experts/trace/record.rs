//! From a forward pass into a trace.

use super::RoutingTrace;
use crate::device::Routing;
use crate::error::{Error, Result};

impl RoutingTrace {
    /// Appends the tokens of a forward pass: its routing by layer, none in dense layers, as
    /// [`Sequence::routing`](crate::model::Sequence::routing) gives it. A token goes to the same experts whether it is
    /// prefilled or decoded.
    ///
    /// # Errors
    /// [`Error::Argument`] if the routing is not that of the trace's layers and shape.
    pub fn push_pass(&mut self, routing: &[Option<Routing>]) -> Result<()> {
        let of_layer = |layer: &u32| routing.get(*layer as usize)?.as_ref();
        let routed: Vec<&Routing> = self.layers.iter().filter_map(of_layer).collect();
        let tokens = routed.first().map_or(0, |r| r.tokens());
        let fits = |r: &&Routing| r.top_k() == self.top_k && r.tokens() == tokens;
        if routed.len() != self.layers.len() || !routed.iter().all(fits) {
            let problem = format!(
                "has {} layers with experts, expected {} with top-{} for as many tokens each",
                routing.iter().flatten().count(),
                self.layers.len(),
                self.top_k
            );
            return Err(Error::argument("routing", problem));
        }
        let mut row = Vec::with_capacity(self.row_len());
        for token in 0..tokens {
            row.clear();
            for routing in &routed {
                let ids = &routing.ids()[token * self.top_k..][..self.top_k];
                // An id that 16 bits do not hold is outside the layer, too: the largest there is says so.
                row.extend(ids.iter().map(|&id| u16::try_from(id).unwrap_or(u16::MAX)));
            }
            self.push(&row)?;
        }
        Ok(())
    }
}
