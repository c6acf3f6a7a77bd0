//! Which expert is in which slot: the protocol of [`super::slots`] and the choice of [`super::policy`] together.
