//! What the residency protocol synchronises with. The model checker's test puts its own in this place.

pub(super) use std::sync::Arc;
pub(super) use std::sync::atomic::{AtomicU64, Ordering};

/// The transition that is carried out for `step`: itself. The model checker's test alters one at a time, to show that it
/// would notice.
#[inline(always)]
pub(super) const fn in_force(step: super::slots::Step) -> super::slots::Step {
    step
}
