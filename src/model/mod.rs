//! The forward pass, written once against [`Device`].
//!
//! A [`Model`] is immutable and shared; a [`Sequence`] is one timeline of tokens with its latent cache. A forward
//! pass that fails leaves the sequence as long as it was: rows beyond its length are never read.

mod forward;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::checkpoint::weights::Weights;
use crate::checkpoint::{ExpertRecords, LoadedWeights};
use crate::config::ModelConfig;
use crate::device::cpu::Workers;
use crate::device::{Device, Routing, SampleSettings, SlotAt};
use crate::error::{Error, Result};

/// Tokens a forward pass takes at once; a longer prompt is cut into chunks of this size. Large enough that decoding
/// the weights is a small part of a chunk's work, small enough that its activations are (K2: 0.2 GB).
pub const PREFILL_CHUNK: usize = 512;

/// Queries up to which attention takes the absorbed form: from here on expanding a page of keys and values costs
/// less than scoring every query on the latent (K2: 512 + 64 against 128 + 64 multiplications a score).
const ABSORB_UP_TO: usize = 4;

/// A model on its device.
pub struct Model<D: Device> {
    config: ModelConfig,
    device: D,
    weights: Weights<D::Matrix, D::Vector>,
    experts: RoutedExperts<D>,
}

/// Where the routed experts are, which is where they are computed.
enum RoutedExperts<D: Device> {
    /// Every expert in a slot of its own.
    Device(D::Slots),
    /// In host memory: by layer, none in dense ones.
    Host { layers: Vec<Option<ExpertRecords>>, workers: Arc<Workers> },
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
    /// Brings loaded weights to the device.
    ///
    /// # Errors
    /// What the device reports, [`Error::OutOfMemory`] above all.
    pub fn new(config: ModelConfig, device: D, loaded: &LoadedWeights) -> Result<Model<D>> {
        let weights =
            loaded.trunk.try_map::<_, _, Error>(&mut |m| device.matrix(m), &mut |v| device.vector(v))?;
        let experts = RoutedExperts::new(&device, config.moe.num_experts, &loaded.experts)?;
        Ok(Model { config, device, weights, experts })
    }

    /// The configuration it runs.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device it runs on.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// An empty sequence.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if its workspace does not fit.
    pub fn sequence(self: &Arc<Self>) -> Result<Sequence<D>> {
        let cache = self.device.kv_cache(self.config.num_layers, self.config.attention.cached_dim())?;
        Ok(Sequence { work: forward::Workspace::new(self)?, model: self.clone(), cache, len: 0 })
    }
}

impl<D: Device> RoutedExperts<D> {
    fn new(device: &D, experts: usize, layers: &[Option<ExpertRecords>]) -> Result<RoutedExperts<D>> {
        let layouts: Vec<_> = layers.iter().map(|l| l.as_ref().map(|r| r.layout().clone())).collect();
        let count = layers.iter().flatten().map(ExpertRecords::count).sum();
        let Some(slots) = device.slots(&layouts, experts, count)? else {
            let workers = match device.workers() {
                Some(workers) => workers.clone(),
                None => Arc::new(Workers::new(0)?),
            };
            return Ok(RoutedExperts::Host { layers: layers.to_vec(), workers });
        };
        let mut next = 0;
        let mut filled = None;
        for (layer, records) in layers.iter().enumerate() {
            let Some(records) = records else { continue };
            let mut places = Vec::with_capacity(experts);
            for expert in 0..records.count() {
                let at = SlotAt { slot: next, generation: 1 };
                next += 1;
                filled = Some(device.fill(&slots, at, Arc::new(records.shared(expert)))?);
                places.push(Some(at));
            }
            device.place(&slots, layer, &places)?;
        }
        // Records are copied in order: the last fence stands behind all of them.
        if let Some(last) = filled {
            device.after(&last)?;
        }
        Ok(RoutedExperts::Device(slots))
    }
}

/// One timeline: what the cache holds and how long it is.
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
    }

    /// Appends `tokens` and returns their logits, row-major [tokens, vocab]. `cancel` is looked at between layers.
    ///
    /// # Errors
    /// [`Error::NonFinite`] naming layer, expert and tensor; [`Error::Cancelled`]; [`Error::OutOfMemory`] for the
    /// cache; [`Error::Argument`] for no token or one outside the vocabulary.
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
        let result = model.device.scope(|| -> Result<()> {
            for (i, chunk) in tokens.chunks(PREFILL_CHUNK).enumerate() {
                let at = start + i * PREFILL_CHUNK;
                let last = at + chunk.len() == start + tokens.len();
                model.device.kv_reserve(&mut self.cache, at + chunk.len())?;
                let rows = match head {
                    Head::All => 0..chunk.len(),
                    Head::Last if last => chunk.len() - 1..chunk.len(),
                    Head::Last => 0..0,
                };
                model.forward(&mut self.work, &mut self.cache, at, chunk, rows.clone(), cancel)?;
                if !rows.is_empty() {
                    take(&model.device, &self.work.logits)?;
                }
            }
            Ok(())
        });
        result?;
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
