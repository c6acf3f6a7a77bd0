//! Which experts a model's tokens went to, recorded and replayed.
//!
//! A trace file is one JSON object that Chrome's trace viewer opens (`traceEvents`) and that carries the routing beside
//! it (`routing`), so one file of a run shows its streams and can be replayed. Ids are kept as 16-bit numbers: a token
//! of Kimi-K2 (60 layers, 8 experts each) takes 960 bytes, 1,280 in the file.

mod file;
mod record;
mod stats;
mod synthetic;

use std::ops::Range;

use super::ExpertId;
use crate::error::{Error, Result};

pub(crate) use file::replace_file;
pub use stats::TraceStats;
pub use synthetic::SyntheticTrace;

/// The most experts a layer may have: ids are 16-bit.
pub const MAX_EXPERTS: usize = 1 << 16;

/// The routing of a sequence of tokens through one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutingTrace {
    layers: Vec<u32>,
    experts: usize,
    top_k: usize,
    prompt_tokens: Vec<u32>,
    ids: Vec<u16>,
}

impl RoutingTrace {
    /// An empty trace of a model whose layers `layers` (absolute numbers, ascending) have `experts` experts each, of
    /// which a token uses `top_k`.
    ///
    /// # Errors
    /// [`Error::Argument`] for a shape no model has.
    pub fn new(layers: Vec<u32>, experts: usize, top_k: usize) -> Result<RoutingTrace> {
        check_shape(&layers, experts, top_k).map_err(|(name, problem)| Error::argument(name, problem))?;
        Ok(RoutingTrace { layers, experts, top_k, prompt_tokens: Vec::new(), ids: Vec::new() })
    }

    /// Appends a token: its `top_k` ids in each layer, layer by layer.
    ///
    /// # Errors
    /// [`Error::Argument`] if the row has another length, an id outside the layer, or an id twice in a layer.
    pub fn push(&mut self, row: &[u16]) -> Result<()> {
        let expected = self.row_len();
        if row.len() != expected {
            let problem = format!("has {} ids, expected {expected} (layers × top-k)", row.len());
            return Err(Error::argument("row", problem));
        }
        check_row(row, self.experts, self.top_k).map_err(|p| Error::argument("row", p))?;
        self.ids.extend_from_slice(row);
        Ok(())
    }

    /// Says in which chunks the first tokens of the trace were computed; the others came one at a time.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty chunk or more tokens than the trace has.
    pub fn set_prompt(&mut self, chunks: Vec<u32>) -> Result<()> {
        check_prompt(&chunks, self.tokens()).map_err(|p| Error::argument("prompt_tokens", p))?;
        self.prompt_tokens = chunks;
        Ok(())
    }

    /// The layers with experts, counted over all layers, ascending.
    pub fn layers(&self) -> &[u32] {
        &self.layers
    }

    /// Experts of a layer.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Experts a token uses in a layer.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Routed experts of all layers.
    pub fn all_experts(&self) -> usize {
        self.layers.len() * self.experts
    }

    /// Slots that one token's experts fill.
    pub fn working_set(&self) -> usize {
        self.row_len()
    }

    /// Tokens recorded.
    pub fn tokens(&self) -> usize {
        self.ids.len() / self.row_len()
    }

    /// Lengths of the prefill chunks at the start of the trace.
    pub fn prompt_tokens(&self) -> &[u32] {
        &self.prompt_tokens
    }

    /// The ids of a token, layer by layer.
    ///
    /// # Panics
    /// If the trace has no such token.
    pub fn token(&self, token: usize) -> &[u16] {
        &self.ids[token * self.row_len()..][..self.row_len()]
    }

    /// The ids of a token in the `layer`-th of [`RoutingTrace::layers`], in rank order.
    ///
    /// # Panics
    /// If the trace has no such token or layer.
    pub fn ids(&self, token: usize, layer: usize) -> &[u16] {
        &self.token(token)[layer * self.top_k..][..self.top_k]
    }

    /// All tokens in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u16]> {
        self.ids.chunks_exact(self.row_len())
    }

    /// The forward passes: the prompt's chunks, then one token each.
    pub fn passes(&self) -> impl Iterator<Item = Range<usize>> {
        let mut at = 0;
        let mut chunks = self.prompt_tokens.iter();
        std::iter::from_fn(move || {
            let from = at;
            at += chunks.next().map_or(1, |&n| n as usize);
            (at <= self.tokens()).then_some(from..at)
        })
    }

    /// The distinct experts that a forward pass over `tokens` uses in the `layer`-th of [`RoutingTrace::layers`], in the
    /// order of their first use.
    pub fn used(&self, tokens: Range<usize>, layer: usize, into: &mut Vec<ExpertId>) {
        into.clear();
        let single = tokens.len() == 1;
        for token in tokens {
            for &expert in self.ids(token, layer) {
                let id = ExpertId { layer: self.layers[layer], expert: u32::from(expert) };
                if single || !into.contains(&id) {
                    into.push(id);
                }
            }
        }
    }

    /// The first `tokens` tokens, all of them decoded one at a time.
    pub fn head(&self, tokens: usize) -> RoutingTrace {
        let ids = self.ids[..tokens.min(self.tokens()) * self.row_len()].to_vec();
        RoutingTrace { layers: self.layers.clone(), prompt_tokens: Vec::new(), ids, ..*self }
    }

    fn row_len(&self) -> usize {
        self.layers.len() * self.top_k
    }
}

/// The field that is wrong, and how.
fn check_shape(layers: &[u32], experts: usize, top_k: usize) -> Result<(), (&'static str, String)> {
    if layers.is_empty() || layers.len() > MAX_EXPERTS {
        return Err(("layers", format!("has {} entries, expected 1 to {MAX_EXPERTS}", layers.len())));
    }
    if let Some(pair) = layers.windows(2).find(|p| p[0] >= p[1]) {
        return Err(("layers", format!("has {} before {}, expected ascending numbers", pair[0], pair[1])));
    }
    if experts == 0 || experts > MAX_EXPERTS {
        return Err(("experts", format!("is {experts}, expected 1 to {MAX_EXPERTS}")));
    }
    if top_k == 0 || top_k > experts {
        return Err(("top_k", format!("is {top_k}, expected 1 to {experts} (the number of experts)")));
    }
    Ok(())
}

fn check_row(row: &[u16], experts: usize, top_k: usize) -> Result<(), String> {
    for (layer, ids) in row.chunks_exact(top_k).enumerate() {
        for (rank, &id) in ids.iter().enumerate() {
            if usize::from(id) >= experts {
                let at = format!("rank {rank} of entry {layer} of `layers`");
                return Err(format!("has expert {id} at {at}, expected less than {experts}"));
            }
            if ids[..rank].contains(&id) {
                return Err(format!("has expert {id} twice in entry {layer} of `layers`"));
            }
        }
    }
    Ok(())
}

fn check_prompt(chunks: &[u32], tokens: usize) -> Result<(), String> {
    if chunks.contains(&0) {
        return Err("has a chunk of 0 tokens".to_owned());
    }
    let sum: u64 = chunks.iter().map(|&n| u64::from(n)).sum();
    if sum > tokens as u64 {
        return Err(format!("add up to {sum}, expected at most the trace's {tokens} tokens"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_are_the_chunks_then_single_tokens() {
        let mut trace = RoutingTrace::new(vec![1, 2], 4, 2).unwrap();
        for row in [[0, 1, 2, 3], [1, 0, 3, 2], [2, 1, 0, 3], [3, 0, 1, 2]] {
            trace.push(&row).unwrap();
        }
        trace.set_prompt(vec![2, 1]).unwrap();
        assert_eq!(trace.passes().collect::<Vec<_>>(), [0..2, 2..3, 3..4]);
        let mut used = Vec::new();
        trace.used(0..3, 1, &mut used);
        assert_eq!(used.iter().map(|id| (id.layer, id.expert)).collect::<Vec<_>>(), [(2, 2), (2, 3), (2, 0)]);
        assert_eq!(trace.ids(2, 0), [2, 1]);
        assert_eq!((trace.tokens(), trace.working_set(), trace.all_experts()), (4, 4, 8));
    }

    #[test]
    fn what_no_model_does_is_refused() {
        let refused = |r: Result<()>| match r {
            Err(Error::Argument { name, problem }) => format!("{name} {problem}"),
            other => panic!("{other:?}"),
        };
        let mut trace = RoutingTrace::new(vec![1], 4, 2).unwrap();
        assert_eq!(refused(trace.push(&[0])), "row has 1 ids, expected 2 (layers × top-k)");
        assert!(refused(trace.push(&[0, 4])).contains("expert 4"));
        assert!(refused(trace.push(&[1, 1])).contains("twice"));
        trace.push(&[1, 0]).unwrap();
        assert!(refused(trace.set_prompt(vec![2])).contains("at most the trace's 1 tokens"));
        assert!(refused(trace.set_prompt(vec![0])).contains("chunk of 0"));
        let shape = |layers: &[u32], n, k| refused(RoutingTrace::new(layers.to_vec(), n, k).map(|_| ()));
        assert!(shape(&[], 4, 2).starts_with("layers"));
        assert!(shape(&[2, 2], 4, 2).starts_with("layers"));
        assert!(shape(&[2], 0, 0).starts_with("experts"));
        assert!(shape(&[2], 70_000, 2).starts_with("experts"));
        assert!(shape(&[2], 4, 5).starts_with("top_k"));
    }
}
