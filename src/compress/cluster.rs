//! Which experts of a layer belong together, and which can stand for the others, by the rows of their router.
//!
//! An expert is chosen where the input points along its row: experts with similar rows are given similar tokens.
//! Results depend neither on the processor nor on the number of threads; equal ones go by the lower number.

use super::dots::{dots, inverse_norms};

/// Puts experts into `into` groups: the most used are the centres, and every other joins the centre whose router row is most
/// like its own, by the cosine.
///
/// `router_rows` is [experts, `hidden`], `usage` has a number for each expert; what is not a positive number counts as
/// zero. A group lists its centre first, then the others ascending, each with its share of the group's usage, equal
/// shares where all is zero. Groups are in the order of their centres.
///
/// # Panics
/// If the sizes contradict each other, or `into` is not 1 to the number of experts.
pub fn cluster(router_rows: &[f32], hidden: usize, usage: &[f32], into: usize) -> Vec<Vec<(usize, f32)>> {
    let experts = usage.len();
    assert_eq!(router_rows.len(), experts * hidden, "router of {experts} experts and {hidden} inputs");
    assert!((1..=experts).contains(&into), "{into} groups of {experts} experts");
    let usage: Vec<f64> =
        usage.iter().map(|u| if u.is_finite() { f64::from(u.max(0.0)) } else { 0.0 }).collect();
    let likeness = cosines(router_rows, hidden);

    let mut by_usage: Vec<usize> = (0..experts).collect();
    // Stable, so that equal usage leaves the lower number first.
    by_usage.sort_by(|&a, &b| usage[b].total_cmp(&usage[a]));
    let mut centres = by_usage[..into].to_vec();
    centres.sort_unstable();

    let mut groups: Vec<Vec<usize>> = centres.iter().map(|&centre| vec![centre]).collect();
    for expert in (0..experts).filter(|e| centres.binary_search(e).is_err()) {
        let of = |group: usize| likeness[expert * experts + centres[group]];
        let nearest = (1..into).fold(0, |best, group| if of(group) > of(best) { group } else { best });
        groups[nearest].push(expert);
    }
    let shares = |group: Vec<usize>| {
        let total: f64 = group.iter().map(|&e| usage[e]).sum();
        let equal = 1.0 / group.len() as f64;
        let share = |e: usize| if total > 0.0 { usage[e] / total } else { equal };
        group.into_iter().map(|e| (e, share(e) as f32)).collect()
    };
    groups.into_iter().map(shares).collect()
}

/// The `keep` experts whose router rows stand best for all, ascending: those with a large sum, over all experts, of the cosine
/// with the most similar one kept. They are taken greedily (facility location), then each is exchanged for another while
/// that makes the sum larger (k-medoids). For when nothing is known of how often experts are used.
///
/// `router_rows` is [experts, `hidden`].
///
/// # Panics
/// If `keep` is not 1 to the number of experts, or the rows are not whole.
pub fn similar(router_rows: &[f32], hidden: usize, keep: usize) -> Vec<usize> {
    let experts = router_rows.len() / hidden;
    assert_eq!(router_rows.len(), experts * hidden, "router of {experts} experts and {hidden} inputs");
    assert!((1..=experts).contains(&keep), "{keep} of {experts} experts");
    let cover = Cover { likeness: cosines(router_rows, hidden), experts };

    let mut kept: Vec<usize> = Vec::with_capacity(keep);
    while kept.len() < keep {
        let Some((added, _)) = cover.best_addition(&kept) else { break };
        kept.push(added);
    }
    for _ in 0..PASSES {
        let mut exchanged = false;
        for place in 0..kept.len() {
            let rest: Vec<usize> = kept.iter().copied().filter(|&e| e != kept[place]).collect();
            let now = cover.sum_with(&cover.of(&rest), kept[place]);
            if let Some((better, sum)) = cover.best_addition(&rest)
                && sum > now + GAIN
            {
                kept[place] = better;
                exchanged = true;
            }
        }
        if !exchanged {
            break;
        }
    }
    kept.sort_unstable();
    kept
}

/// Passes of exchanges at most. Each makes the sum larger or is the last; a few suffice.
const PASSES: usize = 16;

/// What an exchange must gain: more than the sum's rounding, so that passes end.
const GAIN: f64 = 1e-6;

/// How well some experts stand for all.
struct Cover {
    /// [experts, experts]
    likeness: Vec<f32>,
    experts: usize,
}

impl Cover {
    fn row(&self, expert: usize) -> &[f32] {
        &self.likeness[expert * self.experts..][..self.experts]
    }

    /// For each expert its likeness to the most similar of `kept`; no cosine is less than the -1 of nothing kept.
    fn of(&self, kept: &[usize]) -> Vec<f32> {
        let mut covered = vec![-1.0f32; self.experts];
        for &expert in kept {
            for (covered, &like) in covered.iter_mut().zip(self.row(expert)) {
                *covered = covered.max(like);
            }
        }
        covered
    }

    /// The sum when `added` is kept beside those that cover so much.
    fn sum_with(&self, covered: &[f32], added: usize) -> f64 {
        covered.iter().zip(self.row(added)).map(|(&covered, &like)| f64::from(covered.max(like))).sum()
    }

    /// The expert outside `kept` with which the sum is largest, the first of equals, and that sum.
    fn best_addition(&self, kept: &[usize]) -> Option<(usize, f64)> {
        let covered = self.of(kept);
        let mut best = None;
        for candidate in (0..self.experts).filter(|c| !kept.contains(c)) {
            let sum = self.sum_with(&covered, candidate);
            if best.is_none_or(|(_, most)| sum > most) {
                best = Some((candidate, sum));
            }
        }
        best
    }
}

/// The cosine of every two rows, [experts, experts]; 1 of a row with itself, 0 with a row of zeros.
fn cosines(rows: &[f32], hidden: usize) -> Vec<f32> {
    let norms = inverse_norms(rows, hidden);
    let mut cosines = vec![0.0; norms.len() * norms.len()];
    dots(rows, rows, hidden, &mut cosines, |i, j, dot, out| {
        // `max` makes a number of a NaN.
        *out = if i == j { 1.0 } else { (dot * norms[i] * norms[j]).max(-1.0) };
    });
    cosines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Router rows of two inputs at these angles, in degrees, of different lengths.
    fn at(angles: &[f32]) -> Vec<f32> {
        let row = |(i, a): (usize, &f32)| {
            let (sin, cos) = a.to_radians().sin_cos();
            [cos, sin].map(|v| v * (1.0 + i as f32))
        };
        angles.iter().enumerate().flat_map(row).collect()
    }

    #[test]
    fn the_most_used_are_centres_and_the_others_join_the_nearest() {
        let router = at(&[0.0, 90.0, 10.0, 80.0, 300.0]);
        let groups = cluster(&router, 2, &[6.0, 10.0, 2.0, 30.0, 0.0], 2);
        // Centres 1 and 3; 0° is nearer to 80° than to 90°, and so is 300°.
        assert_eq!(
            groups,
            [vec![(1, 1.0)], vec![(3, 30.0 / 38.0), (0, 6.0 / 38.0), (2, 2.0 / 38.0), (4, 0.0)]]
        );
    }

    #[test]
    fn without_usage_the_first_are_centres_and_shares_are_equal() {
        let router = at(&[0.0, 90.0, 91.0, 1.0]);
        for nothing in [0.0, -3.0, f32::NAN, f32::INFINITY] {
            let groups = cluster(&router, 2, &[nothing; 4], 2);
            assert_eq!(groups, [vec![(0, 0.5), (3, 0.5)], vec![(1, 0.5), (2, 0.5)]], "{nothing}");
        }
    }

    #[test]
    fn equal_likeness_goes_to_the_lower_number() {
        let router = at(&[0.0, 0.0, 0.0, 0.0]);
        let groups = cluster(&router, 2, &[1.0, 1.0, 1.0, 1.0], 2);
        assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [3, 1]);
        assert_eq!(groups[1], [(1, 1.0)]);
        // A row of zeros is like none, and joins one all the same.
        let groups = cluster(&[0.0, 0.0, 1.0, 0.0, 0.0, 1.0], 2, &[0.0, 1.0, 1.0], 2);
        assert_eq!(groups, [vec![(1, 1.0), (0, 0.0)], vec![(2, 1.0)]]);
    }

    #[test]
    fn as_many_groups_as_experts_leave_everything_alone() {
        let router = at(&[0.0, 50.0, 20.0]);
        let want: Vec<_> = (0..3).map(|e| vec![(e, 1.0)]).collect();
        assert_eq!(cluster(&router, 2, &[1.0, 0.0, 2.0], 3), want);
    }

    #[test]
    fn one_of_each_bundle_is_kept_the_middle_one() {
        let router = at(&[100.0, 0.0, 110.0, 10.0, 120.0, 230.0, 20.0]);
        assert_eq!(similar(&router, 2, 3), [2, 3, 5]);
        assert_eq!(similar(&router, 2, 7), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(similar(&at(&[5.0, 5.0, 5.0]), 2, 2), [0, 1], "equal ones by number");
    }

    #[test]
    fn what_is_kept_covers_nearly_as_well_as_the_best_set() {
        let angles: Vec<f32> = (0..12).map(|i| ((i * i * 37 + 5 * i) % 360) as f32).collect();
        let (router, n) = (at(&angles), angles.len());
        let likeness = cosines(&router, 2);
        let cover = |kept: &[usize]| -> f32 {
            let best = |j: usize| kept.iter().map(|&i| likeness[i * n + j]).fold(-1.0, f32::max);
            (0..n).map(best).sum()
        };
        let sets = (0..1u32 << n).filter(|set| set.count_ones() == 4);
        let best = sets
            .map(|set| cover(&(0..n).filter(|i| set >> i & 1 == 1).collect::<Vec<_>>()))
            .fold(0.0, f32::max);
        let got = cover(&similar(&router, 2, 4));
        assert!(got > 0.98 * best && got <= best + 1e-4, "{got} for {best}");
    }
}
