//! Prompts and generations behind a context of some depth.

use abruzzi::{Sampling, Session, Stats};
use indicatif::ProgressBar;
use rand_core::Rng;
use rand_pcg::Pcg64Mcg;
use serde::Serialize;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Prefill,
    Decode,
}

/// A prompt or a generation, measured some times.
pub struct Test {
    /// As llama-bench names it: `pp512`, `tg64`.
    pub name: String,
    pub phase: Phase,
    /// Tokens before it.
    pub depth: usize,
    /// Tokens of it.
    pub tokens: usize,
    /// Tokens a second, a round each.
    pub rates: Vec<f64>,
    /// Bytes a second of plain reads, measured in the same rounds; none where a GPU computes.
    pub reads: Vec<f64>,
    /// What the bytes of experts that had to be brought allow, over the time taken; none where all are at hand.
    pub limit_shares: Vec<f64>,
}

impl Test {
    pub fn prefill(depth: usize, tokens: usize) -> Test {
        Test::new(format!("pp{tokens}"), Phase::Prefill, depth, tokens)
    }

    pub fn decode(depth: usize, tokens: usize) -> Test {
        Test::new(format!("tg{tokens}"), Phase::Decode, depth, tokens)
    }

    fn new(name: String, phase: Phase, depth: usize, tokens: usize) -> Test {
        let (rates, reads, limit_shares) = Default::default();
        Test { name, phase, depth, tokens, rates, reads, limit_shares }
    }
}

/// A session whose timeline is drawn at random, and how far everything is.
pub struct Rounds {
    session: Session,
    rng: Pcg64Mcg,
    vocab: usize,
    bar: ProgressBar,
}

impl Rounds {
    /// Draws from `vocab` tokens, the same with every run.
    pub fn new(session: Session, vocab: usize, bar: ProgressBar) -> Rounds {
        Rounds { session, rng: Pcg64Mcg::new(1), vocab, bar }
    }

    /// Lets the context grow to `depth` tokens.
    pub fn deepen(&mut self, depth: usize) -> abruzzi::Result<()> {
        let missing = depth.saturating_sub(self.session.tokens().len());
        if missing > 0 {
            self.generate(missing, 1)?;
            self.session.rewind(depth);
        }
        Ok(())
    }

    /// Tokens a second of a prompt behind the first `depth` tokens, which alone are kept.
    pub fn prefill(&mut self, depth: usize, tokens: usize) -> abruzzi::Result<f64> {
        self.generate(tokens, 1)?;
        self.session.rewind(depth);
        Ok(self.session.stats().prefill_rate())
    }

    /// What it cost to decode behind the first `depth` tokens, which alone are kept. A token that does not count comes first.
    pub fn decode(&mut self, depth: usize, tokens: usize) -> abruzzi::Result<&Stats> {
        self.generate(1, tokens + 1)?;
        self.session.rewind(depth);
        Ok(self.session.stats())
    }

    /// Writes while the bar is out of the way.
    pub fn quietly<R>(&self, write: impl FnOnce() -> R) -> R {
        self.bar.suspend(write)
    }

    /// Appends `prompt` random tokens and samples `tokens` that follow, at a temperature that does not fall into loops.
    fn generate(&mut self, prompt: usize, tokens: usize) -> abruzzi::Result<()> {
        let mut sampling = Sampling::default();
        (sampling.temperature, sampling.ignore_eos) = (1.0, true);
        (sampling.seed, sampling.max_tokens) = (Some(self.rng.next_u64()), tokens);
        let prompt: Vec<u32> = (0..prompt).map(|_| token(&mut self.rng, self.vocab)).collect();
        let (computed, bar) = (prompt.len() as u64, &self.bar);
        for (i, token) in self.session.generate_tokens(&prompt, &sampling)?.enumerate() {
            token?;
            bar.inc(if i == 0 { computed } else { 1 });
        }
        Ok(())
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Any token of the vocabulary.
fn token(rng: &mut Pcg64Mcg, vocab: usize) -> u32 {
    ((u64::from(rng.next_u32()) * vocab as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_may_be_drawn_and_no_other() {
        let mut rng = Pcg64Mcg::new(1);
        let mut seen = [0; 10];
        for _ in 0..1000 {
            seen[token(&mut rng, 10) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| (60..140).contains(&count)), "{seen:?}");
        // The whole of a vocabulary of any size, which 32 bits hold.
        assert!((0..1000).any(|_| token(&mut rng, u32::MAX as usize) > 4_000_000_000));
    }
}
