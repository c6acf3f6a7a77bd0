//! The router's decisions in device memory.

use super::gpu::Gpu;
use super::memory::{Buffer, Slice};
use crate::config::MoeConfig;
use crate::device::{Routing, RoutingFault};
use crate::error::Result;

/// What a fault word says.
pub(super) fn fault_of(word: u64) -> Option<RoutingFault> {
    let fault = RoutingFault { token: (word >> 32) as usize, candidates: word as u32 as usize };
    (word != NO_FAULT).then_some(fault)
}

/// The experts of a batch of tokens, and the (token, rank) pairs sorted by expert; the device's [`Routing`].
pub struct CudaRouting {
    /// [tokens, top_k], best first.
    pub(super) ids: Buffer<u32>,
    /// [tokens, top_k].
    pub(super) weights: Buffer<f32>,
    /// Pairs token · top_k + rank sorted by expert, tokens in order within an expert.
    pub(super) sorted: Buffer<u32>,
    /// The token of each sorted pair.
    pub(super) sorted_tokens: Buffer<u32>,
    /// Where each pair stands among the sorted ones, [tokens, top_k].
    pub(super) positions: Buffer<u32>,
    /// First sorted pair of each expert, and their number last: [experts + 1].
    pub(super) offsets: Buffer<u32>,
    /// The first row whose scores could not fill its top-k: token << 32 | candidates, all ones if none.
    pub(super) fault: Buffer<u64>,
    /// A `RouteProgress`, as a launch expects and leaves it: no fault, no block.
    pub(super) progress: Buffer<u64>,
    pub(super) tokens: usize,
    max_tokens: usize,
    top_k: usize,
    experts: usize,
}

/// No row lacked candidates.
pub(super) const NO_FAULT: u64 = u64::MAX;

impl CudaRouting {
    /// Room for `max_tokens` tokens.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`], [`crate::Error::Cuda`].
    pub fn new(gpu: &Gpu, max_tokens: usize, moe: &MoeConfig) -> Result<CudaRouting> {
        let pairs = max_tokens * moe.top_k;
        let what = format!("the routing of {max_tokens} tokens");
        Ok(CudaRouting {
            ids: gpu.alloc(pairs, &what)?,
            weights: gpu.alloc(pairs, &what)?,
            sorted: gpu.alloc(pairs, &what)?,
            sorted_tokens: gpu.alloc(pairs, &what)?,
            positions: gpu.alloc(pairs, &what)?,
            offsets: gpu.alloc(moe.num_experts + 1, &what)?,
            fault: gpu.upload(&[NO_FAULT], &what)?,
            progress: gpu.upload(&[NO_FAULT, 0], &what)?,
            tokens: 0,
            max_tokens,
            top_k: moe.top_k,
            experts: moe.num_experts,
        })
    }

    /// Tokens routed.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tokens there is room for.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Experts a token.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Experts of the layer.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// (Token, rank) pairs.
    pub fn pairs(&self) -> usize {
        self.tokens * self.top_k
    }

    /// The token of each sorted pair.
    pub fn sorted_tokens(&self) -> Slice<'_, u32> {
        self.sorted_tokens.slice(..self.pairs())
    }

    /// First sorted pair of each expert, and their number last.
    pub fn offsets(&self) -> Slice<'_, u32> {
        self.offsets.all()
    }

    /// Weights [tokens, top_k].
    pub fn weights(&self) -> Slice<'_, f32> {
        self.weights.slice(..self.pairs())
    }

    /// Where each pair stands among the sorted ones, [tokens, top_k].
    pub fn positions(&self) -> Slice<'_, u32> {
        self.positions.slice(..self.pairs())
    }

    /// Takes a routing made on the host.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    ///
    /// # Panics
    /// If there is no room for it.
    pub fn upload(&mut self, gpu: &Gpu, host: &Routing) -> Result<()> {
        assert!(host.tokens() <= self.max_tokens && host.top_k() == self.top_k);
        self.tokens = host.tokens();
        let pairs = self.pairs();
        let tokens: Vec<u32> = host.sorted_pairs().iter().map(|p| p / self.top_k as u32).collect();
        self.ids.slice_mut(..pairs).write(gpu, host.ids())?;
        self.weights.slice_mut(..pairs).write(gpu, host.weights())?;
        self.sorted.slice_mut(..pairs).write(gpu, host.sorted_pairs())?;
        self.sorted_tokens.slice_mut(..pairs).write(gpu, &tokens)?;
        self.positions.slice_mut(..pairs).write(gpu, host.positions())?;
        self.offsets.all_mut().write(gpu, host.offsets())
    }

    /// Copies the decisions to the host, after everything issued before.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`], also for what failed before.
    pub fn download(&self, gpu: &Gpu) -> Result<Routing> {
        let pairs = self.pairs();
        let fault = fault_of(self.fault.download()?[0]);
        Ok(Routing::from_parts(
            self.top_k,
            self.ids.slice(..pairs).download(gpu)?,
            self.weights.slice(..pairs).download(gpu)?,
            self.sorted.slice(..pairs).download(gpu)?,
            self.positions.slice(..pairs).download(gpu)?,
            self.offsets.download()?,
            fault,
        ))
    }
}
