//! Kernels that nobody here wrote, compiled by nvcc and run on the emulator: exact results under every schedule, with
//! every check on and no finding.
//!
//! * `cute`: CuTe's Hopper tutorials (wgmma fed by cp.async, wgmma fed by TMA), launched as CuTe's own host code does.
//! * `cub`: CUB's block and warp collectives, and a decoupled look-back scan.
//! * `ops`, `math`, `flow`: our own kernels over the instruction forms that nvcc makes of C++ (libdevice's functions
//!   among them), against what the host computes.
//!
//! nvcc is needed (`cargo xtask toolchain --cutlass`; `cargo xtask test` does it by itself); without it the tests fail.
//! `--nocapture` shows the tables.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "conformance/cub.rs"]
mod cub;
#[path = "conformance/cute.rs"]
mod cute;
#[path = "conformance/device.rs"]
mod device;
#[path = "conformance/flow.rs"]
mod flow;
#[path = "conformance/math.rs"]
mod math;
#[path = "conformance/ops.rs"]
mod ops;
#[path = "conformance/report.rs"]
mod report;
