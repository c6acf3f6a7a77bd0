//! The default: what will probably be used soon.

use super::ranked::PerExpert;
use super::{ExpertId, Passes, Policy, Victim};

/// Keeps what is likeliest to be used, for the time it has to be kept until then.
///
/// An expert can be used once a pass, when its layer comes. Its chance of that is estimated from its past uses, each
/// counting less the longer ago it was, on two scales at once: the last few tokens and the subject. Keeping it costs
/// a slot until its layer comes; a slot of that time is worth the chance at which experts are being given up.
/// So what is kept is worth chance − price × (share of a pass until its layer comes): experts of layers just done make room
/// first, which is what a cycle over layers asks for and least recent use gets wrong.
#[derive(Debug, Default)]
pub struct Reuse {
    history: PerExpert<History>,
    layers: Vec<Layer>,
    residents: usize,
    passes: Passes,
    /// Chances at which residents were given up, averaged.
    price: f32,
    /// The place in its layer up to which candidates were refused, by layer; scratch of [`Reuse::victim`].
    refused: Vec<usize>,
}

/// The past of an expert, as of pass `at`.
#[derive(Debug, Clone, Copy, Default)]
struct History {
    at: u32,
    lately: f32,
    long: f32,
}

/// Passes over which the recent past and the subject are averaged.
const LATELY: f32 = 3.0;
const LONG: f32 = 60.0;
/// The share of the recent past in the estimate.
const SHARE: f32 = 0.3;

impl History {
    fn aged(self, now: u32) -> History {
        let passes = now.saturating_sub(self.at) as f32;
        History {
            at: now,
            lately: self.lately * (1.0 - 1.0 / LATELY).powf(passes),
            long: self.long * (1.0 - 1.0 / LONG).powf(passes),
        }
    }

    fn used(self, now: u32) -> History {
        let aged = self.aged(now);
        History { at: now, lately: aged.lately + 1.0 / LATELY, long: aged.long + 1.0 / LONG }
    }

    /// The chance of a use in the pass after `now`.
    fn chance(self, now: u32) -> f32 {
        let aged = self.aged(now);
        SHARE * aged.lately + (1.0 - SHARE) * aged.long
    }
}

/// Residents of a layer.
#[derive(Debug, Default)]
struct Layer {
    /// The pass whose uses the chances know of.
    pass: u32,
    /// (chance, expert), lowest first when `sorted`.
    residents: Vec<(f32, u32)>,
    sorted: bool,
}

impl Reuse {
    /// Without residents.
    pub fn new() -> Reuse {
        Reuse::default()
    }

    fn layer(&mut self, layer: u32) -> &mut Layer {
        let layer = layer as usize;
        if layer >= self.layers.len() {
            self.layers.resize_with(layer + 1, Layer::default);
        }
        &mut self.layers[layer]
    }

    /// The share of a pass until `layer` comes.
    fn wait(&self, layer: u32) -> f32 {
        let all = self.layers.len() as u32;
        let ahead = if layer > self.passes.layer {
            layer - self.passes.layer
        } else {
            layer + all - self.passes.layer
        };
        ahead as f32 / all.max(1) as f32
    }
}

impl Policy for Reuse {
    fn name(&self) -> &'static str {
        "reuse"
    }

    fn touch(&mut self, id: ExpertId) {
        let history = self.history.get(id);
        let now = self.passes.touch(id.layer, history.at == self.passes.now);
        *self.history.get_mut(id) = history.used(now);
        let layer = self.layer(id.layer);
        layer.sorted = false;
        layer.pass = now;
    }

    fn insert(&mut self, id: ExpertId) {
        let layer = self.layer(id.layer);
        if layer.residents.iter().all(|&(_, expert)| expert != id.expert) {
            layer.residents.push((0.0, id.expert));
            layer.sorted = false;
        }
    }

    fn remove(&mut self, id: ExpertId) {
        let layer = self.layer(id.layer);
        layer.residents.retain(|&(_, expert)| expert != id.expert);
    }

    fn victim(&mut self, newcomer: ExpertId, may_go: &mut dyn FnMut(ExpertId) -> bool) -> Victim {
        let mut best: Option<(f32, f32, ExpertId)> = None;
        for at in 0..self.layers.len() {
            let number = at as u32;
            let layer = &mut self.layers[at];
            if !layer.sorted {
                for (chance, expert) in &mut layer.residents {
                    *chance =
                        self.history.get(ExpertId { layer: number, expert: *expert }).chance(layer.pass);
                }
                layer.residents.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                layer.sorted = true;
            }
            let wait = self.wait(number);
            for &(chance, expert) in &self.layers[at].residents {
                let worth = chance - self.price * wait;
                if best.is_some_and(|(w, ..)| w <= worth) {
                    break;
                }
                let id = ExpertId { layer: number, expert };
                if may_go(id) {
                    best = Some((worth, chance, id));
                    break;
                }
            }
        }
        let Some((worth, chance, id)) = best else { return Victim::None };
        let arriving = self.history.get(newcomer).chance(self.passes.now);
        self.price += (chance.min(arriving) - self.price) * 0.01;
        if arriving - self.price * self.wait(newcomer.layer) < worth {
            Victim::Bypass
        } else {
            Victim::Evict(id)
        }
    }

    fn worth(&self, id: ExpertId) -> f64 {
        let pass = self.layers.get(id.layer as usize).map_or(0, |l| l.pass);
        f64::from(self.history.get(id).chance(pass) - self.price * self.wait(id.layer))
    }
}
