//! Making a smaller or differently stored model out of a checkpoint.
//!
//! A [`Selection`] says which layers and experts stay, a [`Target`] how they are stored, a [`Healing`] what is mended; a
//! [`Recipe`] of these reads a checkpoint piece by piece and writes another. Every shared expert, norm, the embedding and
//! the head of what is kept are kept; there is no way to ask otherwise.

pub mod calibrate;
mod choose;
pub mod cluster;
mod count;
pub mod distill;
mod dots;
mod heal;
mod kept;
mod layers;
mod lists;
pub mod merge;
mod merging;
mod plan;
mod produce;
mod proof;
mod provenance;
mod recipe;
pub mod report;
mod ridge;
mod select;
mod sidecar;
mod stages;
mod target;
mod text;

pub use choose::Method;
pub use count::{Estimate, Fate, Share};
pub use heal::{Healing, LayerHealing};
pub use layers::Layers;
pub use lists::ExpertLists;
pub use proof::{Proof, Trial};
pub use recipe::{CompressReport, Recipe};
pub use select::{Group, Selection};
pub use stages::{Compressed, Compression, Step, Tell};
pub use target::Target;
pub use text::Text;
