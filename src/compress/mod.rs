//! Making a smaller or differently stored model out of a checkpoint.

mod heal;
mod layers;
mod lists;
mod select;
mod target;

pub use heal::{Healing, LayerHealing};
pub use layers::Layers;
pub use lists::ExpertLists;
pub use select::{Group, Selection};
pub use target::Target;
