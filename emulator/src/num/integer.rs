//! Integer arithmetic beyond the wrapping operators.

/// `mul.hi.u16`.
#[inline(always)]
pub fn mul_hi_u16(a: u16, b: u16) -> u16 {
    ((u32::from(a) * u32::from(b)) >> 16) as u16
}

/// `mul.hi.s16`.
#[inline(always)]
pub fn mul_hi_s16(a: i16, b: i16) -> i16 {
    ((i32::from(a) * i32::from(b)) >> 16) as i16
}

/// `mul.hi.u32`.
#[inline(always)]
pub fn mul_hi_u32(a: u32, b: u32) -> u32 {
    (mul_wide_u32(a, b) >> 32) as u32
}

/// `mul.hi.s32`.
#[inline(always)]
pub fn mul_hi_s32(a: i32, b: i32) -> i32 {
    (mul_wide_s32(a, b) >> 32) as i32
}

/// `mul.hi.u64`.
#[inline(always)]
pub fn mul_hi_u64(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

/// `mul.hi.s64`.
#[inline(always)]
pub fn mul_hi_s64(a: i64, b: i64) -> i64 {
    ((i128::from(a) * i128::from(b)) >> 64) as i64
}

/// `mul.wide.u16`.
#[inline(always)]
pub fn mul_wide_u16(a: u16, b: u16) -> u32 {
    u32::from(a) * u32::from(b)
}

/// `mul.wide.s16`.
#[inline(always)]
pub fn mul_wide_s16(a: i16, b: i16) -> i32 {
    i32::from(a) * i32::from(b)
}

/// `mul.wide.u32`.
#[inline(always)]
pub fn mul_wide_u32(a: u32, b: u32) -> u64 {
    u64::from(a) * u64::from(b)
}

/// `mul.wide.s32`.
#[inline(always)]
pub fn mul_wide_s32(a: i32, b: i32) -> i64 {
    i64::from(a) * i64::from(b)
}

/// The 48-bit product of the low 24 bits, zero-extended.
#[inline(always)]
fn product24_u(a: u32, b: u32) -> u64 {
    mul_wide_u32(a & 0xff_ffff, b & 0xff_ffff)
}

/// The 48-bit product of the low 24 bits, sign-extended.
#[inline(always)]
fn product24_s(a: i32, b: i32) -> i64 {
    mul_wide_s32(a << 8 >> 8, b << 8 >> 8)
}

/// `mul24.lo.u32`: bits 0–31 of the 48-bit product.
#[inline(always)]
pub fn mul24_lo_u32(a: u32, b: u32) -> u32 {
    product24_u(a, b) as u32
}

/// `mul24.hi.u32`: bits 16–47.
#[inline(always)]
pub fn mul24_hi_u32(a: u32, b: u32) -> u32 {
    (product24_u(a, b) >> 16) as u32
}

/// `mul24.lo.s32`.
#[inline(always)]
pub fn mul24_lo_s32(a: i32, b: i32) -> i32 {
    product24_s(a, b) as i32
}

/// `mul24.hi.s32`.
#[inline(always)]
pub fn mul24_hi_s32(a: i32, b: i32) -> i32 {
    (product24_s(a, b) >> 16) as i32
}

/// `mad.hi.u32`.
#[inline(always)]
pub fn mad_hi_u32(a: u32, b: u32, c: u32) -> u32 {
    mul_hi_u32(a, b).wrapping_add(c)
}

/// `mad.hi.s32`.
#[inline(always)]
pub fn mad_hi_s32(a: i32, b: i32, c: i32) -> i32 {
    mul_hi_s32(a, b).wrapping_add(c)
}

/// `mad.hi.sat.s32`.
#[inline(always)]
pub fn mad_hi_sat_s32(a: i32, b: i32, c: i32) -> i32 {
    mul_hi_s32(a, b).saturating_add(c)
}

/// `mad.hi.u64`.
#[inline(always)]
pub fn mad_hi_u64(a: u64, b: u64, c: u64) -> u64 {
    mul_hi_u64(a, b).wrapping_add(c)
}

/// `mad.hi.s64`.
#[inline(always)]
pub fn mad_hi_s64(a: i64, b: i64, c: i64) -> i64 {
    mul_hi_s64(a, b).wrapping_add(c)
}

/// `mad.wide.u32`.
#[inline(always)]
pub fn mad_wide_u32(a: u32, b: u32, c: u64) -> u64 {
    mul_wide_u32(a, b).wrapping_add(c)
}

/// `mad.wide.s32`.
#[inline(always)]
pub fn mad_wide_s32(a: i32, b: i32, c: i64) -> i64 {
    mul_wide_s32(a, b).wrapping_add(c)
}

/// `sad.u16`: c + |a − b|.
#[inline(always)]
pub fn sad_u16(a: u16, b: u16, c: u16) -> u16 {
    c.wrapping_add(a.abs_diff(b))
}

/// `sad.s16`.
#[inline(always)]
pub fn sad_s16(a: i16, b: i16, c: i16) -> i16 {
    c.wrapping_add(a.abs_diff(b) as i16)
}

/// `sad.u32`.
#[inline(always)]
pub fn sad_u32(a: u32, b: u32, c: u32) -> u32 {
    c.wrapping_add(a.abs_diff(b))
}

/// `sad.s32`.
#[inline(always)]
pub fn sad_s32(a: i32, b: i32, c: i32) -> i32 {
    c.wrapping_add(a.abs_diff(b) as i32)
}

/// `sad.u64`.
#[inline(always)]
pub fn sad_u64(a: u64, b: u64, c: u64) -> u64 {
    c.wrapping_add(a.abs_diff(b))
}

/// `sad.s64`.
#[inline(always)]
pub fn sad_s64(a: i64, b: i64, c: i64) -> i64 {
    c.wrapping_add(a.abs_diff(b) as i64)
}

/// Division and remainder of one type, with what hardware does where PTX says nothing: dividing by zero gives all
/// ones, the least value divided by −1 is itself with remainder 0.
macro_rules! division {
    ($div:ident, $rem:ident, $type:ty, $opcode:literal) => {
        #[doc = concat!("`div.", $opcode, "`; by zero: all ones.")]
        #[inline(always)]
        pub fn $div(a: $type, b: $type) -> $type {
            if b == 0 { !0 } else { a.wrapping_div(b) }
        }

        #[doc = concat!("`rem.", $opcode, "`, with the sign of `a`; by zero: all ones.")]
        #[inline(always)]
        pub fn $rem(a: $type, b: $type) -> $type {
            if b == 0 { !0 } else { a.wrapping_rem(b) }
        }
    };
}

division!(div_u16, rem_u16, u16, "u16");
division!(div_s16, rem_s16, i16, "s16");
division!(div_u32, rem_u32, u32, "u32");
division!(div_s32, rem_s32, i32, "s32");
division!(div_u64, rem_u64, u64, "u64");
division!(div_s64, rem_s64, i64, "s64");

/// Byte `i` of a register, sign-extended if `signed`.
#[inline(always)]
fn byte(a: u32, i: u32, signed: bool) -> i32 {
    let value = (a >> (8 * i)) as u8;
    if signed { i32::from(value as i8) } else { i32::from(value) }
}

/// `dp4a.atype.btype d, a, b, c`: the sum of four byte products and `c`.
#[inline(always)]
pub fn dp4a(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
    let product = |i| byte(a, i, a_signed) * byte(b, i, b_signed);
    (product(0) + product(1) + product(2) + product(3)).wrapping_add(c as i32) as u32
}

/// `dp2a.{lo,hi}.atype.btype d, a, b, c`: halves of `a` by two bytes of `b` (the upper two with `high`).
#[inline(always)]
pub fn dp2a(a: u32, b: u32, c: u32, high: bool, a_signed: bool, b_signed: bool) -> u32 {
    let half = |i: u32| {
        let value = (a >> (16 * i)) as u16;
        if a_signed { i32::from(value as i16) } else { i32::from(value) }
    };
    let first = if high { 2 } else { 0 };
    let sum = half(0) * byte(b, first, b_signed) + half(1) * byte(b, first + 1, b_signed);
    sum.wrapping_add(c as i32) as u32
}

/// `add.cc`/`addc{.cc}.b32`: the sum with a carry in (false for `add.cc`) and the carry out.
#[inline(always)]
pub fn add_carry32(a: u32, b: u32, carry: bool) -> (u32, bool) {
    let sum = u64::from(a) + u64::from(b) + u64::from(carry);
    (sum as u32, sum >> 32 != 0)
}

/// `sub.cc`/`subc{.cc}.b32`: the difference with a borrow in (false for `sub.cc`) and the borrow out.
#[inline(always)]
pub fn sub_borrow32(a: u32, b: u32, borrow: bool) -> (u32, bool) {
    let difference = u64::from(a).wrapping_sub(u64::from(b)).wrapping_sub(u64::from(borrow));
    (difference as u32, difference >> 63 != 0)
}

/// `add.cc`/`addc{.cc}.b64`.
#[inline(always)]
pub fn add_carry64(a: u64, b: u64, carry: bool) -> (u64, bool) {
    let (sum, first) = a.overflowing_add(b);
    let (sum, second) = sum.overflowing_add(u64::from(carry));
    (sum, first | second)
}

/// `sub.cc`/`subc{.cc}.b64`.
#[inline(always)]
pub fn sub_borrow64(a: u64, b: u64, borrow: bool) -> (u64, bool) {
    let (difference, first) = a.overflowing_sub(b);
    let (difference, second) = difference.overflowing_sub(u64::from(borrow));
    (difference, first | second)
}
