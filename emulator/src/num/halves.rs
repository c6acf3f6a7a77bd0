//! f16 and bf16 arithmetic, one element at a time, and the lifting to pairs.
//!
//! Sums, and products of f16, are computed in f32: it has at least 2 × 11 + 2 bits, so rounding twice is rounding once
//! (Figueroa, 1995). Products of bf16 (whose subnormals are f32's) and every fma are rounded to odd first, which keeps
//! the direction of what was cut; `super::float` has the source.

use super::float::sum_to_odd;
use super::small_float::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use super::{NAN_F32, NAN_HALF, Rounding, approx};

/// The two 16-bit formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// IEEE binary16.
    F16,
    /// The upper half of f32.
    Bf16,
}

impl Half {
    /// Code of +∞; larger magnitudes are NaN.
    #[inline(always)]
    pub fn infinity(self) -> u16 {
        match self {
            Half::F16 => 0x7c00,
            Half::Bf16 => 0x7f80,
        }
    }

    /// Code of 1.
    #[inline(always)]
    pub fn one(self) -> u16 {
        match self {
            Half::F16 => 0x3c00,
            Half::Bf16 => 0x3f80,
        }
    }

    /// Exact.
    #[inline(always)]
    pub fn to_f32(self, h: u16) -> f32 {
        match self {
            Half::F16 => f16_to_f32(h),
            Half::Bf16 => bf16_to_f32(h),
        }
    }

    /// Rounded.
    #[inline(always)]
    pub fn from_f32(self, x: f32, mode: Rounding) -> u16 {
        match self {
            Half::F16 => f32_to_f16(x, mode, false),
            Half::Bf16 => f32_to_bf16(x, mode, false),
        }
    }

    /// Whether a code is NaN.
    #[inline(always)]
    pub fn is_nan(self, h: u16) -> bool {
        h & 0x7fff > self.infinity()
    }
}

/// f64 to f32 rounded to odd: inexact results get an odd last bit, so that a further rounding sees what was lost.
#[inline(always)]
pub fn odd(x: f64) -> f32 {
    let nearest = x as f32;
    let back = f64::from(nearest);
    let bits = nearest.to_bits();
    let outwards = back.abs() > x.abs();
    let odd = bits.wrapping_sub(u32::from(outwards)) | 1;
    let inexact = (back != x) & !x.is_nan();
    f32::from_bits(if x.is_nan() {
        NAN_F32
    } else if inexact {
        odd
    } else {
        bits
    })
}

/// `add.rn`.
#[inline(always)]
pub fn add(kind: Half, a: u16, b: u16) -> u16 {
    kind.from_f32(kind.to_f32(a) + kind.to_f32(b), Rounding::Nearest)
}

/// `sub.rn`.
#[inline(always)]
pub fn sub(kind: Half, a: u16, b: u16) -> u16 {
    kind.from_f32(kind.to_f32(a) - kind.to_f32(b), Rounding::Nearest)
}

/// `mul.rn`.
#[inline(always)]
pub fn mul(kind: Half, a: u16, b: u16) -> u16 {
    let (a, b) = (kind.to_f32(a), kind.to_f32(b));
    match kind {
        Half::F16 => kind.from_f32(a * b, Rounding::Nearest),
        Half::Bf16 => kind.from_f32(odd(f64::from(a) * f64::from(b)), Rounding::Nearest),
    }
}

/// `fma.rn`: rounded once.
#[inline(always)]
pub fn fma(kind: Half, a: u16, b: u16, c: u16) -> u16 {
    let (a, b, c) = (kind.to_f32(a), kind.to_f32(b), kind.to_f32(c));
    let sum = match kind {
        // A product of f16 has 22 bits and is at least 2^-48: exact in f32, and so is the error of the sum.
        Half::F16 => sum_to_odd_f32(a * b, c),
        Half::Bf16 => odd(sum_to_odd(f64::from(a) * f64::from(b), f64::from(c))),
    };
    kind.from_f32(sum, Rounding::Nearest)
}

/// [`sum_to_odd`] in f32.
#[inline(always)]
fn sum_to_odd_f32(a: f32, b: f32) -> f32 {
    let sum = a + b;
    let virtual_b = sum - a;
    let error = (a - (sum - virtual_b)) + (b - virtual_b);
    let bits = sum.to_bits();
    let inwards = (error.to_bits() ^ bits) >> 31;
    let odd = bits.wrapping_sub(inwards & !bits & 1) | 1;
    f32::from_bits(if (error != 0.0) & sum.is_finite() { odd } else { bits })
}

/// `neg`.
#[inline(always)]
pub fn neg(a: u16) -> u16 {
    a ^ 0x8000
}

/// `abs`.
#[inline(always)]
pub fn abs(a: u16) -> u16 {
    a & 0x7fff
}

/// `.ftz` of f16 (or bf16): subnormals become zeros of the same sign.
#[inline(always)]
pub fn flush(kind: Half, a: u16) -> u16 {
    if a & kind.infinity() == 0 { a & 0x8000 } else { a }
}

/// `.sat`: clamped to [0, 1]; NaN becomes +0.
#[inline(always)]
pub fn saturate(kind: Half, a: u16) -> u16 {
    let kept = if a & 0x8000 != 0 { 0 } else { a.min(kind.one()) };
    if kind.is_nan(a) { 0 } else { kept }
}

/// `.relu`: negatives become +0, NaN canonical.
#[inline(always)]
pub fn relu(kind: Half, a: u16) -> u16 {
    super::small_float::relu_half(a, kind.infinity())
}

#[inline(always)]
fn order(a: u16) -> i16 {
    let bits = a as i16;
    bits ^ ((bits >> 15) & 0x7fff)
}

/// `min`: NaN loses to a number, or wins with `propagate` (`.NaN`); −0 < +0.
#[inline(always)]
pub fn min(kind: Half, a: u16, b: u16, propagate: bool) -> u16 {
    pick(kind, a, b, order(a) < order(b), propagate)
}

/// `max`, with the same rules as [`min`].
#[inline(always)]
pub fn max(kind: Half, a: u16, b: u16, propagate: bool) -> u16 {
    pick(kind, a, b, order(a) > order(b), propagate)
}

#[inline(always)]
fn pick(kind: Half, a: u16, b: u16, first: bool, propagate: bool) -> u16 {
    let (a_nan, b_nan) = (kind.is_nan(a), kind.is_nan(b));
    let number = if b_nan | (first & !a_nan) { a } else { b };
    let nan = if propagate { a_nan | b_nan } else { a_nan & b_nan };
    if nan { NAN_HALF } else { number }
}

/// `ex2.approx`.
#[inline(always)]
pub fn ex2(kind: Half, a: u16) -> u16 {
    kind.from_f32(approx::ex2(kind.to_f32(a), false), Rounding::Nearest)
}

/// `tanh.approx`.
#[inline(always)]
pub fn tanh(kind: Half, a: u16) -> u16 {
    kind.from_f32(approx::tanh(kind.to_f32(a)), Rounding::Nearest)
}

/// A one-operand function on both elements of a pair.
#[inline(always)]
pub fn pair1(a: u32, f: impl Fn(u16) -> u16) -> u32 {
    u32::from(f((a >> 16) as u16)) << 16 | u32::from(f(a as u16))
}

/// A two-operand function on both elements of pairs.
#[inline(always)]
pub fn pair2(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16 | u32::from(f(a as u16, b as u16))
}

/// A three-operand function on both elements of pairs.
#[inline(always)]
pub fn pair3(a: u32, b: u32, c: u32, f: impl Fn(u16, u16, u16) -> u16) -> u32 {
    let high = f((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16);
    u32::from(high) << 16 | u32::from(f(a as u16, b as u16, c as u16))
}
