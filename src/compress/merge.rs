//! Merging experts of one layer into one.
//!
//! The neurons of an expert have no order: permuting the rows of gate and up and the columns of down alike changes
//! nothing. Nor does turning the sign of a neuron's up row and down column together. Before experts are averaged, each one's
//! neurons are therefore put into the order and signs of the heaviest's, as in Git Re-Basin (Ainsworth et al.,
//! 2022), here by the weights of all three matrices.
//!
//! An expert is a [`GatedMlp`] of values: gate and up [intermediate, hidden], down [hidden, intermediate], row-major.
//! Results depend neither on the processor nor on the number of threads.

use rayon::prelude::*;

use super::dots::{dots, inverse_norms};
use crate::checkpoint::weights::GatedMlp;

/// Passes over all pairs of neurons at most. Each makes the matching better or is the last; a few suffice.
const PASSES: usize = 16;

/// What must be gained for a swap: more than the sums' rounding, so that passes end.
const GAIN: f32 = 1e-5;

/// Which neuron of another expert stands for one of this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neuron {
    /// Its row in gate and up, its column in down.
    pub index: u32,
    /// Whether its up row and down column are to be negated.
    pub negated: bool,
}

/// For each neuron of `heaviest` the one of `other` that is most like it; every neuron of `other` appears once.
///
/// Likeness is the cosine of the gate rows and, with the better sign, the sum of those of the up rows and down columns. Pairs
/// are taken greedily, the most alike first, then partners are swapped while that makes the sum of likeness larger.
/// Takes 8 bytes for every pair of neurons and a copy of both down matrices.
///
/// # Panics
/// If the matrices of both are not [n, `hidden`], [n, `hidden`] and [`hidden`, n] for one n.
pub fn align(heaviest: &GatedMlp<Vec<f32>>, other: &GatedMlp<Vec<f32>>, hidden: usize) -> Vec<Neuron> {
    let n = neurons(heaviest, hidden);
    assert_eq!(neurons(other, hidden), n, "neurons of experts that are to be aligned");
    let ours = Rows::of(heaviest, hidden);
    let theirs = Rows::of(other, hidden);

    let mut likeness = vec![0.0f32; n * n];
    let cosines = |part: Part, likeness: &mut [f32], combine: fn(f32, f32) -> f32| {
        let ((a, a_norms), (b, b_norms)) = (ours.part(part), theirs.part(part));
        dots(a, b, hidden, likeness, |i, j, dot, out| *out = combine(*out, dot * a_norms[i] * b_norms[j]));
    };
    cosines(Part::Up, &mut likeness, |_, cosine| cosine);
    cosines(Part::Down, &mut likeness, |sum, cosine| sum + cosine);
    cosines(Part::Gate, &mut likeness, |up_and_down, cosine| up_and_down.abs() + cosine);

    let mut partners = greedy(&likeness, n);
    swap_while_better(&likeness, &mut partners);
    let negated = |i: usize, j: usize| {
        let cosine = |part| {
            let ((a, a_norms), (b, b_norms)) = (ours.part(part), theirs.part(part));
            let (a, b) = (&a[i * hidden..][..hidden], &b[j * hidden..][..hidden]);
            a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>() * a_norms[i] * b_norms[j]
        };
        cosine(Part::Up) + cosine(Part::Down) < 0.0
    };
    let neuron = |(i, &index): (usize, &u32)| Neuron { index, negated: negated(i, index as usize) };
    partners.par_iter().enumerate().map(neuron).collect()
}

/// The average of experts by weight, each aligned to the heaviest. Weights are shares of their sum, those that are
/// not positive numbers count as zero, and experts of weight zero change nothing. The heaviest is the first of the largest weight; what
/// all have in common with it stays exactly as it is.
///
/// # Panics
/// If there is no member or they are not all of one size (see [`align`]).
pub fn merge(members: &[(&GatedMlp<Vec<f32>>, f32)], hidden: usize) -> GatedMlp<Vec<f32>> {
    let weight = |&(_, weight): &(_, f32)| if weight.is_finite() { weight.max(0.0) } else { 0.0 };
    let Some(first) = members.first() else { panic!("no experts to merge") };
    let heaviest = members.iter().skip(1).fold(first, |h, m| if weight(m) > weight(h) { m } else { h });
    let total: f64 = members.iter().map(|m| f64::from(weight(m))).sum();
    let base = heaviest.0;

    let mut merged = base.clone();
    for member in members.iter().filter(|m| !std::ptr::eq(*m, heaviest) && weight(m) > 0.0) {
        add(&mut merged, base, member.0, (f64::from(weight(member)) / total) as f32, hidden);
    }
    merged
}

/// A step of [`merge`], for members that are not all in memory at once: `merged`, a copy of `base` in the beginning, takes on
/// `other`, aligned to `base`, by its share of all weights.
///
/// # Panics
/// If the three are not all of one size (see [`align`]).
pub fn add(
    merged: &mut GatedMlp<Vec<f32>>,
    base: &GatedMlp<Vec<f32>>,
    other: &GatedMlp<Vec<f32>>,
    share: f32,
    hidden: usize,
) {
    let n = neurons(base, hidden);
    assert_eq!(neurons(merged, hidden), n, "neurons of a sum of experts");
    let partners = align(base, other, hidden);
    // merged += share · (other − base), so that equal values leave no rounding behind.
    for (merged, base, other, is_up) in
        [(&mut merged.gate, &base.gate, &other.gate, false), (&mut merged.up, &base.up, &other.up, true)]
    {
        let rows = merged.par_chunks_mut(hidden).zip(base.par_chunks(hidden)).zip(&partners);
        rows.for_each(|((merged, base), partner)| {
            let sign = if is_up && partner.negated { -1.0 } else { 1.0 };
            let other = &other[partner.index as usize * hidden..][..hidden];
            for ((merged, base), other) in merged.iter_mut().zip(base).zip(other) {
                *merged += share * (sign * other - base);
            }
        });
    }
    let rows = merged.down.par_chunks_mut(n).zip(base.down.par_chunks(n)).zip(other.down.par_chunks(n));
    rows.for_each(|((merged, base), other)| {
        for ((merged, base), partner) in merged.iter_mut().zip(base).zip(&partners) {
            let sign = if partner.negated { -1.0 } else { 1.0 };
            *merged += share * (sign * other[partner.index as usize] - base);
        }
    });
}

/// The intermediate size.
fn neurons(expert: &GatedMlp<Vec<f32>>, hidden: usize) -> usize {
    let n = expert.gate.len() / hidden;
    for values in expert.each() {
        assert_eq!(values.len(), n * hidden, "values of an expert of {n} neurons and {hidden} inputs");
    }
    n
}

#[derive(Clone, Copy)]
enum Part {
    Gate,
    Up,
    Down,
}

/// An expert's neurons: of each part a row for every one, and the rows' inverse norms.
struct Rows<'a> {
    expert: &'a GatedMlp<Vec<f32>>,
    /// Transposed: [intermediate, hidden].
    down: Vec<f32>,
    norms: GatedMlp<Vec<f32>>,
}

impl<'a> Rows<'a> {
    fn of(expert: &'a GatedMlp<Vec<f32>>, hidden: usize) -> Rows<'a> {
        let n = neurons(expert, hidden);
        let mut down = vec![0.0; n * hidden];
        // Several columns at a time, so that what is read of a row is a whole line of the cache.
        const COLUMNS: usize = 16;
        down.par_chunks_mut(COLUMNS * hidden).enumerate().for_each(|(block, rows)| {
            for h in 0..hidden {
                for (r, row) in rows.chunks_mut(hidden).enumerate() {
                    row[h] = expert.down[h * n + block * COLUMNS + r];
                }
            }
        });
        let norms = GatedMlp {
            gate: inverse_norms(&expert.gate, hidden),
            up: inverse_norms(&expert.up, hidden),
            down: inverse_norms(&down, hidden),
        };
        Rows { expert, down, norms }
    }

    fn part(&self, part: Part) -> (&[f32], &[f32]) {
        match part {
            Part::Gate => (&self.expert.gate, &self.norms.gate),
            Part::Up => (&self.expert.up, &self.norms.up),
            Part::Down => (&self.down, &self.norms.down),
        }
    }
}

/// Pairs rows with columns of `likeness` [n, n], the most alike first, equal ones in the order of their place.
fn greedy(likeness: &[f32], n: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..likeness.len() as u32).collect();
    let key = |at: u32| likeness[at as usize];
    order.par_sort_unstable_by(|&a, &b| key(b).total_cmp(&key(a)).then(a.cmp(&b)));
    let mut partners = vec![None; n];
    let mut taken = vec![false; n];
    for at in order {
        let (i, j) = (at as usize / n, at as usize % n);
        if partners[i].is_none() && !taken[j] {
            (partners[i], taken[j]) = (Some(j as u32), true);
        }
    }
    // Every pair was seen, so every row found a partner.
    partners.into_iter().flatten().collect()
}

/// Swaps the partners of two rows wherever the sum of likeness grows by that, until nowhere or for [`PASSES`] passes.
fn swap_while_better(likeness: &[f32], partners: &mut [u32]) {
    let n = partners.len();
    let of = |i: usize, j: u32| likeness[i * n + j as usize];
    for _ in 0..PASSES {
        let mut swapped = false;
        for i in 0..n {
            for k in i + 1..n {
                let (p, q) = (partners[i], partners[k]);
                if of(i, q) + of(k, p) > of(i, p) + of(k, q) + GAIN {
                    partners.swap(i, k);
                    swapped = true;
                }
            }
        }
        if !swapped {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::Rng;

    const HIDDEN: usize = 24;
    const N: usize = 40;

    fn uniform(seed: u64) -> impl FnMut() -> f32 {
        let mut rng = rand_pcg::Pcg64Mcg::new(u128::from(seed) | 1);
        move || (rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    fn random(seed: u64) -> GatedMlp<Vec<f32>> {
        let mut uniform = uniform(seed);
        let mut values = || (0..N * HIDDEN).map(|_| uniform()).collect();
        GatedMlp { gate: values(), up: values(), down: values() }
    }

    /// The same function with other neurons: what stands at i is neuron `partners[i]` of `expert`.
    fn reordered(expert: &GatedMlp<Vec<f32>>, partners: &[Neuron]) -> GatedMlp<Vec<f32>> {
        let sign = |p: &Neuron| if p.negated { -1.0 } else { 1.0 };
        let rows = |from: &[f32], signed: bool| {
            let row = |p: &Neuron| {
                let sign = if signed { sign(p) } else { 1.0 };
                from[p.index as usize * HIDDEN..][..HIDDEN].iter().map(move |v| v * sign).collect::<Vec<_>>()
            };
            partners.iter().flat_map(row).collect()
        };
        let down = |h: usize| partners.iter().map(move |p| expert.down[h * N + p.index as usize] * sign(p));
        GatedMlp {
            gate: rows(&expert.gate, false),
            up: rows(&expert.up, true),
            down: (0..HIDDEN).flat_map(down).collect(),
        }
    }

    /// A random order with random signs.
    fn shuffle(seed: u64) -> Vec<Neuron> {
        let mut uniform = uniform(seed);
        let mut order: Vec<(f32, u32)> = (0..N as u32).map(|i| (uniform(), i)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        order.into_iter().map(|(_, index)| Neuron { index, negated: uniform() < 0.0 }).collect()
    }

    fn output(expert: &GatedMlp<Vec<f32>>, x: &[f32]) -> Vec<f64> {
        let dot = |row: &[f32]| row.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>();
        let hidden: Vec<f64> = (0..N)
            .map(|i| {
                let gate = dot(&expert.gate[i * HIDDEN..][..HIDDEN]);
                gate / (1.0 + (-gate).exp()) * dot(&expert.up[i * HIDDEN..][..HIDDEN])
            })
            .collect();
        let row = |row: &[f32]| row.iter().zip(&hidden).map(|(&w, h)| f64::from(w) * h).sum();
        expert.down.chunks(N).map(row).collect()
    }

    #[test]
    fn an_expert_and_its_reordered_copy_give_the_expert_itself() {
        for seed in 0..20 {
            let expert = random(seed);
            let copy = reordered(&expert, &shuffle(seed + 100));
            let x: Vec<f32> = (0..HIDDEN)
                .map({
                    let mut u = uniform(seed + 7);
                    move |_| u()
                })
                .collect();
            for (got, want) in output(&copy, &x).iter().zip(output(&expert, &x)) {
                assert!((got - want).abs() < 1e-9, "the copy is the same function: {got} for {want}");
            }
            assert_ne!(copy, expert);
            assert_eq!(merge(&[(&expert, 0.6), (&copy, 0.3), (&expert, 0.1)], HIDDEN), expert);
            assert_eq!(merge(&[(&expert, 0.3), (&copy, 0.7)], HIDDEN), copy);
        }
    }

    #[test]
    fn alignment_undoes_a_reordering_under_noise() {
        let expert = random(1);
        let order = shuffle(2);
        let mut copy = reordered(&expert, &order);
        let mut uniform = uniform(3);
        for values in [&mut copy.gate, &mut copy.up, &mut copy.down] {
            values.iter_mut().for_each(|v| *v += 0.3 * uniform());
        }
        for (i, partner) in align(&expert, &copy, HIDDEN).iter().enumerate() {
            let back = order[partner.index as usize];
            assert_eq!((back.index, back.negated), (i as u32, partner.negated));
        }
    }

    #[test]
    fn weights_are_shares_and_the_average_is_of_aligned_neurons() {
        let (a, b) = (random(1), random(2));
        let partners = align(&a, &b, HIDDEN);
        let b_aligned = reordered(&b, &partners);
        let merged = merge(&[(&a, 6.0), (&b, 2.0)], HIDDEN);
        for ((got, a), b) in merged.each().into_iter().zip(a.each()).zip(b_aligned.each()) {
            for ((got, a), b) in got.iter().zip(a).zip(b) {
                assert!((got - (0.75 * a + 0.25 * b)).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn members_without_weight_change_nothing() {
        let (a, b) = (random(1), random(2));
        for none in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(merge(&[(&a, 1.0), (&b, none)], HIDDEN), a, "{none}");
            assert_eq!(merge(&[(&a, none), (&b, 0.5)], HIDDEN), b, "{none}");
        }
        assert_eq!(merge(&[(&a, 0.0), (&b, 0.0)], HIDDEN), a, "nobody has weight: the first");
    }

    #[test]
    fn swaps_mend_what_greed_spoils() {
        // Taking 0.9 first leaves 0.0: 0.9 in all where 1.6 was to be had.
        let likeness = [0.9, 0.8, 0.8, 0.0];
        let mut partners = greedy(&likeness, 2);
        assert_eq!(partners, [0, 1]);
        swap_while_better(&likeness, &mut partners);
        assert_eq!(partners, [1, 0]);
    }

    #[test]
    fn dead_neurons_are_matched_too() {
        let mut expert = random(1);
        for values in [&mut expert.gate, &mut expert.up] {
            values[..5 * HIDDEN].fill(0.0);
        }
        expert.down.chunks_mut(N).for_each(|row| row[..5].fill(0.0));
        let copy = reordered(&expert, &shuffle(9));
        let mut seen: Vec<u32> = align(&expert, &copy, HIDDEN).iter().map(|p| p.index).collect();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..N as u32));
        assert_eq!(merge(&[(&expert, 0.5), (&copy, 0.5)], HIDDEN), expert);
    }
}
