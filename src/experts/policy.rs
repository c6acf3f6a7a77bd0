//! Which resident expert makes room for another.

use super::ExpertId;

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
