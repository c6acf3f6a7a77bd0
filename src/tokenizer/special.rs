//! The names of control tokens: which ids they have and whether they are silent.

use std::collections::HashMap;
use std::path::Path;

use super::{fault, read_capped};
use crate::error::Result;

/// Kimi-K2's names, as offsets behind the last rank. Later models name more of the 256; their
/// `tokenizer_config.json` says so, and then this table is not used.
const KIMI_K2: [(usize, &str); 17] = [
    (0, "[BOS]"),
    (1, "[EOS]"),
    (2, "<|im_end|>"),
    (3, "<|im_user|>"),
    (4, "<|im_assistant|>"),
    (6, "<|start_header_id|>"),
    (7, "<|end_header_id|>"),
    (9, "[EOT]"),
    (10, "<|im_system|>"),
    (11, "<|tool_calls_section_begin|>"),
    (12, "<|tool_calls_section_end|>"),
    (13, "<|tool_call_begin|>"),
    (14, "<|tool_call_argument_begin|>"),
    (15, "<|tool_call_end|>"),
    (17, "<|im_middle|>"),
    (254, "[UNK]"),
    (255, "[PAD]"),
];

/// Largest `tokenizer_config.json` that is read; Kimi-K2's has 4 kB, some templates inside are 50 kB.
pub(super) const MAX_CONFIG: usize = 4 << 20;

/// Longest name of a control token, bytes.
const MAX_NAME: usize = 256;

/// A control token: only the chat template and the model itself write it, user text never becomes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Control {
    /// What it is called in templates.
    pub(super) name: String,
    /// It stands for no text. Tokens such as `<think>` are control tokens that print as their name.
    pub(super) silent: bool,
}

/// The control tokens of a vocabulary, by id and by name.
#[derive(Debug, Clone, Default)]
pub(super) struct Controls {
    by_id: HashMap<u32, Control>,
    by_name: HashMap<String, u32>,
}

impl Controls {
    /// Adds a token; an error says which id or name stands twice.
    pub(super) fn add(&mut self, id: u32, control: Control) -> Result<(), String> {
        let name = &control.name;
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(format!("token {id}: a name of {} bytes, expected 1 to {MAX_NAME}", name.len()));
        }
        if let Some(other) = self.by_name.insert(name.clone(), id) {
            return Err(format!("the name {name:?} stands twice, for ids {other} and {id}"));
        }
        if let Some(other) = self.by_id.insert(id, control) {
            return Err(format!("id {id} stands twice, the first time as {:?}", other.name));
        }
        Ok(())
    }

    pub(super) fn get(&self, id: u32) -> Option<&Control> {
        self.by_id.get(&id)
    }

    pub(super) fn id(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// Every name, in no particular order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// The 256 ids behind `ranks`: named by `declared` where that is given, else by Kimi-K2's table; the rest
    /// are `<|reserved_token_ID|>`, as in the published `tokenization_kimi.py`.
    pub(super) fn kimi(ranks: usize, declared: Option<Controls>) -> Result<Controls, String> {
        let mut controls = match declared {
            Some(declared) => declared,
            None => {
                let mut table = Controls::default();
                for (offset, name) in KIMI_K2 {
                    table.add((ranks + offset) as u32, Control { name: name.to_owned(), silent: true })?;
                }
                table
            }
        };
        for id in ranks as u32..(ranks + super::tiktoken::RESERVED) as u32 {
            if controls.get(id).is_none() {
                let name = format!("<|reserved_token_{id}|>");
                controls.add(id, Control { name, silent: true })?;
            }
        }
        Ok(controls)
    }

    /// `added_tokens_decoder` of a `tokenizer_config.json`: a map from id to `{"content", "special"}`. `None`
    /// where the field is absent. Ids must lie in `ids`.
    pub(super) fn declared(
        config: &serde_json::Value,
        ids: std::ops::Range<usize>,
    ) -> Result<Option<Controls>, String> {
        const FIELD: &str = "added_tokens_decoder";
        let Some(field) = config.get(FIELD) else { return Ok(None) };
        let entries = field.as_object().ok_or(format!("`{FIELD}` is not an object"))?;
        let mut controls = Controls::default();
        for (key, entry) in entries {
            let id: u32 = key.parse().map_err(|_| format!("`{FIELD}`: the id {key:?} is not a number"))?;
            if !ids.contains(&(id as usize)) {
                let (first, last) = (ids.start, ids.end.saturating_sub(1));
                return Err(format!("`{FIELD}`: id {id}, expected {first} to {last}"));
            }
            let name = entry
                .get("content")
                .and_then(|content| content.as_str())
                .ok_or(format!("`{FIELD}`: token {id} has no text in `content`"))?;
            let silent = entry.get("special").and_then(|special| special.as_bool()).unwrap_or(true);
            controls
                .add(id, Control { name: name.to_owned(), silent })
                .map_err(|e| format!("`{FIELD}`: {e}"))?;
        }
        Ok(Some(controls))
    }
}

/// Reads `tokenizer_config.json` of a folder, if there is one.
pub(super) fn read_config(dir: &Path) -> Result<Option<serde_json::Value>> {
    let file = dir.join("tokenizer_config.json");
    let Some(bytes) = read_capped(&file, MAX_CONFIG)? else { return Ok(None) };
    let value: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| fault(&file, format!("is not JSON: {e}")))?;
    if !value.is_object() {
        return Err(fault(&file, "is not a JSON object"));
    }
    Ok(Some(value))
}
