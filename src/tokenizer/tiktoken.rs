//! `tiktoken.model`: Kimi's own vocabulary format, a base64 token and its rank a line.
//!
//! The file decides array sizes and is handed to a byte-pair encoder that indexes its map without asking, so
//! it is checked first: ranks are exactly 0..n, no token stands twice, and every single byte is a token. With
//! these three facts no text can fail to encode.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustc_hash::{FxHashMap, FxHashSet};
use tiktoken_rs::{CoreBPE, Rank};

use super::fault;
use crate::error::Result;

/// Ids behind the ranks that Kimi keeps for control tokens.
pub(super) const RESERVED: usize = 256;

/// Largest `tiktoken.model` that is read: Kimi-K2's has 2.8 MB.
pub(super) const MAX_FILE: usize = 16 << 20;

/// Longest token in bytes. Kimi-K2's longest has 128.
const MAX_TOKEN: usize = 4096;

/// Kimi-K2's split pattern, an alternative a line (`tokenization_kimi.py` of the published models).
const PATTERN: &str = concat!(
    r"[\p{Han}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+",
    r"|\s+(?!\S)",
    r"|\s+",
);

/// Kimi's reference encodes a text in slices of at most this many characters…
const SLICE_CHARS: usize = 400_000;
/// …and cuts those where a run of white space, or of anything else, grows longer than this. Both are part of
/// the tokenization, not only a guard: a cut inside a word changes its tokens.
const RUN_CHARS: usize = 25_000;

/// A byte-pair vocabulary with Kimi's split pattern.
pub(super) struct Tiktoken {
    split: fancy_regex::Regex,
    merge: CoreBPE,
    tokens: Vec<Box<[u8]>>,
}

impl Tiktoken {
    /// Reads the lines of a `tiktoken.model`. `file` is only for error messages.
    pub(super) fn parse(bytes: &[u8], file: &Path) -> Result<Tiktoken> {
        let tokens = parse_ranks(bytes, file)?;
        let encoder: FxHashMap<Vec<u8>, Rank> = tokens.iter().map(|t| t.to_vec()).zip(0..).collect();
        // Pieces are cut by `split` below, whose failure is an error value; the encoder's own splitting would
        // panic on one. Its pattern therefore takes whatever piece it is given, whole.
        let merge = CoreBPE::new(encoder, FxHashMap::default(), r"(?s:.+)")
            .map_err(|e| fault(file, format!("the byte-pair encoder refused the vocabulary: {e}")))?;
        let split = fancy_regex::Regex::new(PATTERN)
            .map_err(|e| fault(file, format!("the split pattern does not compile: {e}")))?;
        Ok(Tiktoken { split, merge, tokens })
    }

    /// Number of ranks, the first id behind them.
    pub(super) fn ranks(&self) -> usize {
        self.tokens.len()
    }

    /// The bytes of an ordinary token.
    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        self.tokens.get(id as usize).map(|t| &**t)
    }

    /// Encodes text without looking for control tokens.
    pub(super) fn encode(&self, text: &str, file: &Path) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        for slice in Slices::new(text) {
            for piece in self.split.find_iter(slice) {
                let piece = piece.map_err(|e| fault(file, format!("the text cannot be split: {e}")))?;
                ids.extend(self.merge.encode_ordinary(piece.as_str()));
            }
        }
        Ok(ids)
    }
}

/// Reads tokens in rank order and checks what the encoder relies on.
fn parse_ranks(bytes: &[u8], file: &Path) -> Result<Vec<Box<[u8]>>> {
    if bytes.len() > MAX_FILE {
        let found = bytes.len();
        return Err(fault(file, format!("has {found} bytes, expected at most {MAX_FILE}")));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let line = 1 + bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count();
        fault(file, format!("line {line}: is not text, expected a base64 token and its rank"))
    })?;
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        lines.push(
            parse_line(line).map_err(|problem| fault(file, format!("line {}: {problem}", number + 1)))?,
        );
    }
    if lines.is_empty() {
        return Err(fault(file, "is empty, expected a base64 token and its rank on each line"));
    }

    let count = lines.len();
    let mut tokens: Vec<Option<Box<[u8]>>> = vec![None; count];
    let mut seen = FxHashSet::default();
    // Blank lines are skipped above, so the place in `lines` is not the line number: count again.
    let numbers = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()).map(|(_, number)| number);
    for ((token, rank), number) in lines.iter().zip(numbers) {
        let number: usize = number;
        let Some(place) = tokens.get_mut(*rank as usize) else {
            let last = count - 1;
            return Err(fault(
                file,
                format!("line {number}: rank {rank}, expected 0 to {last}: the file has {count} tokens"),
            ));
        };
        if place.is_some() {
            return Err(fault(file, format!("line {number}: rank {rank} stands twice")));
        }
        if !seen.insert(&**token) {
            let token = token.escape_ascii();
            return Err(fault(file, format!("line {number}: the token \"{token}\" stands twice")));
        }
        *place = Some(token.clone());
    }
    if let Some(byte) = (0..=255u8).find(|b| !seen.contains([*b].as_slice())) {
        return Err(fault(
            file,
            format!(
                "the single byte 0x{byte:02X} is no token, expected all 256: some text could not be encoded"
            ),
        ));
    }
    // `count` distinct ranks below `count` fill every place.
    Ok(tokens.into_iter().flatten().collect())
}

/// One line: base64, white space, a decimal rank. The error is what is wrong with it.
fn parse_line(line: &str) -> Result<(Box<[u8]>, u32), String> {
    const EXPECTED: &str = "expected a base64 token and its rank";
    let mut words = line.split_ascii_whitespace();
    let (Some(token), Some(rank), None) = (words.next(), words.next(), words.next()) else {
        return Err(format!("{:?}, {EXPECTED}", shortened(line)));
    };
    let token = STANDARD.decode(token).map_err(|e| format!("bad base64 {:?}: {e}", shortened(token)))?;
    if token.is_empty() || token.len() > MAX_TOKEN {
        return Err(format!("a token of {} bytes, expected 1 to {MAX_TOKEN}", token.len()));
    }
    let rank = rank.parse().map_err(|e| format!("bad rank {:?}: {e}", shortened(rank)))?;
    Ok((token.into(), rank))
}

/// The head of a text that may be a megabyte of rubbish, for a message.
fn shortened(text: &str) -> String {
    let mut head: String = text.chars().take(40).collect();
    if head.len() < text.len() {
        head.push('…');
    }
    head
}

/// White space as Python's `str.isspace` has it, which the reference cuts by: Unicode's `White_Space` and the
/// four ASCII separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The slices that the reference encodes one by one; concatenated they are the text.
struct Slices<'a> {
    rest: &'a str,
    /// Characters left of the current 400,000.
    left: usize,
}

impl<'a> Slices<'a> {
    fn new(text: &'a str) -> Slices<'a> {
        Slices { rest: text, left: SLICE_CHARS }
    }
}

impl<'a> Iterator for Slices<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let first = self.rest.chars().next()?;
        let (mut in_space, mut run, mut taken) = (is_space(first), 0, 0);
        let mut end = self.rest.len();
        for (at, c) in self.rest.char_indices() {
            if taken == self.left {
                end = at;
                break;
            }
            if is_space(c) == in_space {
                run += 1;
                if run > RUN_CHARS {
                    end = at;
                    break;
                }
            } else {
                (in_space, run) = (!in_space, 1);
            }
            taken += 1;
        }
        self.left = if taken == self.left { SLICE_CHARS } else { self.left - taken };
        let (slice, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(text: &str) -> Vec<usize> {
        Slices::new(text).map(|slice| slice.chars().count()).collect()
    }

    #[test]
    fn slices_follow_the_reference() {
        assert_eq!(lengths(""), [0usize; 0]);
        assert_eq!(lengths("short"), [5]);
        assert_eq!(lengths(&"é".repeat(25_000)), [25_000]);
        assert_eq!(lengths(&"é".repeat(60_000)), [25_000, 25_000, 10_000]);
        assert_eq!(lengths(&"a b".repeat(300_000)), [400_000, 400_000, 100_000]);
        // The run that is cut at 400,000 characters starts anew behind the cut.
        let text = format!("{}{}", "a ".repeat(195_000), "b".repeat(40_000));
        assert_eq!(lengths(&text), [400_000, 25_000, 5_000]);
        // Python counts the ASCII separators as white space, Unicode does not.
        let text = format!("{}{}", "\u{1c}".repeat(20_000), " ".repeat(20_000));
        assert_eq!(lengths(&text), [25_000, 15_000]);
    }

    #[test]
    fn the_split_pattern_covers_every_character() {
        let split = fancy_regex::Regex::new(PATTERN).unwrap();
        let text: String = ('\0'..=char::MAX).collect();
        let mut end = 0;
        for piece in split.find_iter(&text) {
            let piece = piece.unwrap();
            assert_eq!(piece.start(), end, "a character is in no piece");
            end = piece.end();
        }
        assert_eq!(end, text.len());
    }

    #[test]
    fn class_intersection_and_look_ahead_work() {
        let split = fancy_regex::Regex::new(PATTERN).unwrap();
        let pieces = |text| split.find_iter(text).map(|m| m.unwrap().as_str().to_owned()).collect::<Vec<_>>();
        assert_eq!(pieces("漢字kana 漢"), ["漢字", "kana", " ", "漢"]);
        assert_eq!(pieces("Don't   stop\n 12345"), ["Don't", "  ", " stop", "\n", " ", "123", "45"]);
    }
}
