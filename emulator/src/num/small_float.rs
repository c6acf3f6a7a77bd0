//! f16, bf16, tf32, e4m3 and e5m2: decoding to f32 and rounding from it.
//!
//! One routine rounds to all of them: a format is its exponent width, mantissa width and largest finite code
//! (`Format`). Sources: IEEE 754 (f16), PTX ISA "Alternate Floating-Point Data Formats" (bf16, tf32), OCP 8-bit
//! Floating Point Specification 1.0 (e4m3: no infinities, one NaN magnitude; e5m2: a shortened f16), and the PTX `cvt`
//! page for NaN codes and `.satfinite`.

use super::{NAN_F32, NAN_FP8, NAN_HALF, Rounding};

/// A float format no wider than f32.
#[derive(Clone, Copy)]
struct Format {
    /// Exponent bias.
    bias: u32,
    /// Stored mantissa bits.
    mantissa: u32,
    /// Code of the largest finite value.
    max: u32,
    /// Code of what lies beyond: infinity, or NaN where there is none.
    beyond: u32,
    /// Code of NaN.
    nan: u32,
}

const F16: Format = Format { bias: 15, mantissa: 10, max: 0x7bff, beyond: 0x7c00, nan: NAN_HALF as u32 };
const BF16: Format = Format { bias: 127, mantissa: 7, max: 0x7f7f, beyond: 0x7f80, nan: NAN_HALF as u32 };
const TF32: Format = Format { bias: 127, mantissa: 10, max: 0x3fbff, beyond: 0x3fc00, nan: 0x3ffff };
const E4M3: Format = Format { bias: 7, mantissa: 3, max: 0x7e, beyond: 0x7f, nan: NAN_FP8 as u32 };
const E5M2: Format = Format { bias: 15, mantissa: 2, max: 0x7b, beyond: 0x7c, nan: NAN_FP8 as u32 };

/// Rounds to a format; the sign is left at f32's bit 31 and the code at the bottom.
#[inline(always)]
fn round(x: f32, format: Format, mode: Rounding, saturate: bool) -> (u32, u32) {
    let bits = x.to_bits();
    let sign = bits >> 31;
    let magnitude = bits & 0x7fff_ffff;
    let drop = 23 - format.mantissa;
    // The least f32 exponent field that is a normal number of the format.
    let least = 128 - format.bias;
    let exponent = (magnitude >> 23).max(1);
    let below = least.saturating_sub(exponent);
    // Normal: exponent and mantissa together, so that a carry out of the mantissa is right of itself.
    // Subnormal: the significand alone, shifted further by what the exponent lacks.
    let hidden = u32::from(magnitude >= 0x0080_0000) << 23;
    let significand = (magnitude & 0x007f_ffff) | hidden;
    let normal = magnitude.wrapping_sub((127 - format.bias) << 23);
    let value = if below == 0 { normal } else { significand };
    let shift = (drop + below).min(31);
    let quotient = value >> shift;
    let rest = value & ((1u32 << shift) - 1);
    let half = (1u32 << shift) >> 1;
    let up = match mode {
        Rounding::Nearest => (rest > half) | ((rest == half) & (half != 0) & (quotient & 1 == 1)),
        Rounding::Zero => false,
        Rounding::Down => (sign == 1) & (rest != 0),
        Rounding::Up => (sign == 0) & (rest != 0),
    };
    let rounded = quotient.wrapping_add(u32::from(up));
    let away = match mode {
        Rounding::Nearest => true,
        Rounding::Zero => false,
        Rounding::Down => sign == 1,
        Rounding::Up => sign == 0,
    };
    let overflow = if !saturate & (away | (magnitude == 0x7f80_0000)) { format.beyond } else { format.max };
    let code = if rounded > format.max { overflow } else { rounded };
    if magnitude > 0x7f80_0000 { (0, format.nan) } else { (sign, code) }
}

/// `round` to f16, nearest, in fewer steps: the commonest conversion of all.
#[inline(always)]
fn f16_nearest(x: f32) -> u16 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let odd = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_sub((127 - 15) << 23).wrapping_add(0xfff + odd) >> 13;
    // The last bit of a number from 0.5 on is worth 2^-24, as the subnormals' is, so that the sum is rounded to it.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let finite = if magnitude < (127 - 14) << 23 { subnormal } else { normal };
    let code = if magnitude >= (127 + 16) << 23 { 0x7c00 } else { finite };
    let nan = magnitude > 0x7f80_0000;
    (if nan { u32::from(NAN_HALF) } else { bits >> 16 & 0x8000 | code }) as u16
}

/// `round` to bf16, nearest, in fewer steps: f32 cut short.
#[inline(always)]
fn bf16_nearest(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let nan = bits & 0x7fff_ffff > 0x7f80_0000;
    (if nan { u32::from(NAN_HALF) } else { rounded }) as u16
}

/// `cvt.<mode>{.satfinite}.f16.f32`.
#[inline(always)]
pub fn f32_to_f16(x: f32, mode: Rounding, saturate: bool) -> u16 {
    if mode == Rounding::Nearest && !saturate {
        return f16_nearest(x);
    }
    let (sign, code) = round(x, F16, mode, saturate);
    (sign << 15 | code) as u16
}

/// `cvt.<mode>{.satfinite}.bf16.f32`.
#[inline(always)]
pub fn f32_to_bf16(x: f32, mode: Rounding, saturate: bool) -> u16 {
    if mode == Rounding::Nearest && !saturate {
        return bf16_nearest(x);
    }
    let (sign, code) = round(x, BF16, mode, saturate);
    (sign << 15 | code) as u16
}

/// `cvt.rn.satfinite.e4m3x2.f32` of one element. Without saturation what overflows becomes NaN.
#[inline(always)]
pub fn f32_to_e4m3(x: f32, saturate: bool) -> u8 {
    let (sign, code) = round(x, E4M3, Rounding::Nearest, saturate);
    (sign << 7 | code) as u8
}

/// `cvt.rn.satfinite.e5m2x2.f32` of one element. Without saturation what overflows becomes infinite.
#[inline(always)]
pub fn f32_to_e5m2(x: f32, saturate: bool) -> u8 {
    let (sign, code) = round(x, E5M2, Rounding::Nearest, saturate);
    (sign << 7 | code) as u8
}

/// `cvt.<mode>{.satfinite}.tf32.f32` for rn and rz; the 13 low bits of the result are zero (NaN excepted).
#[inline(always)]
pub fn f32_to_tf32(x: f32, mode: Rounding, saturate: bool) -> u32 {
    let (sign, code) = round(x, TF32, mode, saturate);
    if x.is_nan() { NAN_F32 } else { sign << 31 | code << 13 }
}

/// `cvt.rna{.satfinite}.tf32.f32`: ties away from zero.
#[inline(always)]
pub fn f32_to_tf32_away(x: f32, saturate: bool) -> u32 {
    let bits = x.to_bits();
    let sign = bits & 0x8000_0000;
    let magnitude = bits & 0x7fff_ffff;
    let rounded = if magnitude >= 0x7f80_0000 { magnitude } else { magnitude.wrapping_add(0x1000) & !0x1fff };
    let rounded = if saturate & (rounded >= 0x7f80_0000) { TF32.max << 13 } else { rounded };
    if magnitude > 0x7f80_0000 { NAN_F32 } else { sign | rounded }
}

/// What a tf32 tensor core reads of a register: the 13 low bits are ignored.
#[inline(always)]
pub fn tf32_to_f32(bits: u32) -> f32 {
    f32::from_bits(bits & !0x1fff)
}

/// `cvt.f32.f16`; NaN becomes canonical.
#[inline(always)]
pub fn f16_to_f32(h: u16) -> f32 {
    let h = u32::from(h);
    let sign = (h & 0x8000) << 16;
    let magnitude = h & 0x7fff;
    let normal = (magnitude << 13) + ((127 - 15) << 23);
    // A subnormal is its code × 2^-24, which the integer-to-float conversion normalises.
    let subnormal = (magnitude as i32 as f32 * f32::from_bits((127 - 24) << 23)).to_bits();
    let special = if magnitude == 0x7c00 { 0x7f80_0000 } else { NAN_F32 };
    let finite = if magnitude < 0x0400 { subnormal } else { normal };
    let bits = if magnitude >= 0x7c00 { special } else { finite };
    f32::from_bits(if magnitude > 0x7c00 { NAN_F32 } else { sign | bits })
}

/// `cvt.f32.bf16`: a shift, NaN payloads included.
#[inline(always)]
pub fn bf16_to_f32(h: u16) -> f32 {
    f32::from_bits(u32::from(h) << 16)
}

/// One element of `cvt.rn.f16x2.e4m3x2`: exact, as f16 holds every e4m3 value.
#[inline(always)]
pub fn e4m3_to_f16(code: u8) -> u16 {
    let code = u32::from(code);
    let sign = (code & 0x80) << 8;
    let magnitude = code & 0x7f;
    let normal = (magnitude << 7) + ((15 - 7) << 10);
    // Subnormals are code × 2^-9: 1 → 2^-9, 2 and 3 → 2^-8 …, 4 to 7 → 2^-7 ….
    let wide = (magnitude as i32 as f32 * f32::from_bits((127 - 9) << 23)).to_bits();
    let subnormal = if magnitude == 0 { 0 } else { wide.wrapping_sub((127 - 15) << 23) >> 13 };
    let bits = if magnitude < 8 { subnormal } else { normal };
    if magnitude == 0x7f { NAN_HALF } else { (sign | bits) as u16 }
}

/// One element of `cvt.rn.f16x2.e5m2x2`.
#[inline(always)]
pub fn e5m2_to_f16(code: u8) -> u16 {
    let bits = u16::from(code) << 8;
    if bits & 0x7fff > 0x7c00 { NAN_HALF } else { bits }
}

/// An e4m3 code as f32.
#[inline(always)]
pub fn e4m3_to_f32(code: u8) -> f32 {
    let code = u32::from(code);
    let sign = (code & 0x80) << 24;
    let magnitude = code & 0x7f;
    let normal = (magnitude << 20) + ((127 - 7) << 23);
    let subnormal = (magnitude as i32 as f32 * f32::from_bits((127 - 9) << 23)).to_bits();
    let bits = if magnitude < 8 { subnormal } else { normal };
    f32::from_bits(if magnitude == 0x7f { NAN_F32 } else { sign | bits })
}

/// An e5m2 code as f32.
#[inline(always)]
pub fn e5m2_to_f32(code: u8) -> f32 {
    f16_to_f32(u16::from(code) << 8)
}

/// `.relu`: negative values and −0 become +0, NaN becomes canonical.
#[inline(always)]
pub fn relu_half(h: u16, infinity: u16) -> u16 {
    let nan = h & 0x7fff > infinity;
    let kept = if h & 0x8000 != 0 { 0 } else { h };
    if nan { NAN_HALF } else { kept }
}

/// `.relu` before rounding to FP8.
#[inline(always)]
fn relu(x: f32, on: bool) -> f32 {
    if on & (x.to_bits() >> 31 == 1) & !x.is_nan() { 0.0 } else { x }
}

/// `cvt.<mode>{.relu}{.satfinite}.f16x2.f32 d, a, b`: `a` becomes the upper half.
#[inline(always)]
pub fn f32x2_to_f16x2(a: f32, b: f32, mode: Rounding, with_relu: bool, saturate: bool) -> u32 {
    let (a, b) = (relu(a, with_relu), relu(b, with_relu));
    u32::from(f32_to_f16(a, mode, saturate)) << 16 | u32::from(f32_to_f16(b, mode, saturate))
}

/// `cvt.<mode>{.relu}{.satfinite}.bf16x2.f32 d, a, b`: `a` becomes the upper half.
#[inline(always)]
pub fn f32x2_to_bf16x2(a: f32, b: f32, mode: Rounding, with_relu: bool, saturate: bool) -> u32 {
    let (a, b) = (relu(a, with_relu), relu(b, with_relu));
    u32::from(f32_to_bf16(a, mode, saturate)) << 16 | u32::from(f32_to_bf16(b, mode, saturate))
}

/// `cvt.rn.satfinite{.relu}.e4m3x2.f32 d, a, b`: `a` becomes the upper byte.
#[inline(always)]
pub fn f32x2_to_e4m3x2(a: f32, b: f32, with_relu: bool) -> u16 {
    let (a, b) = (relu(a, with_relu), relu(b, with_relu));
    u16::from(f32_to_e4m3(a, true)) << 8 | u16::from(f32_to_e4m3(b, true))
}

/// `cvt.rn.satfinite{.relu}.e5m2x2.f32 d, a, b`: `a` becomes the upper byte.
#[inline(always)]
pub fn f32x2_to_e5m2x2(a: f32, b: f32, with_relu: bool) -> u16 {
    let (a, b) = (relu(a, with_relu), relu(b, with_relu));
    u16::from(f32_to_e5m2(a, true)) << 8 | u16::from(f32_to_e5m2(b, true))
}

/// `cvt.rn.satfinite{.relu}.e4m3x2.f16x2`.
#[inline(always)]
pub fn f16x2_to_e4m3x2(pair: u32, with_relu: bool) -> u16 {
    f32x2_to_e4m3x2(f16_to_f32((pair >> 16) as u16), f16_to_f32(pair as u16), with_relu)
}

/// `cvt.rn.satfinite{.relu}.e5m2x2.f16x2`.
#[inline(always)]
pub fn f16x2_to_e5m2x2(pair: u32, with_relu: bool) -> u16 {
    f32x2_to_e5m2x2(f16_to_f32((pair >> 16) as u16), f16_to_f32(pair as u16), with_relu)
}

/// `cvt.rn{.relu}.f16x2.e4m3x2`.
#[inline(always)]
pub fn e4m3x2_to_f16x2(pair: u16, with_relu: bool) -> u32 {
    let (high, low) = (e4m3_to_f16((pair >> 8) as u8), e4m3_to_f16(pair as u8));
    join_relu(high, low, with_relu)
}

/// `cvt.rn{.relu}.f16x2.e5m2x2`.
#[inline(always)]
pub fn e5m2x2_to_f16x2(pair: u16, with_relu: bool) -> u32 {
    let (high, low) = (e5m2_to_f16((pair >> 8) as u8), e5m2_to_f16(pair as u8));
    join_relu(high, low, with_relu)
}

#[inline(always)]
fn join_relu(high: u16, low: u16, with_relu: bool) -> u32 {
    let (high, low) = if with_relu { (relu_half(high, 0x7c00), relu_half(low, 0x7c00)) } else { (high, low) };
    u32::from(high) << 16 | u32::from(low)
}
