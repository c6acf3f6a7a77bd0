//! Predicates, selection, packing, carries: operations that lane closures cannot express.

use super::isa::{Body, pick};
use super::op::{Ctx, Exec, NONE, Op};
use crate::num::{bits, integer};

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
pub(super) fn selp<R: Word>() -> Exec {
    struct Select<R>(std::marker::PhantomData<R>);
    impl<R: Word> Body for Select<R> {
        #[inline(always)]
        unsafe fn run(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
            let mask = ctx.pred(op.pred) ^ op.imm as u32;
            // SAFETY: Exec's contract.
            unsafe {
                let (a, b) = (*ctx.cell::<R>(op.a), *ctx.cell::<R>(op.b));
                let mut out = [R::default(); 32];
                for l in 0..32 {
                    out[l] = if mask >> l & 1 == 1 { a[l] } else { b[l] };
                }
                ctx.write(op.d, active, &out);
            }
        }
    }
    pick::<Select<R>>()
}

/// What a register of either width can do beyond lane closures.
pub(super) trait Word: Copy + Default {
    /// Part `at` of `bits` bits.
    fn part(self, at: usize, bits: u32) -> u32;
    /// With part `at`, 0 before, set.
    fn with(self, at: usize, bits: u32, part: u32) -> Self;
    /// bfi: this field into `base`.
    fn insert(self, base: Self, position: u32, length: u32) -> Self;
    /// Sum and carry.
    fn add_carry(self, other: Self, carry: bool) -> (Self, bool);
    /// Difference and borrow.
    fn sub_borrow(self, other: Self, borrow: bool) -> (Self, bool);
    /// Lower and upper half of the product.
    fn product(self, other: Self) -> (Self, Self);
}

macro_rules! word {
    ($ty:ty, $wide:ty, $insert:path, $add:path, $sub:path) => {
        impl Word for $ty {
            #[inline(always)]
            fn part(self, at: usize, bits: u32) -> u32 {
                ((self >> (at as u32 * bits)) as u64 & ((1 << bits) - 1)) as u32
            }
            #[inline(always)]
            fn with(self, at: usize, bits: u32, part: u32) -> $ty {
                self | ((part as u64 & ((1 << bits) - 1)) << (at as u32 * bits)) as $ty
            }
            fn insert(self, base: $ty, position: u32, length: u32) -> $ty {
                $insert(self, base, position, length)
            }
            fn add_carry(self, other: $ty, carry: bool) -> ($ty, bool) {
                $add(self, other, carry)
            }
            fn sub_borrow(self, other: $ty, borrow: bool) -> ($ty, bool) {
                $sub(self, other, borrow)
            }
            fn product(self, other: $ty) -> ($ty, $ty) {
                let product = <$wide>::from(self) * <$wide>::from(other);
                (product as $ty, (product >> <$ty>::BITS) as $ty)
            }
        }
    };
}

word!(u32, u64, bits::bfi_b32, integer::add_carry32, integer::sub_borrow32);
word!(u64, u128, bits::bfi_b64, integer::add_carry64, integer::sub_borrow64);

/// {list} = a, cut into parts of `aux` bits.
pub(super) fn unpack<R: Word>() -> Exec {
    struct Unpack<R>(std::marker::PhantomData<R>);
    impl<R: Word> Body for Unpack<R> {
        #[inline(always)]
        unsafe fn run(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
            // SAFETY: Exec's contract.
            unsafe {
                let a = *ctx.cell::<R>(op.a);
                for (i, &cell) in op.list.iter().enumerate() {
                    let mut part = [0; 32];
                    for l in 0..32 {
                        part[l] = a[l].part(i, op.aux);
                    }
                    ctx.write::<u32>(cell, active, &part);
                }
            }
        }
    }
    pick::<Unpack<R>>()
}

/// d = {list}, parts of `aux` bits.
pub(super) fn pack<R: Word>() -> Exec {
    struct Pack<R>(std::marker::PhantomData<R>);
    impl<R: Word> Body for Pack<R> {
        #[inline(always)]
        unsafe fn run(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
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
    }
    pick::<Pack<R>>()
}

/// d = bfi(a, b, c, d'): list holds the four sources.
///
/// # Safety
/// As [`Exec`].
pub(super) unsafe fn bfi<R: Word>(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    // SAFETY: Exec's contract.
    unsafe {
        let (a, b) = (*ctx.cell::<R>(op.list[0]), *ctx.cell::<R>(op.list[1]));
        let (pos, len) = (*ctx.cell::<u32>(op.list[2]), *ctx.cell::<u32>(op.list[3]));
        let out = std::array::from_fn(|l| a[l].insert(b[l], pos[l], len[l]));
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
pub(super) unsafe fn with_carry<R: Word>(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    let carry = if op.imm & 1 == 1 { ctx.pred(op.pred) } else { 0 };
    let mut out = [R::default(); 32];
    let mut carries = 0u32;
    // SAFETY: Exec's contract.
    unsafe {
        let (a, b) = (*ctx.cell::<R>(op.a), *ctx.cell::<R>(op.b));
        let c = if op.c == NONE { [R::default(); 32] } else { *ctx.cell::<R>(op.c) };
        for l in 0..32 {
            let carry = carry >> l & 1 == 1;
            let (value, over) = match op.aux {
                carry::ADD => a[l].add_carry(b[l], carry),
                carry::SUB => a[l].sub_borrow(b[l], carry),
                carry::MAD_LO => a[l].product(b[l]).0.add_carry(c[l], carry),
                _ => a[l].product(b[l]).1.add_carry(c[l], carry),
            };
            out[l] = value;
            carries |= u32::from(over) << l;
        }
        ctx.write(op.d, active, &out);
    }
    if op.imm & 2 == 2 {
        ctx.set_pred(op.pred, active, carries);
    }
}
