//! The `cu*` functions: a CUDA driver in front of an [`Engine`].
//!
//! Programs find this library under the name `libcuda.so.1` and must not notice a difference they did not ask for:
//! streams are queues, errors of kernels stick to their context, pageable copies hold the host up. What a GPU would let
//! pass, or punish at random, becomes a finding: printed at once, kept for tests, and fatal to the context.
//!
//! One lock guards everything; kernels and host functions run outside it. Work is executed by the threads that call
//! the driver, at once or when something waits for it (see [`crate::settings::Schedule`]), so that the same calls give
//! the same run.

#[macro_use]
mod call;
mod api;
mod args;
mod engine;
mod faults;
mod image;
mod interpreter;
mod options;
mod output;
mod session;
mod state;
mod status;
mod streams;
mod work;

pub use engine::{Engine, KernelInfo, Launch, LoadCode, LoadError, Module, TensorMapRequest, set_engine};
pub use options::{Changes, Options, OptionsError};
pub use status::Status;
