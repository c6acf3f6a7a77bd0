//! Which layers are kept, as a person says it: a number of them, or a list.

use std::str::FromStr;

use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// Layers to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layers {
    /// So many, spread evenly from the first to the last.
    Count(usize),
    /// These, by their numbers in the source.
    List(Vec<usize>),
}

impl FromStr for Layers {
    type Err = Error;

    /// A number (`24`) is a count; ranges and lists (`0-3,8,12-15`) name layers. One single layer is `8-8`.
    ///
    /// # Errors
    /// [`Error::Argument`] `layers`.
    fn from_str(text: &str) -> Result<Layers> {
        let bad = |part: &str| {
            let problem = format!("has {part:?}, expected a number of layers, or a list such as 0-3,8,12-15");
            Error::argument("layers", problem)
        };
        let number = |digits: &str, part: &str| digits.trim().parse::<usize>().map_err(|_| bad(part));
        if !text.contains([',', '-']) {
            return number(text, text).map(Layers::Count);
        }
        let mut list = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first, part)?, number(last, part)?);
            // No model has so many; a mistyped range must not fill the memory.
            if first > last || last - first >= 1 << 16 {
                return Err(bad(part));
            }
            list.extend(first..=last);
        }
        Ok(Layers::List(list))
    }
}

impl Layers {
    /// The layers of a model that are meant, ascending.
    ///
    /// # Errors
    /// [`Error::Argument`] `layers` if one does not exist or stands twice, or none of them has experts.
    pub fn choose(&self, config: &ModelConfig) -> Result<Vec<usize>> {
        let bad = |problem: String| Err(Error::argument("layers", problem));
        let last = config.num_layers - 1;
        let layers = match self {
            Layers::Count(count) if (1..=config.num_layers).contains(count) => {
                spread(*count, config.num_layers)
            }
            Layers::Count(count) => {
                return bad(format!("is {count}, expected 1 to {}", config.num_layers));
            }
            Layers::List(list) => {
                let mut list = list.clone();
                list.sort_unstable();
                list
            }
        };
        if let Some(layer) = layers.iter().find(|&&l| l > last) {
            return bad(format!("has {layer}, expected 0 to {last}"));
        }
        if let Some(pair) = layers.windows(2).find(|pair| pair[0] == pair[1]) {
            return bad(format!("has {} twice", pair[0]));
        }
        if layers.last().is_none_or(|&l| l < config.first_k_dense) {
            let first = config.first_k_dense;
            return bad(format!("keeps no layer with experts, expected at least one from {first} to {last}"));
        }
        Ok(layers)
    }
}

/// `count` of `total` layers at equal distances, the first and the last among them; of a single one, the last, which has
/// experts.
fn spread(count: usize, total: usize) -> Vec<usize> {
    match count {
        1 => vec![total - 1],
        _ => (0..count).map(|i| (i * (total - 1) + (count - 1) / 2) / (count - 1)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ModelConfig {
        let text = include_str!("../../tests/fixtures/configs/deepseek-v3.json");
        ModelConfig::from_json(text.as_bytes(), "config.json".as_ref()).unwrap()
    }

    #[test]
    fn counts_and_lists() {
        assert_eq!("24".parse::<Layers>().unwrap(), Layers::Count(24));
        assert_eq!("8-8".parse::<Layers>().unwrap(), Layers::List(vec![8]));
        let list = "0-3, 8,12-15".parse::<Layers>().unwrap();
        assert_eq!(list, Layers::List(vec![0, 1, 2, 3, 8, 12, 13, 14, 15]));
        for text in ["", "x", "3-", "-1", "5-3", "1,,2", "0-99999999999", "1.5", "0-18446744073709551615"] {
            assert!(matches!(text.parse::<Layers>(), Err(Error::Argument { name: "layers", .. })), "{text}");
        }
    }

    #[test]
    fn a_count_is_spread_over_the_whole_depth() {
        for total in 1..70 {
            for count in 1..=total {
                let layers = spread(count, total);
                assert_eq!(layers.len(), count);
                assert!(layers.windows(2).all(|w| w[0] < w[1]), "{count} of {total}: {layers:?}");
                assert_eq!(*layers.last().unwrap(), total - 1);
                assert!(count == 1 || layers[0] == 0);
                let widest = layers.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(1);
                assert!(count == 1 || widest <= (total - 1).div_ceil(count - 1));
            }
        }
    }

    #[test]
    fn what_cannot_be_kept_is_named() {
        let choose = |text: &str| text.parse::<Layers>().unwrap().choose(&config());
        assert_eq!(choose("12,9,1-2").unwrap(), [1, 2, 9, 12]);
        for (text, expected) in [
            ("0", "`layers` is 0, expected 1 to 61"),
            ("62", "`layers` is 62, expected 1 to 61"),
            ("5,61", "has 61, expected 0 to 60"),
            ("5,3-6", "has 5 twice"),
            ("0-2", "keeps no layer with experts, expected at least one from 3 to 60"),
        ] {
            let said = choose(text).unwrap_err().to_string();
            assert!(said.contains(expected), "{text}: {said}");
        }
    }
}
