//! The distribution over the next token that a row of logits stands for, in f64.

/// Softmax of a row of logits, kept as their logarithms.
pub(super) struct Distribution<'a> {
    logits: &'a [f32],
    /// The most probable token; of equals the first.
    best: usize,
    /// ln Σ exp(logit).
    log_sum: f64,
}

impl<'a> Distribution<'a> {
    /// Of a row of finite logits.
    ///
    /// # Panics
    /// If the row is empty.
    pub(super) fn new(logits: &'a [f32]) -> Distribution<'a> {
        let mut best = 0;
        for (i, &logit) in logits.iter().enumerate() {
            if logit > logits[best] {
                best = i;
            }
        }
        // The largest is taken out first: no term exceeds 1, and one is 1.
        let most = f64::from(logits[best]);
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - most).exp()).sum();
        Distribution { logits, best, log_sum: most + sum.ln() }
    }

    /// Of row `i` of `logits`, row-major [tokens, vocab].
    ///
    /// # Panics
    /// If there is no such row.
    pub(super) fn of_row(logits: &'a [f32], i: usize, vocab: usize) -> Distribution<'a> {
        Distribution::new(&logits[i * vocab..][..vocab])
    }

    /// The most probable token; of equals the first.
    pub(super) fn best(&self) -> usize {
        self.best
    }

    /// The logarithm of a token's probability.
    ///
    /// # Panics
    /// If there is no such token.
    pub(super) fn log_prob(&self, token: usize) -> f64 {
        f64::from(self.logits[token]) - self.log_sum
    }

    /// KL(self ‖ other) = Σ p·(ln p − ln q) in nats: what it costs to take `other` for this one.
    pub(super) fn divergence(&self, other: &Distribution<'_>) -> f64 {
        let terms = self.logits.iter().zip(other.logits).map(|(&here, &there)| {
            let p = f64::from(here) - self.log_sum;
            let q = f64::from(there) - other.log_sum;
            p.exp() * (p - q)
        });
        // No divergence is negative; what rounding leaves below zero is not one.
        terms.sum::<f64>().max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_of_small_rows() {
        let row = [0.0, 2f32.ln(), 5f32.ln()];
        let distribution = Distribution::new(&row);
        assert_eq!(distribution.best(), 2);
        for (token, p) in [0.125, 0.25, 0.625].into_iter().enumerate() {
            assert!((distribution.log_prob(token).exp() - p).abs() < 1e-7, "{token}");
        }
        assert_eq!(Distribution::new(&[1.0, 3.0, 3.0]).best(), 1, "of equals the first");
        assert_eq!(Distribution::new(&[-7.5]).log_prob(0), 0.0);
    }

    #[test]
    fn the_largest_logits_do_not_overflow() {
        let row = [f32::MAX, -f32::MAX, 0.0];
        let distribution = Distribution::new(&row);
        assert_eq!(distribution.log_prob(0), 0.0);
        assert_eq!(distribution.log_prob(1), -2.0 * f64::from(f32::MAX));
        let other = [-f32::MAX, f32::MAX, 0.0];
        assert_eq!(distribution.divergence(&Distribution::new(&other)), 2.0 * f64::from(f32::MAX));
    }

    #[test]
    fn divergences_of_small_rows() {
        // KL((3/4, 1/4) ‖ (1/2, 1/2)) = 3/4·ln(3/2) + 1/4·ln(1/2); the other way round it is not the same.
        let (skewed, even) = ([3f32.ln(), 0.0], [0.0, 0.0]);
        let (skewed, even) = (Distribution::new(&skewed), Distribution::new(&even));
        let there = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        let back = 0.5 * (0.5f64 / 0.75).ln() + 0.5 * 2f64.ln();
        assert!((skewed.divergence(&even) - there).abs() < 1e-7);
        assert!((even.divergence(&skewed) - back).abs() < 1e-7);
        assert_eq!(skewed.divergence(&skewed), 0.0);
        // A constant added to all logits changes no probability.
        let shifted = [3f32.ln() + 1024.0, 1024.0];
        assert!(skewed.divergence(&Distribution::new(&shifted)) < 1e-8);
    }
}
