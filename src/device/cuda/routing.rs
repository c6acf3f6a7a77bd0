//! The router's decisions in device memory.

use std::ops::Range;

use super::gpu::Gpu;
use super::memory::{Buffer, Slice, SliceMut};
use super::staging::Staging;
use crate::config::MoeConfig;
use crate::device::{Routing, RoutingFault};
use crate::error::Result;

/// What a fault word says.
pub(super) fn fault_of(word: u64) -> Option<RoutingFault> {
    let fault = RoutingFault { token: (word >> 32) as usize, candidates: word as u32 as usize };
    (word != NO_FAULT).then_some(fault)
}

/// The experts of a batch of tokens, and the (token, rank) pairs sorted by expert; the device's [`Routing`].
///
/// What the host may ask for stands in one piece, so that one copy brings it: fault, offsets, ids, weights, positions and
/// sorted pairs, the last four as long as the pairs there are. The tokens of the sorted pairs follow.
pub struct CudaRouting {
    memory: Buffer<u32>,
    /// A `RouteProgress`, as a launch expects and leaves it: no fault, no block.
    pub(super) progress: Buffer<u64>,
    /// A copy on its way to the host, unless the routing was changed since.
    posted: Option<Staging>,
    tokens: usize,
    max_tokens: usize,
    top_k: usize,
    experts: usize,
}

/// Lists with an entry for each pair, in their order.
#[derive(Clone, Copy)]
enum List {
    /// [tokens, top_k], best first.
    Ids,
    /// [tokens, top_k], f32.
    Weights,
    /// Where each pair stands among the sorted ones, [tokens, top_k].
    Positions,
    /// Pairs token · top_k + rank sorted by expert, tokens in order within an expert.
    Sorted,
    /// The token of each sorted pair.
    SortedTokens,
}

/// Lists there are.
const LISTS: usize = List::SortedTokens as usize + 1;
/// Words of the fault: the first row whose scores could not fill its top-k, token << 32 | candidates, all ones if none.
const FAULT_WORDS: usize = 2;

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
        let mut routing = CudaRouting {
            memory: gpu.alloc(FAULT_WORDS + moe.num_experts + 1 + LISTS * pairs, &what)?,
            progress: gpu.upload(&[NO_FAULT, 0], &what)?,
            posted: None,
            tokens: 0,
            max_tokens,
            top_k: moe.top_k,
            experts: moe.num_experts,
        };
        routing.fault_mut().write(gpu, &[NO_FAULT])?;
        Ok(routing)
    }

    /// Takes `tokens` tokens into use; everything about them is about to be written.
    ///
    /// # Panics
    /// If there is no room for them.
    pub(super) fn resize(&mut self, tokens: usize) {
        assert!(tokens <= self.max_tokens, "{tokens} tokens, room for {}", self.max_tokens);
        self.tokens = tokens;
        self.posted = None;
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

    fn range(&self, list: List) -> Range<usize> {
        let start = FAULT_WORDS + self.experts + 1 + list as usize * self.pairs();
        start..start + self.pairs()
    }

    fn list(&self, list: List) -> Slice<'_, u32> {
        self.memory.slice(self.range(list))
    }

    fn list_mut(&mut self, list: List) -> SliceMut<'_, u32> {
        let range = self.range(list);
        self.memory.slice_mut(range)
    }

    /// The token of each sorted pair.
    pub fn sorted_tokens(&self) -> Slice<'_, u32> {
        self.list(List::SortedTokens)
    }

    /// First sorted pair of each expert, and their number last.
    pub fn offsets(&self) -> Slice<'_, u32> {
        self.memory.slice(self.offsets_range())
    }

    fn offsets_range(&self) -> Range<usize> {
        FAULT_WORDS..FAULT_WORDS + self.experts + 1
    }

    /// Weights [tokens, top_k].
    pub fn weights(&self) -> Slice<'_, f32> {
        self.list(List::Weights).cast()
    }

    /// Where each pair stands among the sorted ones, [tokens, top_k].
    pub fn positions(&self) -> Slice<'_, u32> {
        self.list(List::Positions)
    }

    /// The fault word.
    pub(super) fn fault(&self) -> Slice<'_, u64> {
        self.memory.slice(..FAULT_WORDS).cast()
    }

    /// The fault word, to be written.
    pub(super) fn fault_mut(&mut self) -> SliceMut<'_, u64> {
        self.memory.slice_mut(..FAULT_WORDS).cast()
    }

    /// The offsets, to be written.
    pub(super) fn offsets_mut(&mut self) -> SliceMut<'_, u32> {
        let range = self.offsets_range();
        self.memory.slice_mut(range)
    }

    /// Where a launch writes: ids, weights, sorted pairs, their tokens, positions, offsets and the fault.
    pub(super) fn outputs(&mut self) -> Outputs {
        Outputs {
            ids: self.list_mut(List::Ids).address(),
            weights: self.list_mut(List::Weights).address(),
            sorted: self.list_mut(List::Sorted).address(),
            sorted_tokens: self.list_mut(List::SortedTokens).address(),
            positions: self.list_mut(List::Positions).address(),
            offsets: self.offsets_mut().address(),
            fault: self.fault_mut().address(),
        }
    }

    /// Takes a routing made on the host.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    ///
    /// # Panics
    /// If there is no room for it.
    pub fn upload(&mut self, gpu: &Gpu, host: &Routing) -> Result<()> {
        assert_eq!(host.top_k(), self.top_k, "experts a token");
        self.resize(host.tokens());
        let tokens: Vec<u32> = host.sorted_pairs().iter().map(|p| p / self.top_k as u32).collect();
        self.list_mut(List::Ids).write(gpu, host.ids())?;
        self.list_mut(List::Weights).write(gpu, bytemuck::cast_slice(host.weights()))?;
        self.list_mut(List::Sorted).write(gpu, host.sorted_pairs())?;
        self.list_mut(List::SortedTokens).write(gpu, &tokens)?;
        self.list_mut(List::Positions).write(gpu, host.positions())?;
        self.offsets_mut().write(gpu, host.offsets())
    }

    /// Starts copying the decisions to the host, as they are after everything issued before.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    pub fn post(&mut self, gpu: &Gpu) -> Result<()> {
        // What was posted before goes back first: it may be what is taken.
        self.posted = None;
        self.posted =
            Some(Staging::download(gpu, self.memory.slice(..self.range(List::SortedTokens).start))?);
        Ok(())
    }

    /// Rows that these experts have together, if the routing has been posted and is there.
    pub(super) fn known_rows(&self, experts: impl Iterator<Item = usize>) -> Option<usize> {
        let words: &[u32] = bytemuck::cast_slice(self.posted.as_ref()?.ready()?);
        let offsets = &words[self.offsets_range()];
        Some(experts.map(|e| (offsets[e + 1] - offsets[e]) as usize).sum())
    }

    /// The decisions on the host: as they were posted, or after everything issued before.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`], also for what failed before.
    pub fn download(&self, gpu: &Gpu) -> Result<Routing> {
        let fresh;
        let words: &[u32] = match &self.posted {
            Some(posted) => bytemuck::cast_slice(posted.bytes()?),
            None => {
                fresh = self.memory.slice(..self.range(List::SortedTokens).start).download(gpu)?;
                &fresh
            }
        };
        let list = |list| words[self.range(list)].to_vec();
        let fault = u64::from(words[1]) << 32 | u64::from(words[0]);
        Ok(Routing::from_parts(
            self.top_k,
            list(List::Ids),
            list(List::Weights).into_iter().map(f32::from_bits).collect(),
            list(List::Sorted),
            list(List::Positions),
            words[self.offsets_range()].to_vec(),
            fault_of(fault),
        ))
    }
}

/// Addresses of a routing's parts.
pub(super) struct Outputs {
    pub ids: u64,
    pub weights: u64,
    pub sorted: u64,
    pub sorted_tokens: u64,
    pub positions: u64,
    pub offsets: u64,
    pub fault: u64,
}
