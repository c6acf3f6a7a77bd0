//! Modelled guesses of the next layer's routing.
//!
//! A routing trace has no hidden states to ask a router about, so guesses are made up from the truth and from published
//! figures: the first guess is right in 92 of 100 cases, and with the shared expert's output added first, sixteen guesses
//! hold 74 to 77 % of a token's experts. Precision falls by one factor from rank to rank, which those two figures fix.
//! Wrong guesses are experts that some other token of the trace chose in that layer: guesses come from the same router as
//! the routing, so over many tokens they fall on the same experts.

use rand_core::Rng;
use rand_pcg::Pcg64Mcg;

use crate::experts::trace::RoutingTrace;

/// Guesses for a layer.
const GUESSES: usize = 16;
/// How often the first is right.
const FIRST: f64 = 0.92;
/// The share of the experts used that all of them hold.
const RECALL: f64 = 0.755;

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

    /// The guesses for a token's routing in the `layer`-th of the trace's layers. They depend on the seed, the token
    /// and the layer alone: every policy sees the same.
    pub(super) fn make(&self, trace: &RoutingTrace, token: usize, layer: usize, into: &mut Vec<u32>) {
        into.clear();
        let (truth, experts) = (trace.ids(token, layer), trace.experts());
        let state = u128::from(self.seed) << 64 | (token as u128) << 16 | layer as u128;
        let mut rng = Pcg64Mcg::new(state.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835) | 1);
        let mut uniform = || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut right = truth.iter();
        for precision in self.precision.iter().take(experts.saturating_sub(truth.len())) {
            let found = if uniform() < *precision { right.next() } else { None };
            match found {
                Some(&expert) => into.push(u32::from(expert)),
                None => {
                    // A short trace may not have used enough others: then any expert will do.
                    let mut tries = 0;
                    into.push(loop {
                        let other = trace.ids((uniform() * trace.tokens() as f64) as usize, layer);
                        let expert = match tries {
                            0..64 => other[(uniform() * other.len() as f64) as usize],
                            _ => (uniform() * experts as f64) as u16,
                        };
                        if !truth.contains(&expert) && !into.contains(&u32::from(expert)) {
                            break u32::from(expert);
                        }
                        tries += 1;
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experts::trace::SyntheticTrace;

    fn trace(experts: usize, top_k: usize, tokens: usize) -> RoutingTrace {
        let of = SyntheticTrace { layers: vec![1, 2], experts, top_k, tokens, seed: 5 };
        RoutingTrace::synthetic(&of).unwrap()
    }

    #[test]
    fn guesses_are_as_good_as_published() {
        let trace = trace(384, 8, 2000);
        let guesses = Guesses::new(8, 3);
        let (mut first, mut found, mut made) = (0, 0, Vec::new());
        for token in 0..2000 {
            let truth = trace.ids(token, 1);
            guesses.make(&trace, token, 1, &mut made);
            assert_eq!(made.len(), GUESSES);
            assert!(made.iter().all(|g| *g < 384 && made.iter().filter(|o| *o == g).count() == 1));
            first += usize::from(made[0] == u32::from(truth[0]));
            found += made.iter().filter(|&&g| truth.contains(&(g as u16))).count();
        }
        assert!((first as f64 / 2000.0 - FIRST).abs() < 0.02, "{first}");
        assert!((found as f64 / 16000.0 - RECALL).abs() < 0.02, "{found}");
    }

    #[test]
    fn they_are_the_same_whoever_asks() {
        let trace = trace(30, 2, 40);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        Guesses::new(2, 1).make(&trace, 4, 1, &mut a);
        Guesses::new(2, 1).make(&trace, 4, 1, &mut b);
        assert_eq!(a, b);
        Guesses::new(2, 1).make(&trace, 5, 1, &mut b);
        assert_ne!(a, b);
        // No expert is left to guess wrongly.
        let trace = self::trace(2, 2, 4);
        Guesses::new(2, 1).make(&trace, 3, 0, &mut b);
        assert!(b.is_empty());
    }
}
