//! Sizes and rates of the device the kernels are written for, and how many blocks of a kernel it holds: the emulator's
//! own source, so that a gate and a modelled time never disagree. Included and not linked: whoever fetches the
//! toolchain or checks formatting need not build an emulator first.
#![allow(dead_code, reason = "the emulator uses more of it")]

#[path = "../../emulator/src/clock/occupancy.rs"]
mod occupancy;
#[path = "../../emulator/src/clock/profile.rs"]
mod profile;

pub use occupancy::{Footprint, blocks_per_sm};
pub use profile::{Limits, Profile};
