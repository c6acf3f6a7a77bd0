//! The scale of least squared error for a group of INT4 values.
//!
//! The error as a function of the scale has many small valleys, one for every way the values round. A fixed set of
//! scales is tried, each improved to the best scale for the integers it gives (least squares: Σxq / Σq²), and the best
//! is improved once more. On random groups of several kinds the squared error is within 0.1 % of what the best of all
//! BF16 scales leaves, which the tests find by trying each; largest / 7 leaves 15 to 75 % more.

use super::int4::GROUP;
use super::narrow::{Bf16, Narrow};
use crate::simd::sum_lanes;

/// Scales tried at once, one a lane of a vector.
const TRIED: usize = 32;

/// The scales tried, as what the largest magnitude is divided by: the whole numbers, under which a group that was INT4
/// before has no error, and steps around 7 to 8, where the range of codes is used but for a little that is clipped.
const DIVISORS: [f32; TRIED] = [
    1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.25, 6.5, 6.75, 7.0, 7.2, 7.4, 7.6, 7.8, 8.0, 8.2, 8.4, 8.6, 8.8, 9.0,
    9.25, 9.5, 9.75, 10.0, 10.25, 10.5, 10.75, 11.0, 11.5, 12.0, 13.0, 14.0,
];

/// Of a group that is scaled so that its largest magnitude is 1 to 2: the least scale there is. It is far below what any
/// such group wants; of groups so small that they cannot be scaled up it keeps the true scale a normal number.
const LEAST: f32 = 0.03125;

/// Rounds |t| < 2^22 to an integer, ties to even: at 1.5 · 2^23 the last bit of an f32 is worth 1.
#[inline(always)]
fn round(t: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (t + MAGIC) - MAGIC
}

/// The integer nearest to t among −8 … 7.
#[inline(always)]
pub(super) fn code(t: f32) -> f32 {
    round(t.clamp(-8.0, 7.0))
}

/// The nearest BF16 scale that may be used.
#[inline(always)]
fn allowed(scale: f32) -> f32 {
    Bf16::rounded(scale).max(LEAST)
}

/// What a scale makes of a group.
struct Fit {
    scale: f32,
    /// Σ (x − q·scale)²
    error: f32,
    /// The scale of least error for the same integers.
    refined: f32,
}

#[inline(always)]
fn fit(x: &[f32; GROUP], scale: f32) -> Fit {
    let per_step = 1.0 / scale;
    let (mut error, mut xq, mut qq) = ([0.0f32; GROUP], [0.0f32; GROUP], [0.0f32; GROUP]);
    for i in 0..GROUP {
        let q = code(x[i] * per_step);
        let off = x[i] - q * scale;
        (error[i], xq[i], qq[i]) = (off * off, x[i] * q, q * q);
    }
    Fit { scale, error: sum_lanes(error), refined: least_squares(sum_lanes(xq), sum_lanes(qq), scale) }
}

/// Σxq / Σq² as a scale; `otherwise` where all integers are zero and any scale is as good.
#[inline(always)]
fn least_squares(xq: f32, qq: f32, otherwise: f32) -> f32 {
    if qq > 0.0 { allowed(xq / qq) } else { otherwise }
}

/// The best of all scales tried, refined.
#[inline(always)]
fn search(x: &[f32; GROUP], largest: f32) -> f32 {
    // Loops, here and below: `map` and `fold` can be functions of their own, without this one's vector instructions.
    let (mut scales, mut per_step) = ([0.0f32; TRIED], [0.0f32; TRIED]);
    for lane in 0..TRIED {
        scales[lane] = allowed(largest / DIVISORS[lane]);
        per_step[lane] = 1.0 / scales[lane];
    }
    let (mut xq, mut qq) = ([0.0f32; TRIED], [0.0f32; TRIED]);
    for &x in x {
        for lane in 0..TRIED {
            let q = code(x * per_step[lane]);
            xq[lane] += x * q;
            qq[lane] += q * q;
        }
    }
    // Σ (x − q·s)² = Σx² − s·(2·Σxq − s·Σq²): the more is taken off, the better.
    let mut taken_off = [0.0f32; TRIED];
    for lane in 0..TRIED {
        scales[lane] = least_squares(xq[lane], qq[lane], scales[lane]);
        taken_off[lane] = scales[lane] * (2.0 * xq[lane] - scales[lane] * qq[lane]);
    }
    let mut best = 0;
    for lane in 1..TRIED {
        if taken_off[lane] > taken_off[best] {
            best = lane;
        }
    }
    scales[best]
}

/// A positive, normal BF16 scale for a group, not worse than largest / 7. Values that are not there are zeros.
///
/// Values of 2^127 and more are the exception: they get the largest scale under which every code decodes to a finite
/// number, and what lies beyond 7.5 steps is clipped.
#[inline(always)]
pub(super) fn best_scale(x: &[f32; GROUP], largest: f32) -> f32 {
    if largest == 0.0 {
        return 1.0;
    }
    // Scaled by a power of two, which changes nothing about the group, so that no sum of squares leaves f32.
    let unit = f32::from_bits(largest.to_bits() & 0x7f80_0000).max(LEAST_UNIT);
    if unit == HUGE {
        return HUGEST_SCALE;
    }
    let mut x = *x;
    for x in &mut x {
        *x /= unit;
    }
    let largest = largest / unit;

    let mut best = fit(&x, allowed(largest / 7.0));
    let mut scale = search(&x, largest);
    for _ in 0..2 {
        let next = fit(&x, scale);
        scale = next.refined;
        if next.error < best.error {
            best = next;
        }
    }
    best.scale * unit
}

/// 2^-121: [`LEAST`] times this is the least normal number.
const LEAST_UNIT: f32 = f32::from_bits((127 - 121) << 23);

/// 2^127.
const HUGE: f32 = f32::from_bits(254 << 23);

/// The last BF16 number below 2^125: eight times it is finite.
pub(super) const HUGEST_SCALE: f32 = f32::from_bits((252 << 23) - (1 << 16));

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::Rng;

    /// Groups of several kinds: even, normal, with heavy tails, one-sided, mostly zeros.
    fn groups(count: usize) -> Vec<[f32; GROUP]> {
        let mut rng = rand_pcg::Pcg64Mcg::new(7);
        let mut uniform = move || (rng.next_u32() >> 8) as f32 / (1 << 24) as f32;
        (0..count)
            .map(|i| {
                let mut normal = || (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
                std::array::from_fn(|_| match i % 5 {
                    0 => normal().rem_euclid(1.0) - 0.5,
                    1 => normal(),
                    2 => normal() / (normal().abs() + 0.1),
                    3 => normal().abs(),
                    _ => (normal() - 1.5).max(0.0),
                })
            })
            .filter(|x| largest(x) > 0.0)
            .collect()
    }

    fn error(x: &[f32; GROUP], scale: f32) -> f64 {
        let off = |x: f32| f64::from(x) - f64::from((x / scale).round().clamp(-8.0, 7.0)) * f64::from(scale);
        x.iter().map(|&x| off(x).powi(2)).sum()
    }

    fn largest(x: &[f32; GROUP]) -> f32 {
        x.iter().fold(0.0, |m, x| m.max(x.abs()))
    }

    /// The least error of any positive BF16 scale: below largest / 24 two thirds of the largest value are lost.
    fn least_error(x: &[f32; GROUP]) -> f64 {
        let (from, to) = (largest(x) / 24.0, largest(x) * 1.1);
        let bits = (from.to_bits() >> 16)..=(to.to_bits() >> 16);
        bits.map(|bits| error(x, f32::from_bits(bits << 16))).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn never_worse_than_a_seventh_and_close_to_the_best_scale_there_is() {
        let (mut total, mut least_total) = (0.0, 0.0);
        for x in groups(2000) {
            let largest = largest(&x);
            let ours = best_scale(&x, largest);
            let plain = half::bf16::from_f32(largest / 7.0).to_f32();
            assert!(error(&x, ours) <= error(&x, plain) * (1.0 + 1e-5), "{x:?}: {ours} for {plain}");
            // Groups weigh the same whatever their size.
            let power = f64::from(largest).powi(2);
            total += error(&x, ours) / power;
            least_total += least_error(&x) / power;
        }
        assert!(total <= 1.001 * least_total, "{total} for {least_total}");
    }

    #[test]
    fn a_group_that_was_int4_has_no_error() {
        for largest_code in 1..=8 {
            for scale in [1.0, 0.00390625, 1.0078125, 1.9921875 * 2f32.powi(-20), 1.2578125 * 2f32.powi(60)] {
                let x: [f32; GROUP] = std::array::from_fn(|i| {
                    let q = (i * 7) as i32 % (2 * largest_code + 1) - largest_code;
                    if q == 8 { 7.0 * scale } else { q as f32 * scale }
                });
                assert_eq!(error(&x, best_scale(&x, largest(&x))), 0.0, "{largest_code} · {scale}");
            }
        }
    }

    #[test]
    fn a_power_of_two_changes_the_scale_by_that_and_nothing_else() {
        for x in groups(200) {
            let scale = best_scale(&x, largest(&x));
            for power in [2f32.powi(-110), 2f32.powi(-3), 2f32.powi(100)] {
                let scaled = x.map(|x| x * power);
                assert_eq!(best_scale(&scaled, largest(&scaled)), scale * power);
            }
        }
    }

    #[test]
    fn the_scale_is_a_normal_positive_bf16_and_every_code_finite_whatever_the_size() {
        for exponent in -149..=127 {
            for x in groups(10) {
                let to = 1.9 * 2f64.powi(exponent) / f64::from(largest(&x));
                let x = x.map(|x| (f64::from(x) * to) as f32);
                let scale = best_scale(&x, largest(&x));
                assert!(scale.is_normal() && scale > 0.0, "2^{exponent}: {scale:e}");
                assert_eq!(scale.to_bits() & 0xffff, 0, "2^{exponent}: {scale:e}");
                let decoded = x.map(|x| (x / scale).round().clamp(-8.0, 7.0) * scale);
                assert!(decoded.iter().all(|v| v.is_finite()), "2^{exponent}: {scale:e}");
                if exponent > -118 && exponent < 127 {
                    let plain = half::bf16::from_f32(largest(&x) / 7.0).to_f32();
                    assert!(error(&x, scale) <= error(&x, plain) * (1.0 + 1e-5), "2^{exponent}");
                }
            }
        }
        assert_eq!(best_scale(&[0.0; GROUP], 0.0), 1.0);
    }
}
