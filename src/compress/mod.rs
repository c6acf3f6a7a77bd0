//! Smaller models from larger ones, with proof.

pub mod calibrate;
pub mod distill;
mod ridge;
