//! How well a model predicts a text, and how far it is from a reference model.
//!
//! The text is cut into windows that do not overlap. A window of `n` predicted tokens has `n + 1`: the first is context
//! only, nothing is put in front of it, and every window starts from an empty cache. Perplexity is exp of the mean negative
//! log-likelihood. Against a reference, such as the model that this one was compressed from, both read the same windows; the
//! Kullback-Leibler divergence of their next-token distributions says more than perplexity does, because it sees every
//! token of the vocabulary and not only the one that follows.
//!
//! Nothing is kept of a window but its means: memory is that of a block of logits of each model, whatever the text's length.
//!
//! ```no_run
//! use abruzzi::Engine;
//! use abruzzi::evaluate::{Evaluation, Options};
//!
//! # fn main() -> abruzzi::Result<()> {
//! let (small, whole) = (Engine::builder("small").load()?, Engine::builder("whole").load()?);
//! let text = "In the beginning …";
//! let summary = Evaluation::of_text(&small, Some(&whole), text, &Options::default())?.run()?;
//! println!("perplexity {:.2}", summary.perplexity());
//! # Ok(())
//! # }
//! ```

mod scores;
mod softmax;
mod windows;

use rayon::prelude::*;

pub use scores::{Divergence, Estimate, Scores, Summary};
pub use windows::Windows;

use crate::error::{Error, Result};
use crate::generate::{CancelToken, Engine, Session, SessionOptions};
use scores::Tally;
use softmax::Distribution;

/// Tokens whose logits are held at a time: 168 MB a model at Kimi-K2's vocabulary, however long a window is.
const BLOCK: usize = 256;

/// How a text is evaluated.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Tokens predicted in a window, 1 to the model's longest context.
    pub window: usize,
    /// Windows at most, from the text's beginning; `None` takes the whole text.
    pub windows: Option<usize>,
    /// Threads that turn logits into scores; 0 takes one per available core.
    pub threads: usize,
    /// Cancels it, between two layers.
    pub cancel: CancelToken,
}

impl Default for Options {
    fn default() -> Options {
        Options { window: 256, windows: None, threads: 0, cancel: CancelToken::default() }
    }
}

/// A running evaluation: an iterator of the windows' scores. It ends after the first error.
///
/// The scores do not depend on the number of threads.
pub struct Evaluation {
    model: Session,
    reference: Option<Session>,
    windows: Windows,
    vocab: usize,
    next: usize,
    tally: Tally,
    pool: rayon::ThreadPool,
}

impl Evaluation {
    /// Evaluates a text, in tokens of the model's tokenizer.
    ///
    /// # Errors
    /// As [`Windows::of_text`] and [`Evaluation::new`]; [`Error::Tokenizer`] if a checkpoint has no tokenizer that can be used.
    pub fn of_text(
        model: &Engine,
        reference: Option<&Engine>,
        text: &str,
        options: &Options,
    ) -> Result<Evaluation> {
        let other = reference.map(Engine::tokenizer).transpose()?;
        let windows = Windows::of_text(text, model.tokenizer()?, other, options)?;
        Evaluation::new(model, reference, windows, options)
    }

    /// Evaluates windows of tokens, against the reference if there is one.
    ///
    /// # Errors
    /// [`Error::Argument`] if the vocabularies differ in size or a window exceeds a model's longest context;
    /// [`Error::OutOfMemory`] for the sessions.
    pub fn new(
        model: &Engine,
        reference: Option<&Engine>,
        windows: Windows,
        options: &Options,
    ) -> Result<Evaluation> {
        let vocab = model.config().vocab_size;
        if let Some(reference) = reference {
            windows::same_vocabulary(vocab, reference.config().vocab_size)?;
        }
        let session = |engine: &Engine| {
            let (window, most) = (windows.predicted(), engine.config().max_context);
            if window > most {
                let problem = format!("is {window}, expected 1 to the {most} tokens of the model's context");
                return Err(Error::argument("window", problem));
            }
            engine.session(SessionOptions::default().context(window).cancel(options.cancel.clone()))
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads)
            .build()
            .map_err(|e| Error::argument("threads", format!("cannot be started: {e}")))?;
        Ok(Evaluation {
            model: session(model)?,
            reference: reference.map(session).transpose()?,
            windows,
            vocab,
            next: 0,
            tally: Tally::default(),
            pool,
        })
    }

    /// What is evaluated.
    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    /// The windows so far. Before the first, means are NaN.
    pub fn summary(&self) -> Summary {
        self.tally.summary(self.windows.predicted())
    }

    /// Evaluates all windows that are left.
    ///
    /// # Errors
    /// What the forward pass reports: [`Error::NonFinite`], [`Error::Expert`], [`Error::DeviceLost`],
    /// [`Error::OutOfMemory`]; [`Error::Argument`] for a token outside the vocabulary; [`Error::Cancelled`].
    pub fn run(mut self) -> Result<Summary> {
        self.by_ref().try_for_each(|window| window.map(drop))?;
        Ok(self.summary())
    }

    /// The means of a window.
    fn window(&mut self, index: usize) -> Result<Scores> {
        let tokens = self.windows.get(index);
        self.model.rewind(0);
        if let Some(reference) = &mut self.reference {
            reference.rewind(0);
        }
        let predicted = tokens.len() - 1;
        let mut scores = Vec::with_capacity(predicted);
        for begin in (0..predicted).step_by(BLOCK) {
            let end = predicted.min(begin + BLOCK);
            let (seen, follow) = (&tokens[begin..end], &tokens[begin + 1..end + 1]);
            let logits = self.model.logits(seen)?;
            let reference = self.reference.as_mut().map(|session| session.logits(seen)).transpose()?;
            let vocab = self.vocab;
            let score = |(i, &token): (usize, &u32)| {
                let reference = reference.as_deref().map(|logits| Distribution::of_row(logits, i, vocab));
                Scores::of_token(&Distribution::of_row(&logits, i, vocab), reference.as_ref(), token)
            };
            self.pool.install(|| scores.par_extend(follow.par_iter().enumerate().map(score)));
        }
        Ok(Scores::mean(&scores))
    }
}

impl Iterator for Evaluation {
    type Item = Result<Scores>;

    fn next(&mut self) -> Option<Result<Scores>> {
        if self.next >= self.windows.len() {
            return None;
        }
        let scores = self.window(self.next);
        match &scores {
            Ok(scores) => {
                self.tally.add(scores);
                self.next += 1;
            }
            Err(_) => self.next = self.windows.len(),
        }
        Some(scores)
    }
}
