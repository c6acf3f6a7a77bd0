//! A text cut into windows of tokens.

use crate::error::{Error, Result};
use crate::evaluate::Options;
use crate::tokenizer::Tokenizer;

/// Windows of equal length that follow each other without overlap. What is left of the text after the last whole window is
/// not used: all tokens are then predicted from contexts of the same lengths, whatever the text.
#[derive(Debug, Clone)]
pub struct Windows {
    tokens: Vec<u32>,
    /// Tokens predicted in a window, one less than it has.
    predicted: usize,
    count: usize,
    /// Tokens of the text, used or not.
    text: usize,
}

impl Windows {
    /// Cuts a text, in the model's tokens, which must be the reference's too.
    ///
    /// # Errors
    /// As [`Windows::new`]; [`Error::Argument`] for a reference of another vocabulary; [`Error::Tokenizer`] if a
    /// vocabulary cannot spell the text.
    pub fn of_text(
        text: &str,
        model: &Tokenizer,
        reference: Option<&Tokenizer>,
        options: &Options,
    ) -> Result<Windows> {
        let tokens = model.encode(text)?;
        if let Some(reference) = reference {
            same_vocabulary(model.vocab_size(), reference.vocab_size())?;
            same_tokens(&tokens, &reference.encode(text)?)?;
        }
        Windows::new(tokens, options)
    }

    /// Cuts a sequence of tokens.
    ///
    /// # Errors
    /// [`Error::Argument`] for a window or a number of windows of 0, and for fewer tokens than one window takes.
    pub fn new(mut tokens: Vec<u32>, options: &Options) -> Result<Windows> {
        let predicted = options.window;
        let whole = match predicted.checked_add(1) {
            Some(whole) if predicted > 0 => whole,
            _ => return Err(Error::argument("window", format!("is {predicted}, expected 1 or more tokens"))),
        };
        if options.windows == Some(0) {
            return Err(Error::argument("windows", "is 0, expected 1 or more"));
        }
        if tokens.len() < whole {
            let found = match tokens.len() {
                0 => "is empty".to_owned(),
                n => format!("has {n} tokens"),
            };
            let problem = format!(
                "{found}, expected at least {whole}: one of context and a window of {predicted}; take a longer text \
                 or a shorter window"
            );
            return Err(Error::argument("text", problem));
        }
        let text = tokens.len();
        let count = (text / whole).min(options.windows.unwrap_or(usize::MAX));
        tokens.truncate(count * whole);
        tokens.shrink_to_fit();
        Ok(Windows { tokens, predicted, count, text })
    }

    /// How many there are; never 0.
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Tokens predicted in each.
    pub fn predicted(&self) -> usize {
        self.predicted
    }

    /// Tokens of the text they were cut from, used or not.
    pub fn text_tokens(&self) -> usize {
        self.text
    }

    /// The tokens of one: the first is context only.
    ///
    /// # Panics
    /// If there is no window `index`.
    pub fn get(&self, index: usize) -> &[u32] {
        let whole = self.predicted + 1;
        &self.tokens[index * whole..(index + 1) * whole]
    }
}

/// Distributions can be compared only over the same tokens.
pub(super) fn same_vocabulary(model: usize, reference: usize) -> Result<()> {
    if model == reference {
        return Ok(());
    }
    let problem = format!(
        "has a vocabulary of {reference} tokens, the model has {model}; only models of one vocabulary can be compared"
    );
    Err(Error::argument("reference", problem))
}

fn same_tokens(model: &[u32], reference: &[u32]) -> Result<()> {
    if model == reference {
        return Ok(());
    }
    let at = model.iter().zip(reference).take_while(|(a, b)| a == b).count();
    let problem = format!(
        "splits the text into other tokens than the model, from token {at} on; only models of one vocabulary can be \
         compared"
    );
    Err(Error::argument("reference", problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(tokens: u32, window: usize, windows: Option<usize>) -> Result<Windows> {
        Windows::new((0..tokens).collect(), &Options { window, windows, ..Options::default() })
    }

    #[test]
    fn windows_follow_each_other_and_the_rest_is_left_out() {
        for (tokens, limit, expected) in
            [(4, None, 1), (7, None, 1), (8, None, 2), (11, None, 2), (11, Some(1), 1), (11, Some(9), 2)]
        {
            let windows = cut(tokens, 3, limit).unwrap();
            assert_eq!((windows.len(), windows.predicted()), (expected, 3), "{tokens} tokens");
            assert_eq!(windows.text_tokens(), tokens as usize);
            assert_eq!(windows.get(0), [0, 1, 2, 3]);
        }
        assert_eq!(cut(11, 3, None).unwrap().get(1), [4, 5, 6, 7]);
    }

    #[test]
    fn what_cannot_be_cut() {
        for (tokens, window, windows, expected) in [
            (9, 0, None, "`window` is 0, expected 1 or more tokens"),
            (9, usize::MAX, None, "`window` is 18446744073709551615, expected 1 or more tokens"),
            (9, 3, Some(0), "`windows` is 0, expected 1 or more"),
            (0, 3, None, "`text` is empty, expected at least 4: one of context and a window of 3"),
            (3, 3, None, "`text` has 3 tokens, expected at least 4"),
        ] {
            let error = cut(tokens, window, windows).unwrap_err();
            assert!(matches!(error, Error::Argument { .. }));
            assert!(error.to_string().starts_with(expected), "{error}");
        }
    }

    #[test]
    fn vocabularies_that_differ() {
        assert!(same_vocabulary(320, 320).is_ok() && same_tokens(&[1, 2], &[1, 2]).is_ok());
        let error = same_vocabulary(4096, 320).unwrap_err().to_string();
        assert!(
            error.starts_with("`reference` has a vocabulary of 320 tokens, the model has 4096"),
            "{error}"
        );
        for (other, at) in [(&[1, 5, 3][..], 1), (&[1, 2], 2), (&[1, 2, 3, 4], 3)] {
            let error = same_tokens(&[1, 2, 3], other).unwrap_err().to_string();
            assert!(error.contains(&format!("from token {at} on")), "{error}");
        }
    }
}
