//! The forward pass one layer at a time over many windows of text, on the CPU.
//!
//! A [`Walk`] holds the weights of one layer, whatever the model's size, and leaves what a layer was given and what it decided in
//! host memory, where it can be measured and changed: choosing and healing experts, and trying a checkpoint that was just
//! written, are done on it. The blocks are those that [`super::Model`] runs.

mod loss;

use std::ops::Range;
use std::sync::Arc;

use super::block::{CachePlace, Stream};
use crate::checkpoint::region::HostMatrix;
use crate::checkpoint::weights::{Layer, Mlp};
use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::config::{ModelConfig, MoeConfig};
use crate::device::cpu::{CpuDevice, CpuTensor};
use crate::device::{Device, Precision, Routing, Shape};
use crate::error::{Error, NonFinite, Result};
use crate::experts::residency::{LayerCall, Placement, Residency};
use crate::telemetry::Row;

use loss::Running;
pub use loss::TokenLoss;

/// Bytes of the head that are in memory at once.
const HEAD_BLOCK: usize = 64 << 20;

/// Runs a checkpoint layer by layer.
pub struct Walk {
    checkpoint: Arc<Checkpoint>,
    device: CpuDevice,
    experts: Residency<CpuDevice>,
    load: LoadOptions,
    /// Tokens whose expert outputs are in memory at once.
    chunk: usize,
}

/// How a [`Walk`] uses the machine.
#[derive(Clone)]
pub struct WalkOptions {
    /// Threads and cancellation.
    pub load: LoadOptions,
    /// Bytes of host memory for expert records; `None` keeps all if they fit.
    pub host_budget: Option<u64>,
    /// Tokens whose expert outputs are in memory at once. Every expert they need is read once a chunk.
    pub chunk: usize,
}

impl Default for WalkOptions {
    /// What keeps a walk over Kimi-K2 below 2 GiB.
    fn default() -> WalkOptions {
        WalkOptions { load: LoadOptions::default(), host_budget: Some(256 << 20), chunk: 512 }
    }
}

/// Windows of text, independent of each other, and their residual stream between two layers.
#[derive(Debug, Clone)]
pub struct Windows {
    tokens: Vec<u32>,
    /// Where each window's tokens lie.
    ranges: Vec<Range<usize>>,
    width: usize,
    hidden: Vec<f32>,
}

impl Windows {
    /// Tokens of all windows.
    pub fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Where each window's tokens lie among all.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// The residual stream, [tokens, hidden].
    pub fn hidden(&self) -> &[f32] {
        &self.hidden
    }

    /// The residual stream, to be changed.
    pub fn hidden_mut(&mut self) -> &mut [f32] {
        &mut self.hidden
    }
}

/// The weights of one layer, routed experts apart.
pub struct WalkLayer {
    at: usize,
    weights: Layer<HostMatrix, Box<[f32]>>,
}

impl WalkLayer {
    /// Whether it has experts.
    pub fn has_experts(&self) -> bool {
        matches!(self.weights.mlp, Mlp::Experts { .. })
    }

    /// What is added to the router's scores for choosing; none in a dense layer.
    pub fn router_bias(&self) -> Option<&[f32]> {
        match &self.weights.mlp {
            Mlp::Experts { bias, .. } => Some(bias),
            Mlp::Dense(_) => None,
        }
    }
}

/// What a layer of experts did with a chunk of tokens.
pub struct Seen<'a> {
    /// The chunk's first token among all.
    pub first: usize,
    /// What the experts were given, [tokens, hidden].
    pub x: &'a [f32],
    /// The router's logits, [tokens, experts].
    pub logits: &'a [f32],
    /// Who went where.
    pub routing: &'a Routing,
    /// Outputs of the chosen experts, not weighted, [tokens, top_k, hidden].
    pub outputs: &'a [f32],
    /// Output of the shared experts, [tokens, hidden]; empty where there are none.
    pub shared: &'a [f32],
}

impl Walk {
    /// Sets out on a checkpoint.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Argument`] if the threads cannot be started.
    pub fn new(checkpoint: Arc<Checkpoint>, options: &WalkOptions) -> Result<Walk> {
        let device = CpuDevice::new(options.load.threads)?;
        let config = checkpoint.config();
        device.supports(&config.attention, &config.moe)?;
        let placement = Placement {
            host_budget: options.host_budget,
            // Damage is found when it is met: a walk meets everything.
            serve_while_loading: true,
            ..Placement::default()
        };
        let experts = Residency::load(&checkpoint, &device, &options.load, &placement)?;
        let chunk = options.chunk.max(1);
        Ok(Walk { checkpoint, device, experts, load: options.load.clone(), chunk })
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        self.checkpoint.config()
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }

    /// Tokens whose expert outputs are in memory at once.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// Windows before the first layer.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty window or a token outside the vocabulary; what reading reports.
    pub fn embed(&self, windows: &[Vec<u32>]) -> Result<Windows> {
        if windows.is_empty() || windows.iter().any(Vec::is_empty) {
            return Err(Error::argument("tokens", "is empty, expected at least one token a window"));
        }
        let tokens = windows.concat();
        let mut end = 0;
        let ranges = windows.iter().map(|w| {
            end += w.len();
            end - w.len()..end
        });
        let ranges = ranges.collect();
        let hidden = self.checkpoint.load_embeddings(&tokens, &self.load)?;
        Ok(Windows { tokens, ranges, width: self.config().hidden_size, hidden })
    }

    /// Reads a layer's weights.
    ///
    /// # Errors
    /// As [`Checkpoint::load_layer`].
    pub fn layer(&self, at: usize) -> Result<WalkLayer> {
        let weights = self.checkpoint.load_layer(at, &self.load)?;
        Ok(WalkLayer { at, weights: weights.map(&mut HostMatrix::clone, &mut |v| (**v).into()) })
    }

    /// Adds the layer's attention to the stream; returns what its MLP or its experts are given, [tokens, hidden].
    ///
    /// # Errors
    /// [`Error::NonFinite`], [`Error::OutOfMemory`], [`Error::Cancelled`].
    pub fn attend(&self, layer: &WalkLayer, windows: &mut Windows) -> Result<Vec<f32>> {
        let config = self.config();
        let width = windows.width;
        let mut x = vec![0.0; windows.hidden.len()];
        let mut stream = Stream::new(&self.device, config, self.chunk)?;
        for window in &windows.ranges {
            self.go_on()?;
            let mut cache = self.device.kv_cache(1, config.attention.cached_dim(), None)?;
            self.device.kv_reserve(&mut cache, window.len())?;
            for start in (0..window.len()).step_by(self.chunk) {
                let first = window.start + start;
                let rows = first * width..(first + self.chunk).min(window.end) * width;
                stream.hidden.set(&windows.hidden[rows.clone()]);
                let place = CachePlace { layer: layer.at, cached: 0, start };
                stream.attend(&self.device, config, &layer.weights, &mut cache, place)?;
                self.untripped(&mut stream, first)?;
                windows.hidden[rows.clone()].copy_from_slice(stream.hidden.values());
                x[rows].copy_from_slice(stream.normed.values());
            }
        }
        Ok(x)
    }

    /// Adds a dense layer's MLP of `x` to the stream; nothing in a layer of experts.
    ///
    /// # Errors
    /// [`Error::NonFinite`], [`Error::OutOfMemory`], [`Error::Cancelled`].
    pub fn dense(&self, layer: &WalkLayer, x: &[f32], windows: &mut Windows) -> Result<()> {
        let Mlp::Dense(mlp) = &layer.weights.mlp else { return Ok(()) };
        let step = self.chunk * windows.width;
        let mut stream = Stream::new(&self.device, self.config(), self.chunk)?;
        for (i, (x, hidden)) in x.chunks(step).zip(windows.hidden.chunks_mut(step)).enumerate() {
            self.go_on()?;
            stream.hidden.set(hidden);
            stream.normed.set(x);
            stream.dense(&self.device, layer.at, mlp)?;
            self.untripped(&mut stream, i * self.chunk)?;
            hidden.copy_from_slice(stream.hidden.values());
        }
        Ok(())
    }

    /// The router's logits of some tokens, [tokens, experts]; empty in a dense layer.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn gate(&self, layer: &WalkLayer, x: &[f32]) -> Result<Vec<f32>> {
        let Mlp::Experts { router, .. } = &layer.weights.mlp else { return Ok(Vec::new()) };
        let (x, mut logits) = (self.tensor(x)?, self.empty(self.config().moe.num_experts)?);
        self.device.linear(&x, router, &mut logits)?;
        Ok(logits.values().to_vec())
    }

    /// Outputs of the experts that `routing` names, not weighted, [tokens, top_k, hidden].
    ///
    /// # Errors
    /// [`Error::Expert`], [`Error::NonFinite`] naming the expert, [`Error::OutOfMemory`], [`Error::Cancelled`].
    pub fn experts(&self, layer: &WalkLayer, x: &[f32], routing: &Routing, first: usize) -> Result<Vec<f32>> {
        self.go_on()?;
        let width = self.config().hidden_size;
        let (x, mut pairs) = (self.tensor(x)?, self.empty(width)?);
        let mut routing = routing.clone();
        let call = LayerCall {
            layer: layer.at,
            x: &x,
            routing: &mut routing,
            pairs: &mut pairs,
            session: Row::Session(0),
        };
        {
            let _turn = self.experts.turn();
            self.experts.compute(&self.device, call, || Ok(None))?;
        }
        let sorted = pairs.values();
        if let Some(bad) = sorted.iter().position(|v| !v.is_finite()) {
            let (token, expert) = routing.pair(bad / width);
            return Err(NonFinite {
                layer: Some(layer.at),
                expert: Some(expert),
                tensor: "mlp.experts".to_owned(),
                row: first + token,
                column: bad % width,
            }
            .into());
        }
        let mut outputs = Vec::with_capacity(sorted.len());
        for &place in routing.positions() {
            outputs.extend_from_slice(&sorted[place as usize * width..][..width]);
        }
        Ok(outputs)
    }

    /// Output of the shared experts, [tokens, hidden]; empty where there are none.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn shared(&self, layer: &WalkLayer, x: &[f32]) -> Result<Vec<f32>> {
        let Mlp::Experts { shared: Some(shared), .. } = &layer.weights.mlp else { return Ok(Vec::new()) };
        let (x, mut out) = (self.tensor(x)?, self.empty(self.config().hidden_size)?);
        self.device.gated_mlp(&x, shared, &mut out)?;
        Ok(out.values().to_vec())
    }

    /// Adds what a layer of experts makes of `x` to the stream, as its router decides; `look` is shown each chunk. Nothing in a
    /// dense layer.
    ///
    /// # Errors
    /// As [`Walk::experts`], and what `look` returns.
    pub fn mix(
        &self,
        layer: &WalkLayer,
        x: &[f32],
        windows: &mut Windows,
        look: impl FnMut(Seen<'_>) -> Result<()>,
    ) -> Result<()> {
        let Some(bias) = layer.router_bias() else { return Ok(()) };
        self.mix_by(layer, bias, x, windows, look)
    }

    /// [`Walk::mix`] with another bias for choosing. One of −∞ takes an expert out.
    ///
    /// # Errors
    /// As [`Walk::mix`].
    ///
    /// # Panics
    /// If the layer has experts and the bias is not of their number.
    pub fn mix_by(
        &self,
        layer: &WalkLayer,
        bias: &[f32],
        x: &[f32],
        windows: &mut Windows,
        mut look: impl FnMut(Seen<'_>) -> Result<()>,
    ) -> Result<()> {
        if !layer.has_experts() {
            return Ok(());
        }
        let (width, step) = (windows.width, self.chunk * windows.width);
        for (i, (x, hidden)) in x.chunks(step).zip(windows.hidden.chunks_mut(step)).enumerate() {
            let first = i * self.chunk;
            let logits = self.gate(layer, x)?;
            let routing = route(&logits, bias, &self.config().moe);
            if let Some(fault) = routing.fault() {
                return Err(NonFinite {
                    layer: Some(layer.at),
                    expert: None,
                    tensor: "mlp.gate".to_owned(),
                    row: first + fault.token,
                    column: 0,
                }
                .into());
            }
            let outputs = self.experts(layer, x, &routing, first)?;
            let shared = self.shared(layer, x)?;
            look(Seen { first, x, logits: &logits, routing: &routing, outputs: &outputs, shared: &shared })?;
            combine(&outputs, routing.weights(), width, hidden);
            add(&shared, hidden);
        }
        Ok(())
    }

    /// A whole layer: attention, then the dense MLP or the experts, of which `look` is shown each chunk.
    ///
    /// # Errors
    /// As the parts.
    pub fn step(
        &self,
        layer: usize,
        windows: &mut Windows,
        look: impl FnMut(Seen<'_>) -> Result<()>,
    ) -> Result<()> {
        let layer = self.layer(layer)?;
        let x = self.attend(&layer, windows)?;
        self.dense(&layer, &x, windows)?;
        self.mix(&layer, &x, windows, look)
    }

    /// How well each token that has one before it in its window was foretold. Every logit is looked at.
    ///
    /// # Errors
    /// [`Error::NonFinite`], what reading reports.
    pub fn losses(&self, windows: &Windows) -> Result<Vec<TokenLoss>> {
        let (config, device, width) = (self.config(), &self.device, windows.width);
        let mut running = vec![Running::default(); windows.tokens.len()];
        let mut next: Vec<Option<u32>> = windows.tokens[1..].iter().copied().map(Some).collect();
        next.push(None);
        for window in &windows.ranges {
            next[window.end - 1] = None;
        }
        let rows = (HEAD_BLOCK / (4 * width)).max(1);
        let mut normed: Vec<CpuTensor> = Vec::new();
        self.checkpoint.each_head_block(rows, &self.load, |norm, first, block| {
            self.go_on()?;
            let norm: Box<[f32]> = (**norm).into();
            if normed.is_empty() {
                for hidden in windows.hidden.chunks(self.chunk * width) {
                    let (hidden, mut out) = (self.tensor(hidden)?, self.empty(width)?);
                    device.rms_norm(&hidden, &norm, config.rms_norm_eps, &mut out)?;
                    normed.push(out);
                }
            }
            let mut logits = self.empty(block.layout.rows)?;
            for (i, x) in normed.iter().enumerate() {
                device.linear(x, block, &mut logits)?;
                for (row, logits) in logits.values().chunks(block.layout.rows).enumerate() {
                    let token = i * self.chunk + row;
                    if let Some(column) = logits.iter().position(|v| !v.is_finite()) {
                        let (tensor, column) = ("lm_head".to_owned(), first + column);
                        return Err(
                            NonFinite { layer: None, expert: None, tensor, row: token, column }.into()
                        );
                    }
                    running[token].take(first, logits, next[token]);
                }
            }
            Ok(())
        })?;
        let of_window = windows.ranges.iter().enumerate().flat_map(|(window, range)| {
            running[range.start..range.end - 1].iter().map(move |token| token.loss(window))
        });
        Ok(of_window.collect())
    }

    fn go_on(&self) -> Result<()> {
        let cancelled =
            self.load.cancel.as_ref().is_some_and(|c| c.load(std::sync::atomic::Ordering::Relaxed));
        if cancelled { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn empty(&self, cols: usize) -> Result<CpuTensor> {
        self.device.tensor(0, cols, Precision::Full)
    }

    fn tensor(&self, rows: &[f32]) -> Result<CpuTensor> {
        let mut tensor = self.empty(self.config().hidden_size)?;
        tensor.set(rows);
        Ok(tensor)
    }

    /// The error of the first non-finite value that the stream's operations met, if they met one.
    fn untripped(&self, stream: &mut Stream<CpuDevice>, first: usize) -> Result<()> {
        debug_assert!(stream.hidden.rows() > 0);
        let Some(trip) = self.device.tripped(&mut stream.guard)? else { return Ok(()) };
        Err(NonFinite {
            layer: trip.site.layer,
            expert: None,
            tensor: trip.site.module.to_owned(),
            row: first + trip.row,
            column: trip.col,
        }
        .into())
    }
}

/// Routes tokens by the rules of [`Routing::route_row`].
pub fn route(logits: &[f32], bias: &[f32], moe: &MoeConfig) -> Routing {
    let mut routing = Routing::default();
    routing.reset(moe.top_k);
    for row in logits.chunks_exact(moe.num_experts) {
        routing.route_row(row, bias, moe);
    }
    routing.sort_by_expert(moe.num_experts);
    routing
}

/// sum\[t\] += Σⱼ weights[t, j] · outputs[t, j], in rank order, as [`Device::combine`] does.
pub fn combine(outputs: &[f32], weights: &[f32], width: usize, sum: &mut [f32]) {
    let top_k = weights.len() * width / sum.len().max(1);
    let of_tokens = outputs.chunks_exact(top_k * width).zip(weights.chunks_exact(top_k));
    for (sum, (outputs, weights)) in sum.chunks_exact_mut(width).zip(of_tokens) {
        for (output, &weight) in outputs.chunks_exact(width).zip(weights) {
            for (s, v) in sum.iter_mut().zip(output) {
                *s += weight * v;
            }
        }
    }
}

/// sum += x, elementwise; nothing for an empty x.
pub fn add(x: &[f32], sum: &mut [f32]) {
    for (s, v) in sum.iter_mut().zip(x) {
        *s += v;
    }
}
