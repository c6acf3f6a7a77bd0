//! Shuffles, votes, matches, reductions: the lanes named in the mask meet, then exchange.

use super::barrier::converged;
use super::op::{Ctx, NONE, Op};
use crate::check::Kind;

/// Kinds of shuffle (`Op::aux`).
pub(super) mod shuffle {
    pub const UP: u32 = 0;
    pub const DOWN: u32 = 1;
    pub const BUTTERFLY: u32 = 2;
    pub const INDEX: u32 = 3;
}

/// Kinds of vote (`Op::aux`).
pub(super) mod vote {
    pub const BALLOT: u32 = 0;
    pub const ALL: u32 = 1;
    pub const ANY: u32 = 2;
    pub const UNI: u32 = 3;
}

/// Waits for the lanes of the mask in a cell; the mask if they are here.
unsafe fn meet(ctx: &mut Ctx<'_>, op: &Op, active: u32, cell: u32) -> Option<u32> {
    // SAFETY: Exec's contract: a 32-bit cell.
    let masks = unsafe { *ctx.cell::<u32>(cell) };
    let first = active.trailing_zeros() as usize;
    let mask = masks[first];
    if (0..32).any(|l| active >> l & 1 == 1 && masks[l] >> l & 1 == 0) {
        ctx.fail(
            op,
            Kind::Convergence,
            Some(first as u32),
            format!("a lane is not in its own mask {mask:#010x}"),
        );
        return None;
    }
    let mut wanted = 0;
    for l in (0..32).filter(|l| active >> l & 1 == 1) {
        wanted |= masks[l];
    }
    converged(ctx, op, active, wanted).then_some(mask)
}

/// d|p = a of the lane that b and c name.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn shfl(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    // SAFETY: Exec's contract.
    let Some(_) = (unsafe { meet(ctx, op, active, op.list[0]) }) else { return };
    // SAFETY: Exec's contract.
    let (a, b, c) = unsafe { (*ctx.cell::<u32>(op.a), *ctx.cell::<u32>(op.b), *ctx.cell::<u32>(op.c)) };
    let mut out = [0; 32];
    let mut inside = 0u32;
    for l in 0..32u32 {
        let (value, control) = (b[l as usize] & 31, c[l as usize]);
        let (clamp, segment) = (control & 31, control >> 8 & 31);
        let (most, least) = (l & segment | clamp & !segment, l & segment);
        let (from, ok) = match op.aux {
            shuffle::UP => (l.wrapping_sub(value), l as i32 - value as i32 >= most as i32),
            shuffle::DOWN => (l + value, l + value <= most),
            shuffle::BUTTERFLY => (l ^ value, l ^ value <= most),
            _ => {
                let from = least | value & !segment;
                (from, from <= most)
            }
        };
        let from = if ok { from } else { l };
        inside |= u32::from(ok) << l;
        out[l as usize] = a[from as usize & 31];
        if active >> l & 1 == 1 && active >> (from & 31) & 1 == 0 {
            let message = format!("lane {l} reads lane {from}, which is not part of this shuffle");
            return ctx.fail(op, Kind::Convergence, Some(l), message);
        }
    }
    // SAFETY: Exec's contract.
    unsafe { ctx.write(op.d, active, &out) };
    if op.pred != NONE {
        ctx.set_pred(op.pred, active, inside);
    }
}

/// d = a ballot, or p = all, any, uni.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn vote(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    // SAFETY: Exec's contract.
    let Some(_) = (unsafe { meet(ctx, op, active, op.a) }) else { return };
    let votes = (ctx.pred(op.pred) ^ op.imm as u32) & active;
    let yes = match op.aux {
        vote::BALLOT => {
            // SAFETY: Exec's contract.
            unsafe { ctx.write(op.d, active, &[votes; 32]) };
            return;
        }
        vote::ALL => votes == active,
        vote::ANY => votes != 0,
        _ => votes == active || votes == 0,
    };
    ctx.set_pred(op.d, active, if yes { u32::MAX } else { 0 });
}

/// d = the lanes with the same value as this one; with `aux` 1 all lanes or none, and p says which.
///
/// # Safety
/// As [`super::op::Exec`]; `R` is the width of cell `a`.
pub(super) unsafe fn match_lanes<R: Copy + PartialEq>(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    // SAFETY: Exec's contract.
    let Some(_) = (unsafe { meet(ctx, op, active, op.b) }) else { return };
    // SAFETY: Exec's contract.
    let a = unsafe { *ctx.cell::<R>(op.a) };
    let lanes = || (0..32usize).filter(move |l| active >> l & 1 == 1);
    let mut out = [0u32; 32];
    for l in lanes() {
        out[l] = lanes().filter(|&m| a[m] == a[l]).fold(0, |mask, m| mask | 1 << m);
    }
    if op.aux == 1 {
        let all = lanes().all(|l| out[l] == active);
        out = [if all { active } else { 0 }; 32];
        if op.pred != NONE {
            ctx.set_pred(op.pred, active, if all { u32::MAX } else { 0 });
        }
    }
    // SAFETY: Exec's contract.
    unsafe { ctx.write(op.d, active, &out) };
}

/// d = a reduced over the lanes.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn redux(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    // SAFETY: Exec's contract.
    let Some(_) = (unsafe { meet(ctx, op, active, op.b) }) else { return };
    // SAFETY: Exec's contract.
    let a = unsafe { *ctx.cell::<u32>(op.a) };
    let values = (0..32usize).filter(|l| active >> l & 1 == 1).map(|l| a[l]);
    let signed = op.aux >> 8 == 1;
    let by_sign = |x: &u32| i64::from(*x as i32);
    let value = match (op.aux & 0xff, signed) {
        (0, _) => values.fold(0, u32::wrapping_add),
        (1, false) => values.min().unwrap_or(0),
        (1, true) => values.min_by_key(by_sign).unwrap_or(0),
        (2, false) => values.max().unwrap_or(0),
        (2, true) => values.max_by_key(by_sign).unwrap_or(0),
        (3, _) => values.fold(u32::MAX, |x, y| x & y),
        (4, _) => values.fold(0, |x, y| x | y),
        _ => values.fold(0, |x, y| x ^ y),
    };
    // SAFETY: Exec's contract.
    unsafe { ctx.write(op.d, active, &[value; 32]) };
}

/// d = the lanes that execute this.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn activemask(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    // SAFETY: Exec's contract.
    unsafe { ctx.write(op.d, active, &[active; 32]) };
}

/// d = the lowest lane of the mask, p = whether this is it.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn elect(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    // SAFETY: Exec's contract.
    let Some(mask) = (unsafe { meet(ctx, op, active, op.a) }) else { return };
    let leader = (mask & active).trailing_zeros();
    // SAFETY: Exec's contract.
    unsafe { ctx.write(op.d, active, &[leader; 32]) };
    ctx.set_pred(op.pred, active, 1 << (leader & 31));
}
