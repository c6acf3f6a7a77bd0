//! Text from token ids one at a time: a character may be spread over several tokens.

use super::Tokenizer;

/// Turns token ids into text as they come. All pieces together equal [`String::from_utf8_lossy`] of all bytes.
///
/// It holds at most the three bytes of a character whose end has not come yet.
#[derive(Debug, Clone, Default)]
pub struct TokenStream {
    pending: Vec<u8>,
}

impl TokenStream {
    /// Takes the next token and returns the text that is complete now, perhaps none. Silent control tokens and
    /// ids outside the vocabulary add nothing.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        self.push_bytes(tokenizer.token_bytes(id).unwrap_or_default())
    }

    /// Ends the stream: an unfinished character becomes U+FFFD.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }

    fn push_bytes(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let complete = self.pending.len() - unfinished(&self.pending);
        let text = String::from_utf8_lossy(&self.pending[..complete]).into_owned();
        self.pending.drain(..complete);
        text
    }
}

/// Length of the unfinished character at the end of `bytes`: 0 to 3.
fn unfinished(bytes: &[u8]) -> usize {
    // A lead byte stands at most three bytes before the end; `from_utf8` says whether what follows it could
    // still become a character (no `error_len`) or is already wrong.
    (1..=bytes.len().min(3))
        .rev()
        .find(|&n| {
            let tail = &bytes[bytes.len() - n..];
            matches!(std::str::from_utf8(tail), Err(e) if e.valid_up_to() == 0 && e.error_len().is_none())
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes that make broken and whole characters likely.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let scraps = prop::sample::select(vec![
            vec![0xE2, 0x82, 0xAC],
            vec![0xF0, 0x9F, 0x98, 0x80],
            vec![0xED, 0xA0, 0x80],
            vec![0xF0, 0x9F],
            vec![0xC3],
            vec![0x80],
            vec![0xFF],
            b"a".to_vec(),
        ]);
        prop::collection::vec(prop_oneof![scraps, prop::collection::vec(any::<u8>(), 0..4)], 0..12)
            .prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn pieces_equal_the_lossy_whole(bytes in bytes(), cuts in prop::collection::vec(1usize..5, 0..48)) {
            let mut stream = TokenStream::default();
            let mut text = String::new();
            let mut rest = bytes.as_slice();
            for cut in cuts {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                text += &stream.push_bytes(head);
                prop_assert!(stream.pending.len() <= 3);
                rest = tail;
            }
            text += &stream.push_bytes(rest);
            text += &stream.finish();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn a_character_appears_when_its_last_byte_has_come() {
        let mut stream = TokenStream::default();
        assert_eq!(stream.push_bytes(&[b'a', 0xF0, 0x9F]), "a");
        assert_eq!(stream.push_bytes(&[0x98]), "");
        assert_eq!(stream.push_bytes(&[0x80, 0xC3]), "😀");
        assert_eq!(stream.finish(), "\u{FFFD}");
    }
}
