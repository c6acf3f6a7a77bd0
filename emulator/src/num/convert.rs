//! Between f64, f32 and integers in the four roundings (PTX `cvt`).

use super::halves::odd;
use super::small_float::{f32_to_bf16, f32_to_f16};
use super::{NAN_F32, Rounding};

/// `cvt.<mode>.f32.f64`. NaN becomes canonical.
#[inline(always)]
pub fn f64_to_f32(x: f64, mode: Rounding) -> f32 {
    let nearest = x as f32;
    let back = f64::from(nearest);
    let bits = nearest.to_bits();
    let negative = bits >> 31 == 1;
    // Each correction is one code towards or away from zero; infinity minus one code is the largest finite number.
    let inwards = bits.wrapping_sub(1);
    let outwards = bits.wrapping_add(1);
    let moved = match mode {
        Rounding::Nearest => bits,
        Rounding::Zero => {
            if back.abs() > x.abs() {
                inwards
            } else {
                bits
            }
        }
        Rounding::Down => match (back > x, negative) {
            (true, true) => outwards,
            (true, false) => inwards,
            (false, _) => bits,
        },
        Rounding::Up => match (back < x, negative) {
            (true, true) => inwards,
            (true, false) => outwards,
            (false, _) => bits,
        },
    };
    f32::from_bits(if x.is_nan() { NAN_F32 } else { moved })
}

/// `cvt.<mode>.f16.f64`.
#[inline(always)]
pub fn f64_to_f16(x: f64, mode: Rounding) -> u16 {
    f32_to_f16(odd(x), mode, false)
}

/// `cvt.<mode>.bf16.f64`.
#[inline(always)]
pub fn f64_to_bf16(x: f64, mode: Rounding) -> u16 {
    f32_to_bf16(odd(x), mode, false)
}

/// `cvt.rni/.rzi/.rmi/.rpi.f32.f32`: to an integral value; −0 and the sign of what rounds to zero are kept.
#[inline(always)]
pub fn round_f32(x: f32, mode: Rounding) -> f32 {
    let r = match mode {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
    };
    super::float::canonical(r)
}

/// `cvt.rni/.rzi/.rmi/.rpi.f64.f64`.
#[inline(always)]
pub fn round_f64(x: f64, mode: Rounding) -> f64 {
    match mode {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
    }
}

/// `cvt.<mode>i.s32.f32` (and, the source widened, f16 and bf16): clamped, NaN is 0.
#[inline(always)]
pub fn f32_to_i32(x: f32, mode: Rounding) -> i32 {
    round_f32(x, mode) as i32
}

/// `cvt.<mode>i.u32.f32`: clamped, NaN is 0.
#[inline(always)]
pub fn f32_to_u32(x: f32, mode: Rounding) -> u32 {
    round_f32(x, mode) as u32
}

/// `cvt.<mode>i.s{8,16,32,64}` of f64, or of a widened f32, f16 or bf16, which `from_f64` tells apart: PTX gives 0
/// for NaN unless the source is f64 or the destination has 64 bits; then it is the type's top bit alone.
#[inline(always)]
pub fn float_to_signed(x: f64, bits: u32, mode: Rounding, from_f64: bool) -> i64 {
    let bits = bits.clamp(1, 64);
    let least = i64::MIN >> (64 - bits);
    let value = (round_f64(x, mode) as i64).clamp(least, !least);
    if x.is_nan() & (from_f64 | (bits == 64)) { least } else { value }
}

/// `cvt.<mode>i.u{8,16,32,64}`, as [`float_to_signed`].
#[inline(always)]
pub fn float_to_unsigned(x: f64, bits: u32, mode: Rounding, from_f64: bool) -> u64 {
    let bits = bits.clamp(1, 64);
    let most = u64::MAX >> (64 - bits);
    let value = (round_f64(x, mode) as u64).min(most);
    if x.is_nan() & (from_f64 | (bits == 64)) { 1 << (bits - 1) } else { value }
}

/// An integer as f64 with everything below 53 bits folded into an odd last bit: exact up to 2^53, else good for one
/// more rounding to a narrower format.
#[inline(always)]
fn sticky(magnitude: u64) -> f64 {
    let folded = (magnitude >> 11) | u64::from(magnitude & 0x7ff != 0);
    if magnitude >> 53 == 0 { magnitude as i64 as f64 } else { folded as i64 as f64 * 2048.0 }
}

#[inline(always)]
fn signed_sticky(x: i64) -> f64 {
    let magnitude = sticky(x.unsigned_abs());
    if x < 0 { -magnitude } else { magnitude }
}

/// `cvt.<mode>.f32.s64` and narrower.
#[inline(always)]
pub fn i64_to_f32(x: i64, mode: Rounding) -> f32 {
    f64_to_f32(signed_sticky(x), mode)
}

/// `cvt.<mode>.f32.u64` and narrower.
#[inline(always)]
pub fn u64_to_f32(x: u64, mode: Rounding) -> f32 {
    f64_to_f32(sticky(x), mode)
}

/// `cvt.<mode>.f32.s32`: the common case, without 64-bit arithmetic.
#[inline(always)]
pub fn i32_to_f32(x: i32, mode: Rounding) -> f32 {
    if mode == Rounding::Nearest { x as f32 } else { f64_to_f32(x.into(), mode) }
}

/// `cvt.<mode>.f32.u32`.
#[inline(always)]
pub fn u32_to_f32(x: u32, mode: Rounding) -> f32 {
    if mode == Rounding::Nearest { x as f32 } else { f64_to_f32(x.into(), mode) }
}

/// `cvt.<mode>.f16.s64` and narrower.
#[inline(always)]
pub fn i64_to_f16(x: i64, mode: Rounding) -> u16 {
    f32_to_f16(odd(signed_sticky(x)), mode, false)
}

/// `cvt.<mode>.f16.u64` and narrower.
#[inline(always)]
pub fn u64_to_f16(x: u64, mode: Rounding) -> u16 {
    f32_to_f16(odd(sticky(x)), mode, false)
}

/// `cvt.<mode>.bf16.s64` and narrower.
#[inline(always)]
pub fn i64_to_bf16(x: i64, mode: Rounding) -> u16 {
    f32_to_bf16(odd(signed_sticky(x)), mode, false)
}

/// `cvt.<mode>.bf16.u64` and narrower.
#[inline(always)]
pub fn u64_to_bf16(x: u64, mode: Rounding) -> u16 {
    f32_to_bf16(odd(sticky(x)), mode, false)
}

/// `cvt.<mode>.f64.s64` and narrower.
#[inline(always)]
pub fn i64_to_f64(x: i64, mode: Rounding) -> f64 {
    let magnitude = u64_to_f64_towards(x.unsigned_abs(), mode, x < 0);
    if x < 0 { -magnitude } else { magnitude }
}

/// `cvt.<mode>.f64.u64` and narrower.
#[inline(always)]
pub fn u64_to_f64(x: u64, mode: Rounding) -> f64 {
    u64_to_f64_towards(x, mode, false)
}

#[inline(always)]
fn u64_to_f64_towards(magnitude: u64, mode: Rounding, negative: bool) -> f64 {
    let nearest = magnitude as f64;
    let back = nearest as u128;
    let exact = u128::from(magnitude);
    let away = match mode {
        Rounding::Nearest => return nearest,
        Rounding::Zero => false,
        Rounding::Down => negative,
        Rounding::Up => !negative,
    };
    let bits = nearest.to_bits();
    f64::from_bits(match (away, back.cmp(&exact)) {
        (true, std::cmp::Ordering::Less) => bits + 1,
        (false, std::cmp::Ordering::Greater) => bits - 1,
        _ => bits,
    })
}

/// `cvt.sat` between integers: a signed value clamped to a signed type.
#[inline(always)]
pub fn clamp_signed(x: i64, bits: u32) -> i64 {
    let least = i64::MIN >> (64 - bits.clamp(1, 64));
    x.clamp(least, !least)
}

/// `cvt.sat` between integers: a signed value clamped to an unsigned type.
#[inline(always)]
pub fn clamp_signed_to_unsigned(x: i64, bits: u32) -> u64 {
    (x.max(0) as u64).min(u64::MAX >> (64 - bits.clamp(1, 64)))
}

/// `cvt.sat` between integers: an unsigned value clamped to an unsigned type.
#[inline(always)]
pub fn clamp_unsigned(x: u64, bits: u32) -> u64 {
    x.min(u64::MAX >> (64 - bits.clamp(1, 64)))
}

/// `cvt.sat` between integers: an unsigned value clamped to a signed type.
#[inline(always)]
pub fn clamp_unsigned_to_signed(x: u64, bits: u32) -> i64 {
    x.min(u64::MAX >> 1 >> (64 - bits.clamp(1, 64))) as i64
}
