//! What a generation cost.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::experts::stats::ExpertStats;

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model produced a stop token.
    Stop,
    /// A stop string appeared.
    StopString,
    /// `max_tokens` were generated.
    Length,
    /// The context is full.
    Context,
}

/// Statistics of a session's last generation.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Prompt tokens that had to be computed (the cache's common prefix is not among them).
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// Seconds the prompt took.
    pub prefill_seconds: f64,
    /// Seconds of each generated token's forward pass, in order.
    #[serde(skip)]
    pub decode: Vec<Duration>,
    /// For each of these the least seconds it could have taken, by the bytes of experts it needed from each tier and the
    /// rates seen so far ([`ExpertStats::limit_seconds`]); empty as [`Stats::experts`] is.
    #[serde(skip)]
    pub limits: Vec<Duration>,
    /// Where experts were found; `None` if all are where they are computed. What other sessions of the engine did in
    /// the meantime is among it.
    pub experts: Option<ExpertStats>,
    /// Seed of the draws.
    pub seed: u64,
    /// Why it ended; `None` while it runs or if it was cancelled or failed.
    pub finish: Option<FinishReason>,
}

impl Stats {
    /// Prompt tokens a second.
    pub fn prefill_rate(&self) -> f64 {
        rate(self.prompt_tokens, self.prefill_seconds)
    }

    /// Generated tokens a second, the prompt's pass not counted.
    pub fn decode_rate(&self) -> f64 {
        rate(self.decode.len(), self.decode.iter().sum::<Duration>().as_secs_f64())
    }

    /// The physical limit's share of the last decode step's time; `None` before the first, or if no expert has to be brought.
    pub fn last_limit_share(&self) -> Option<f64> {
        limit_share(self.limits.last()?, self.decode.last()?)
    }

    /// The same of all decode steps together.
    pub fn limit_share(&self) -> Option<f64> {
        limit_share(&self.limits.iter().sum(), &self.decode.iter().sum())
    }

    /// The time that a share `p` (0 to 1) of the decode steps stayed within.
    pub fn decode_percentile(&self, p: f64) -> Duration {
        let mut sorted = self.decode.clone();
        sorted.sort_unstable();
        let index = (p * sorted.len().saturating_sub(1) as f64).round() as usize;
        sorted.get(index).copied().unwrap_or_default()
    }
}

fn limit_share(limit: &Duration, took: &Duration) -> Option<f64> {
    (!limit.is_zero() && !took.is_zero()).then(|| limit.as_secs_f64() / took.as_secs_f64())
}

fn rate(count: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        write!(
            f,
            "prefill {} tokens, {:.1} tok/s; decode {} tokens, {:.1} tok/s (p50 {:.1} ms, p99 {:.1} ms); seed {}",
            self.prompt_tokens,
            self.prefill_rate(),
            self.generated_tokens,
            self.decode_rate(),
            ms(self.decode_percentile(0.5)),
            ms(self.decode_percentile(0.99)),
            self.seed,
        )
    }
}
