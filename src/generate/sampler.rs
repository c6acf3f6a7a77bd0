//! How tokens are chosen.
//!
//! Order: temperature, then top-k, top-p, min-p (as vLLM does), then one draw. Ties rank by the lower id, so greedy
//! decoding and every filter are deterministic. The generator is PCG64 seeded once a generation: the same seed, logits
//! and settings give the same tokens on every machine. What a random word makes of logits is the device's to compute
//! ([`SampleSettings`]); the words come from here.

use rand_core::Rng;
use rand_pcg::Pcg64Mcg;

use crate::device::SampleSettings;
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
    settings: SampleSettings,
    rng: Pcg64Mcg,
}

impl Sampler {
    /// A sampler seeded with `seed`.
    pub fn new(sampling: &Sampling, seed: u64) -> Sampler {
        let Sampling { temperature, top_k, top_p, min_p, .. } = *sampling;
        Sampler {
            settings: SampleSettings { temperature, top_k, top_p, min_p },
            rng: Pcg64Mcg::new(u128::from(seed)),
        }
    }

    /// Chooses a token. `logits` are finite (the forward pass saw to it) and not empty.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        let word = self.word();
        self.settings.token(logits, word)
    }

    /// How to choose.
    pub(super) fn settings(&self) -> &SampleSettings {
        &self.settings
    }

    /// The random word of the next token.
    pub(super) fn word(&mut self) -> u64 {
        self.rng.next_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f32, top_k: usize, top_p: f32, min_p: f32) -> Sampling {
        Sampling { temperature, top_k, top_p, min_p, ..Sampling::default() }
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
