//! The text that a model is measured, healed and judged on.

use blake3::{Hash, Hasher};

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Tokens of a window, one more than are predicted.
const WINDOW: usize = 257;
/// Windows to measure and heal on at most, and to judge on at most.
const CALIBRATION: usize = 32;
const EVALUATION: usize = 16;
/// Fewer to measure on say nothing.
const LEAST: usize = 4;

/// Windows of a text: those to measure and heal on come from all of it but the last tenth, evenly; those to judge on are the last
/// tenth's, which nothing was fitted to.
#[derive(Debug, Clone)]
pub struct Text {
    calibration: Vec<Vec<u32>>,
    evaluation: Vec<Vec<u32>>,
}

impl Text {
    /// Cuts a text.
    ///
    /// # Errors
    /// [`Error::Argument`] `text` if it is too short.
    pub fn new(text: &str, tokenizer: &Tokenizer) -> Result<Text> {
        Text::of_tokens(&tokenizer.encode(text)?)
    }

    /// Cuts a text that is in tokens.
    ///
    /// # Errors
    /// [`Error::Argument`] `text` if it is too short.
    pub fn of_tokens(tokens: &[u32]) -> Result<Text> {
        let windows: Vec<&[u32]> = tokens.chunks_exact(WINDOW).collect();
        let aside = (windows.len() / 10).max(1);
        if windows.len() < LEAST + aside {
            let least = (LEAST + 1) * WINDOW;
            let problem = format!("has {} tokens, expected at least {least}", tokens.len());
            return Err(Error::argument("text", problem));
        }
        let (fit, judge) = windows.split_at(windows.len() - aside);
        let spread = |windows: &[&[u32]], most: usize| -> Vec<Vec<u32>> {
            let count = windows.len().min(most);
            (0..count).map(|i| windows[i * windows.len() / count].to_vec()).collect()
        };
        Ok(Text { calibration: spread(fit, CALIBRATION), evaluation: spread(judge, EVALUATION) })
    }

    /// Windows to measure and heal on.
    pub fn calibration(&self) -> &[Vec<u32>] {
        &self.calibration
    }

    /// Windows to judge on.
    pub fn evaluation(&self) -> &[Vec<u32>] {
        &self.evaluation
    }

    /// Tokens that are predicted in a window.
    pub fn window(&self) -> usize {
        WINDOW - 1
    }

    /// A hash of all windows.
    pub fn hash(&self) -> Hash {
        let mut hasher = Hasher::new();
        for windows in [&self.calibration, &self.evaluation] {
            hasher.update(&(windows.len() as u64).to_le_bytes());
            windows.iter().flatten().for_each(|token| {
                hasher.update(&token.to_le_bytes());
            });
        }
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_judged_on_that_was_fitted_to() {
        for windows in [5, 9, 10, 37, 500] {
            let tokens: Vec<u32> = (0..(windows * WINDOW + 100) as u32).collect();
            let text = Text::of_tokens(&tokens).unwrap();
            assert!((LEAST..=CALIBRATION).contains(&text.calibration.len()), "{windows}");
            assert!((1..=EVALUATION).contains(&text.evaluation.len()), "{windows}");
            let all = text.calibration.iter().chain(&text.evaluation);
            let mut firsts: Vec<u32> = all.clone().map(|w| w[0]).collect();
            assert!(all.clone().all(|w| w.len() == WINDOW && (w[0] as usize).is_multiple_of(WINDOW)));
            assert!(text.calibration.last().unwrap()[0] < text.evaluation[0][0]);
            firsts.dedup();
            assert_eq!(firsts.len(), text.calibration.len() + text.evaluation.len());
        }
        let short = Text::of_tokens(&[0; 5 * WINDOW - 1]);
        assert!(matches!(short, Err(Error::Argument { name: "text", .. })));
    }
}
