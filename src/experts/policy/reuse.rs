//! The default: what will probably be used soon.

mod chance;

use self::chance::{Chances, History};
use super::ranked::PerExpert;
use super::{ExpertId, Passes, Policy, Victim};

/// Keeps what is likeliest to be used, for the time it has to be kept until then.
///
/// An expert can be used once a pass, when its layer comes. Its chance of that is learnt as it goes: how often, in this
/// model and on this text, was an expert used that had last been used so long ago, and that often before. Keeping it
/// costs a slot until its layer comes, and a slot for a whole pass is worth the chance at which experts are
/// being given up. So an expert is worth its chance − that price × the share of a pass until its layer comes: of two with
/// the same chance, the one whose layer is just done makes room, which is what a cycle over layers asks for and what
/// least recent use gets wrong. A newcomer that is worth less than all residents is not kept.
#[derive(Debug, Default)]
pub struct Reuse {
    history: PerExpert<History>,
    chances: Chances,
    layers: Vec<Layer>,
    passes: Passes,
    /// Chances at which experts were given up, averaged.
    price: f32,
}

/// Of the price's average, the share of the latest.
const PRICE_STEP: f32 = 1.0 / 256.0;

/// Experts of a layer.
#[derive(Debug, Default)]
struct Layer {
    /// The pass in which the layer was used last.
    pass: u32,
    /// One more than the largest expert seen.
    experts: u32,
    /// Lowest chance first when `sorted`.
    residents: Vec<(f32, u32)>,
    sorted: bool,
}

impl Reuse {
    /// Without residents.
    pub fn new() -> Reuse {
        Reuse::default()
    }

    fn layer(&mut self, id: ExpertId) -> &mut Layer {
        let at = id.layer as usize;
        if at >= self.layers.len() {
            self.layers.resize_with(at + 1, Layer::default);
        }
        let layer = &mut self.layers[at];
        layer.experts = layer.experts.max(id.expert + 1);
        layer
    }

    /// A layer's first use in a pass: chances are those of the pass to come, and what was expected is counted.
    fn begin(&mut self, layer: u32) {
        let now = self.passes.now;
        let of = &mut self.layers[layer as usize];
        of.pass = now;
        for expert in (0..of.experts).filter(|&e| Chances::sampled(e, now)) {
            self.chances.expect(self.history.get(ExpertId { layer, expert }), now);
        }
    }

    /// The chance that the expert is used when its layer comes next.
    fn chance(&self, id: ExpertId) -> f32 {
        let pass = self.layers.get(id.layer as usize).map_or(0, |l| l.pass);
        self.chances.of(self.history.get(id), pass + 1)
    }

    /// What a slot costs until `layer` comes.
    fn cost(&self, layer: u32) -> f32 {
        let (all, now) = (self.layers.len() as u32, self.passes.layer);
        let ahead = if layer > now { layer - now } else { layer + all - now };
        self.price * ahead as f32 / all.max(1) as f32
    }

    fn sort(&mut self, at: usize) {
        let layer = &mut self.layers[at];
        if !layer.sorted {
            for (chance, expert) in &mut layer.residents {
                let id = ExpertId { layer: at as u32, expert: *expert };
                *chance = self.chances.of(self.history.get(id), layer.pass + 1);
            }
            layer.residents.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            layer.sorted = true;
        }
    }

    /// The resident worth least that may go: its worth, its chance, itself.
    fn lowest(&mut self, may_go: &mut dyn FnMut(ExpertId) -> bool) -> Option<(f32, f32, ExpertId)> {
        let mut least: Option<(f32, f32, ExpertId)> = None;
        for at in 0..self.layers.len() {
            self.sort(at);
            let cost = self.cost(at as u32);
            for &(chance, expert) in &self.layers[at].residents {
                let worth = chance - cost;
                if least.is_some_and(|(l, ..)| l <= worth) {
                    break;
                }
                let id = ExpertId { layer: at as u32, expert };
                if may_go(id) {
                    least = Some((worth, chance, id));
                    break;
                }
            }
        }
        least
    }
}

impl Policy for Reuse {
    fn name(&self) -> &'static str {
        "reuse"
    }

    fn touch(&mut self, id: ExpertId) {
        let history = self.history.get(id);
        let now = self.passes.touch(id.layer, history.used_in(self.passes.now));
        let layer = self.layer(id);
        layer.sorted = false;
        if layer.pass != now {
            self.begin(id.layer);
        }
        if !history.used_in(now) {
            if Chances::sampled(id.expert, now) {
                self.chances.came(history, now);
            }
            *self.history.get_mut(id) = history.used(now);
        }
    }

    fn insert(&mut self, id: ExpertId) {
        let chance = self.chance(id);
        let layer = self.layer(id);
        if layer.residents.iter().all(|&(_, expert)| expert != id.expert) {
            let at = layer.residents.partition_point(|r| r.0 < chance);
            layer.residents.insert(at, (chance, id.expert));
        }
    }

    fn remove(&mut self, id: ExpertId) {
        self.layer(id).residents.retain(|&(_, expert)| expert != id.expert);
    }

    fn victim(&mut self, newcomer: ExpertId, may_go: &mut dyn FnMut(ExpertId) -> bool) -> Victim {
        let Some((worth, chance, id)) = self.lowest(may_go) else { return Victim::None };
        let arriving = self.chance(newcomer);
        let bypass = arriving - self.cost(newcomer.layer) < worth;
        self.price += (if bypass { arriving } else { chance } - self.price) * PRICE_STEP;
        if bypass { Victim::Bypass } else { Victim::Evict(id) }
    }

    fn least(&mut self, _newcomer: ExpertId, may_go: &mut dyn FnMut(ExpertId) -> bool) -> Victim {
        self.lowest(may_go).map_or(Victim::None, |(.., id)| Victim::Evict(id))
    }

    fn worth(&self, id: ExpertId) -> f64 {
        f64::from(self.chance(id) - self.cost(id.layer))
    }
}
