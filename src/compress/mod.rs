//! Smaller models from larger ones, with proof.

pub mod calibrate;
pub mod distill;
pub mod report;
mod ridge;
