//! One sigmoid for every device, specified to the bit.
//!
//! Invariant: experts are ranked by sigmoid + bias, and near-ties are common, so two devices whose sigmoids differ in the
//! last place choose different experts. This one is made of IEEE additions, multiplications and one division only, no
//! fused ones and no library's `exp`; `cuda/include/sigmoid.cuh` has the same operations in the same order.

/// 1.5 · 2²³: adding it rounds to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 = `LN2_HIGH` + `LN2_LOW`; the first has 9 significant bits, so that its product with an integer below 2¹⁵ is exact.
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = -0.000_212_194_44;
/// (eʳ − 1 − r) / r² for |r| ≤ ln 2 / 2, highest power first: S. L. Moshier, Cephes 2.2, `single/expf.c`.
const TAIL: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5];
/// Below it eˣ rounds to 0 in f32.
const LOWEST: f32 = -104.0;

/// 1 / (1 + e^−x), within 2 units in the last place for every x, subnormal results included; NaN stays NaN.
pub(crate) fn sigmoid(x: f32) -> f32 {
    // e = e^−|x|, so that nothing overflows: x = −100 gives 3.8e-44, not 1/∞.
    let t = -x.abs();
    let t = if t < LOWEST { LOWEST } else { t };
    let shifted = t * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = t - n * LN2_HIGH - n * LN2_LOW;
    let [mut tail, rest @ ..] = TAIL;
    for c in rest {
        tail = tail * r + c;
    }
    let power = tail * (r * r) + r + 1.0;
    // Times 2ⁿ, −150 ≤ n ≤ 0, as 2ⁿ⁺⁶⁴ · 2⁻⁶⁴: the first factor is normal, the second product rounds once.
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127 + 64) << 23);
    let e = power * scale * f32::from_bits((127 - 64) << 23);

    // q = (1 or e) / d with d = 1 + e rounded; what the rounding lost is put back to first order: q − q · lost / d.
    let d = 1.0 + e;
    let lost = e - (d - 1.0);
    let q = if x < 0.0 { e } else { 1.0 } / d;
    let inverse = if x < 0.0 { 1.0 - q } else { q };
    q - q * lost * inverse
}

#[cfg(test)]
mod tests {
    use super::sigmoid;

    /// Distance from the f64 value in units of the last place of an f32 there.
    fn error(x: f32) -> f64 {
        let exact = 1.0 / (1.0 + (-f64::from(x)).exp());
        let exponent = exact.max(f64::from(f32::MIN_POSITIVE)).log2().floor() as i32;
        (f64::from(sigmoid(x)) - exact).abs() / 2f64.powi(exponent - 23)
    }

    #[test]
    fn two_units_in_the_last_place_everywhere() {
        // Both signs, every exponent up to 104 and past it, mantissas in coprime steps: 8 million values.
        let mut worst = (0.0, 0.0);
        for bits in (0..=110.0f32.to_bits()).step_by(269) {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                let e = error(x);
                if e > worst.0 {
                    worst = (e, x);
                }
            }
        }
        // Measured on every 61st value: 1.81.
        assert!(worst.0 < 2.0, "{worst:?}");
    }

    #[test]
    fn extremes() {
        assert_eq!(sigmoid(0.0), 0.5);
        assert_eq!(sigmoid(-0.0), 0.5);
        assert_eq!(sigmoid(f32::INFINITY), 1.0);
        assert_eq!(sigmoid(f32::MAX), 1.0);
        assert_eq!(sigmoid(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(sigmoid(f32::MIN).to_bits(), 0);
        assert_eq!(sigmoid(-103.9), f32::from_bits(1));
        assert!(sigmoid(f32::NAN).is_nan());
        assert!(sigmoid(-f32::NAN).is_nan());
    }
}
