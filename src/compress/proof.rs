//! A model that was just written, tried: its logits on prompts are finite.

use std::path::Path;
use std::sync::Arc;

use rand_core::Rng;
use rand_pcg::Pcg64Mcg;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::error::Result;
use crate::model::walk::{Walk, WalkOptions};
use crate::tokenizer::Tokenizer;

/// Prompts of random tokens, and how many tokens each has.
const RANDOM: (usize, usize) = (4, 8);
/// Prompts of text, where there is a tokenizer.
const TEXTS: [&str; 3] =
    ["In the beginning", "The capital of France is", "fn main() {\n    println!(\"Hello\");\n}\n"];

/// What was tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trial {
    /// Prompts of random tokens.
    pub random: usize,
    /// Prompts of text.
    pub texts: usize,
    /// Tokens of all prompts; each has a row of logits, and every one of these is finite.
    pub tokens: usize,
}

/// Runs a checkpoint on prompts, one layer in memory at a time.
///
/// # Errors
/// [`crate::Error::NonFinite`] naming layer, expert and tensor; what reading reports.
pub(super) fn finite_logits(dir: &Path, seed: u64, options: &LoadOptions) -> Result<Trial> {
    let load = LoadOptions { progress: None, ..options.clone() };
    let checkpoint = Arc::new(Checkpoint::open(dir)?);
    let vocab = checkpoint.config().vocab_size;
    let mut rng = Pcg64Mcg::new(u128::from(seed) | 1);
    let (count, len) = RANDOM;
    let mut prompts: Vec<Vec<u32>> =
        (0..count).map(|_| (0..len).map(|_| rng.next_u32() % vocab as u32).collect()).collect();
    if let Ok(tokenizer) = Tokenizer::from_dir(dir, vocab) {
        for text in TEXTS {
            prompts.push(tokenizer.encode(text)?);
        }
    }
    // Prompts are short: an expert is read once a layer, and need not stay.
    let walk =
        Walk::new(checkpoint, &WalkOptions { load, host_budget: Some(64 << 20), ..WalkOptions::default() })?;
    let mut stream = walk.embed(&prompts)?;
    for layer in 0..walk.config().num_layers {
        walk.step(layer, &mut stream, |_| Ok(()))?;
    }
    walk.losses(&stream)?;
    Ok(Trial { random: count, texts: prompts.len() - count, tokens: stream.tokens() })
}
