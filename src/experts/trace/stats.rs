//! What a trace looks like, in the numbers that decide how well it can be cached.

use super::RoutingTrace;

/// Reuse within a trace, token by token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TraceStats {
    /// Tokens looked at.
    pub tokens: usize,
    /// Share of uses whose expert the token before used too.
    pub reused_next: f64,
    /// Share of uses whose expert one of the 8 tokens before used.
    pub reused_within_8: f64,
    /// Share of a layer's experts that a window of 512 tokens uses, mean over layers; of all tokens if there are fewer.
    pub touched_by_512: f64,
    /// Share of all uses that the most used tenth of the experts has.
    pub busiest_tenth: f64,
}

impl RoutingTrace {
    /// The trace's statistics.
    pub fn stats(&self) -> TraceStats {
        let (layers, tokens) = (self.layers.len(), self.tokens());
        let (mut next, mut within, mut uses) = (0_u64, 0_u64, 0_u64);
        let mut counts = vec![0_u64; self.all_experts()];
        // One more than the last token that used the expert.
        let mut last = vec![0_usize; self.all_experts()];
        let window = tokens.min(512);
        let mut touched = 0;
        for token in 0..tokens {
            for layer in 0..layers {
                for &id in self.ids(token, layer) {
                    let at = layer * self.experts + usize::from(id);
                    counts[at] += 1;
                    let gap = token + 1 - last[at];
                    touched += usize::from(last[at] == 0 && token < window);
                    next += u64::from(last[at] > 0 && gap == 1);
                    within += u64::from(last[at] > 0 && gap <= 8);
                    uses += 1;
                    last[at] = token + 1;
                }
            }
        }
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let busiest: u64 = counts[..counts.len().div_ceil(10)].iter().sum();
        let share = |n: u64| n as f64 / uses.max(1) as f64;
        TraceStats {
            tokens,
            reused_next: share(next),
            reused_within_8: share(within),
            touched_by_512: touched as f64 / self.all_experts() as f64,
            busiest_tenth: share(busiest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reuse_is_counted() {
        let mut trace = RoutingTrace::new(vec![0], 20, 2).unwrap();
        let rows = [[0, 1], [0, 2], [3, 4], [3, 1]];
        rows.iter().for_each(|row| trace.push(row).unwrap());
        let stats = trace.stats();
        // Of 8 uses: 0 and 3 from the token before, 1 after three tokens.
        assert_eq!((stats.reused_next, stats.reused_within_8), (0.25, 0.375));
        assert_eq!((stats.touched_by_512, stats.busiest_tenth), (0.25, 0.5));
        let empty = RoutingTrace::new(vec![0], 20, 2).unwrap().stats();
        assert_eq!((empty.tokens, empty.reused_next), (0, 0.0));
    }
}
