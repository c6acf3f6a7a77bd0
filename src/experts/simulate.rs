//! Replays a routing trace through the real policy, schedule and prefetch code on modelled hardware.
//!
//! Residency is decided by the [`Cache`](super::cache::Cache) and policies of the engine, misses are divided by
//! [`schedule::split`](super::schedule::split) from rates that are learned as the engine learns them, and copies ahead
//! of need are the [`Prefetcher`](super::prefetch::Prefetcher)'s. What is modelled: how long things take ([`Machine`],
//! [`Workload`]), and the guesses of the next layer. `docs/notes/simulate.md` has the model, its limits and its results.

mod chart;
mod guess;
mod machine;
mod report;
mod step;

use super::policy::{Belady, CachePolicy, Policy};
use super::trace::RoutingTrace;
use crate::error::{Error, Result};

pub use chart::chart;
pub use machine::{Machine, Workload};
pub use report::Report;

/// Which policy is replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replayed {
    /// One that the engine can run.
    Policy(CachePolicy),
    /// The one that knows the trace's future: what no policy exceeds.
    Belady,
}

impl std::fmt::Display for Replayed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Replayed::Policy(policy) => policy.fmt(f),
            Replayed::Belady => f.pad("belady"),
        }
    }
}

impl std::str::FromStr for Replayed {
    type Err = Error;

    fn from_str(text: &str) -> Result<Replayed> {
        if text == "belady" {
            return Ok(Replayed::Belady);
        }
        text.parse().map(Replayed::Policy).map_err(|_| {
            let known: Vec<_> = CachePolicy::ALL.iter().map(ToString::to_string).collect();
            Error::argument("policy", format!("is {text:?}, expected one of {}, belady", known.join(", ")))
        })
    }
}

impl Replayed {
    fn build(self, slots: usize, trace: &RoutingTrace) -> Box<dyn Policy> {
        match self {
            Replayed::Policy(policy) => {
                let layers = trace.layers().last().map_or(0, |&l| l as usize + 1);
                policy.build(slots, layers, trace.experts(), trace.top_k())
            }
            Replayed::Belady => Box::new(Belady::new(trace)),
        }
    }
}

/// How a trace is replayed.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Replay {
    /// The policy of the slots, and of host memory where a disk lies below it.
    pub policy: Replayed,
    /// Slots; `None` takes what the machine has room for.
    pub slots: Option<usize>,
    /// Whether experts are copied ahead of need.
    pub prefetch: bool,
    /// Seed of the modelled guesses.
    pub seed: u64,
}

impl Default for Replay {
    fn default() -> Replay {
        Replay { policy: Replayed::Policy(CachePolicy::default()), slots: None, prefetch: true, seed: 0 }
    }
}

/// Replays a trace, each token as if decoded alone. The first fifth fills the tiers and is not counted.
///
/// # Errors
/// [`Error::Argument`] if the trace is not of this workload's shape or has no tokens to count, or if there are no
/// slots.
pub fn simulate(trace: &RoutingTrace, of: &Workload, on: &Machine, how: &Replay) -> Result<Report> {
    let shape = (trace.layers().len(), trace.experts(), trace.top_k());
    let expected = (of.layers, of.experts, of.top_k);
    if shape != expected {
        let say = |(l, e, k)| format!("{l} layers of {e} experts, {k} a token");
        return Err(Error::argument("trace", format!("has {}, the model has {}", say(shape), say(expected))));
    }
    if trace.tokens() < 5 {
        return Err(Error::argument("trace", format!("has {} tokens, expected 5 or more", trace.tokens())));
    }
    let all = of.layers * of.experts;
    let (room, streamed) = of.slots(on);
    let slots = how.slots.unwrap_or(room);
    if !(1..=all).contains(&slots) {
        return Err(Error::argument("slots", format!("is {slots}, expected 1 to {all} (every expert)")));
    }
    let decoded = trace.head(trace.tokens());
    let mut run = step::Run::new(&decoded, of, on, how, slots, streamed);
    let warm = trace.tokens() / 5;
    for token in 0..warm {
        run.token(token);
    }
    run.begin_counting();
    for token in warm..trace.tokens() {
        run.token(token);
    }
    Ok(run.report())
}
