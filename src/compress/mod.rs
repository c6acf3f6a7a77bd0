//! Making a smaller model of a large one.

pub mod cluster;
mod dots;
pub mod merge;
