//! Which resident expert makes room for another.

mod belady;
mod evaluate;
mod foretold;
mod lfru;
mod lru;
mod ranked;
mod reuse;
mod s3_fifo;
mod static_hot;

use std::fmt;
use std::str::FromStr;

use super::ExpertId;
use crate::error::Error;

pub use belady::Belady;
pub use evaluate::{HitRate, evaluate};
pub use foretold::Foretold;
pub use lfru::Lfru;
pub use lru::Lru;
pub use reuse::Reuse;
pub use s3_fifo::S3Fifo;
pub use static_hot::StaticHot;

/// Decides what a tier keeps. It knows experts, not slots: the cache tells it what is used, what came and what went.
pub trait Policy: Send {
    /// As the command line and reports name it.
    fn name(&self) -> &'static str;

    /// A forward pass used the expert, resident or not. Called once a token (once a chunk in prefill) and expert, in
    /// the order of layers.
    fn touch(&mut self, id: ExpertId);

    /// The expert became resident.
    fn insert(&mut self, id: ExpertId);

    /// The expert is no longer resident.
    fn remove(&mut self, id: ExpertId);

    /// What goes so that `newcomer` can come, among the residents that `may_go` allows (leased and needed ones may not).
    fn victim(&mut self, newcomer: ExpertId, may_go: &mut dyn FnMut(ExpertId) -> bool) -> Victim;

    /// What would go for a newcomer that may be worth more than the policy can know, because it was guessed: as
    /// [`victim`](Policy::victim), but a policy that passes newcomers over does not pass over this one.
    fn least(&mut self, newcomer: ExpertId, may_go: &mut dyn FnMut(ExpertId) -> bool) -> Victim {
        self.victim(newcomer, may_go)
    }

    /// How much the expert is worth keeping, comparable between experts at one time: prefetching never evicts what is
    /// worth more than what it brings.
    fn worth(&self, id: ExpertId) -> f64;
}

/// What a policy answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// This resident goes.
    Evict(ExpertId),
    /// Residents that may go are all worth more than the newcomer: whoever can use it without keeping it should.
    Bypass,
    /// Nothing may go now.
    None,
}

/// The policies that need no knowledge of the future.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum CachePolicy {
    /// [`Reuse`]: what will probably be used soon stays.
    #[default]
    Reuse,
    /// [`Lru`]: what was used last stays.
    Lru,
    /// [`Lfru`]: what was used often, lately, stays.
    Lfru,
    /// [`S3Fifo`]: what was used again before it left a small queue stays.
    S3Fifo,
    /// [`StaticHot`]: what was used most since the start stays.
    Static,
}

impl CachePolicy {
    /// Every policy.
    pub const ALL: [CachePolicy; 5] =
        [CachePolicy::Reuse, CachePolicy::Lru, CachePolicy::Lfru, CachePolicy::S3Fifo, CachePolicy::Static];

    /// The policy for a tier of `slots` places and a model of `layers` layers (dense ones counted) with `experts`
    /// experts, `top_k` of them used by a token.
    pub fn build(self, slots: usize, layers: usize, experts: usize, top_k: usize) -> Box<dyn Policy> {
        // How many slots, and how large a token's working set is, the policies see from what comes and goes.
        let _ = (layers, experts, top_k);
        match self {
            CachePolicy::Reuse => Box::new(Reuse::new()),
            CachePolicy::Lru => Box::new(Lru::new()),
            CachePolicy::Lfru => Box::new(Lfru::new()),
            CachePolicy::S3Fifo => Box::new(S3Fifo::new(slots)),
            CachePolicy::Static => Box::new(StaticHot::learning()),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            CachePolicy::Reuse => "reuse",
            CachePolicy::Lru => "lru",
            CachePolicy::Lfru => "lfru",
            CachePolicy::S3Fifo => "s3-fifo",
            CachePolicy::Static => "static",
        }
    }
}

impl fmt::Display for CachePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for CachePolicy {
    type Err = Error;

    fn from_str(text: &str) -> Result<CachePolicy, Error> {
        CachePolicy::ALL.into_iter().find(|p| p.as_str() == text).ok_or_else(|| {
            let known: Vec<_> = CachePolicy::ALL.iter().map(|p| p.as_str()).collect();
            Error::argument("cache-policy", format!("is {text:?}, expected one of {}", known.join(", ")))
        })
    }
}

/// Tells one forward pass from the next by the order of layers. (A model with a single layer of experts shows where a pass
/// ends only when an expert comes again.)
#[derive(Debug, Default)]
struct Passes {
    /// The pass now, from 1 on; 0 before the first use.
    now: u32,
    layer: u32,
}

impl Passes {
    /// A use of an expert of `layer`, which this pass used `already` or not; returns the pass it belongs to.
    fn touch(&mut self, layer: u32, already: bool) -> u32 {
        if self.now == 0 || layer < self.layer || (layer == self.layer && already) {
            self.now += 1;
        }
        self.layer = layer;
        self.now
    }
}

#[cfg(test)]
mod tests;
