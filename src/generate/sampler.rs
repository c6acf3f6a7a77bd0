//! From logits to a token.
//!
//! Order: temperature, then top-k, top-p, min-p (as vLLM does), then one draw. Ties rank by the lower id, so greedy
//! decoding and every filter are deterministic. The generator is PCG64 seeded once a generation: the same seed, logits
//! and settings give the same tokens on every machine.

use rand_core::Rng;
use rand_pcg::Pcg64Mcg;

use crate::error::{Error, Result};

/// How to choose the next token and when to stop.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// 0 takes the most probable token; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep this many most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest most probable tokens whose probabilities reach this sum; in (0, 1].
    pub top_p: f32,
    /// Drop tokens less probable than this share of the most probable one; in [0, 1].
    pub min_p: f32,
    /// Seed of the draws; `None` takes one from the system and reports it in the statistics.
    pub seed: Option<u64>,
    /// Stop after this many tokens.
    pub max_tokens: usize,
    /// Stop before any of these strings.
    pub stop: Vec<String>,
    /// Go on past the model's stop tokens.
    pub ignore_eos: bool,
}

impl Default for Sampling {
    /// Temperature 0.6 as Kimi-K2's authors recommend, top-k 40 and top-p 0.95, at most 128 tokens.
    fn default() -> Sampling {
        Sampling {
            temperature: 0.6,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.0,
            seed: None,
            max_tokens: 128,
            stop: Vec::new(),
            ignore_eos: false,
        }
    }
}

impl Sampling {
    /// Greedy decoding of up to `max_tokens` tokens.
    pub fn greedy(max_tokens: usize) -> Sampling {
        Sampling { temperature: 0.0, max_tokens, ..Sampling::default() }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let check = |name, value: f32, ok: bool, expected: &str| {
            if ok { Ok(()) } else { Err(Error::argument(name, format!("is {value}, expected {expected}"))) }
        };
        let t = self.temperature;
        check("temperature", t, (0.0..=100.0).contains(&t), "0 (greedy) to 100")?;
        check("top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "more than 0 and at most 1")?;
        check("min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "0 to 1")?;
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::argument("stop", "holds an empty string, which would stop at once"));
        }
        Ok(())
    }
}

/// Draws tokens by one [`Sampling`].
#[derive(Debug)]
pub struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    rng: Pcg64Mcg,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler seeded with `seed`.
    pub fn new(sampling: &Sampling, seed: u64) -> Sampler {
        Sampler {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            rng: Pcg64Mcg::new(u128::from(seed)),
            candidates: Vec::new(),
        }
    }

    /// Chooses a token. `logits` are finite (the forward pass saw to it) and not empty.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        if self.temperature == 0.0 {
            return argmax(logits);
        }
        self.rank(logits);
        self.filter();
        self.draw()
    }

    /// Fills `candidates` with (probability up to a factor, id), best first, already cut to top-k and to what top-p
    /// can need.
    fn rank(&mut self, logits: &[f32]) {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: f32| ((logit - max) / self.temperature).exp();
        let total: f64 = logits.iter().map(|&l| f64::from(weight(l))).sum();
        // Tokens below this weight sum to less than 1 − top-p together, so the nucleus never needs one of them.
        let spare = (1.0 - f64::from(self.top_p)) * total / logits.len() as f64;
        self.candidates.clear();
        self.candidates.extend(
            logits
                .iter()
                .enumerate()
                .map(|(id, &l)| (weight(l), id as u32))
                .filter(|(w, _)| f64::from(*w) >= spare),
        );
        let better = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if self.top_k > 0 && self.top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(self.top_k - 1, better);
            self.candidates.truncate(self.top_k);
        }
        self.candidates.sort_unstable_by(better);
    }

    /// Applies top-p (over what top-k kept) and min-p. The best candidate always stays.
    fn filter(&mut self) {
        if self.top_p < 1.0 {
            let total: f64 = self.candidates.iter().map(|c| f64::from(c.0)).sum();
            let enough = total * f64::from(self.top_p);
            let mut sum = 0.0;
            let kept = self.candidates.iter().position(|c| {
                sum += f64::from(c.0);
                sum >= enough
            });
            self.candidates.truncate(kept.map_or(self.candidates.len(), |i| i + 1));
        }
        let least = self.candidates[0].0 * self.min_p;
        let kept = self.candidates.partition_point(|c| c.0 >= least);
        self.candidates.truncate(kept.max(1));
    }

    fn draw(&mut self) -> u32 {
        let total: f64 = self.candidates.iter().map(|c| f64::from(c.0)).sum();
        let uniform = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = uniform * total;
        for &(weight, id) in &self.candidates {
            left -= f64::from(weight);
            if left < 0.0 {
                return id;
            }
        }
        self.candidates[self.candidates.len() - 1].1
    }
}

/// Index of the largest logit, the lowest among equals.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampling(temperature: f32, top_k: usize, top_p: f32, min_p: f32) -> Sampling {
        Sampling { temperature, top_k, top_p, min_p, ..Sampling::default() }
    }

    /// The set of ids the filters leave, straight from their definitions.
    fn naive_support(logits: &[f32], s: &Sampling) -> Vec<u32> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut p: Vec<(f64, u32)> = logits
            .iter()
            .enumerate()
            .map(|(i, &l)| (f64::from(((l - max) / s.temperature).exp()), i as u32))
            .collect();
        p.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        if s.top_k > 0 {
            p.truncate(s.top_k);
        }
        let total: f64 = p.iter().map(|c| c.0).sum();
        let mut sum = 0.0;
        let mut kept = Vec::new();
        for &(w, id) in &p {
            if w >= p[0].0 * f64::from(s.min_p) {
                kept.push(id);
            }
            sum += w;
            if sum >= total * f64::from(s.top_p) && s.top_p < 1.0 {
                break;
            }
        }
        kept
    }

    proptest! {
        #[test]
        fn draws_stay_in_the_naive_support(
            logits in prop::collection::vec(-8.0f32..8.0, 1..60),
            t in 0.3f32..2.0, k in 0usize..20, p in 0.3f32..0.99, m in 0.0f32..0.3, seed: u64,
        ) {
            let s = sampling(t, k, p, m);
            // Top-p after top-k is over what top-k kept; without top-k both agree on the whole.
            let support = naive_support(&logits, &s);
            let mut sampler = Sampler::new(&s, seed);
            for _ in 0..30 {
                let id = sampler.sample(&logits);
                prop_assert!(support.contains(&id), "{id} not in {support:?}");
            }
        }
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0f32, 1.0, 2.0, -1.0];
        let total: f32 = logits.iter().map(|l| l.exp()).sum();
        let mut sampler = Sampler::new(&sampling(1.0, 0, 1.0, 0.0), 7);
        let mut counts = [0u32; 4];
        let n = 200_000;
        for _ in 0..n {
            counts[sampler.sample(&logits) as usize] += 1;
        }
        for (count, logit) in counts.iter().zip(logits) {
            let (got, want) = (*count as f32 / n as f32, logit.exp() / total);
            assert!((got - want).abs() < 0.005, "{got} for {want}");
        }
    }

    #[test]
    fn greedy_takes_the_lowest_id_among_equals() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, -5.0]), 1);
        assert_eq!(argmax(&[-0.0, 0.0]), 0);
    }

    #[test]
    fn bad_settings_are_named() {
        for (s, name) in [
            (sampling(f32::NAN, 0, 1.0, 0.0), "`temperature` is NaN"),
            (sampling(-1.0, 0, 1.0, 0.0), "`temperature` is -1"),
            (sampling(1.0, 0, 0.0, 0.0), "`top-p` is 0"),
            (sampling(1.0, 0, 1.5, 0.0), "`top-p` is 1.5"),
            (sampling(1.0, 0, 1.0, 2.0), "`min-p` is 2"),
            (Sampling { stop: vec![String::new()], ..Sampling::default() }, "`stop` holds an empty string"),
        ] {
            let message = s.validate().unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }
}
