//! Least recently used.

use super::ranked::{PerExpert, Ranked};
use super::{ExpertId, Policy, Victim};

/// Keeps what was used last. Layers are used in a cycle, so with fewer slots than one token uses it evicts each expert
/// just before its next use and hits nothing.
#[derive(Debug, Default)]
pub struct Lru {
    residents: Ranked,
    last: PerExpert<u64>,
    clock: u64,
}

impl Lru {
    /// Without residents.
    pub fn new() -> Lru {
        Lru::default()
    }
}

impl Policy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn touch(&mut self, id: ExpertId) {
        self.clock += 1;
        *self.last.get_mut(id) = self.clock;
        if self.residents.contains(id) {
            self.residents.set(id, self.clock);
        }
    }

    fn insert(&mut self, id: ExpertId) {
        self.residents.set(id, self.last.get(id));
    }

    fn remove(&mut self, id: ExpertId) {
        self.residents.remove(id);
    }

    fn victim(&mut self, _newcomer: ExpertId, may_go: &mut dyn FnMut(ExpertId) -> bool) -> Victim {
        self.residents.victim(u64::MAX, may_go)
    }

    fn worth(&self, id: ExpertId) -> f64 {
        self.last.get(id) as f64
    }
}
