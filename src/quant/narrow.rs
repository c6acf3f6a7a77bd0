//! Rounding f32 to a narrower binary float: no branches, and the same bits in every instruction set.

/// A float of 16 or 8 bits with subnormals. What its bits are here is without the sign.
pub(super) trait Narrow {
    /// Stored bits of fraction.
    const FRACTION: u32;
    /// What exponents are biased by.
    const BIAS: u32;
    /// The largest finite value's bits.
    const LARGEST: u32;

    /// The bits of the nearest value to |value|, ties to even. Above `LARGEST` they stand for more than the format
    /// holds; for a `value` that is not finite they mean nothing.
    #[inline(always)]
    fn unbounded(value: f32) -> u32 {
        let shift = 23 - Self::FRACTION;
        let magnitude = value.to_bits() & 0x7fff_ffff;
        // Half of what the last kept bit is worth, less one where that bit is zero: a tie goes to the even neighbour.
        // A carry out of the fraction is the next exponent, as it should be.
        let half = (1 << (shift - 1)) - 1 + (magnitude >> shift & 1);
        let normal = ((magnitude + half) >> shift).wrapping_sub((127 - Self::BIAS) << Self::FRACTION);
        // Below the normal range the last bit is worth the same everywhere. That is also the worth of f32's last bit
        // at `magic`, so the addition rounds, and what it adds to the bits is the result.
        let magic = f32::from_bits((127 + 24 - Self::FRACTION - Self::BIAS) << 23);
        let subnormal = (f32::from_bits(magnitude) + magic).to_bits().wrapping_sub(magic.to_bits());
        let least_normal = (128 - Self::BIAS) << 23;
        if magnitude < least_normal { subnormal } else { normal }
    }

    /// The nearest value, ties to even; more than the format holds stays more.
    #[inline(always)]
    fn rounded(value: f32) -> f32 {
        // The fields land in f32's with a smaller bias, which the multiplication mends exactly.
        let magnitude = f32::from_bits(Self::unbounded(value) << (23 - Self::FRACTION));
        (magnitude * f32::from_bits((254 - Self::BIAS) << 23)).copysign(value)
    }
}

/// IEEE half precision: the largest value is 65,504.
pub(super) struct F16;

impl Narrow for F16 {
    const FRACTION: u32 = 10;
    const BIAS: u32 = 15;
    const LARGEST: u32 = 0x7bff;
}

/// bfloat16: the upper half of an f32.
pub(super) struct Bf16;

impl Narrow for Bf16 {
    const FRACTION: u32 = 7;
    const BIAS: u32 = 127;
    const LARGEST: u32 = 0x7f7f;
}

/// OCP e4m3 without infinities: the largest value is 448.
pub(super) struct E4m3;

impl Narrow for E4m3 {
    const FRACTION: u32 = 3;
    const BIAS: u32 = 7;
    const LARGEST: u32 = 0x7e;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every value of 16 bits with nothing below, next to nothing, either side of a tie, a tie, and all below.
    fn probes() -> impl Iterator<Item = f32> {
        let low = [0u32, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff];
        (0..=u32::from(u16::MAX)).flat_map(move |high| low.map(|low| f32::from_bits(high << 16 | low)))
    }

    #[test]
    fn halves_against_the_half_crate() {
        for value in probes().filter(|v| v.is_finite()) {
            let f16 = u32::from(half::f16::from_f32(value).to_bits() & 0x7fff);
            // What is too large is infinity there and any larger number here.
            assert_eq!(F16::unbounded(value).min(0x7c00), f16, "{value:e}");
            let bf16 = half::bf16::from_f32(value);
            assert_eq!(Bf16::unbounded(value), u32::from(bf16.to_bits() & 0x7fff), "{value:e}");
            assert_eq!(Bf16::rounded(value).to_bits(), bf16.to_f32().to_bits(), "{value:e}");
            if f16 < 0x7c00 {
                let want = half::f16::from_f32(value).to_f32();
                assert_eq!(F16::rounded(value).to_bits(), want.to_bits(), "{value:e}");
            }
        }
    }
}
