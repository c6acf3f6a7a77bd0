//! Engine and session: what an application holds.
//!
//! An [`Engine`] is a loaded model, shared between threads. A [`Session`] is one mutable timeline of tokens on it. A
//! [`Generation`] borrows the session and yields tokens; dropping it cancels, and the session stays usable.

mod choice;
mod engine;
mod sampler;
mod session;
mod stats;
mod stop;

pub use choice::DeviceChoice;
pub use engine::{Engine, EngineBuilder};
pub use sampler::{Sampler, Sampling};
pub use session::{CancelToken, Generation, Session, SessionOptions, Token};
pub use stats::{FinishReason, Stats};
