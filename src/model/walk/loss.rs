//! Losses from logits that come in blocks of the vocabulary.

/// How well a token was foretold by those before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLoss {
    /// Window.
    pub window: usize,
    /// −ln p of the token that followed, in nats.
    pub nats: f64,
    /// Whether it was the most probable one.
    pub first: bool,
}

/// The softmax of one token as the blocks of its logits come by.
#[derive(Clone, Copy)]
pub(super) struct Running {
    largest: f32,
    best: usize,
    /// Σ e^(logit − largest)
    sum: f64,
    /// Logit and id of the token that followed.
    target: Option<(f32, usize)>,
}

impl Default for Running {
    fn default() -> Running {
        Running { largest: f32::NEG_INFINITY, best: 0, sum: 0.0, target: None }
    }
}

impl Running {
    /// Takes the logits of the tokens from `first` on.
    pub(super) fn take(&mut self, first: usize, logits: &[f32], next: Option<u32>) {
        let (mut largest, mut best) = (self.largest, self.best);
        for (i, &logit) in logits.iter().enumerate() {
            if logit > largest {
                (largest, best) = (logit, first + i);
            }
        }
        let before = self.sum * f64::from(self.largest - largest).exp();
        self.sum = before + logits.iter().map(|&v| f64::from(v - largest).exp()).sum::<f64>();
        (self.largest, self.best) = (largest, best);
        if let Some(id) = next.map(|id| id as usize)
            && let Some(&logit) = id.checked_sub(first).and_then(|at| logits.get(at))
        {
            self.target = Some((logit, id));
        }
    }

    /// After all of them.
    pub(super) fn loss(&self, window: usize) -> TokenLoss {
        let (logit, id) = self.target.unwrap_or((self.largest, self.best));
        let nats = f64::from(self.largest) + self.sum.ln() - f64::from(logit);
        TokenLoss { window, nats, first: id == self.best }
    }
}
