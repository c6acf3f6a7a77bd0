//! Predicates, selection, packing, carries: operations that lane closures cannot express.

use super::isa::{Body, pick};
use super::op::{Ctx, Exec, NONE, Op};

/// How a comparison's result is combined with a predicate.
pub(super) mod combine {
    pub const NONE: u32 = 0;
    pub const AND: u32 = 1;
    pub const OR: u32 = 2;
    pub const XOR: u32 = 3;
}

/// What an operation with carry computes.
pub(super) mod carry {
    pub const ADD: u32 = 0;
    pub const SUB: u32 = 1;
    pub const MAD_LO: u32 = 2;
    pub const MAD_HI: u32 = 3;
}

fn combined(kind: u32, a: u32, b: u32) -> u32 {
    match kind {
        combine::AND => a & b,
        combine::OR => a | b,
        combine::XOR => a ^ b,
        _ => a,
    }
}

/// Writes a comparison's result: p = t op c, q = !t op c.
#[inline(always)]
pub(super) fn finish_setp(ctx: &mut Ctx<'_>, op: &Op, active: u32, mask: u32) {
    let c = if op.pred == NONE { 0 } else { ctx.pred(op.pred) ^ op.imm as u32 };
    ctx.set_pred(op.d, active, combined(op.aux, mask, c));
    if op.second != NONE {
        ctx.set_pred(op.second, active, combined(op.aux, !mask, c));
    }
}

/// p = q (negated by `imm`).
///
/// # Safety
/// As [`Exec`].
pub(super) unsafe fn mov_pred(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    let mask = ctx.pred(op.pred) ^ op.imm as u32;
    ctx.set_pred(op.d, active, mask);
}

/// p = q op r; bits of `imm` negate q and r.
///
/// # Safety
/// As [`Exec`].
pub(super) unsafe fn logic(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    let flip = |bit: i64| if op.imm >> bit & 1 == 1 { u32::MAX } else { 0 };
    let mask = combined(op.aux, ctx.pred(op.pred) ^ flip(0), ctx.pred(op.second) ^ flip(1));
    ctx.set_pred(op.d, active, mask);
}

/// d = p ? a : b.
///
/// # Safety
/// As [`Exec`].
pub(super) unsafe fn selp<R: Copy>(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    let mask = ctx.pred(op.pred) ^ op.imm as u32;
    // SAFETY: Exec's contract.
    unsafe {
        let (a, b) = (*ctx.cell::<R>(op.a), *ctx.cell::<R>(op.b));
        let out = std::array::from_fn(|l| if mask >> l & 1 == 1 { a[l] } else { b[l] });
        ctx.write(op.d, active, &out);
    }
}

/// A register that can be cut into parts.
pub(super) trait Parts: Copy + Default {
    fn part(self, at: usize, bits: u32) -> u32;
    fn with(self, at: usize, bits: u32, part: u32) -> Self;
    fn wide(self) -> u64;
    fn narrow(value: u64) -> Self;
    const BITS: u32;
}

macro_rules! parts {
    ($ty:ty, $bits:expr) => {
        impl Parts for $ty {
            fn part(self, at: usize, bits: u32) -> u32 {
                ((self >> (at as u32 * bits)) as u64 & ((1 << bits) - 1)) as u32
            }
            fn with(self, at: usize, bits: u32, part: u32) -> $ty {
                self | ((part as u64 & ((1 << bits) - 1)) << (at as u32 * bits)) as $ty
            }
            fn wide(self) -> u64 {
                self as u64
            }
            fn narrow(value: u64) -> $ty {
                value as $ty
            }
            const BITS: u32 = $bits;
        }
    };
}

parts!(u32, 32);
parts!(u64, 64);

/// {list} = a, cut into parts of `aux` bits.
///
/// # Safety
/// As [`Exec`].
pub(super) unsafe fn unpack<R: Parts>(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    // SAFETY: Exec's contract.
    unsafe {
        let a = *ctx.cell::<R>(op.a);
        for (i, &cell) in op.list.iter().enumerate() {
            ctx.write::<u32>(cell, active, &a.map(|a| a.part(i, op.aux)));
        }
    }
}

/// d = {list}, parts of `aux` bits.
///
/// # Safety
/// As [`Exec`].
pub(super) unsafe fn pack<R: Parts>(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    let mut out = [R::default(); 32];
    // SAFETY: Exec's contract.
    unsafe {
        for (i, &cell) in op.list.iter().enumerate() {
            let part = ctx.cell::<u32>(cell);
            for l in 0..32 {
                out[l] = out[l].with(i, op.aux, part[l]);
            }
        }
        ctx.write(op.d, active, &out);
    }
}

/// d = bfi(a, b, c, d'): list holds the four sources.
///
/// # Safety
/// As [`Exec`].
pub(super) unsafe fn bfi<R: Parts>(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    // SAFETY: Exec's contract.
    unsafe {
        let (a, b) = (*ctx.cell::<R>(op.list[0]), *ctx.cell::<R>(op.list[1]));
        let (pos, len) = (*ctx.cell::<u32>(op.list[2]), *ctx.cell::<u32>(op.list[3]));
        let out = std::array::from_fn(|l| {
            let (pos, len) = ((pos[l] & 0xff).min(R::BITS), (len[l] & 0xff).min(R::BITS));
            let ones = if len == 0 { 0 } else { u64::MAX >> (64 - len) };
            let mask = if pos < 64 { ones << pos } else { 0 };
            let field = if pos < 64 { a[l].wide() << pos } else { 0 };
            R::narrow(b[l].wide() & !mask | field & mask)
        });
        ctx.write(op.d, active, &out);
    }
}

/// d = the bitwise function of a, b, c that the table in `imm` defines.
pub(super) fn lop3() -> Exec {
    struct Lop3;
    impl Body for Lop3 {
        #[inline(always)]
        unsafe fn run(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
            // SAFETY: Exec's contract.
            unsafe {
                let (a, b, c) = (*ctx.cell::<u32>(op.a), *ctx.cell::<u32>(op.b), *ctx.cell::<u32>(op.c));
                let mut out = [0u32; 32];
                for term in (0..8).filter(|t| op.imm >> t & 1 == 1) {
                    let pick = |x: u32, bit: u32| if term >> bit & 1 == 1 { x } else { !x };
                    for l in 0..32 {
                        out[l] |= pick(a[l], 2) & pick(b[l], 1) & pick(c[l], 0);
                    }
                }
                ctx.write(op.d, active, &out);
            }
        }
    }
    pick::<Lop3>()
}

/// Extended-precision arithmetic: the carry is a predicate, `imm` says whether it is read (1) and written (2).
///
/// # Safety
/// As [`Exec`].
pub(super) unsafe fn with_carry<R: Parts>(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    let carry = if op.imm & 1 == 1 { ctx.pred(op.pred) } else { 0 };
    let mut out = [R::default(); 32];
    let mut carries = 0u32;
    // SAFETY: Exec's contract.
    unsafe {
        let (a, b) = (*ctx.cell::<R>(op.a), *ctx.cell::<R>(op.b));
        let c = if op.c == NONE { [R::default(); 32] } else { *ctx.cell::<R>(op.c) };
        for l in 0..32 {
            let limit = 1u128 << R::BITS;
            let (a, b, c) = (u128::from(a[l].wide()), u128::from(b[l].wide()), u128::from(c[l].wide()));
            let carry = u128::from(carry >> l & 1);
            let (value, over) = match op.aux {
                carry::ADD => (a + b + carry, a + b + carry >= limit),
                // The carry flag of a subtraction is its borrow.
                carry::SUB => (a.wrapping_sub(b).wrapping_sub(carry), a < b + carry),
                carry::MAD_LO => {
                    let sum = (a * b) % limit + c + carry;
                    (sum, sum >= limit)
                }
                _ => {
                    let sum = (a * b) / limit + c + carry;
                    (sum, sum >= limit)
                }
            };
            out[l] = R::narrow(value as u64);
            carries |= u32::from(over) << l;
        }
        ctx.write(op.d, active, &out);
    }
    if op.imm & 2 == 2 {
        ctx.set_pred(op.pred, active, carries);
    }
}
