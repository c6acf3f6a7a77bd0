//! Making a smaller or differently stored model out of a checkpoint.
//!
//! A [`Selection`] says which layers and experts stay, a [`Target`] how they are stored, a [`Healing`] what is mended; a
//! [`Recipe`] of these reads a checkpoint piece by piece and writes another. Every shared expert, norm, the embedding and
//! the head of what is kept are kept; there is no way to ask otherwise.

mod choose;
pub mod cluster;
mod count;
mod dots;
mod heal;
mod kept;
mod layers;
mod lists;
pub mod merge;
mod merging;
mod plan;
mod produce;
mod provenance;
mod recipe;
mod select;
mod sidecar;
mod target;

pub use choose::Method;
pub use count::{Estimate, Fate, Share};
pub use heal::{Healing, LayerHealing};
pub use layers::Layers;
pub use lists::ExpertLists;
pub use recipe::{CompressReport, Recipe};
pub use select::{Group, Selection};
pub use target::Target;
