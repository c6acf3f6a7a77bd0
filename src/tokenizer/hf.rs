//! `tokenizer.json`: the byte-level BPE vocabularies of DeepSeek-V3 and its kin, through the `tokenizers` crate.
//!
//! That crate trusts its file. So the JSON is read here first: sizes and ids are checked, what could change a
//! text unasked (added tokens, truncation, padding, post-processing, dropout) is taken out, and only the rest is
//! handed on. A panic inside it would be a bug of theirs that a strange file found; it is caught and reported.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::Value;

use super::fault;
use super::special::{Control, Controls};
use crate::error::Result;

/// Largest `tokenizer.json` that is read: DeepSeek-V3's has 7.8 MB.
pub(super) const MAX_FILE: usize = 32 << 20;

/// A byte-level BPE vocabulary.
pub(super) struct ByteLevel {
    inner: tokenizers::Tokenizer,
    /// By id; `None` where the file has no token of that id.
    tokens: Vec<Option<Box<[u8]>>>,
}

impl ByteLevel {
    /// Reads a `tokenizer.json`; also gives its added tokens, which are control tokens here. `file` is only for
    /// messages.
    pub(super) fn parse(bytes: &[u8], file: &Path, vocab_size: usize) -> Result<(ByteLevel, Controls)> {
        parse(bytes, vocab_size).map_err(|problem| fault(file, problem))
    }

    /// The bytes of an ordinary token.
    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        self.tokens.get(id as usize)?.as_deref()
    }

    /// Encodes text without looking for control tokens.
    pub(super) fn encode(&self, text: &str, file: &Path) -> Result<Vec<u32>> {
        let encoding = contained(|| self.inner.encode_fast(text, false))
            .map_err(|problem| fault(file, format!("cannot encode the text: {problem}")))?;
        Ok(encoding.get_ids().to_vec())
    }
}

fn parse(bytes: &[u8], vocab_size: usize) -> Result<(ByteLevel, Controls), String> {
    if bytes.len() > MAX_FILE {
        return Err(format!("has {} bytes, expected at most {MAX_FILE}", bytes.len()));
    }
    let mut json: Value = serde_json::from_slice(bytes).map_err(|e| format!("is not JSON: {e}"))?;
    if !json.is_object() {
        return Err("is not a JSON object".into());
    }
    let controls = added_tokens(&json, vocab_size)?;
    require_byte_level(&json)?;
    let tokens = vocabulary(&mut json, &controls, vocab_size)?;

    // Decoding is done here, from the vocabulary's bytes.
    for part in ["truncation", "padding", "post_processor", "decoder"] {
        json[part] = Value::Null;
    }
    json["added_tokens"] = Value::Array(Vec::new());
    for part in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
        json["model"][part] = Value::Null;
    }
    let cleaned = json.to_string();
    drop(json);
    let inner = contained(|| tokenizers::Tokenizer::from_bytes(cleaned.as_bytes()))
        .map_err(|problem| format!("is not a tokenizer this engine can use: {problem}"))?;
    Ok((ByteLevel { inner, tokens }, controls))
}

/// Only byte-level BPE can spell every text and gives tokens that are plain bytes.
fn require_byte_level(json: &Value) -> Result<(), String> {
    fn mentions_byte_level(part: &Value) -> bool {
        part["type"] == "ByteLevel"
            || part["pretokenizers"].as_array().is_some_and(|parts| parts.iter().any(mentions_byte_level))
    }
    let model = json["model"]["type"].as_str().unwrap_or("BPE");
    if model != "BPE" {
        return Err(format!("`model.type` is {model:?}, expected \"BPE\""));
    }
    if !mentions_byte_level(&json["pre_tokenizer"]) {
        return Err(
            "`pre_tokenizer` has no \"ByteLevel\" step; only byte-level vocabularies are supported".into()
        );
    }
    // The crate cuts the prefix off every merged token, and panics where a token is shorter.
    for part in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if !matches!(json["model"][part].as_str(), None | Some("")) {
            return Err(format!("`model.{part}` is not empty; byte-level vocabularies have none"));
        }
    }
    only(&json["normalizer"], "normalizer", "normalizers", &["NFC", "NFD", "NFKC", "NFKD"])?;
    only(&json["pre_tokenizer"], "pre_tokenizer", "pretokenizers", &["ByteLevel", "Digits", "Split"])
}

/// Refuses steps that byte-level vocabularies do without: they are the less used code of that crate, and some of them
/// drop text. `list` is the field that holds the steps of a `Sequence`.
fn only(step: &Value, what: &str, list: &str, known: &[&str]) -> Result<(), String> {
    if step.is_null() {
        return Ok(());
    }
    if step["type"] == "Sequence" {
        let steps = step[list].as_array().ok_or(format!("`{what}` is a sequence without `{list}`"))?;
        return steps.iter().try_for_each(|step| only(step, what, list, known));
    }
    match step["type"].as_str() {
        Some(kind) if known.contains(&kind) && step["behavior"] != "Removed" => Ok(()),
        Some(kind) => Err(format!("`{what}` has a step {kind:?} that this engine does not run")),
        None => Err(format!("`{what}` has a step without `type`")),
    }
}

/// `added_tokens`: a list of `{"id", "content", "special"}`.
fn added_tokens(json: &Value, vocab_size: usize) -> Result<Controls, String> {
    let mut controls = Controls::default();
    let entries = match &json["added_tokens"] {
        Value::Null => return Ok(controls),
        Value::Array(entries) => entries,
        _ => return Err("`added_tokens` is not a list".to_owned()),
    };
    for (at, entry) in entries.iter().enumerate() {
        let place = format!("`added_tokens[{at}]`");
        let id = checked_id(&entry["id"], vocab_size).map_err(|e| format!("{place}: {e}"))?;
        let name = entry["content"].as_str().ok_or(format!("{place}: no text in `content`"))?.to_owned();
        let silent = entry["special"].as_bool().unwrap_or(true);
        controls.add(id, Control { name, silent }).map_err(|e| format!("{place}: {e}"))?;
    }
    Ok(controls)
}

/// `model.vocab`: a map from a token, spelt in byte-level characters, to its id. Control tokens are taken out of
/// it: text must not reach them, by no merge and no whole-word match.
fn vocabulary(
    json: &mut Value,
    controls: &Controls,
    vocab_size: usize,
) -> Result<Vec<Option<Box<[u8]>>>, String> {
    let vocab = json["model"]["vocab"].as_object_mut().ok_or("`model.vocab` is not an object")?;
    vocab.retain(|name, id| controls.id(name).is_none_or(|control| id.as_u64() != Some(control.into())));

    let byte_of = byte_level_alphabet();
    let mut tokens = vec![None; vocab_size];
    let mut single = HashSet::new();
    for (name, id) in vocab.iter() {
        let id = checked_id(id, vocab_size).map_err(|e| format!("`model.vocab`: {name:?}: {e}"))?;
        if let Some(control) = controls.get(id) {
            return Err(format!("`model.vocab`: {name:?} has id {id}, which is {:?}", control.name));
        }
        let bytes: Option<Box<[u8]>> = name.chars().map(|c| byte_of.get(&c).copied()).collect();
        let bytes =
            bytes.ok_or_else(|| format!("`model.vocab`: {name:?} is not spelt in byte-level characters"))?;
        if let [byte] = *bytes {
            single.insert(byte);
        }
        // `vocab_size` long, and the id was checked against it.
        if tokens[id as usize].replace(bytes).is_some() {
            return Err(format!("`model.vocab`: id {id} stands twice, once for {name:?}"));
        }
    }
    if let Some(byte) = (0..=255u8).find(|byte| !single.contains(byte)) {
        return Err(format!("`model.vocab`: the single byte 0x{byte:02X} is no token, expected all 256"));
    }
    Ok(tokens)
}

fn checked_id(id: &Value, vocab_size: usize) -> Result<u32, String> {
    id.as_u64()
        .filter(|&id| id < vocab_size as u64)
        .and_then(|id| u32::try_from(id).ok())
        .ok_or_else(|| format!("id {id}, expected a number below the model's vocab_size of {vocab_size}"))
}

/// GPT-2's printable stand-ins for bytes: visible Latin-1 characters stand for themselves, the other 68 bytes are
/// U+0100 and on, in order (`bytes_to_unicode` of openai/gpt-2, encoder.py).
fn byte_level_alphabet() -> HashMap<char, u8> {
    let visible = |b: u8| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let hidden = (0..=255u8).filter(|&b| !visible(b)).zip('\u{100}'..).map(|(b, c)| (c, b));
    (0..=255u8).filter(|&b| visible(b)).map(|b| (char::from(b), b)).chain(hidden).collect()
}

/// Runs code of the `tokenizers` crate; its errors and panics become text.
fn contained<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Err(format!(
                "internal error: {}",
                text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panic")
            ))
        }
    }
}
