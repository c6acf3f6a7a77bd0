//! Routing of no model, that can be cached as well as the published ones.

use rand_core::Rng;
use rand_pcg::Pcg64Mcg;

use super::RoutingTrace;
use crate::error::{Error, Result};

/// Makes routing that a cache serves as well as it serves large mixtures of experts by published figures.
///
/// In each layer a token's expert is, by chance, one of the token before; one of the layer's *topic*, a set of experts that
/// changes slowly and has busy members and idle ones; or any expert, by a popularity that never changes (Zipf's law,
/// ranks in an order of the layer's own). `docs/notes/policies.md` has the fit.
#[derive(Debug, Clone, PartialEq)]
pub struct SyntheticTrace {
    /// Layers with experts, counted over all layers, ascending.
    pub layers: Vec<u32>,
    /// Experts of a layer.
    pub experts: usize,
    /// Experts a token uses in a layer.
    pub top_k: usize,
    /// Tokens, each decoded alone.
    pub tokens: usize,
    /// The same seed gives the same trace.
    pub seed: u64,
}

/// Chance that a rank keeps the expert of the token before.
const STICKY: f64 = 0.18;
/// Chance that it takes one of the topic, else.
const TOPIC: f64 = 0.8;
/// Experts of a topic, by experts of the layer.
const TOPIC_SIZE: f64 = 0.32;
/// Chance, with each token and rank, that one of the topic's experts is replaced.
const DRIFT: f64 = 0.005;
/// The exponent of popularity.
const ZIPF: f64 = 0.64;

impl SyntheticTrace {
    /// Kimi-K2's shape: 60 layers after one dense one, 384 experts, 8 a token.
    pub fn kimi_k2(tokens: usize, seed: u64) -> SyntheticTrace {
        SyntheticTrace { layers: (1..=60).collect(), experts: 384, top_k: 8, tokens, seed }
    }
}

impl RoutingTrace {
    /// A trace of no model.
    ///
    /// # Errors
    /// [`Error::Argument`] for a shape no model has.
    pub fn synthetic(of: &SyntheticTrace) -> Result<RoutingTrace> {
        let mut trace = RoutingTrace::new(of.layers.clone(), of.experts, of.top_k)?;
        let popularity = Popularity::new(of.experts);
        let mut rng = Pcg64Mcg::new(u128::from(of.seed) << 64 | 0x5851_f42d_4c95_7f2d);
        let mut layers: Vec<Layer> =
            of.layers.iter().map(|_| Layer::new(&popularity, of.experts, of.top_k, &mut rng)).collect();
        let mut row = Vec::with_capacity(of.layers.len() * of.top_k);
        for _ in 0..of.tokens {
            row.clear();
            for layer in &mut layers {
                layer.step(&popularity, &mut rng);
                row.extend_from_slice(&layer.last);
            }
            trace.push(&row).map_err(|e| Error::argument("layers", e.to_string()))?;
        }
        Ok(trace)
    }
}

/// Zipf's law over ranks, drawn by bisection of its running sum.
struct Popularity {
    running: Vec<f64>,
}

impl Popularity {
    fn new(experts: usize) -> Popularity {
        let mut sum = 0.0;
        let weights = (1..=experts).map(|rank| (rank as f64).powf(-ZIPF));
        Popularity {
            running: weights
                .map(|w| {
                    sum += w;
                    sum
                })
                .collect(),
        }
    }

    fn rank(&self, rng: &mut Pcg64Mcg) -> usize {
        let total = self.running[self.running.len() - 1];
        let at = uniform(rng) * total;
        self.running.partition_point(|&sum| sum <= at).min(self.running.len() - 1)
    }
}

struct Layer {
    /// The expert of each popularity rank.
    ranks: Vec<u16>,
    topic: Vec<u16>,
    /// What the last token used.
    last: Vec<u16>,
    next: Vec<u16>,
}

impl Layer {
    fn new(popularity: &Popularity, experts: usize, top_k: usize, rng: &mut Pcg64Mcg) -> Layer {
        let mut ranks: Vec<u16> = (0..experts).map(|e| e as u16).collect();
        for i in (1..experts).rev() {
            ranks.swap(i, below(rng, i + 1));
        }
        let size = ((experts as f64 * TOPIC_SIZE) as usize).max(1);
        let topic = (0..size).map(|_| ranks[popularity.rank(rng)]).collect();
        let last = ranks[..top_k].to_vec();
        Layer { ranks, topic, last, next: Vec::with_capacity(top_k) }
    }

    /// A member of the topic, busy ones more often: half of the draws go to the first eighth.
    fn busy(&self, rng: &mut Pcg64Mcg) -> usize {
        let at = uniform(rng);
        ((at * at * at * self.topic.len() as f64) as usize).min(self.topic.len() - 1)
    }

    fn step(&mut self, popularity: &Popularity, rng: &mut Pcg64Mcg) {
        self.next.clear();
        for rank in 0..self.last.len() {
            if uniform(rng) < DRIFT {
                let at = below(rng, self.topic.len());
                self.topic[at] = self.ranks[popularity.rank(rng)];
            }
            // Ids of a token are distinct: what is taken already is drawn again, at last in order.
            let mut tries = 0;
            let id = loop {
                let id = match tries {
                    0 if uniform(rng) < STICKY => self.last[rank],
                    0..4 if uniform(rng) < TOPIC => self.topic[self.busy(rng)],
                    0..32 => self.ranks[popularity.rank(rng)],
                    _ => self.ranks[(tries - 32) % self.ranks.len()],
                };
                if !self.next.contains(&id) {
                    break id;
                }
                tries += 1;
            };
            self.next.push(id);
        }
        std::mem::swap(&mut self.last, &mut self.next);
    }
}

/// In [0, 1).
fn uniform(rng: &mut Pcg64Mcg) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

fn below(rng: &mut Pcg64Mcg, n: usize) -> usize {
    ((uniform(rng) * n as f64) as usize).min(n - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_trace() {
        let of = |seed, tokens| RoutingTrace::synthetic(&SyntheticTrace::kimi_k2(tokens, seed)).unwrap();
        let trace = of(1, 20);
        assert_eq!((trace.tokens(), trace.working_set(), trace.all_experts()), (20, 480, 23_040));
        assert_eq!(trace, of(1, 20));
        assert_eq!(trace.head(10), of(1, 10));
        assert_ne!(trace, of(2, 20));
    }

    /// Every expert of a layer at once leaves nothing to draw, one expert nothing to choose.
    #[test]
    fn extreme_shapes() {
        for (experts, top_k) in [(1, 1), (4, 4), (3, 2)] {
            let shape = SyntheticTrace { layers: vec![0, 7], experts, top_k, tokens: 50, seed: 3 };
            assert_eq!(RoutingTrace::synthetic(&shape).unwrap().tokens(), 50);
        }
        let none = SyntheticTrace { layers: vec![], experts: 4, top_k: 1, tokens: 5, seed: 3 };
        assert!(matches!(RoutingTrace::synthetic(&none), Err(Error::Argument { name: "layers", .. })));
    }
}
