//! The bound: a policy that knows the future.

use super::ranked::{PerExpert, Ranked};
use super::{ExpertId, Passes, Policy, Victim};
use crate::experts::trace::RoutingTrace;

/// Keeps what will be used soonest, as a recorded trace says (Belady 1966, with bypass: a newcomer that is used later
/// than all residents is not kept). Its clock is the number of forward passes, which it sees in the uses it is told of;
/// they must be those of the trace, from the first on.
#[derive(Debug)]
pub struct Belady {
    residents: Ranked,
    /// Where an expert's uses begin in `uses`, and how many are past.
    uses_of: PerExpert<Uses>,
    /// The times of use, expert by expert.
    uses: Vec<u64>,
    passes: Passes,
    touched: PerExpert<u32>,
    keeps_all: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Uses {
    next: usize,
    end: usize,
}

impl Belady {
    /// Knows what `trace` will do.
    pub fn new(trace: &RoutingTrace) -> Belady {
        let mut uses_of = PerExpert::<Uses>::default();
        let mut used = Vec::new();
        for pass in trace.passes() {
            for layer in 0..trace.layers().len() {
                trace.used(pass.clone(), layer, &mut used);
                used.iter().for_each(|&id| uses_of.get_mut(id).end += 1);
            }
        }
        let mut begin = 0;
        for &layer in trace.layers() {
            for expert in 0..trace.experts() {
                let uses = uses_of.get_mut(ExpertId { layer, expert: expert as u32 });
                let count = uses.end;
                *uses = Uses { next: begin, end: begin };
                begin += count;
            }
        }
        let mut uses = vec![0; begin];
        for (pass, tokens) in trace.passes().enumerate() {
            for (layer, &number) in trace.layers().iter().enumerate() {
                trace.used(tokens.clone(), layer, &mut used);
                for &id in &used {
                    let of = uses_of.get_mut(id);
                    uses[of.end] = time(pass as u32 + 1, number);
                    of.end += 1;
                }
            }
        }
        Belady {
            residents: Ranked::default(),
            uses_of,
            uses,
            passes: Passes::default(),
            touched: PerExpert::default(),
            keeps_all: false,
        }
    }

    /// The same without bypass, as the textbook has it: every miss is kept.
    pub fn keeping_all(trace: &RoutingTrace) -> Belady {
        Belady { keeps_all: true, ..Belady::new(trace) }
    }

    /// Higher is sooner; 0 is never.
    fn rank(&self, id: ExpertId) -> u64 {
        let Uses { next, end } = self.uses_of.get(id);
        if next < end { u64::MAX - self.uses[next] } else { 0 }
    }
}

fn time(pass: u32, layer: u32) -> u64 {
    u64::from(pass) << 32 | u64::from(layer)
}

impl Policy for Belady {
    fn name(&self) -> &'static str {
        if self.keeps_all { "belady-keep" } else { "belady" }
    }

    fn touch(&mut self, id: ExpertId) {
        let now = self.passes.touch(id.layer, self.touched.get(id) == self.passes.now);
        *self.touched.get_mut(id) = now;
        let Uses { next, end } = self.uses_of.get(id);
        let past = self.uses[next..end].iter().take_while(|&&at| at <= time(now, id.layer)).count();
        self.uses_of.get_mut(id).next = next + past;
        if self.residents.contains(id) {
            self.residents.set(id, self.rank(id));
        }
    }

    fn insert(&mut self, id: ExpertId) {
        self.residents.set(id, self.rank(id));
    }

    fn remove(&mut self, id: ExpertId) {
        self.residents.remove(id);
    }

    fn victim(&mut self, newcomer: ExpertId, may_go: &mut dyn FnMut(ExpertId) -> bool) -> Victim {
        let rank = if self.keeps_all { u64::MAX } else { self.rank(newcomer) };
        self.residents.victim(rank, may_go)
    }

    fn worth(&self, id: ExpertId) -> f64 {
        self.rank(id) as f64
    }
}
