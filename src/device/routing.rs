//! Choosing experts: DeepSeek-V3's `noaux_tc` routing with guards, and the expert-sorted lists that follow from it.
//!
//! Invariant: after [`Routing::reset`] and one [`Routing::route_row`] a token, ids are distinct within a token and
//! below the number of experts whatever the logits were, NaN and infinities included.

use std::ops::Range;

use super::sigmoid::sigmoid;
use crate::config::MoeConfig;

/// Where routing could not follow the scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoutingFault {
    /// Row of the logits.
    pub token: usize,
    /// How many finite candidates it had; fewer than top-k.
    pub candidates: usize,
}

/// The experts of a batch of tokens, and the (token, rank) pairs sorted by expert.
#[derive(Debug, Clone, Default)]
pub struct Routing {
    top_k: usize,
    ids: Vec<u32>,
    weights: Vec<f32>,
    fault: Option<RoutingFault>,
    sorted: Vec<u32>,
    position: Vec<u32>,
    offsets: Vec<u32>,
    scratch: Scratch,
}

/// Reused between rows.
#[derive(Debug, Clone, Default)]
struct Scratch {
    /// sigmoid(logit), the weight before renormalisation.
    score: Vec<f32>,
    /// What experts are ranked by: [`rank_key`] of score + bias, or [`TOMBSTONE`].
    key: Vec<u32>,
    group: Vec<u32>,
}

/// Key of an expert that cannot be chosen (any more). No finite value maps to it.
const TOMBSTONE: u32 = 0;

/// Orders finite floats as unsigned integers; non-finite values are never candidates.
///
/// −0 counts as +0, so that it ties with it and the lowest id wins.
fn rank_key(value: f32) -> u32 {
    if !value.is_finite() {
        return TOMBSTONE;
    }
    let bits = (value + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// Index of the largest key, the lowest index among equals; `None` if all are tombstones.
fn best(keys: &[u32]) -> Option<usize> {
    let (mut index, mut largest) = (None, TOMBSTONE);
    for (i, &key) in keys.iter().enumerate() {
        if key > largest {
            (index, largest) = (Some(i), key);
        }
    }
    index
}

impl Routing {
    /// Empties it for a new batch with `top_k` experts a token.
    pub fn reset(&mut self, top_k: usize) {
        self.top_k = top_k;
        self.ids.clear();
        self.weights.clear();
        self.fault = None;
    }

    /// Appends a token. The rules (DeepSeek-V3, arXiv 2412.19437, section 2.1.2, with guards):
    ///
    /// 1. s = sigmoid(logit) in f32; experts are ranked by s + bias, in which NaN and infinities are no candidates and
    ///    −0 equals +0; ties go to the lowest id.
    /// 2. With groups, a group's score is the sum of its two best s + bias; only experts of the `topk_group` best
    ///    groups are candidates.
    /// 3. The weight of a chosen expert is its s, divided by (Σ s + 1e-20) if `norm_topk_prob`, times
    ///    `routed_scaling_factor`.
    /// 4. With fewer than top-k candidates the lowest unused ids follow with weight 0 and the fault is noted.
    ///
    /// # Panics
    /// If `logits` or `bias` is not `moe.num_experts` long.
    pub fn route_row(&mut self, logits: &[f32], bias: &[f32], moe: &MoeConfig) {
        assert!(logits.len() == moe.num_experts && bias.len() == moe.num_experts, "router width");
        let Scratch { score, key, group } = &mut self.scratch;
        score.clear();
        score.extend(logits.iter().map(|&x| sigmoid(x)));
        key.clear();
        key.extend(score.iter().zip(bias).map(|(s, b)| rank_key(s + b)));
        if moe.topk_group < moe.n_group {
            keep_best_groups(score, bias, key, group, moe);
        }

        let first = self.ids.len();
        for _ in 0..moe.top_k {
            let Some(id) = best(key) else { break };
            key[id] = TOMBSTONE;
            self.ids.push(id as u32);
            self.weights.push(score[id]);
        }

        let weights = &mut self.weights[first..];
        let sum: f32 = weights.iter().sum();
        let norm = if moe.norm_topk_prob { sum + 1e-20 } else { 1.0 };
        for w in weights {
            *w = *w / norm * moe.routed_scaling_factor;
        }

        let candidates = self.ids.len() - first;
        if candidates < moe.top_k {
            let token = first / moe.top_k;
            self.fault.get_or_insert(RoutingFault { token, candidates });
            for id in 0..moe.num_experts as u32 {
                if self.ids.len() - first < moe.top_k && !self.ids[first..].contains(&id) {
                    self.ids.push(id);
                    self.weights.push(0.0);
                }
            }
        }
    }

    /// Sorts the pairs by expert (stable: tokens stay in order within an expert). Call it once all rows are in.
    pub fn sort_by_expert(&mut self, num_experts: usize) {
        self.offsets.clear();
        self.offsets.resize(num_experts + 1, 0);
        for &id in &self.ids {
            self.offsets[id as usize + 1] += 1;
        }
        for e in 0..num_experts {
            self.offsets[e + 1] += self.offsets[e];
        }
        let mut next = self.offsets.clone();
        self.sorted.resize(self.ids.len(), 0);
        self.position.resize(self.ids.len(), 0);
        for (pair, &id) in self.ids.iter().enumerate() {
            let at = &mut next[id as usize];
            self.sorted[*at as usize] = pair as u32;
            self.position[pair] = *at;
            *at += 1;
        }
    }

    /// Decisions made elsewhere, by the same rules.
    #[cfg(feature = "cuda")]
    pub(crate) fn from_parts(
        top_k: usize,
        ids: Vec<u32>,
        weights: Vec<f32>,
        sorted: Vec<u32>,
        position: Vec<u32>,
        offsets: Vec<u32>,
        fault: Option<RoutingFault>,
    ) -> Routing {
        Routing { top_k, ids, weights, fault, sorted, position, offsets, scratch: Scratch::default() }
    }

    /// First sorted pair of each expert, and their number last, [experts + 1].
    pub fn offsets(&self) -> &[u32] {
        &self.offsets
    }

    /// Experts a token.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Tokens routed.
    pub fn tokens(&self) -> usize {
        self.ids.len().checked_div(self.top_k).unwrap_or(0)
    }

    /// Expert ids [tokens, top_k], best first.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Their weights [tokens, top_k].
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// The first token whose scores could not fill its top-k.
    pub fn fault(&self) -> Option<RoutingFault> {
        self.fault
    }

    /// Pairs token · top_k + rank, sorted by expert.
    pub fn sorted_pairs(&self) -> &[u32] {
        &self.sorted
    }

    /// Where each pair stands among the sorted ones, [tokens, top_k].
    pub fn positions(&self) -> &[u32] {
        &self.position
    }

    /// The sorted pairs of one expert.
    pub fn pairs_of(&self, expert: usize) -> Range<usize> {
        self.offsets[expert] as usize..self.offsets[expert + 1] as usize
    }

    /// Token and expert of a sorted pair.
    pub fn pair(&self, sorted: usize) -> (usize, usize) {
        let pair = self.sorted[sorted] as usize;
        (pair / self.top_k, self.ids[pair] as usize)
    }
}

/// Tombstones every expert outside the best groups.
fn keep_best_groups(score: &[f32], bias: &[f32], key: &mut [u32], group: &mut Vec<u32>, moe: &MoeConfig) {
    let size = moe.num_experts / moe.n_group;
    group.clear();
    for g in 0..moe.n_group {
        let keys = &mut key[g * size..][..size];
        let mut sum = 0.0;
        let mut found = 0;
        let mut taken = [(0, TOMBSTONE); 2];
        while found < size.min(2) {
            let Some(i) = best(keys) else { break };
            sum += score[g * size + i] + bias[g * size + i];
            taken[found] = (i, keys[i]);
            keys[i] = TOMBSTONE;
            found += 1;
        }
        for &(i, saved) in &taken[..found] {
            keys[i] = saved;
        }
        // A group that cannot name its best two has no score; it may still be needed to fill top-k with weight 0.
        group.push(if found == size.min(2) { rank_key(sum) } else { TOMBSTONE });
    }
    let mut chosen = 0;
    let mut keep = vec![false; moe.n_group];
    while chosen < moe.topk_group {
        let Some(g) = best(group) else { break };
        group[g] = TOMBSTONE;
        keep[g] = true;
        chosen += 1;
    }
    for (g, kept) in keep.into_iter().enumerate() {
        if !kept {
            key[g * size..][..size].fill(TOMBSTONE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same rules the obvious way: sort, don't search; floats, not keys. Returns ids and weights.
    fn naive(logits: &[f32], bias: &[f32], moe: &MoeConfig) -> (Vec<u32>, Vec<f32>) {
        let score: Vec<f32> = logits.iter().map(|&x| sigmoid(x)).collect();
        let choice: Vec<Option<f32>> =
            score.iter().zip(bias).map(|(s, b)| Some(s + b).filter(|c| c.is_finite())).collect();
        let size = moe.num_experts / moe.n_group;
        let mut open = vec![true; moe.n_group];
        if moe.topk_group < moe.n_group {
            let mut groups: Vec<(f32, usize)> = Vec::new();
            for (g, members) in choice.chunks(size).enumerate() {
                let mut finite: Vec<f32> = members.iter().flatten().copied().collect();
                finite.sort_by(|a, b| b.partial_cmp(a).unwrap());
                let best = &finite[..finite.len().min(2)];
                let sum: f32 = best.iter().sum();
                if best.len() == size.min(2) && sum.is_finite() {
                    groups.push((sum, g));
                }
            }
            groups.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(a.1.cmp(&b.1)));
            open = (0..moe.n_group).map(|g| groups.iter().take(moe.topk_group).any(|x| x.1 == g)).collect();
        }
        let mut ranked: Vec<(f32, u32)> = (0..moe.num_experts)
            .filter(|&e| open[e / size])
            .filter_map(|e| Some((choice[e]?, e as u32)))
            .collect();
        ranked.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(a.1.cmp(&b.1)));
        ranked.truncate(moe.top_k);
        let mut ids: Vec<u32> = ranked.iter().map(|r| r.1).collect();
        let sum: f32 = ids.iter().map(|&e| score[e as usize]).sum();
        let norm = if moe.norm_topk_prob { sum + 1e-20 } else { 1.0 };
        let mut weights: Vec<f32> =
            ids.iter().map(|&e| score[e as usize] / norm * moe.routed_scaling_factor).collect();
        for e in 0..moe.num_experts as u32 {
            if ids.len() < moe.top_k && !ids.contains(&e) {
                ids.push(e);
                weights.push(0.0);
            }
        }
        (ids, weights)
    }

    /// Values that routers have been seen to fail on, and ordinary ones with many ties.
    fn value() -> impl Strategy<Value = f32> + Clone {
        prop_oneof![
            6 => -4.0f32..4.0,
            3 => (-3i8..3).prop_map(f32::from),
            1 => prop::sample::select(vec![
                f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, 1e38, -1e38, 1e-45, 88.0, -104.0,
            ]),
        ]
    }

    fn case() -> impl Strategy<Value = (MoeConfig, Vec<Vec<f32>>, Vec<f32>)> {
        (1usize..9, 1usize..9, 1usize..9, 1usize..17, any::<bool>()).prop_flat_map(
            |(groups, size, keep, k, norm)| {
                let num_experts = groups * size;
                let topk_group = keep.min(groups);
                let moe = MoeConfig {
                    num_experts,
                    top_k: k.min(topk_group * size),
                    intermediate_size: 1,
                    num_shared: 0,
                    n_group: groups,
                    topk_group,
                    norm_topk_prob: norm,
                    routed_scaling_factor: 2.5,
                };
                let row = prop::collection::vec(value(), num_experts);
                (Just(moe), prop::collection::vec(row.clone(), 1..4), row)
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn agrees_with_the_naive_router((moe, rows, bias) in case()) {
            let mut routing = Routing::default();
            routing.reset(moe.top_k);
            for row in &rows {
                routing.route_row(row, &bias, &moe);
            }
            routing.sort_by_expert(moe.num_experts);
            prop_assert_eq!(routing.tokens(), rows.len());
            for (t, row) in rows.iter().enumerate() {
                let ids = &routing.ids()[t * moe.top_k..][..moe.top_k];
                let weights = &routing.weights()[t * moe.top_k..][..moe.top_k];
                let (want_ids, want_weights) = naive(row, &bias, &moe);
                prop_assert_eq!(ids, &want_ids[..]);
                let mut distinct = ids.to_vec();
                distinct.sort_unstable();
                distinct.dedup();
                prop_assert_eq!(distinct.len(), moe.top_k);
                prop_assert!(ids.iter().all(|&id| (id as usize) < moe.num_experts));
                for (w, want) in weights.iter().zip(want_weights) {
                    prop_assert!((w - want).abs() <= 1e-6 * want.abs().max(1.0), "{w} for {want}");
                }
            }
            // Every pair is in its expert's list exactly once, tokens in order, and positions point back.
            let mut seen = 0;
            for e in 0..moe.num_experts {
                let pairs = routing.pairs_of(e);
                let tokens: Vec<usize> = pairs.clone().map(|p| routing.pair(p).0).collect();
                prop_assert!(tokens.is_sorted());
                for p in pairs {
                    prop_assert_eq!(routing.pair(p).1, e);
                    prop_assert_eq!(routing.positions()[routing.sorted_pairs()[p] as usize] as usize, p);
                    seen += 1;
                }
            }
            prop_assert_eq!(seen, routing.ids().len());
        }
    }

    fn moe(num_experts: usize, top_k: usize) -> MoeConfig {
        MoeConfig {
            num_experts,
            top_k,
            intermediate_size: 1,
            num_shared: 0,
            n_group: 1,
            topk_group: 1,
            norm_topk_prob: true,
            routed_scaling_factor: 2.0,
        }
    }

    #[test]
    fn nothing_finite_takes_the_lowest_ids_with_weight_zero_and_says_so() {
        let mut routing = Routing::default();
        routing.reset(3);
        routing.route_row(&[1.0, 2.0, 3.0, 4.0], &[0.0; 4], &moe(4, 3));
        routing.route_row(&[f32::NAN; 4], &[0.0; 4], &moe(4, 3));
        assert_eq!(&routing.ids()[3..], [0, 1, 2]);
        assert_eq!(&routing.weights()[3..], [0.0; 3]);
        assert_eq!(routing.fault(), Some(RoutingFault { token: 1, candidates: 0 }));
    }

    #[test]
    fn the_weight_is_the_score_not_score_plus_bias_minus_bias() {
        // With a large bias, recovering the score by subtraction loses it (flashinfer #3875).
        let mut routing = Routing::default();
        routing.reset(1);
        let mut config = moe(2, 1);
        config.norm_topk_prob = false;
        routing.route_row(&[-20.0, 0.0], &[1e9, 0.0], &config);
        assert_eq!(routing.ids(), [0]);
        assert!((routing.weights()[0] - 2.0 * sigmoid(-20.0)).abs() < 1e-12);
    }

    #[test]
    fn masked_groups_stay_masked_when_every_bias_is_negative() {
        // Masking with 0 instead of −∞ would let group 0 win over negative scores (DeepSeek-V3 #741).
        let mut config = moe(4, 2);
        (config.n_group, config.topk_group) = (2, 1);
        let mut routing = Routing::default();
        routing.reset(2);
        routing.route_row(&[0.0, 0.0, 1.0, 1.0], &[-5.0; 4], &config);
        assert_eq!(routing.ids(), [2, 3]);
    }
}
