//! wgmma as a warp executes it: its 16 rows of the warpgroup's 64, at once or when it is waited for.
//!
//! Matrices in shared memory are read in the name of the warp's asynchronous agent, so a stage that is overwritten while
//! a wgmma may still read it is a race even where the result happens to be right.

use super::barrier::converged;
use super::op::{Ctx, Op};
use super::race::ASYNC;
use super::tensor_ops::{a_rows, accumulators, chunk, count_flops, element_of, multiply, note, scatter};
use super::warp::Wgmma;
use crate::check::Kind;
use crate::settings::Timing;
use crate::tensor::descriptor::{Descriptor, Major, unused_bits};
use crate::tensor::panel::{self, Element};

/// Decoded right-hand sides that are kept while shared memory does not change.
const PANELS: usize = 48;

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
    let stamp = ctx.block.pending.stamp(ctx.warp.id, &ctx.warp.clock);
    ctx.warp.clock.join_agent(&stamp, ASYNC + ctx.warp.id as usize);
    let timing = ctx.grid.settings.schedule.wgmma;
    let now = match timing {
        Timing::Eager => true,
        Timing::Lazy => false,
        Timing::Random => ctx.block.random.below(2) == 0 && !ctx.warp.wgmma.iter().any(|w| w.is_issued()),
    };
    if now {
        execute(ctx, op, a[0], b[0], scale_d, &rows);
    } else {
        let issued = Wgmma::Issued { pc: ctx.pc, a: a[0], b: b[0], scale_d, rows };
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
    let groups = ctx.warp.wgmma.iter().filter(|w| !w.is_issued()).count();
    let mut left = groups.saturating_sub(op.imm as usize);
    while left > 0 && !ctx.warp.wgmma.is_empty() {
        match ctx.warp.wgmma.remove(0) {
            Wgmma::Commit => left -= 1,
            Wgmma::Issued { pc, a, b, scale_d, rows } => {
                let program = ctx.grid.program;
                execute(ctx, &program.code[pc as usize], a, b, scale_d, &rows);
                if ctx.fault.is_some() {
                    return;
                }
            }
        }
    }
    ctx.warp.owned.wait(op.imm as usize);
}

/// The warp's 16 rows of a wgmma.
fn execute(ctx: &mut Ctx<'_>, op: &Op, a: u64, b: u64, scale_d: bool, registers: &[[u8; 32]]) {
    let (element, depth, half) = (element_of(op.aux), (op.aux >> 8 & 0xff) as usize, op.aux >> 16 & 1 == 1);
    let columns = (op.imm & 0xffff) as usize;
    let bit = |at: u32| op.imm >> at & 1 == 1;
    let from_registers = bit(20);
    for descriptor in if from_registers { vec![b] } else { vec![a, b] } {
        if unused_bits(descriptor) != 0 {
            let message =
                format!("matrix descriptor {descriptor:#018x} has bits set that Hopper does not define");
            return ctx.fail(op, Kind::Wgmma, None, message);
        }
    }

    let mut a_panel = [0f32; 16 * 32];
    if from_registers {
        for (row, out) in registers.iter().zip(a_panel.chunks_exact_mut(depth)) {
            panel::decode(element, row, out);
        }
    } else {
        let first = ctx.warp.id % 4 * 16;
        let major = if bit(18) { Major::Mn } else { Major::K };
        let tile = Tile { descriptor: Descriptor::decode(a), major, element, first, count: 16 };
        if tile.note(ctx, op).is_none() {
            return;
        }
        tile.gather(ctx, &mut a_panel, false);
    }
    if bit(16) {
        a_panel.iter_mut().for_each(|x| *x = -*x);
    }

    let b_type = element_of(op.aux >> 24);
    let major = if bit(19) { Major::Mn } else { Major::K };
    let key = (b, op.aux, op.imm);
    let descriptor = Descriptor::decode(b);
    let tile = Tile { descriptor, major, element: b_type, first: 0, count: columns as u32 };
    let version = ctx.block.progress;
    let mut panels = std::mem::take(&mut ctx.block.panels);
    if panels.version != version {
        panels.kept.clear();
        panels.version = version;
    }
    let kept = panels.kept.iter().position(|(k, _)| *k == key);
    // All warps decode the same, but each reads the tile for itself, which is what the checks go by.
    if (kept.is_none() || ctx.grid.settings.checks) && tile.note(ctx, op).is_none() {
        return;
    }
    let at = kept.unwrap_or_else(|| {
        let mut panel = vec![0f32; depth * columns];
        tile.gather(ctx, &mut panel, true);
        if bit(17) {
            panel.iter_mut().for_each(|x| *x = -*x);
        }
        if panels.kept.len() >= PANELS {
            panels.kept.remove(0);
        }
        panels.kept.push((key, panel));
        panels.kept.len() - 1
    });
    let mut acc = std::mem::take(&mut panels.accumulator);
    acc.resize(16 * columns, 0.0);
    let cells = &op.list[..op.writes as usize];
    if scale_d {
        // Lowering counted the cells: they fill every element.
        accumulators(ctx, cells, columns, half, &mut acc);
    } else {
        acc.fill(0.0);
    }
    multiply(ctx, element, &a_panel[..16 * depth], &panels.kept[at].1, &mut acc, columns, depth);
    scatter(ctx, cells, columns, half, &acc);
    panels.accumulator = acc;
    ctx.block.panels = panels;
    count_flops(ctx.block, element, 2 * 16 * (columns * depth) as u64);
}

/// Right-hand sides decoded since shared memory last changed, and a buffer that is used again and again.
#[derive(Default)]
pub(super) struct Panels {
    version: u64,
    kept: Vec<((u64, u32, i64), Vec<f32>)>,
    accumulator: Vec<f32>,
}

/// One K step of an operand in shared memory.
struct Tile {
    descriptor: Descriptor,
    major: Major,
    element: Element,
    /// Rows (columns of B) from this one on …
    first: u32,
    /// … so many.
    count: u32,
}

impl Tile {
    /// Addresses of the two 16-byte chunks of a K-major row.
    #[inline(always)]
    fn row(&self, row: u32) -> [u32; 2] {
        let (size, half) = (self.element.size() as u32, self.element.per_step() as u32 / 2);
        let row = self.first + row;
        [self.descriptor.address(Major::K, size, row, 0), self.descriptor.address(Major::K, size, row, half)]
    }

    /// Address of the eight rows from `row` on at one k of an MN-major operand; only 16-bit types have it.
    #[inline(always)]
    fn eight(&self, row: u32, k: u32) -> u32 {
        self.descriptor.address(Major::Mn, self.element.size() as u32, self.first + row, k)
    }

    /// Checks all reads of the tile, in the name of the warp's asynchronous agent.
    fn note(&self, ctx: &mut Ctx<'_>, op: &Op) -> Option<()> {
        let agent = ASYNC + ctx.warp.id as usize;
        match self.major {
            Major::K => {
                for row in 0..self.count {
                    let [a, b] = self.row(row);
                    // Swizzles keep the chunks of a K step beside each other, in either order.
                    if a.abs_diff(b) == 16 {
                        note(ctx, op, agent, a.min(b), 32)?;
                    } else {
                        note(ctx, op, agent, a, 16)?;
                        note(ctx, op, agent, b, 16)?;
                    }
                }
            }
            Major::Mn => {
                for k in 0..self.element.per_step() as u32 {
                    for row in (0..self.count).step_by(8) {
                        note(ctx, op, agent, self.eight(row, k), 16)?;
                    }
                }
            }
        }
        Some(())
    }

    /// Decodes the tile to \[row\]\[k\], or to \[k\]\[row\] if `transposed`. It was noted before.
    fn gather(&self, ctx: &Ctx<'_>, out: &mut [f32], transposed: bool) {
        let (count, depth) = (self.count as usize, self.element.per_step());
        if self.major == Major::K {
            let mut rows = vec![[0u8; 32]; count];
            for (r, row) in rows.iter_mut().enumerate() {
                let [a, b] = self.row(r as u32);
                let halves = row.as_chunks_mut::<16>().0;
                (halves[0], halves[1]) = (chunk(ctx, a), chunk(ctx, b));
            }
            if transposed {
                panel::decode_transposed(self.element, &rows, out, count);
            } else {
                for (row, out) in rows.iter().zip(out.chunks_exact_mut(depth)) {
                    panel::decode(self.element, row, out);
                }
            }
            return;
        }
        for k in 0..depth {
            for first in (0..count).step_by(8) {
                let mut eight = [0f32; 8];
                panel::decode(self.element, &chunk(ctx, self.eight(first as u32, k as u32)), &mut eight);
                for (i, value) in eight.iter().enumerate() {
                    let row = first + i;
                    out[if transposed { k * count + row } else { row * depth + k }] = *value;
                }
            }
        }
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
