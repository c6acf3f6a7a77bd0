//! Text to token ids and back: Kimi's `tiktoken.model`, or a byte-level `tokenizer.json`.
//!
//! The rule that everything here keeps: text becomes a control token nowhere. [`Tokenizer::encode`] does not
//! know them; only the chat template's own text does, see [`ChatTemplate`]. Every file is checked before use,
//! so encoding and decoding cannot panic whatever they hold.

mod hf;
mod special;
mod stream;
mod template;
mod tiktoken;

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use hf::ByteLevel;
use special::Controls;
pub use stream::TokenStream;
pub use template::{ChatTemplate, Message};
use tiktoken::Tiktoken;

/// A vocabulary with its control tokens. Immutable; share it between threads behind an `Arc`.
pub struct Tokenizer {
    file: PathBuf,
    vocabulary: Vocabulary,
    controls: Controls,
    vocab_size: usize,
}

/// Where ordinary tokens come from.
enum Vocabulary {
    Tiktoken(Box<Tiktoken>),
    ByteLevel(Box<ByteLevel>),
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("file", &self.file)
            .field("vocab_size", &self.vocab_size)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads the tokenizer of a model folder: `tiktoken.model`, with names from `tokenizer_config.json` where
    /// that has an `added_tokens_decoder`; else `tokenizer.json`. `vocab_size` is the model's (rows of its embedding): no id reaches it.
    ///
    /// # Errors
    /// [`Error::Io`] where a file cannot be read, [`Error::Tokenizer`] where there is none or it is damaged, by
    /// file and line.
    pub fn from_dir(dir: &Path, vocab_size: usize) -> Result<Tokenizer> {
        let config = special::read_config(dir)?;
        let file = dir.join("tiktoken.model");
        if let Some(bytes) = read_capped(&file, tiktoken::MAX_FILE)? {
            return Tokenizer::from_tiktoken(&bytes, &file, vocab_size, config.as_ref());
        }
        let file = dir.join("tokenizer.json");
        if let Some(bytes) = read_capped(&file, hf::MAX_FILE)? {
            return Tokenizer::from_json_bytes(&bytes, &file, vocab_size);
        }
        Err(fault(
            dir,
            "has no tiktoken.model and no tokenizer.json; copy it from where the model was published",
        ))
    }

    /// A tokenizer from the bytes of a `tokenizer.json` with a byte-level BPE. Its added tokens are control
    /// tokens. `file` is for messages only.
    ///
    /// # Errors
    /// [`Error::Tokenizer`], with the field.
    pub fn from_json_bytes(bytes: &[u8], file: &Path, vocab_size: usize) -> Result<Tokenizer> {
        check_vocab_size(vocab_size)?;
        let (bpe, controls) = ByteLevel::parse(bytes, file, vocab_size)?;
        let vocabulary = Vocabulary::ByteLevel(Box::new(bpe));
        Ok(Tokenizer { file: file.to_owned(), vocabulary, controls, vocab_size })
    }

    /// A tokenizer from the bytes of a `tiktoken.model`, with Kimi-K2's names for the control tokens. `file` is
    /// for messages only.
    ///
    /// # Errors
    /// [`Error::Tokenizer`], with the line.
    pub fn from_tiktoken_bytes(bytes: &[u8], file: &Path, vocab_size: usize) -> Result<Tokenizer> {
        Tokenizer::from_tiktoken(bytes, file, vocab_size, None)
    }

    fn from_tiktoken(
        bytes: &[u8],
        file: &Path,
        vocab_size: usize,
        config: Option<&serde_json::Value>,
    ) -> Result<Tokenizer> {
        check_vocab_size(vocab_size)?;
        let bpe = Tiktoken::parse(bytes, file)?;
        let ranks = bpe.ranks();
        let needed = ranks + tiktoken::RESERVED;
        if needed > vocab_size {
            let reserved = tiktoken::RESERVED;
            return Err(fault(
                file,
                format!(
                    "has {ranks} tokens, with {reserved} reserved ids {needed}, expected at most the model's \
                     vocab_size of {vocab_size}; the file belongs to another model"
                ),
            ));
        }
        let names = file.with_file_name("tokenizer_config.json");
        let declared = match config {
            Some(config) => Controls::declared(config, ranks..vocab_size).map_err(|e| fault(&names, e))?,
            None => None,
        };
        let controls = Controls::kimi(ranks, declared).map_err(|e| fault(&names, e))?;
        Ok(Tokenizer {
            file: file.to_owned(),
            vocabulary: Vocabulary::Tiktoken(Box::new(bpe)),
            controls,
            vocab_size,
        })
    }

    /// Encodes text. A control token's name inside it is text like any other; nothing is put in front.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the vocabulary cannot split or spell the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.vocabulary {
            Vocabulary::Tiktoken(bpe) => bpe.encode(text, &self.file),
            Vocabulary::ByteLevel(bpe) => bpe.encode(text, &self.file),
        }
    }

    /// Decodes ids. Silent control tokens and ids outside the vocabulary add nothing; bytes that are no UTF-8
    /// become U+FFFD as in [`String::from_utf8_lossy`].
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().filter_map(|&id| self.token_bytes(id)).flatten().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What a token adds to the text. `None` for silent control tokens and ids outside the vocabulary. The bytes
    /// may be part of a character; [`Tokenizer::stream`] puts characters together.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        if let Some(control) = self.controls.get(id) {
            return (!control.silent).then_some(control.name.as_bytes());
        }
        match &self.vocabulary {
            Vocabulary::Tiktoken(bpe) => bpe.bytes(id),
            Vocabulary::ByteLevel(bpe) => bpe.bytes(id),
        }
    }

    /// The token is a control token that stands for no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.controls.get(id).is_some_and(|control| control.silent)
    }

    /// The id of a control token by its name, such as `<|im_end|>`.
    pub fn special_id(&self, name: &str) -> Option<u32> {
        self.controls.id(name)
    }

    /// The tokens that end an answer, by name: `[EOS]` and `<|im_end|>`, where the vocabulary has them. A model's
    /// `config.json` may name more.
    pub fn stop_ids(&self) -> Vec<u32> {
        ["[EOS]", "<|im_end|>"].into_iter().filter_map(|name| self.special_id(name)).collect()
    }

    /// One more than the largest id the model knows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// A decoder for ids that come one at a time.
    pub fn stream(&self) -> TokenStream {
        TokenStream::default()
    }
}

/// Largest vocabulary: tables by id are allocated from it. Kimi-K2 has 163,840 ids.
const MAX_VOCAB: usize = 1 << 24;

fn check_vocab_size(vocab_size: usize) -> Result<()> {
    match vocab_size {
        1..=MAX_VOCAB => Ok(()),
        _ => Err(Error::argument("vocab_size", format!("is {vocab_size}, expected 1 to {MAX_VOCAB}"))),
    }
}

/// An [`Error::Tokenizer`].
fn fault(file: &Path, problem: impl Into<String>) -> Error {
    Error::Tokenizer { file: file.to_owned(), problem: problem.into() }
}

/// Reads a regular file of at most `limit` bytes; `None` where there is none.
fn read_capped(path: &Path, limit: usize) -> Result<Option<Vec<u8>>> {
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, "read")(e)),
    };
    // Opening a FIFO would wait for a writer for ever.
    if !found.is_file() {
        return Err(fault(path, "is not a regular file"));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(Error::io(path, "open"))?;
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    if bytes.len() > limit {
        return Err(fault(path, format!("is larger than {limit} bytes; this is not the published file")));
    }
    Ok(Some(bytes))
}
