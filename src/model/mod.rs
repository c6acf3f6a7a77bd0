//! The forward pass, written once against [`Device`].
//!
//! A [`Model`] is immutable and shared; a [`Sequence`] is one timeline of tokens with its latent cache. A forward
//! pass that fails leaves the sequence as long as it was: rows beyond its length are never read.

mod block;
mod forward;
mod guess;
pub mod walk;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crate::checkpoint::weights::Weights;
use crate::checkpoint::{Checkpoint, LoadOptions, LoadStats};
use crate::config::ModelConfig;
use crate::device::{Device, Routing, SampleSettings};
use crate::error::{Error, Result};
use crate::experts::plan::Trunk;
use crate::experts::residency::{Placement, Residency};
use crate::experts::stats::ExpertStats;

pub use crate::experts::residency::PREFILL_CHUNK;

/// Queries up to which attention takes the absorbed form: from here on expanding a page of keys and values costs
/// less than scoring every query on the latent (K2: 512 + 64 against 128 + 64 multiplications a score).
const ABSORB_UP_TO: usize = 4;

/// A model on its device.
pub struct Model<D: Device> {
    config: ModelConfig,
    device: D,
    weights: Weights<D::Matrix, D::Vector>,
    experts: Residency<D>,
    kv_limit: Option<u64>,
    load: LoadStats,
    /// Tokens a forward pass takes at once; a longer prompt is cut into chunks of this size.
    chunk: usize,
    /// Bytes that a token reads besides routed experts, the cache aside.
    trunk_bytes: u64,
    /// Where the trunk is, if not in the device's memory.
    trunk: Option<Trunk>,
}

/// Which rows of a forward pass go through the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    /// The last token's only.
    Last,
    /// Every token's.
    All,
}

impl<D: Device> Model<D> {
    /// Reads a checkpoint, brings the trunk to the device and the experts to where the placement says.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with the damaged tensors, [`Error::Io`], [`Error::Cancelled`]; what the device reports,
    /// [`Error::OutOfMemory`] above all.
    pub fn load(
        checkpoint: &Arc<Checkpoint>,
        device: D,
        load: &LoadOptions,
        placement: &Placement,
    ) -> Result<Model<D>> {
        let begun = Instant::now();
        let config = checkpoint.config().clone();
        let hosted = |part| placement.trunk.as_ref().is_some_and(|trunk| !trunk.resident(part));
        let trunk = if placement.mapped {
            checkpoint.map_trunk(load)
        } else {
            checkpoint.load_trunk_apart(load, hosted)
        };
        let loaded = match trunk {
            // All that is damaged, not the trunk's part only: who downloads a terabyte again wants to do it once.
            Err(Error::Checkpoint { dir, mut faults }) => {
                faults.0.extend(checkpoint.damaged_experts(load)?);
                return Err(Error::Checkpoint { dir, faults });
            }
            loaded => loaded?,
        };
        let piece = placement.trunk.as_ref().map_or(0, |trunk| trunk.piece_bytes as usize);
        let mut matrix = |part, m| match hosted(part) {
            true => device.hosted(m, piece),
            false => device.matrix(m),
        };
        let weights = loaded.trunk.try_map_parts::<_, _, Error>(&mut matrix, &mut |v| device.vector(v))?;
        let load = load.after(loaded.stats.bytes, checkpoint.bytes());
        let experts = Residency::load(checkpoint, &device, &load, placement)?;
        let bytes = loaded.stats.bytes + experts.store_stats().bytes;
        let load = LoadStats { bytes, seconds: begun.elapsed().as_secs_f64() };
        // Of an embedding table that is not the head too, a token reads one row.
        let table = weights.head.as_ref().map_or(0, |_| 2 * config.vocab_size * config.hidden_size);
        let trunk_bytes = loaded.stats.bytes.saturating_sub(table as u64);
        let Placement { kv_limit, chunk, trunk, .. } = placement.clone();
        Ok(Model { config, device, weights, experts, kv_limit, load, chunk, trunk_bytes, trunk })
    }

    /// The least seconds for a token that needed the experts of `step`, as
    /// [`ExpertStats::limit_seconds`] has it, at the rates seen so far.
    pub fn limit_seconds(&self, step: &ExpertStats, seen: &ExpertStats) -> f64 {
        let streamed = self.trunk.as_ref().map_or(0, |trunk| trunk.streamed_bytes);
        step.limit_seconds(seen, self.experts.device_rate(), self.trunk_bytes, streamed)
    }

    /// The configuration it runs.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where its weights are and what computes with them, in words.
    pub fn placement(&self) -> String {
        let trunk = self.trunk.as_ref().map_or(String::new(), |trunk| format!("{trunk}; "));
        format!("{}; {trunk}{}", self.device.placement(), self.experts.describe())
    }

    /// The device it runs on.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// What loading cost.
    pub fn load_stats(&self) -> LoadStats {
        self.load
    }

    /// Its routed experts.
    pub fn residency(&self) -> &Residency<D> {
        &self.experts
    }

    /// An empty sequence.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if its workspace does not fit; [`Error::DeviceLost`].
    pub fn sequence(self: &Arc<Self>) -> Result<Sequence<D>> {
        self.experts.usable()?;
        let (layers, dim) = (self.config.num_layers, self.config.attention.cached_dim());
        let cache = self.device.kv_cache(layers, dim, self.kv_limit)?;
        Ok(Sequence { work: forward::Workspace::new(self)?, model: self.clone(), cache, len: 0 })
    }
}

/// One timeline: what the cache holds and how long it is. Where memory runs out the cache grows into slots of experts, which
/// it returns when it needs them no longer.
pub struct Sequence<D: Device> {
    model: Arc<Model<D>>,
    cache: D::KvCache,
    work: forward::Workspace<D>,
    len: usize,
}

impl<D: Device> Sequence<D> {
    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets everything from token `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.return_slots();
    }

    /// Gives back the slots that the cache does not need for what it holds.
    fn return_slots(&mut self) {
        let Model { device, experts, .. } = &*self.model;
        // Only a failed device refuses: the cache then keeps the slots, and whoever computes next is told.
        let _ = experts.return_kv(device, &mut self.cache, self.len);
    }

    /// Appends `tokens` and returns their logits, row-major [tokens, vocab]. `cancel` is looked at between layers.
    ///
    /// # Errors
    /// [`Error::NonFinite`] naming layer, expert and tensor; [`Error::Expert`]; [`Error::DeviceLost`], once the device has
    /// failed; [`Error::Cancelled`]; [`Error::OutOfMemory`] for the cache; [`Error::Argument`] for no token or one outside the vocabulary.
    pub fn logits(&mut self, tokens: &[u32], cancel: &AtomicBool) -> Result<Vec<f32>> {
        let (mut all, mut of_chunk) = (Vec::new(), Vec::new());
        self.forward(tokens, Head::All, cancel, |device, logits| {
            device.read(logits, &mut of_chunk)?;
            all.extend_from_slice(&of_chunk);
            Ok(())
        })?;
        Ok(all)
    }

    /// Appends `tokens` and returns the token that `settings` and a random word choose to follow them. The logits stay
    /// on the device.
    ///
    /// # Errors
    /// As [`Sequence::logits`].
    pub fn next(
        &mut self,
        tokens: &[u32],
        settings: &SampleSettings,
        word: u64,
        cancel: &AtomicBool,
    ) -> Result<u32> {
        let mut id = 0;
        self.forward(tokens, Head::Last, cancel, |device, logits| {
            id = device.sample(logits, settings, word)?;
            Ok(())
        })?;
        Ok(id)
    }

    /// Appends `tokens` and gives the logits of each chunk that has some to `take`: of all rows, or the last row's once.
    fn forward(
        &mut self,
        tokens: &[u32],
        head: Head,
        cancel: &AtomicBool,
        mut take: impl FnMut(&D, &D::Tensor) -> Result<()> + Send,
    ) -> Result<()> {
        let vocab = self.model.config.vocab_size;
        if tokens.is_empty() {
            return Err(Error::argument("tokens", "is empty, expected at least one token"));
        }
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::argument("tokens", format!("holds {id}, expected ids below {vocab}")));
        }
        let model = self.model.clone();
        let start = self.len;
        model.experts.usable()?;
        let _turn = model.experts.turn();
        let mut chunks = || -> Result<()> {
            for (i, chunk) in tokens.chunks(model.chunk).enumerate() {
                let at = start + i * model.chunk;
                let last = at + chunk.len() == start + tokens.len();
                model.experts.reserve_kv(&model.device, &mut self.cache, at + chunk.len())?;
                let rows = match head {
                    Head::All => 0..chunk.len(),
                    Head::Last if last => chunk.len() - 1..chunk.len(),
                    Head::Last => 0..0,
                };
                model.forward(&mut self.work, &mut self.cache, at, chunk, rows.clone(), cancel)?;
                if model.experts.trace().is_on() {
                    let routing = self.work.routing(&model.device)?;
                    model.experts.trace().pass(&routing, model.config.moe.num_experts)?;
                }
                if !rows.is_empty() {
                    take(&model.device, &self.work.logits)?;
                }
            }
            Ok(())
        };
        let result = chunks();
        if result.is_err() {
            self.work.clear(&model.device);
            self.return_slots();
        }
        model.experts.outcome(result)?;
        self.len = start + tokens.len();
        Ok(())
    }

    /// Which experts the tokens of the last chunk went to, by layer; none in dense layers.
    ///
    /// # Errors
    /// What the device reports.
    pub fn routing(&self) -> Result<Vec<Option<Routing>>> {
        self.work.routing(&self.model.device)
    }

    /// Makes the next chunk go where another pass over the same tokens went, whatever the router says: two devices
    /// can then be compared number by number, though a near-tie between experts falls differently on them.
    pub fn replay_routing(&mut self, layers: Vec<Option<Routing>>) {
        self.work.replay = layers;
    }
}

impl<D: Device> Drop for Sequence<D> {
    fn drop(&mut self) {
        self.len = 0;
        self.return_slots();
    }
}
