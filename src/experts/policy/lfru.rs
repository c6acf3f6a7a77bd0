//! Frequency and recency in one number.

use super::ranked::{PerExpert, Ranked, rank_of};
use super::{ExpertId, Passes, Policy, Victim};

/// Passes after which a use counts half.
const HALF_LIFE: f64 = 16.0;

/// Keeps what has the most uses, each counting less the longer ago it was (LRFU, Lee et al. 2001).
///
/// The sum over uses of 2^((t − now) / half-life) falls by the same factor for all between uses, so the logarithm of
/// the sum of 2^(t / half-life) orders them at any time and changes only at a use.
#[derive(Debug, Default)]
pub struct Lfru {
    residents: Ranked,
    /// The logarithm, to base 2; with the pass of the last use.
    scores: PerExpert<Option<(u32, f64)>>,
    passes: Passes,
}

impl Lfru {
    /// Without residents.
    pub fn new() -> Lfru {
        Lfru::default()
    }

    fn score(&self, id: ExpertId) -> f64 {
        self.scores.get(id).map_or(f64::MIN, |(_, score)| score)
    }
}

impl Policy for Lfru {
    fn name(&self) -> &'static str {
        "lfru"
    }

    fn touch(&mut self, id: ExpertId) {
        let known = self.scores.get(id);
        let now = self.passes.touch(id.layer, known.is_some_and(|(pass, _)| pass == self.passes.now));
        let use_now = f64::from(now) / HALF_LIFE;
        let score = known.map_or(use_now, |(_, score)| {
            let (high, low) = if score > use_now { (score, use_now) } else { (use_now, score) };
            high + (low - high).exp2().ln_1p() / std::f64::consts::LN_2
        });
        *self.scores.get_mut(id) = Some((now, score));
        if self.residents.contains(id) {
            self.residents.set(id, rank_of(score));
        }
    }

    fn insert(&mut self, id: ExpertId) {
        self.residents.set(id, rank_of(self.score(id)));
    }

    fn remove(&mut self, id: ExpertId) {
        self.residents.remove(id);
    }

    fn victim(&mut self, _newcomer: ExpertId, may_go: &mut dyn FnMut(ExpertId) -> bool) -> Victim {
        self.residents.victim(u64::MAX, may_go)
    }

    fn worth(&self, id: ExpertId) -> f64 {
        self.score(id)
    }
}
