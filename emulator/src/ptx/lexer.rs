//! PTX text into tokens that borrow from it. One pass, a table look-up a byte: nvcc's output for a template library
//! runs to megabytes, and it is read at every start of a program.

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An identifier, register, directive or opcode, with its dots: `%tid.x`, `.reg`, `cp.async.bulk.shared::cluster`.
    Word,
    /// A literal that starts with a digit.
    Number,
    /// A quoted string, without its quotes.
    Quoted,
    /// One punctuation character.
    Punct(u8),
    /// The end of the text.
    End,
    /// No token of PTX, and why.
    Bad(&'static str),
}

/// A token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token<'a> {
    pub kind: Kind,
    /// As written.
    pub text: &'a str,
    /// Line, from 1.
    pub line: u32,
    /// Byte offset.
    pub at: usize,
}

impl<'a> Token<'a> {
    pub fn is(&self, punct: u8) -> bool {
        self.kind == Kind::Punct(punct)
    }

    /// The text of a directive or modifier without its dot.
    pub fn directive(&self) -> Option<&'a str> {
        if self.kind == Kind::Word { self.text.strip_prefix('.') } else { None }
    }

    /// For messages.
    pub fn shown(&self) -> String {
        match self.kind {
            Kind::End => "the end of the text".to_owned(),
            Kind::Bad(why) => why.to_owned(),
            _ => format!("`{}`", self.text),
        }
    }
}

const SPACE: u8 = 1;
const WORD_START: u8 = 2;
const WORD: u8 = 4;
const DIGIT: u8 = 8;

const CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let b = i as u8;
        table[i] = match b {
            b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c => SPACE,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'$' | b'.' => WORD_START | WORD,
            b'%' => WORD_START,
            b'0'..=b'9' => WORD | DIGIT,
            _ => 0,
        };
        i += 1;
    }
    table
}

/// Produces tokens one at a time; after the end, [`Kind::End`] for ever.
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: u32,
}

impl<'a> Lexer<'a> {
    pub fn new(text: &'a str) -> Lexer<'a> {
        Lexer { text, at: 0, line: 1 }
    }

    pub fn next(&mut self) -> Token<'a> {
        if let Some(bad) = self.skip_blanks() {
            return bad;
        }
        let bytes = self.text.as_bytes();
        let start = self.at;
        let line = self.line;
        let Some(&first) = bytes.get(start) else {
            return Token { kind: Kind::End, text: "", line, at: start };
        };
        let class = CLASS[usize::from(first)];
        let kind = if class & WORD_START != 0 {
            self.at = word_end(bytes, start);
            Kind::Word
        } else if class & DIGIT != 0 {
            self.at = number_end(bytes, start);
            Kind::Number
        } else if first == b'"' {
            return self.quoted(start);
        } else if first.is_ascii_graphic() {
            self.at = start + 1;
            Kind::Punct(first)
        } else {
            // Past the whole character, so that the token's text ends on a boundary.
            self.at = start + self.text[start..].chars().next().map_or(1, char::len_utf8);
            Kind::Bad("a character outside ASCII, or an unprintable one")
        };
        Token { kind, text: &self.text[start..self.at], line, at: start }
    }

    /// Skips white space and comments; returns a token if a comment does not end.
    fn skip_blanks(&mut self) -> Option<Token<'a>> {
        let bytes = self.text.as_bytes();
        while let Some(&b) = bytes.get(self.at) {
            if CLASS[usize::from(b)] & SPACE != 0 {
                self.line = self.line.saturating_add(u32::from(b == b'\n'));
                self.at += 1;
            } else if b == b'/' && bytes.get(self.at + 1) == Some(&b'/') {
                while bytes.get(self.at).is_some_and(|&b| b != b'\n') {
                    self.at += 1;
                }
            } else if b == b'/' && bytes.get(self.at + 1) == Some(&b'*') {
                let (start, line) = (self.at, self.line);
                let Some(length) = self.text[start + 2..].find("*/") else {
                    self.at = bytes.len();
                    let kind = Kind::Bad("a comment that does not end");
                    return Some(Token { kind, text: "/*", line, at: start });
                };
                let comment = &bytes[start..start + 2 + length];
                let lines = comment.iter().filter(|&&b| b == b'\n').count();
                self.line = self.line.saturating_add(u32::try_from(lines).unwrap_or(u32::MAX));
                self.at = start + length + 4;
            } else {
                break;
            }
        }
        None
    }

    fn quoted(&mut self, start: usize) -> Token<'a> {
        let bytes = self.text.as_bytes();
        let line = self.line;
        let mut end = start + 1;
        while let Some(&b) = bytes.get(end) {
            match b {
                b'"' => {
                    self.at = end + 1;
                    return Token { kind: Kind::Quoted, text: &self.text[start + 1..end], line, at: start };
                }
                b'\n' => break,
                b'\\' => end += 2,
                _ => end += 1,
            }
        }
        self.at = bytes.len();
        Token { kind: Kind::Bad("a string that does not end"), text: "\"", line, at: start }
    }
}

/// Words keep their dots, and `::` inside an opcode (never after a plain identifier, where `:` makes a label).
fn word_end(bytes: &[u8], start: usize) -> usize {
    let is_word = |at: usize| bytes.get(at).is_some_and(|&b| CLASS[usize::from(b)] & WORD != 0);
    let mut dotted = bytes[start] == b'.';
    let mut end = start + 1;
    loop {
        while is_word(end) {
            dotted |= bytes[end] == b'.';
            end += 1;
        }
        if dotted && bytes.get(end..end + 2) == Some(b"::") && is_word(end + 2) {
            end += 2;
        } else {
            return end;
        }
    }
}

/// Literals: digits and letters, a point, and the sign of a decimal exponent.
fn number_end(bytes: &[u8], start: usize) -> usize {
    let based = bytes[start] == b'0'
        && bytes.get(start + 1).is_some_and(|b| matches!(b | 0x20, b'x' | b'b' | b'f' | b'd'));
    let mut end = start + 1;
    while let Some(&b) = bytes.get(end) {
        let sign = !based && matches!(b, b'+' | b'-') && matches!(bytes[end - 1], b'e' | b'E');
        if !sign && CLASS[usize::from(b)] & WORD == 0 {
            break;
        }
        end += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lex(text: &str) -> Vec<(Kind, &str, u32)> {
        let mut lexer = Lexer::new(text);
        let mut tokens = Vec::new();
        loop {
            let token = lexer.next();
            if token.kind == Kind::End {
                return tokens;
            }
            tokens.push((token.kind, token.text, token.line));
        }
    }

    #[test]
    fn words_numbers_and_labels() {
        let tokens =
            lex("L1:st.async.shared::cluster.mbarrier::complete_tx::bytes [%rd1+-8],1.5e-3;//x\n/*\n*/0xFFU");
        let texts: Vec<&str> = tokens.iter().map(|t| t.1).collect();
        assert_eq!(
            texts,
            [
                "L1",
                ":",
                "st.async.shared::cluster.mbarrier::complete_tx::bytes",
                "[",
                "%rd1",
                "+",
                "-",
                "8",
                "]",
                ",",
                "1.5e-3",
                ";",
                "0xFFU"
            ]
        );
        assert_eq!(tokens.last().map(|t| t.2), Some(3));
    }

    #[test]
    fn what_is_no_token() {
        assert_eq!(lex("\u{e9} x")[0].0, Kind::Bad("a character outside ASCII, or an unprintable one"));
        assert_eq!(lex("/* x")[0].0, Kind::Bad("a comment that does not end"));
        assert_eq!(lex("\"x\n\"")[0].0, Kind::Bad("a string that does not end"));
        assert_eq!(lex("\"x\\\"")[0].0, Kind::Bad("a string that does not end"));
    }
}
