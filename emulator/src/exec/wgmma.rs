//! wgmma as a warp executes it: its 16 rows of the warpgroup's 64, at once or when it is waited for.
//!
//! Matrices in shared memory are read in the name of the warp's asynchronous agent, so a stage that is overwritten while
//! a wgmma may still read it is a race even where the result happens to be right.

use super::barrier::converged;
use super::matrix::Matrix;
use super::op::{Ctx, Op};
use super::race::{ASYNC, Clock};
use super::tensor_ops::{a_rows, count_flops, element_of};
use super::warp::Wgmma;
use crate::check::Kind;
use crate::num::Rounding;
use crate::num::small_float::{f16_to_f32, f32_to_f16};
use crate::settings::{Fp8Accumulation, Timing};
use crate::tensor::descriptor::{Descriptor, Major, unused_bits};
use crate::tensor::panel::Element;
use crate::tensor::warp_tile;

/// wgmma.fence: the warp must be whole.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn fence(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    converged(ctx, op, active, u32::MAX);
}

/// wgmma.mma_async: executed now, at its wait, or at either, as the schedule has it.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn issue(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    if !converged(ctx, op, active, u32::MAX) {
        return;
    }
    if active != u32::MAX {
        return ctx.fail(
            op,
            Kind::Wgmma,
            None,
            "wgmma wants all 32 lanes of each of the warpgroup's four warps",
        );
    }
    // SAFETY: Exec's contract: descriptors are 64-bit cells.
    let (a, b) = unsafe {
        let a = if op.a == super::op::NONE { [0; 32] } else { *ctx.cell::<u64>(op.a) };
        (a, *ctx.cell::<u64>(op.b))
    };
    if a.iter().any(|x| *x != a[0]) || b.iter().any(|x| *x != b[0]) {
        return ctx.fail(op, Kind::Wgmma, None, "the lanes of the warp have different matrix descriptors");
    }
    let flip = if op.second == 1 { u32::MAX } else { 0 };
    let scale_d = (ctx.pred(op.pred) ^ flip) & 1 == 1;
    let mut rows = Vec::new();
    if op.imm >> 20 & 1 == 1 {
        // A in registers is taken when issued; its registers may be given to others afterwards.
        rows = a_rows(ctx, &op.list[op.writes as usize..], element_of(op.aux)).to_vec();
    }
    // The warp learns of this time at the wait alone: what it gives away before, an mbarrier's arrival say, does not
    // include that the matrices have been read.
    let stamp = ctx.block.pending.stamp(ctx.warp.id, &ctx.warp.clock);
    let timing = ctx.grid.settings.schedule.wgmma;
    let now = match timing {
        Timing::Eager => true,
        Timing::Lazy => false,
        Timing::Random => ctx.block.random.below(2) == 0 && !ctx.warp.wgmma.iter().any(|w| w.is_issued()),
    };
    if now {
        execute(ctx, op, a[0], b[0], scale_d, &rows, &stamp);
        ctx.warp.wgmma.push(Wgmma::Executed(stamp.of(ASYNC + ctx.warp.id as usize)));
    } else {
        let issued = Wgmma::Issued { pc: ctx.pc, a: a[0], b: b[0], scale_d, rows, stamp: Box::new(stamp) };
        ctx.warp.wgmma.push(issued);
    }
    if ctx.grid.settings.checks {
        ctx.warp.owned.add(&op.list[..op.writes as usize]);
    }
}

/// wgmma.commit_group.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn commit(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    if converged(ctx, op, active, u32::MAX) {
        ctx.warp.wgmma.push(Wgmma::Commit);
        ctx.warp.owned.commit();
    }
}

/// wgmma.wait_group `imm`.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn wait(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    if !converged(ctx, op, active, u32::MAX) {
        return;
    }
    let agent = ASYNC + ctx.warp.id as usize;
    let groups = ctx.warp.wgmma.iter().filter(|w| matches!(w, Wgmma::Commit)).count();
    let mut left = groups.saturating_sub(op.imm as usize);
    let mut queue = std::mem::take(&mut ctx.warp.wgmma);
    let mut taken = 0;
    for wgmma in &queue {
        if left == 0 || ctx.fault.is_some() {
            break;
        }
        let time = match wgmma {
            Wgmma::Commit => {
                left -= 1;
                None
            }
            Wgmma::Executed(time) => Some(*time),
            Wgmma::Issued { pc, a, b, scale_d, rows, stamp } => {
                let program = ctx.grid.program;
                execute(ctx, &program.code[*pc as usize], *a, *b, *scale_d, rows, stamp);
                Some(stamp.of(agent))
            }
        };
        if let Some(time) = time {
            ctx.warp.clock.set(agent, time.max(ctx.warp.clock.of(agent)));
        }
        taken += 1;
    }
    queue.drain(..taken);
    ctx.warp.wgmma = queue;
    ctx.warp.owned.wait(op.imm as usize);
}

/// The warp's 16 rows of a wgmma that was issued with this stamp.
fn execute(ctx: &mut Ctx<'_>, op: &Op, a: u64, b: u64, scale_d: bool, registers: &[[u8; 32]], stamp: &Clock) {
    let (element, depth, half) = (element_of(op.aux), (op.aux >> 8 & 0xff) as usize, op.aux >> 16 & 1 == 1);
    let columns = (op.imm & 0xffff) as usize;
    let bit = |at: u32| op.imm >> at & 1 == 1;
    let from_registers = bit(20);
    for descriptor in [(!from_registers).then_some(a), Some(b)].into_iter().flatten() {
        if unused_bits(descriptor) != 0 {
            let message =
                format!("matrix descriptor {descriptor:#018x} has bits set that Hopper does not define");
            return ctx.fail(op, Kind::Wgmma, None, message);
        }
    }

    let mut left = std::mem::take(&mut ctx.block.left);
    if let Some(rows) = registers.first_chunk::<16>() {
        warp_tile::spread(element, rows, &mut left);
    } else {
        let first = ctx.warp.id % 4 * 16;
        let major = if bit(18) { Major::Mn } else { Major::K };
        let matrix = Matrix { descriptor: Descriptor::decode(a), major, element, first, count: 16 };
        if matrix.note(ctx, op, stamp).is_none() {
            return;
        }
        if major == Major::K {
            let mut rows = [[0u8; 32]; 16];
            matrix.bytes(ctx, &mut rows, |row| row);
            warp_tile::spread(element, &rows, &mut left);
        } else {
            let mut flat = [0f32; 16 * 16];
            matrix.columns(ctx, &mut flat[..16 * depth], |row| row);
            warp_tile::spread_columns(&flat[..16 * depth], &mut left);
        }
    }
    if bit(16) {
        left.iter_mut().flat_map(|k| &mut k.0).for_each(|x| *x = -*x);
    }

    let b_type = element_of(op.aux >> 24);
    let major = if bit(19) { Major::Mn } else { Major::K };
    let key = (b, op.aux, op.imm);
    let descriptor = Descriptor::decode(b);
    let matrix = Matrix { descriptor, major, element: b_type, first: 0, count: columns as u32 };
    let mut panels = std::mem::take(&mut ctx.block.panels);
    let kept = panels.find(ctx.block.shared.version(), key);
    // All warps decode the same, but each reads the matrix for itself, which is what the checks go by.
    if (kept.is_none() || ctx.grid.settings.checks) && matrix.note(ctx, op, stamp).is_none() {
        return;
    }
    let at = kept.unwrap_or_else(|| {
        let mut panel = panels.buffer(depth * columns);
        matrix.right_hand_side(ctx, &mut panel);
        if bit(17) {
            panel.iter_mut().for_each(|x| *x = -*x);
        }
        panels.keep(key, panel)
    });
    let how = match element {
        Element::E4m3 | Element::E5m2 => ctx.grid.settings.fp8,
        _ => Fp8Accumulation::Exact,
    };
    let cells = &op.list[..op.writes as usize];
    if half {
        halves(ctx, cells, |file, cells| {
            warp_tile::multiply(how, &left, panels.panel(at), columns, !scale_d, file, cells);
        });
    } else {
        let file = ctx.warp.floats();
        warp_tile::multiply(how, &left, panels.panel(at), columns, !scale_d, file, cells);
    }
    ctx.block.panels = panels;
    ctx.block.left = left;
    count_flops(ctx.block, element, 2 * 16 * (columns * depth) as u64);
}

/// Applies `multiply` to accumulators of f16: a cell of two halves is two cells of one element each.
fn halves(ctx: &mut Ctx<'_>, cells: &[u32], multiply: impl FnOnce(&mut [[f32; 32]], &[u32])) {
    let mut elements = Vec::with_capacity(cells.len() * 2);
    for &cell in cells {
        // SAFETY: accumulators are 32-bit cells of the program.
        let raw = unsafe { ctx.cell::<u32>(cell) };
        elements.push(raw.map(|x| f16_to_f32(x as u16)));
        elements.push(raw.map(|x| f16_to_f32((x >> 16) as u16)));
    }
    let all: Vec<u32> = (0..elements.len() as u32).collect();
    multiply(&mut elements, &all);
    let round = |x| u32::from(f32_to_f16(x, Rounding::Nearest, false));
    for (&cell, [low, high]) in cells.iter().zip(elements.as_chunks::<2>().0) {
        // SAFETY: as above.
        let out = unsafe { ctx.cell_mut::<u32>(cell) };
        *out = std::array::from_fn(|l| round(low[l]) | round(high[l]) << 16);
    }
}

/// Fails if an operation touches the accumulators of an unfinished wgmma.
pub(super) fn check_owned(ctx: &mut Ctx<'_>, op: &Op) {
    let owned = |cell: &u32| ctx.warp.owned.holds(*cell);
    let d = if op.d_pred { super::op::NONE } else { op.d };
    if [op.a, op.b, op.c, d].iter().chain(&*op.list).any(owned) {
        let message = "an accumulator of a wgmma is touched before wgmma.wait_group";
        ctx.fail(op, Kind::WgmmaAccumulator, None, message);
    }
}
