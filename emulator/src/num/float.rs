//! f32 and f64 arithmetic: the four roundings, `.ftz`, `.sat`, PTX's minima and maxima.
//!
//! The host only rounds to nearest here. For the other modes f32 operands are widened: f64 holds their products
//! exactly, and the error of an f64 sum is itself an f64 (Knuth's two-sum), so the result *rounded to odd* in f64 is
//! known; rounding that to f32 in any mode equals rounding the exact value, as 53 ≥ 24 + 2 bits (Boldo and
//! Melquiond, "Emulation of FMA and correctly rounded sums", 2008).

use super::convert::f64_to_f32;
use super::{NAN_F32, Rounding};

/// NaN results are canonical on NVIDIA hardware.
#[inline(always)]
pub fn canonical(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(NAN_F32) } else { x }
}

/// `.ftz`: subnormals become zeros of the same sign.
#[inline(always)]
pub fn flush(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits })
}

/// [`flush`] where the instruction has `.ftz`.
#[inline(always)]
pub fn flush_if(x: f32, ftz: bool) -> f32 {
    if ftz { flush(x) } else { x }
}

/// `.sat`: clamped to [0, 1]; NaN becomes +0.
#[inline(always)]
pub fn saturate(x: f32) -> f32 {
    let above = if x > 0.0 { x } else { 0.0 };
    if above > 1.0 { 1.0 } else { above }
}

/// `.sat` of f64.
#[inline(always)]
pub fn saturate64(x: f64) -> f64 {
    let above = if x > 0.0 { x } else { 0.0 };
    if above > 1.0 { 1.0 } else { above }
}

/// The neighbour of a non-exact f64 sum with an odd last bit; `error` is exact minus `sum`.
#[inline(always)]
pub(super) fn to_odd(sum: f64, error: f64) -> f64 {
    let bits = sum.to_bits();
    // The error pulls towards zero when its sign is not the sum's: the truncated value is the code below.
    let inwards = (error.to_bits() ^ bits) >> 63;
    let odd = bits.wrapping_sub(inwards & !bits & 1) | 1;
    let inexact = (error != 0.0) & sum.is_finite();
    f64::from_bits(if inexact { odd } else { bits })
}

/// `a + b` of values without f64 overflow, rounded to odd.
#[inline(always)]
pub(super) fn sum_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let virtual_b = sum - a;
    let error = (a - (sum - virtual_b)) + (b - virtual_b);
    to_odd(sum, error)
}

/// Rounds an exact or odd f64 sum, minding that exact zeros of unlike addends are −0 when rounding down.
#[inline(always)]
fn finish_sum(sum: f64, a_negative: bool, b_negative: bool, mode: Rounding) -> f32 {
    let r = f64_to_f32(sum, mode);
    let negative_zero = (mode == Rounding::Down) & (sum == 0.0) & (a_negative | b_negative);
    canonical(if negative_zero { -0.0 } else { r })
}

/// `add.<mode>.f32`.
#[inline(always)]
pub fn add(a: f32, b: f32, mode: Rounding) -> f32 {
    if mode == Rounding::Nearest {
        return canonical(a + b);
    }
    finish_sum(sum_to_odd(a.into(), b.into()), a.is_sign_negative(), b.is_sign_negative(), mode)
}

/// `sub.<mode>.f32`.
#[inline(always)]
pub fn sub(a: f32, b: f32, mode: Rounding) -> f32 {
    add(a, f32::from_bits(b.to_bits() ^ 0x8000_0000), mode)
}

/// `mul.<mode>.f32`.
#[inline(always)]
pub fn mul(a: f32, b: f32, mode: Rounding) -> f32 {
    if mode == Rounding::Nearest {
        return canonical(a * b);
    }
    canonical(f64_to_f32(f64::from(a) * f64::from(b), mode))
}

/// `fma.<mode>.f32`: rounded once.
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32, mode: Rounding) -> f32 {
    if mode == Rounding::Nearest {
        return canonical(a.mul_add(b, c));
    }
    let product = f64::from(a) * f64::from(b);
    finish_sum(sum_to_odd(product, c.into()), product.is_sign_negative(), c.is_sign_negative(), mode)
}

/// `div.<mode>.f32`: `.rn` is IEEE division; the others follow the sign of the exact remainder.
#[inline(always)]
pub fn div(a: f32, b: f32, mode: Rounding) -> f32 {
    if mode == Rounding::Nearest {
        return canonical(a / b);
    }
    // The f64 quotient's remainder is exact, so its sign says on which side the true quotient lies.
    let (wide_a, wide_b) = (f64::from(a), f64::from(b));
    let quotient = wide_a / wide_b;
    let rest = (-quotient).mul_add(wide_b, wide_a);
    let error = if b.is_sign_negative() { -rest } else { rest };
    canonical(f64_to_f32(to_odd(quotient, if error.is_nan() { 0.0 } else { error }), mode))
}

/// `rcp.<mode>.f32`.
#[inline(always)]
pub fn rcp(x: f32, mode: Rounding) -> f32 {
    div(1.0, x, mode)
}

/// `sqrt.<mode>.f32`.
#[inline(always)]
pub fn sqrt(x: f32, mode: Rounding) -> f32 {
    if mode == Rounding::Nearest {
        return canonical(x.sqrt());
    }
    let wide = f64::from(x);
    let root = wide.sqrt();
    let error = (-root).mul_add(root, wide);
    canonical(f64_to_f32(to_odd(root, if error.is_nan() { 0.0 } else { error }), mode))
}

/// Orders f32 as integers, −0 below +0.
#[inline(always)]
fn order(x: f32) -> i32 {
    let bits = x.to_bits() as i32;
    bits ^ ((bits >> 31) & 0x7fff_ffff)
}

/// `min.f32`: NaN loses to a number, or wins with `propagate` (`.NaN`); −0 < +0.
#[inline(always)]
pub fn min(a: f32, b: f32, propagate: bool) -> f32 {
    pick(a, b, order(a) < order(b), propagate)
}

/// `max.f32`, with the same rules as [`min`].
#[inline(always)]
pub fn max(a: f32, b: f32, propagate: bool) -> f32 {
    pick(a, b, order(a) > order(b), propagate)
}

#[inline(always)]
fn pick(a: f32, b: f32, first: bool, propagate: bool) -> f32 {
    let number = if b.is_nan() | (first & !a.is_nan()) { a } else { b };
    let nan = if propagate { a.is_nan() | b.is_nan() } else { a.is_nan() & b.is_nan() };
    if nan { f32::from_bits(NAN_F32) } else { number }
}

/// `min.xorsign.abs.f32` and, with `largest`, `max.xorsign.abs.f32`: by magnitude, signed with both signs' xor.
#[inline(always)]
pub fn extreme_xorsign_abs(a: f32, b: f32, largest: bool, propagate: bool) -> f32 {
    let sign = (a.to_bits() ^ b.to_bits()) & 0x8000_0000;
    let r = if largest { max(a.abs(), b.abs(), propagate) } else { min(a.abs(), b.abs(), propagate) };
    if r.is_nan() { r } else { f32::from_bits(r.to_bits() | sign) }
}

/// `min.f64`.
#[inline(always)]
pub fn min64(a: f64, b: f64) -> f64 {
    extreme64(a, b, false)
}

/// `max.f64`.
#[inline(always)]
pub fn max64(a: f64, b: f64) -> f64 {
    extreme64(a, b, true)
}

#[inline(always)]
fn extreme64(a: f64, b: f64, largest: bool) -> f64 {
    let order = |x: f64| {
        let bits = x.to_bits() as i64;
        bits ^ ((bits >> 63) & i64::MAX)
    };
    let first = (order(a) > order(b)) == largest;
    if a.is_nan() | (!b.is_nan() & !first) { b } else { a }
}

/// `copysign.f32 d, a, b`: the magnitude of `b` with the sign of `a`.
#[inline(always)]
pub fn copysign(a: f32, b: f32) -> f32 {
    b.copysign(a)
}

/// `testp.subnormal.f32`.
#[inline(always)]
pub fn is_subnormal(x: f32) -> bool {
    let magnitude = x.to_bits() & 0x7fff_ffff;
    (magnitude != 0) & (magnitude < 0x0080_0000)
}
