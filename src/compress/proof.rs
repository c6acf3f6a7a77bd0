//! A model that was just written, tried: its logits on prompts are finite.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rand_core::Rng;
use rand_pcg::Pcg64Mcg;
use serde::Serialize;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::error::Result;
use crate::model::walk::{Walk, WalkOptions};
use crate::tokenizer::Tokenizer;

/// Prompts of random tokens, and how many tokens each has.
const RANDOM: (usize, usize) = (4, 8);
/// Prompts of text, where there is a tokenizer.
const TEXTS: [&str; 3] =
    ["In the beginning", "The capital of France is", "fn main() {\n    println!(\"Hello\");\n}\n"];

/// What was proven of a model that was written, before it got its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Proof {
    /// Tensors that were read back: those of the configuration and no others, of the right shapes and types; every value is
    /// finite.
    pub verified_tensors: usize,
    /// Their bytes, which are those that were planned.
    pub verified_bytes: u64,
    /// What it was run on.
    pub finite_logits: Trial,
}

/// Prompts that a model was run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Trial {
    /// Prompts of random tokens.
    pub random_prompts: usize,
    /// Prompts of text; none if the model has no tokenizer.
    pub texts: usize,
    /// Tokens of all prompts; each has a row of logits, and every one of these is finite.
    pub tokens: usize,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Trial { random_prompts, texts, tokens } = self.finite_logits;
        write!(
            f,
            "{} tensors of {} bytes read back, none missing, all values finite, sizes as planned; logits finite on \
             {random_prompts} random and {texts} real prompts ({tokens} tokens)",
            self.verified_tensors, self.verified_bytes
        )
    }
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
    Ok(Trial { random_prompts: count, texts: prompts.len() - count, tokens: stream.tokens() })
}
