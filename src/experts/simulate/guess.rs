//! Modelled guesses of the next layer's routing.
//!
//! A routing trace has no hidden states to ask a router about, so guesses are made up from the truth and from published
//! figures: the first guess is right in 92 of 100 cases, and sixteen guesses hold 59 to 77 % of a token's experts (68 %
//! here). Precision falls by one factor from rank to rank, which those two figures fix. Wrong guesses fall on
//! experts evenly; a real router's are likelier among the popular, thus resident, ones: the model wastes more copies than
//! there would be.

use rand_core::Rng;
use rand_pcg::Pcg64Mcg;

/// Guesses for a layer.
const GUESSES: usize = 16;
/// How often the first is right.
const FIRST: f64 = 0.92;
/// The share of the experts used that all of them hold.
const RECALL: f64 = 0.68;

/// Makes guesses for layers of some shape.
#[derive(Debug, Clone)]
pub(super) struct Guesses {
    seed: u64,
    /// How often the guess of a rank is right.
    precision: [f64; GUESSES],
}

impl Guesses {
    pub(super) fn new(top_k: usize, seed: u64) -> Guesses {
        let sum = |factor: f64| (0..GUESSES as i32).map(|rank| FIRST * factor.powi(rank)).sum::<f64>();
        // The sum of precisions is the number of experts found: bisection, it rises with the factor.
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..60 {
            let middle = (low + high) / 2.0;
            if sum(middle) < RECALL * top_k as f64 { low = middle } else { high = middle }
        }
        Guesses { seed, precision: std::array::from_fn(|rank| FIRST * low.powi(rank as i32)) }
    }

    /// The guesses for a layer of which the token will use `truth` (in rank order) of `experts`. They depend on the
    /// seed, the token and the layer alone: every policy sees the same.
    pub(super) fn make(
        &self,
        token: usize,
        layer: usize,
        truth: &[u16],
        experts: usize,
        into: &mut Vec<u32>,
    ) {
        into.clear();
        let state = u128::from(self.seed) << 64 | (token as u128) << 16 | layer as u128;
        let mut rng = Pcg64Mcg::new(state.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835) | 1);
        let mut uniform = || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut right = truth.iter();
        for precision in self.precision.iter().take(experts.saturating_sub(truth.len())) {
            let found = if uniform() < *precision { right.next() } else { None };
            match found {
                Some(&expert) => into.push(u32::from(expert)),
                None => loop {
                    let expert = (uniform() * experts as f64) as u32;
                    if !truth.contains(&(expert as u16)) && !into.contains(&expert) {
                        into.push(expert);
                        break;
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_are_as_good_as_published() {
        let guesses = Guesses::new(8, 3);
        let truth = [5, 300, 17, 9, 44, 383, 0, 128];
        let (mut first, mut found, mut made) = (0, 0, Vec::new());
        for token in 0..2000 {
            guesses.make(token, token % 60, &truth, 384, &mut made);
            assert_eq!(made.len(), GUESSES);
            assert!(made.iter().all(|g| *g < 384 && made.iter().filter(|o| *o == g).count() == 1));
            first += usize::from(made[0] == 5);
            found += made.iter().filter(|&&g| truth.contains(&(g as u16))).count();
        }
        assert!((first as f64 / 2000.0 - FIRST).abs() < 0.02, "{first}");
        assert!((found as f64 / 16000.0 - RECALL).abs() < 0.02, "{found}");
    }

    #[test]
    fn they_are_the_same_whoever_asks() {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        Guesses::new(2, 1).make(4, 7, &[1, 2], 30, &mut a);
        Guesses::new(2, 1).make(4, 7, &[1, 2], 30, &mut b);
        assert_eq!(a, b);
        Guesses::new(2, 1).make(5, 7, &[1, 2], 30, &mut b);
        assert_ne!(a, b);
        // No expert is left to guess wrongly.
        Guesses::new(2, 1).make(5, 7, &[1, 2], 2, &mut b);
        assert!(b.is_empty());
    }
}
