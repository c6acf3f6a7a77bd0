//! From a row of logits to a token: what every device computes, and how it is computed on the host.
//!
//! Tokens rank by logit, the lower id first among equals; a token weighs e^((logit − max) / temperature). Top-k, top-p and
//! min-p each keep a prefix of that order. Top-p takes its total over what top-k kept, or over all tokens without it.

use std::cmp::Ordering;

/// How to choose a token; with a random word it decides one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleSettings {
    /// 0 takes the largest logit; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep this many tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest tokens whose probabilities reach this sum; in (0, 1].
    pub top_p: f32,
    /// Drop tokens less probable than this share of the most probable one; in [0, 1].
    pub min_p: f32,
}

/// A token that may be drawn. `value` is its logit, then its weight.
#[derive(Clone, Copy)]
struct Candidate {
    value: f32,
    id: u32,
}

impl Candidate {
    /// Best first.
    fn order(&self, other: &Candidate) -> Ordering {
        other.value.total_cmp(&self.value).then(self.id.cmp(&other.id))
    }
}

impl SampleSettings {
    /// The token at share u = (word / 2¹¹) / 2⁵³ of what the filters leave, best first. `logits` are finite and not
    /// empty.
    pub fn token(&self, logits: &[f32], word: u64) -> u32 {
        if self.temperature == 0.0 {
            return argmax(logits);
        }
        let mut kept = self.ranked(logits);
        self.cut_to_nucleus(&mut kept);
        let uniform = (word >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = uniform * sum(&kept.head);
        for candidate in &kept.head {
            left -= f64::from(candidate.value);
            if left < 0.0 {
                return candidate.id;
            }
        }
        kept.head[kept.head.len() - 1].id
    }

    /// What top-k keeps, less what neither top-p nor min-p can.
    fn ranked(&self, logits: &[f32]) -> Kept {
        let max = logits[argmax(logits) as usize];
        let weight = |logit: f32| ((logit - max) / self.temperature).exp();
        let cut = self.top_k > 0 && self.top_k < logits.len();
        let (mut head, total) = if cut {
            let mut head = largest(logits, self.top_k);
            head.iter_mut().for_each(|c| c.value = weight(c.value));
            let total = sum(&head);
            (head, total)
        } else {
            let total = logits.iter().map(|&l| f64::from(weight(l))).sum();
            // Tokens below this weight sum to less than 1 − top-p of the total, so the nucleus is complete without them;
            // sorting is what the others cost.
            let spare = (1.0 - f64::from(self.top_p)) * total / logits.len() as f64;
            let mut head: Vec<Candidate> =
                (0..).zip(logits).map(|(id, &l)| Candidate { value: l + 0.0, id }).collect();
            head.retain(|c| f64::from(weight(c.value)) >= spare);
            head.sort_unstable_by(Candidate::order);
            head.iter_mut().for_each(|c| c.value = weight(c.value));
            (head, total)
        };
        // What weighs nothing is never drawn, not even where sums round.
        head.truncate(head.partition_point(|c| c.value >= self.min_p && c.value > 0.0));
        Kept { head, total }
    }

    /// Applies top-p. The best candidate always stays.
    fn cut_to_nucleus(&self, kept: &mut Kept) {
        if self.top_p == 1.0 {
            return;
        }
        let enough = kept.total * f64::from(self.top_p);
        let mut reached = 0.0;
        let last = kept.head.iter().position(|c| {
            reached += f64::from(c.value);
            reached >= enough
        });
        kept.head.truncate(last.map_or(kept.head.len(), |last| last + 1));
    }
}

/// The head of a ranking, as weights.
struct Kept {
    head: Vec<Candidate>,
    /// What top-p is a share of: the weight of the head and of all that was dropped from it since top-k.
    total: f64,
}

fn sum(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|c| f64::from(c.value)).sum()
}

/// The `count` largest logits, best first; there are more than that.
fn largest(logits: &[f32], count: usize) -> Vec<Candidate> {
    let room = 2 * count + 1024;
    let mut best: Vec<Candidate> = Vec::with_capacity(room.min(logits.len()));
    // The worst of `count` tokens so far: one with a higher id must exceed it.
    let mut bar = None;
    for (id, &logit) in (0..).zip(logits) {
        if bar.is_some_and(|bar| logit <= bar) {
            continue;
        }
        // −0 ties with 0.
        best.push(Candidate { value: logit + 0.0, id });
        if best.len() == room {
            best.select_nth_unstable_by(count - 1, Candidate::order);
            best.truncate(count);
            bar = Some(best[count - 1].value);
        }
    }
    best.sort_unstable_by(Candidate::order);
    best.truncate(count);
    best
}

/// Index of the largest logit, the lowest among equals.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings(temperature: f32, top_k: usize, top_p: f32, min_p: f32) -> SampleSettings {
        SampleSettings { temperature, top_k, top_p, min_p }
    }

    /// The word that makes u = share.
    fn word(share: f64) -> u64 {
        ((share * (1u64 << 53) as f64) as u64) << 11
    }

    /// Straight from the definitions: sort all, top-k, renormalise, top-p, min-p, draw.
    fn naive(logits: &[f32], s: SampleSettings, word: u64) -> u32 {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        ids.sort_by(|&a, &b| logits[b as usize].partial_cmp(&logits[a as usize]).unwrap().then(a.cmp(&b)));
        if s.top_k > 0 {
            ids.truncate(s.top_k);
        }
        let weight = |id: u32| f64::from(((logits[id as usize] - max) / s.temperature).exp());
        let total: f64 = ids.iter().map(|&id| weight(id)).sum();
        let mut p: Vec<(f64, u32)> = ids.iter().map(|&id| (weight(id) / total, id)).collect();
        if s.top_p < 1.0 {
            let mut reached = 0.0;
            let mut kept = 0;
            while kept < p.len() && reached < f64::from(s.top_p) {
                reached += p[kept].0;
                kept += 1;
            }
            p.truncate(kept);
        }
        let least = p[0].0 * f64::from(s.min_p);
        p.retain(|c| c.0 >= least);
        let left: f64 = p.iter().map(|c| c.0).sum();
        let target = (word >> 11) as f64 / (1u64 << 53) as f64 * left;
        let mut passed = 0.0;
        for &(share, id) in &p {
            passed += share;
            if passed > target {
                return id;
            }
        }
        p[p.len() - 1].1
    }

    proptest! {
        #[test]
        fn draws_what_the_definitions_draw(
            logits in prop::collection::vec(-8.0f32..8.0, 1..3000),
            t in 0.3f32..2.0, k in 0usize..60, p in 0.3f32..0.99, m in 0.0f32..0.1,
            all in any::<[bool; 3]>(), words in prop::collection::vec(any::<u64>(), 20),
        ) {
            let s = settings(t, if all[0] { 0 } else { k }, if all[1] { 1.0 } else { p }, if all[2] { 0.0 } else { m });
            // Not the largest word: which token is last in sums of thousands is a matter of rounding.
            for word in words.into_iter().chain([0]) {
                prop_assert_eq!(s.token(&logits, word), naive(&logits, s, word));
            }
        }
    }

    /// 0.95 of 1 + 0.05 + 100 · 0.0001 is more than the first has, though not of the first two alone.
    #[test]
    fn the_nucleus_is_a_share_of_all_tokens() {
        let mut logits = vec![0.0001f32.ln(); 102];
        (logits[17], logits[4]) = (0.0, 0.05f32.ln());
        let s = settings(1.0, 0, 0.95, 0.0);
        assert_eq!(s.token(&logits, word(0.9)), 17);
        assert_eq!(s.token(&logits, word(0.99)), 4);
        // Of what top-k kept the first has enough.
        assert_eq!(settings(1.0, 2, 0.95, 0.0).token(&logits, word(0.99)), 17);
        // What min-p drops counts too.
        assert_eq!(settings(1.0, 0, 0.95, 0.01).token(&logits, word(0.99)), 4);
    }

    #[test]
    fn equal_logits_rank_by_id() {
        let mut logits = vec![-1.5f32; 5000];
        logits[3] = -0.0;
        logits[1] = 0.0;
        for top_k in [0, 2, 1000, 4999, 5000] {
            let s = settings(1e-3, top_k, 1.0, 0.0);
            assert_eq!([0.1, 0.9].map(|u| s.token(&logits, word(u))), [1, 3], "top {top_k}");
        }
        let flat = vec![7.0f32; 5000];
        for top_k in [1, 40, 4000] {
            let at = |token: usize| word((token as f64 + 0.5) / top_k as f64);
            let s = settings(1.0, top_k, 1.0, 0.0);
            for token in [0, top_k / 2, top_k - 1] {
                assert_eq!(s.token(&flat, at(token)), token as u32, "top {top_k}");
            }
        }
    }

    #[test]
    fn greedy_takes_the_lowest_id_among_equals() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, -5.0]), 1);
        assert_eq!(argmax(&[-0.0, 0.0]), 0);
    }
}
