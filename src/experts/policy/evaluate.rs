//! How good a policy is, on a trace.

use super::{ExpertId, Policy, Victim};
use crate::experts::trace::RoutingTrace;

/// What a policy achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HitRate {
    /// Uses of an expert that was resident.
    pub hits: u64,
    /// All uses: distinct experts of a layer and forward pass.
    pub uses: u64,
    /// Misses that were not kept.
    pub bypassed: u64,
}

impl HitRate {
    /// Hits by uses.
    pub fn rate(self) -> f64 {
        self.hits as f64 / self.uses.max(1) as f64
    }
}

/// Replays `trace` on an empty tier of `slots` places. As in the engine, the experts of a layer are looked up together,
/// and none of them goes before the layer is done. Bringing an expert takes no time here.
pub fn evaluate(trace: &RoutingTrace, policy: &mut dyn Policy, slots: usize) -> HitRate {
    let mut resident = vec![vec![false; trace.experts()]; trace.layers().len()];
    let mut needed = vec![0_u32; trace.experts()];
    let (mut step, mut held) = (0, 0);
    let mut result = HitRate::default();
    let mut used: Vec<ExpertId> = Vec::new();
    // From a layer's number to its place in the trace.
    let place = |id: ExpertId| trace.layers().partition_point(|&l| l < id.layer);
    for pass in trace.passes() {
        for layer in 0..trace.layers().len() {
            trace.used(pass.clone(), layer, &mut used);
            step += 1;
            for &id in &used {
                policy.touch(id);
                needed[id.expert as usize] = step;
            }
            result.uses += used.len() as u64;
            for &id in &used {
                if resident[layer][id.expert as usize] {
                    result.hits += 1;
                    continue;
                }
                let full = held >= slots;
                if full {
                    let this = trace.layers()[layer];
                    let mut may_go = |id: ExpertId| id.layer != this || needed[id.expert as usize] != step;
                    match policy.victim(id, &mut may_go) {
                        Victim::Evict(old) => {
                            policy.remove(old);
                            resident[place(old)][old.expert as usize] = false;
                        }
                        Victim::Bypass | Victim::None => {
                            result.bypassed += 1;
                            continue;
                        }
                    }
                }
                held += usize::from(!full);
                policy.insert(id);
                resident[layer][id.expert as usize] = true;
            }
        }
    }
    result
}
