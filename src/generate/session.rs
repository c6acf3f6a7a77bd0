//! One timeline: prompt in, tokens out, the cache in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::engine::Inner;
use super::sampler::{Sampler, Sampling};
use super::stats::{FinishReason, Stats};
use super::stop::{StopStrings, Watched};
use crate::error::{Error, Result};
use crate::experts::stats::ExpertStats;
use crate::tokenizer::{Message, TokenStream};

/// Stops a running generation or load from another thread.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(pub(super) Arc<AtomicBool>);

impl CancelToken {
    /// Asks for the stop; it happens between two layers.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether the stop was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// A token that shares a flag, such as [`crate::LoadOptions::cancel`]'s.
    pub fn of(flag: Arc<AtomicBool>) -> CancelToken {
        CancelToken(flag)
    }

    /// The flag behind it, for [`crate::LoadOptions::cancel`].
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }

    /// Forgets an earlier [`CancelToken::cancel`].
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// How a session is set up.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Tokens it may hold; `None` takes the model's longest context. Memory is taken as the context grows.
    pub context: Option<usize>,
    /// Cancels its generations.
    pub cancel: CancelToken,
}

impl SessionOptions {
    /// Sets the number of tokens the session may hold.
    pub fn context(mut self, tokens: usize) -> Self {
        self.context = Some(tokens);
        self
    }

    /// Sets the token that cancels its generations.
    pub fn cancel(mut self, token: CancelToken) -> Self {
        self.cancel = token;
        self
    }
}

/// A generated token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The text that became complete with it: empty while a character or a possible stop string is incomplete, and
    /// for control tokens.
    pub text: String,
}

/// One mutable timeline on an engine.
pub struct Session {
    engine: Arc<Inner>,
    sequence: Box<dyn super::engine::Timeline>,
    /// The whole timeline; the cache holds all of it or all but its end.
    tokens: Vec<u32>,
    limit: usize,
    cancel: CancelToken,
    stats: Stats,
    /// The engine's experts when the generation began, and at its last token.
    experts: (ExpertStats, ExpertStats),
}

impl Session {
    pub(super) fn new(engine: Arc<Inner>, options: SessionOptions) -> Result<Session> {
        let most = engine.config().max_context;
        let limit = options.context.unwrap_or(most);
        if limit == 0 || limit > most {
            return Err(Error::argument("context", format!("is {limit}, expected 1 to the model's {most}")));
        }
        let sequence = engine.timeline()?;
        Ok(Session {
            engine,
            sequence,
            tokens: Vec::new(),
            limit,
            cancel: options.cancel,
            stats: Stats::default(),
            experts: Default::default(),
        })
    }

    /// Appends `prompt` to the timeline and generates. An empty prompt on an empty timeline starts from the model's
    /// begin-of-sequence token.
    ///
    /// # Errors
    /// [`Error::Argument`] for bad sampling settings or where there is no token to go on from, [`Error::ContextFull`] for a prompt that
    /// does not fit. Failures of the forward pass come from the iterator.
    pub fn generate(&mut self, prompt: &str, sampling: &Sampling) -> Result<Generation<'_>> {
        let mut ids = self.engine.tokenizer()?.encode(prompt)?;
        if ids.is_empty() && self.tokens.is_empty() {
            ids.extend(self.engine.config().bos_token_id);
        }
        self.generate_tokens(&ids, sampling)
    }

    /// Makes the timeline the chat so far, rendered with the model's template, and generates the reply. The cache of
    /// what the timeline already has in common with it is reused.
    ///
    /// # Errors
    /// As [`Session::generate`]; [`Error::Tokenizer`] if the model has no chat template or it fails.
    pub fn chat(&mut self, messages: &[Message], sampling: &Sampling) -> Result<Generation<'_>> {
        let ids = self.engine.render_chat(messages)?;
        let common = ids.iter().zip(&self.tokens).take_while(|(a, b)| a == b).count();
        // At least one token must be computed anew, or there are no logits to sample from.
        let common = common.min(ids.len().saturating_sub(1));
        self.rewind(common);
        self.generate_tokens(&ids[common..], sampling)
    }

    /// Appends token ids to the timeline and generates.
    ///
    /// # Errors
    /// As [`Session::generate`].
    pub fn generate_tokens(&mut self, prompt: &[u32], sampling: &Sampling) -> Result<Generation<'_>> {
        sampling.validate()?;
        let needed = self.tokens.len() + prompt.len();
        if needed == 0 {
            return Err(Error::argument(
                "prompt",
                "is empty and the model has no begin-of-sequence token; give it at least one token to go on from",
            ));
        }
        if needed > self.limit {
            return Err(Error::ContextFull { needed, limit: self.limit });
        }
        self.tokens.extend_from_slice(prompt);
        let seed = sampling.seed.unwrap_or_else(random_seed);
        self.experts = (self.engine.expert_stats(), self.engine.expert_stats());
        self.stats = Stats { seed, prompt_tokens: needed - self.sequence.len(), ..Stats::default() };
        Ok(Generation {
            sampler: Sampler::new(sampling, seed),
            stop: StopStrings::new(&sampling.stop),
            text: TokenStream::default(),
            left: sampling.max_tokens,
            ignore_eos: sampling.ignore_eos,
            done: false,
            session: self,
        })
    }

    /// Logits of `tokens` appended to the timeline, row-major [tokens, vocab].
    ///
    /// # Errors
    /// [`Error::ContextFull`], and what the forward pass reports.
    pub fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let needed = self.tokens.len() + tokens.len();
        if needed > self.limit {
            return Err(Error::ContextFull { needed, limit: self.limit });
        }
        let pending = self.tokens.len() - self.sequence.len();
        let fresh = [&self.tokens[self.sequence.len()..], tokens].concat();
        let mut logits = self.sequence.logits(&fresh, &self.cancel.0)?;
        logits.drain(..pending * self.engine.config().vocab_size);
        self.tokens.extend_from_slice(tokens);
        Ok(logits)
    }

    /// The timeline so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Forgets the timeline from token `len` on.
    pub fn rewind(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.sequence.truncate(len);
    }

    /// Tokens the session may hold.
    pub fn context(&self) -> usize {
        self.limit
    }

    /// Statistics of the last generation.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Computes what the cache lacks of the timeline and samples the next token.
    fn next_token(&mut self, sampler: &mut Sampler) -> Result<u32> {
        let begun = Instant::now();
        let fresh = self.tokens[self.sequence.len()..].to_vec();
        let first = self.stats.generated_tokens == 0;
        let word = sampler.word();
        let next = self.sequence.next(&fresh, sampler.settings(), word, &self.cancel.0);
        let took = begun.elapsed();
        let limit = self.count_experts();
        let id = next?;
        if first {
            self.stats.prefill_seconds = took.as_secs_f64();
        } else {
            self.stats.decode.push(took);
            self.stats.limits.extend(limit);
        }
        self.stats.generated_tokens += 1;
        self.tokens.push(id);
        Ok(id)
    }
}

impl Session {
    /// Brings the statistics of experts up to date; returns the least time for what was done since the last call.
    fn count_experts(&mut self) -> Option<Duration> {
        if self.engine.all_at_hand() {
            return None;
        }
        let (begin, last) = &mut self.experts;
        let seen = self.engine.expert_stats();
        let step = seen.since(last);
        *last = seen;
        self.stats.experts = Some(seen.since(begin));
        Duration::try_from_secs_f64(self.engine.limit_seconds(&step, &seen)).ok()
    }
}

/// Sixty-four bits from the standard library's randomly keyed hasher.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // Short enough to be typed again from the statistics line.
    RandomState::new().hash_one(0) >> 32
}

/// A running generation: an iterator of tokens. Dropping it ends it; the tokens so far stay in the timeline.
pub struct Generation<'s> {
    session: &'s mut Session,
    sampler: Sampler,
    text: TokenStream,
    stop: StopStrings,
    left: usize,
    ignore_eos: bool,
    done: bool,
}

impl Generation<'_> {
    /// Statistics so far.
    pub fn stats(&self) -> &Stats {
        &self.session.stats
    }

    fn finish(&mut self, reason: FinishReason) {
        self.done = true;
        self.session.stats.finish = Some(reason);
    }

    fn step(&mut self) -> Result<Option<Token>> {
        if self.left == 0 {
            self.finish(FinishReason::Length);
            return Ok(None);
        }
        let id = self.session.next_token(&mut self.sampler)?;
        self.left -= 1;
        let engine = self.session.engine.clone();
        let piece = match engine.tokenizer() {
            Ok(tokenizer) => self.text.push(tokenizer, id),
            Err(_) => String::new(),
        };
        let mut text = match self.stop.push(&piece) {
            Watched::Text(text) => text,
            Watched::Stopped(text) => {
                self.finish(FinishReason::StopString);
                return Ok(Some(Token { id, text }));
            }
        };
        if !self.ignore_eos && engine.stop_ids().contains(&id) {
            self.finish(FinishReason::Stop);
        } else if self.left == 0 {
            self.finish(FinishReason::Length);
        } else if self.session.tokens.len() >= self.session.limit {
            self.finish(FinishReason::Context);
        }
        if self.done {
            match self.stop.push(&std::mem::take(&mut self.text).finish()) {
                Watched::Text(rest) => text = text + &rest + &self.stop.finish(),
                Watched::Stopped(rest) => text += &rest,
            }
        }
        Ok(Some(Token { id, text }))
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Result<Token>> {
        if self.done {
            return None;
        }
        let step = self.step();
        self.done |= step.is_err();
        step.transpose()
    }
}
