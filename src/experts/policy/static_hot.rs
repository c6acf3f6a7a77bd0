//! A fixed choice.

use super::ranked::{PerExpert, Ranked};
use super::{ExpertId, Policy, Victim};
use crate::experts::trace::RoutingTrace;

/// Keeps what was used most, in a trace ([`StaticHot::from_trace`]) or since the start ([`StaticHot::learning`]), and
/// lets others pass through. It forgets nothing, so it does not follow a change of subject.
#[derive(Debug, Default)]
pub struct StaticHot {
    residents: Ranked,
    uses: PerExpert<u64>,
    learning: bool,
}

impl StaticHot {
    /// Counts uses as they come.
    pub fn learning() -> StaticHot {
        StaticHot { learning: true, ..StaticHot::default() }
    }

    /// Has counted the uses of `trace`, and counts no more.
    pub fn from_trace(trace: &RoutingTrace) -> StaticHot {
        let mut policy = StaticHot::learning();
        for row in trace.iter() {
            for (ids, &layer) in row.chunks_exact(trace.top_k()).zip(trace.layers()) {
                ids.iter().for_each(|&id| policy.touch(ExpertId { layer, expert: u32::from(id) }));
            }
        }
        policy.learning = false;
        policy
    }
}

impl Policy for StaticHot {
    fn name(&self) -> &'static str {
        "static"
    }

    fn touch(&mut self, id: ExpertId) {
        if self.learning {
            *self.uses.get_mut(id) += 1;
            if self.residents.contains(id) {
                self.residents.set(id, self.uses.get(id));
            }
        }
    }

    fn insert(&mut self, id: ExpertId) {
        self.residents.set(id, self.uses.get(id));
    }

    fn remove(&mut self, id: ExpertId) {
        self.residents.remove(id);
    }

    fn victim(&mut self, newcomer: ExpertId, may_go: &mut dyn FnMut(ExpertId) -> bool) -> Victim {
        self.residents.victim(self.uses.get(newcomer), may_go)
    }

    fn worth(&self, id: ExpertId) -> f64 {
        self.uses.get(id) as f64
    }
}
