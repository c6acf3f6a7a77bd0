//! Runs Kimi-K2-class mixture-of-experts models: every expert kept, none resident that need not be.
//!
//! ```no_run
//! use abruzzi::{Engine, Sampling, SessionOptions};
//!
//! # fn main() -> abruzzi::Result<()> {
//! let engine = Engine::builder("models/demo").load()?;
//! let mut session = engine.session(SessionOptions::default())?;
//! for token in session.generate("In the beginning", &Sampling::default())? {
//!     print!("{}", token?.text);
//! }
//! println!("\n{}", session.stats());
//! # Ok(())
//! # }
//! ```
//!
//! The core is synchronous, has no global state, and an [`Engine`] is shared between threads; dropping a
//! [`Generation`] cancels it.

mod chart;
pub mod checkpoint;
pub mod compress;
pub mod config;
pub mod device;
pub mod error;
pub mod evaluate;
pub mod experts;
pub mod generate;
pub mod model;
pub mod quant;
mod simd;
pub mod synth;
pub mod telemetry;
pub mod tokenizer;

pub use checkpoint::{Checkpoint, LoadOptions, LoadProgress, VerifyReport, verify};
pub use config::ModelConfig;
pub use error::{Error, Fault, FaultKind, FaultList, NonFinite, Result};
pub use generate::{
    CancelToken, DeviceChoice, Engine, EngineBuilder, FinishReason, Generation, Sampling, Session,
    SessionOptions, Stats, Token,
};
pub use synth::{Synth, SynthReport};
pub use telemetry::Tracer;
pub use tokenizer::{ChatTemplate, Message, Tokenizer};
