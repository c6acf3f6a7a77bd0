//! Execution: PTX lowered to operations, warps of 32 lanes, blocks, and everything asynchronous.

#![allow(
    clippy::needless_range_loop,
    reason = "a lane is a number, and indexed loops over 32 lanes are what the compiler turns into vector code"
)]

mod access;
mod access_checks;
mod asynchronous;
mod atomic;
mod barrier;
mod block;
mod granules;
mod grid;
mod interleave;
mod isa;
mod load_store;
mod lower;
mod matrix;
mod mbarrier;
mod module;
mod op;
mod owned;
mod pending;
mod predicate;
mod print;
mod race;
mod run;
mod sectors;
mod shared;
mod tensor_ops;
mod warp;
mod warp_ops;
mod wgmma;

pub use grid::Launch;
pub use lower::LowerError;
pub use module::{LoadError, Module};
pub use op::Program;
