//! What is wrong with a PTX text, and where.

/// Longest piece of a statement an error quotes, in characters.
const QUOTED: usize = 160;

/// A PTX text that this front end does not understand. Nothing it does not know is skipped: a directive or operand
/// that was ignored would turn into a wrong result far from its cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {problem}, in `{text}`")]
pub struct ParseError {
    /// Line on which the offending statement begins, from 1.
    pub line: u32,
    /// The statement, white space folded, shortened.
    pub text: String,
    /// What is wrong with it.
    pub problem: String,
}

impl ParseError {
    /// An error about the statement of `text` that begins at byte `start`, noticed at byte `noticed`.
    pub(super) fn at(text: &str, start: usize, noticed: usize, line: u32, problem: String) -> ParseError {
        ParseError { line, text: quote(text, start, noticed), problem }
    }
}

/// The statement from `start` to its semicolon, or to the end of the line where the trouble was noticed.
fn quote(text: &str, start: usize, noticed: usize) -> String {
    let rest = text.get(start..).unwrap_or_default();
    let noticed = noticed.saturating_sub(start).min(rest.len());
    let line_end =
        rest.as_bytes()[noticed..].iter().position(|&b| b == b'\n').map_or(rest.len(), |n| noticed + n);
    let statement = &rest.as_bytes()[..line_end];
    let end = statement.iter().position(|&b| b == b';').map_or(line_end, |n| n + 1);
    let mut quoted = String::new();
    let mut length = 0;
    for word in rest[..end].split_whitespace() {
        let gap = usize::from(!quoted.is_empty());
        quoted.extend(std::iter::repeat_n(' ', gap));
        let room = QUOTED.saturating_sub(length + gap);
        quoted.extend(word.chars().take(room));
        length += gap + word.chars().count();
        if length > QUOTED {
            quoted.push('…');
            break;
        }
    }
    quoted
}
