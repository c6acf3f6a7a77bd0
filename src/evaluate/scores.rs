//! Scores of a token, their means over a window, and estimates over all windows.

use std::fmt;

use serde::Serialize;

use super::softmax::Distribution;

/// How well a text was predicted: numbers of a token or means over a window (`f64`), or [`Estimate`]s over windows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Scores<T = f64> {
    /// Negative log-likelihood of the token that follows, in nats.
    pub nll: T,
    /// The model beside a reference, if there is one.
    pub reference: Option<Divergence<T>>,
}

/// How far a model is from a reference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Divergence<T = f64> {
    /// The reference's own negative log-likelihood, in nats.
    pub nll: T,
    /// The model's negative log-likelihood less the reference's, in nats: exp of it is the ratio of their perplexities.
    /// Both read the same tokens, so its error is far below that of either.
    pub nll_increase: T,
    /// KL(reference ‖ model) of the next token's distributions, in nats.
    pub kl: T,
    /// Share of tokens for which both hold the same token most probable, 0 to 1.
    pub agreement: T,
    /// |ln p(model) − ln p(reference)| of the token that follows, in nats.
    pub log_prob_difference: T,
}

impl<T: Copy> Scores<T> {
    /// Each number on its own.
    fn map<U>(&self, of: impl Fn(T) -> U) -> Scores<U> {
        let reference = self.reference.map(|d| Divergence {
            nll: of(d.nll),
            nll_increase: of(d.nll_increase),
            kl: of(d.kl),
            agreement: of(d.agreement),
            log_prob_difference: of(d.log_prob_difference),
        });
        Scores { nll: of(self.nll), reference }
    }

    /// Each number with its counterpart.
    fn add<U: Copy>(&mut self, other: &Scores<U>, add: impl Fn(&mut T, U)) {
        add(&mut self.nll, other.nll);
        if let (Some(sum), Some(other)) = (&mut self.reference, &other.reference) {
            add(&mut sum.nll, other.nll);
            add(&mut sum.nll_increase, other.nll_increase);
            add(&mut sum.kl, other.kl);
            add(&mut sum.agreement, other.agreement);
            add(&mut sum.log_prob_difference, other.log_prob_difference);
        }
    }
}

impl Scores {
    /// Of one token that followed where the model and the reference expected these distributions.
    pub(super) fn of_token(
        model: &Distribution<'_>,
        reference: Option<&Distribution<'_>>,
        token: u32,
    ) -> Scores {
        let token = token as usize;
        let nll = -model.log_prob(token);
        let reference = reference.map(|reference| {
            let own = -reference.log_prob(token);
            Divergence {
                nll: own,
                nll_increase: nll - own,
                kl: reference.divergence(model),
                agreement: f64::from(u8::from(reference.best() == model.best())),
                log_prob_difference: (nll - own).abs(),
            }
        });
        Scores { nll, reference }
    }

    /// Their mean, added in order.
    ///
    /// # Panics
    /// If there are none.
    pub(super) fn mean(scores: &[Scores]) -> Scores {
        let mut sum = scores[0].map(|_| 0.0);
        for one in scores {
            sum.add(one, |sum, x| *sum += x);
        }
        sum.map(|sum| sum / scores.len() as f64)
    }
}

/// A mean over windows and how sure it is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Its standard error, √(Σ(x − mean)² / (n·(n − 1))) over the means x of n windows: tokens of a window resemble each
    /// other, so counting them one by one would claim too much. `None` for fewer than two windows.
    pub error: Option<f64>,
}

impl fmt::Display for Estimate {
    /// Mean ± error, with the precision asked for, or 3 digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(3);
        write!(f, "{:.digits$}", self.mean)?;
        match self.error {
            Some(error) => write!(f, " ± {error:.digits$}"),
            None => Ok(()),
        }
    }
}

/// What an evaluation found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// Windows.
    pub windows: usize,
    /// Tokens predicted.
    pub tokens: usize,
    /// Estimates over the windows.
    #[serde(flatten)]
    pub scores: Scores<Estimate>,
}

impl Summary {
    /// exp of the mean negative log-likelihood; infinite beyond 709 nats.
    pub fn perplexity(&self) -> f64 {
        self.scores.nll.mean.exp()
    }

    /// The reference's perplexity on the same tokens.
    pub fn reference_perplexity(&self) -> Option<f64> {
        self.scores.reference.map(|reference| reference.nll.mean.exp())
    }
}

/// Mean and squared deviations of numbers that come one at a time (Welford, Technometrics 4, 1962).
#[derive(Debug, Clone, Copy, Default)]
struct Running {
    count: usize,
    mean: f64,
    squares: f64,
}

impl Running {
    fn add(&mut self, x: f64) {
        self.count += 1;
        let before = x - self.mean;
        self.mean += before / self.count as f64;
        self.squares += before * (x - self.mean);
    }

    fn estimate(self) -> Estimate {
        let n = self.count as f64;
        let mean = if self.count == 0 { f64::NAN } else { self.mean };
        let error = (self.count >= 2).then(|| (self.squares / (n * (n - 1.0))).sqrt());
        Estimate { mean, error }
    }
}

/// What is kept of the windows so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    windows: usize,
    scores: Option<Scores<Running>>,
}

impl Tally {
    pub(super) fn add(&mut self, window: &Scores) {
        self.windows += 1;
        let scores = self.scores.get_or_insert_with(|| window.map(|_| Running::default()));
        scores.add(window, Running::add);
    }

    /// `predicted` tokens in each window.
    pub(super) fn summary(&self, predicted: usize) -> Summary {
        let none = Scores { nll: Running::default(), reference: None };
        let scores = self.scores.unwrap_or(none).map(Running::estimate);
        Summary { windows: self.windows, tokens: self.windows * predicted, scores }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_mean_and_its_error() {
        let (mut running, values) = (Running::default(), [1e9 + 4.0, 1e9 + 7.0, 1e9 + 13.0, 1e9 + 16.0]);
        assert!(running.estimate().mean.is_nan());
        running.add(values[0]);
        assert_eq!(running.estimate(), Estimate { mean: values[0], error: None });
        values[1..].iter().for_each(|&x| running.add(x));
        // Deviations −6, −3, 3, 6: Σ = 90, √(90 / 12).
        assert_eq!(running.estimate(), Estimate { mean: 1e9 + 10.0, error: Some(7.5f64.sqrt()) });
    }

    #[test]
    fn scores_of_a_token() {
        // Halves and quarters: the model holds token 0 more probable, the reference token 1.
        let (model, reference) = ([2f32.ln(), 0.0, 0.0], [0.0, 2f32.ln(), 0.0]);
        let (model, reference) = (Distribution::new(&model), Distribution::new(&reference));
        let scores = Scores::of_token(&model, Some(&reference), 0);
        let beside = scores.reference.unwrap();
        let near = |x: f64, y: f64| assert!((x - y).abs() < 1e-7, "{x} for {y}");
        near(scores.nll, 2f64.ln());
        near(beside.nll, 4f64.ln());
        near(beside.nll_increase, -2f64.ln());
        near(beside.log_prob_difference, 2f64.ln());
        // 1/4·ln(1/4 / 1/2) + 1/2·ln(1/2 / 1/4) + 0
        near(beside.kl, 0.25 * 2f64.ln());
        assert_eq!(beside.agreement, 0.0);
        assert_eq!(Scores::of_token(&model, Some(&model), 2).reference.unwrap().agreement, 1.0);
        assert_eq!(Scores::of_token(&model, None, 2).reference, None);
    }

    #[test]
    fn a_summary_counts_and_exponentiates() {
        let mut tally = Tally::default();
        assert!(tally.summary(8).perplexity().is_nan());
        for nll in [1.0, 3.0] {
            tally.add(&Scores { nll, reference: None });
        }
        let summary = tally.summary(8);
        assert_eq!((summary.windows, summary.tokens), (2, 16));
        assert_eq!((summary.perplexity(), summary.reference_perplexity()), (2f64.exp(), None));
        assert_eq!(format!("{:.1}", summary.scores.nll), "2.0 ± 1.0");
        assert_eq!(Estimate { mean: 2.0, error: None }.to_string(), "2.000");
    }
}
