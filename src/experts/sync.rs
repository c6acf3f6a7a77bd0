//! What the residency protocol synchronises with. The model checker's test puts its own in this place.

pub(super) use std::sync::Arc;
pub(super) use std::sync::atomic::{AtomicU64, Ordering};
