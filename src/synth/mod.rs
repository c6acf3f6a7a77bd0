//! Random checkpoints of true dimensions, for benchmarks of models too large to keep or to download.
//!
//! The tensors are those the loader expects of the configuration, taken from the same description; the values are such
//! that the forward pass stays finite and lively. A checkpoint depends on its options alone, not on threads or machine,
//! and comes into being whole or not at all.

mod fill;
mod like;
mod plan;
mod write;

use std::path::Path;

pub use write::SynthReport;

use crate::checkpoint::LoadOptions;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::quant::Format;

/// Bytes of tensors in a shard at most, as the large checkpoints have it.
const SHARD_BYTES: u64 = 5_000_000_000;

/// What to write.
///
/// ```no_run
/// use abruzzi::{LoadOptions, Synth};
///
/// # fn main() -> abruzzi::Result<()> {
/// let report = Synth::like("kimi-k2").layers(2).experts(32).write("k2-small".as_ref(), &LoadOptions::default())?;
/// println!("{} bytes in {} shards", report.bytes, report.shards);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Synth {
    like: String,
    layers: Option<usize>,
    experts: Option<usize>,
    format: Option<Format>,
    seed: u64,
    shard_bytes: u64,
}

impl Synth {
    /// Like a model by name ([`Synth::names`]) or like the `config.json` at a path.
    pub fn like(model: impl Into<String>) -> Synth {
        let like = model.into();
        Synth { like, layers: None, experts: None, format: None, seed: 0, shard_bytes: SHARD_BYTES }
    }

    /// The models known by name.
    pub fn names() -> impl Iterator<Item = &'static str> {
        like::BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// Transformer layers, in place of the model's own number. At least the last one has experts.
    pub fn layers(mut self, layers: usize) -> Self {
        self.layers = Some(layers);
        self
    }

    /// Routed experts a layer, in place of the model's own number.
    pub fn experts(mut self, experts: usize) -> Self {
        self.experts = Some(experts);
        self
    }

    /// [`Format::Fp8Block`], [`Format::Int4Group32`] or [`Format::Bf16`], in place of the model's own.
    pub fn format(mut self, format: Format) -> Self {
        self.format = Some(format);
        self
    }

    /// Seed of the values, 0 unless set.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Bytes of tensors in a shard at most (one tensor is never divided), 5 GB unless set.
    pub fn shard_bytes(mut self, bytes: u64) -> Self {
        self.shard_bytes = bytes;
        self
    }

    /// The configuration it will have.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for an unknown model, or layers or experts it cannot have; [`crate::Error::Io`] and
    /// [`crate::Error::Config`] for a configuration file that cannot be used.
    pub fn config(&self) -> Result<ModelConfig> {
        Ok(like::resolve(self)?.1)
    }

    /// Writes the checkpoint to the folder `out`, which must not exist yet. Memory stays at a few megabytes a thread
    /// beyond the list of tensors. Of the options, threads, progress and cancellation are used. What a killed process
    /// left of the same checkpoint (in `out`.partial) is continued.
    ///
    /// # Errors
    /// As [`Synth::config`]; [`crate::Error::Argument`] for shards so small that the loader would refuse their number;
    /// [`crate::Error::Io`] if `out` exists, does not fit the disk or cannot be written; [`crate::Error::Cancelled`].
    /// Nothing is left behind in any of these cases. [`crate::Error::Unfinished`] if `out`.partial is something else's.
    pub fn write(&self, out: &Path, options: &LoadOptions) -> Result<SynthReport> {
        let (json, config) = like::resolve(self)?;
        let plan = plan::Plan::of(&config);
        write::write(out, &json, &plan, self.seed, self.shard_bytes, options)
    }
}
