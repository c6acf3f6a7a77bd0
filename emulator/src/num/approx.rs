//! The approximate instructions (`ex2.approx`, `lg2.approx`, `rcp.approx` …), within the errors the PTX ISA documents.
//!
//! Hardware's tables are not public, so bits cannot match; what a kernel may rely on is the documented bound and the
//! special values, and those hold here. Internals are f64 polynomials without fma, whose results round to f32 almost
//! always correctly: the same on every machine, and a kernel tuned to one card's errors gains nothing.

use super::float::{canonical, flush_if};

/// 1.5 × 2^52: adding and subtracting it rounds to the nearest integer, left in the sum's low mantissa bits.
const SHIFTER: f64 = 6_755_399_441_055_744.0;

/// 2^x for |x| ≤ 1000, to about 2^-45.
#[inline(always)]
fn exp2(x: f64) -> f64 {
    let shifted = x + SHIFTER;
    let whole = shifted - SHIFTER;
    let f = (x - whole) * std::f64::consts::LN_2;
    // Taylor's series of e^f, |f| ≤ ln 2 / 2: the first term left out is 0.35^11 / 11! ≈ 2^-42.
    let mut p = 1.0 / 3_628_800.0;
    p = p * f + 1.0 / 362_880.0;
    p = p * f + 1.0 / 40_320.0;
    p = p * f + 1.0 / 5_040.0;
    p = p * f + 1.0 / 720.0;
    p = p * f + 1.0 / 120.0;
    p = p * f + 1.0 / 24.0;
    p = p * f + 1.0 / 6.0;
    p = p * f + 0.5;
    p = p * f + 1.0;
    p = p * f + 1.0;
    let scale = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    p * scale
}

/// A value brought into ±limit; NaN becomes −limit.
#[inline(always)]
fn within(x: f64, limit: f64) -> f64 {
    let x = if x > -limit { x } else { -limit };
    if x < limit { x } else { limit }
}

/// `ex2.approx{.ftz}.f32`: maximal relative error 2^-22; −∞ → +0, ±0 → 1, +∞ → +∞.
#[inline(always)]
pub fn ex2(x: f32, ftz: bool) -> f32 {
    let r = exp2(within(f64::from(flush_if(x, ftz)), 300.0)) as f32;
    canonical(if x.is_nan() { x } else { flush_if(r, ftz) })
}

/// `lg2.approx{.ftz}.f32`: maximal absolute error 2^-22 within (0.5, 2), relative 2^-22 elsewhere; ±0 → −∞,
/// negative → NaN.
#[inline(always)]
pub fn lg2(x: f32, ftz: bool) -> f32 {
    let x = flush_if(x, ftz);
    let bits = f64::from(x).to_bits();
    // The exponent that leaves a mantissa in [√½, √2).
    let shifted = bits.wrapping_sub(0x3fe6_a09e_667f_3bcd);
    let exponent = (shifted as i64) >> 52;
    let mantissa = f64::from_bits(bits.wrapping_sub((exponent as u64) << 52));
    // log m = 2 artanh((m − 1)/(m + 1)), |s| ≤ 0.172.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let t = s * s;
    let mut p = 1.0 / 15.0;
    p = p * t + 1.0 / 13.0;
    p = p * t + 1.0 / 11.0;
    p = p * t + 1.0 / 9.0;
    p = p * t + 1.0 / 7.0;
    p = p * t + 1.0 / 5.0;
    p = p * t + 1.0 / 3.0;
    p = p * t + 1.0;
    let r = f64::from(exponent as i32) + p * s * (2.0 * std::f64::consts::LOG2_E);
    let finite = r as f32;
    let special = if x == 0.0 { f32::NEG_INFINITY } else { f32::NAN };
    let positive = if x == f32::INFINITY { x } else { finite };
    canonical(if x > 0.0 { positive } else { special })
}

/// `rcp.approx{.ftz}.f32`: 1 ulp; ±0 → ±∞, ±∞ → ±0.
#[inline(always)]
pub fn rcp(x: f32, ftz: bool) -> f32 {
    canonical(flush_if(1.0 / flush_if(x, ftz), ftz))
}

/// `rcp.approx.ftz.f64`: the upper 32 bits of the operand give the upper 32 of the result; the lower are zero.
#[inline(always)]
pub fn rcp64(x: f64) -> f64 {
    high_word(1.0 / flush64(high_word(x)))
}

/// `rsqrt.approx.ftz.f64`, with [`rcp64`]'s precision.
#[inline(always)]
pub fn rsqrt64(x: f64) -> f64 {
    high_word(1.0 / flush64(high_word(x)).sqrt())
}

/// Cut to 20 mantissa bits and flushed, NaN canonical.
#[inline(always)]
fn high_word(x: f64) -> f64 {
    let bits = x.to_bits() & 0xffff_ffff_0000_0000;
    let cut = flush64(f64::from_bits(bits));
    if x.is_nan() { f64::from_bits(0x7fff_ffff_0000_0000) } else { cut }
}

#[inline(always)]
fn flush64(x: f64) -> f64 {
    let bits = x.to_bits();
    f64::from_bits(if bits & 0x7ff0_0000_0000_0000 == 0 { bits & (1 << 63) } else { bits })
}

/// `sqrt.approx{.ftz}.f32`; −0 → −0, negative → NaN.
#[inline(always)]
pub fn sqrt(x: f32, ftz: bool) -> f32 {
    canonical(flush_if(x, ftz).sqrt())
}

/// `rsqrt.approx{.ftz}.f32`: maximal relative error 2^-22.9; ±0 → ±∞, +∞ → +0, negative → NaN.
#[inline(always)]
pub fn rsqrt(x: f32, ftz: bool) -> f32 {
    let x = flush_if(x, ftz);
    canonical((1.0 / f64::from(x).sqrt()) as f32)
}

/// `div.approx{.ftz}.f32`: 2 ulp where 2^-126 ≤ |b| ≤ 2^126; for larger finite `b` hardware's reciprocal has been
/// flushed, so the quotient is 0, or NaN if `a` is infinite.
#[inline(always)]
pub fn div(a: f32, b: f32, ftz: bool) -> f32 {
    let (a, b) = (flush_if(a, ftz), flush_if(b, ftz));
    let huge = (b.abs() > f32::from_bits(253 << 23)) & b.is_finite();
    let divided = a / b;
    let zero = f32::from_bits((a.to_bits() ^ b.to_bits()) & 0x8000_0000);
    let flushed = if a.is_finite() { zero } else { f32::NAN };
    canonical(flush_if(if huge { flushed } else { divided }, ftz))
}

/// `div.full{.ftz}.f32`: 2 ulp over the whole range.
#[inline(always)]
pub fn div_full(a: f32, b: f32, ftz: bool) -> f32 {
    canonical(flush_if(flush_if(a, ftz) / flush_if(b, ftz), ftz))
}

/// Sine of x + quarter · π/2. The reduction is exact enough up to |x| ≈ 2^25; beyond, hardware promises nothing.
#[inline(always)]
fn sine(x: f64, quarter: u64) -> f64 {
    let shifted = x * std::f64::consts::FRAC_2_PI + SHIFTER;
    let turns = shifted - SHIFTER;
    // π/2 in two parts, the first with 33 bits so that its multiples are exact.
    let r = (x - turns * 1.570_796_326_734_125_6) - turns * 6.077_100_506_506_192e-11;
    let r = within(r, 1.0);
    let quadrant = shifted.to_bits().wrapping_add(quarter);
    let t = r * r;
    let mut s = 1.0 / 362_880.0 - t / 39_916_800.0;
    s = s * t - 1.0 / 5_040.0;
    s = s * t + 1.0 / 120.0;
    s = s * t - 1.0 / 6.0;
    s = r + r * t * s;
    let mut c = 1.0 / 40_320.0 - t / 3_628_800.0;
    c = c * t - 1.0 / 720.0;
    c = c * t + 1.0 / 24.0;
    c = c * t - 0.5;
    c = c * t + 1.0;
    let r = if quadrant & 1 == 0 { s } else { c };
    f64::from_bits(r.to_bits() ^ ((quadrant & 2) << 62))
}

/// `sin.approx{.ftz}.f32`: maximal absolute error 2^-20.9 in [−2π, 2π]; ±∞ → NaN, −0 → −0.
#[inline(always)]
pub fn sin(x: f32, ftz: bool) -> f32 {
    let x = flush_if(x, ftz);
    let r = if x == 0.0 { x } else { sine(x.into(), 0) as f32 };
    canonical(if x.is_finite() { flush_if(r, ftz) } else { f32::NAN })
}

/// `cos.approx{.ftz}.f32`: maximal absolute error 2^-20.9 in [−2π, 2π]; ±∞ → NaN.
#[inline(always)]
pub fn cos(x: f32, ftz: bool) -> f32 {
    let x = flush_if(x, ftz);
    canonical(if x.is_finite() { sine(x.into(), 1) as f32 } else { f32::NAN })
}

/// `tanh.approx.f32`: maximal relative error 2^-11; subnormals are kept.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let wide = f64::from(x);
    let e = exp2(within(wide.abs(), 32.0) * (-2.0 * std::f64::consts::LOG2_E));
    let large = ((1.0 - e) / (1.0 + e)).copysign(wide);
    // Near zero 1 − e cancels: the series instead.
    let t = wide * wide;
    let small = wide * (1.0 - t * (1.0 / 3.0 - t * (2.0 / 15.0)));
    let r = if t < 1.0 / 1024.0 { small } else { large };
    canonical(if x.is_nan() { x } else { r as f32 })
}
