//! Tensor-core instructions as a warp executes them: fragments gathered, multiplied, scattered.

use super::barrier::converged;
use super::block::BlockState;
use super::op::{Ctx, Op};
use super::race::ASYNC;
use super::shared::{BASE, Who};
use super::warp::Wgmma;
use crate::check::Kind;
use crate::num::Rounding;
use crate::num::small_float::{f16_to_f32, f32_to_f16};
use crate::settings::{Fp8Accumulation, Timing};
use crate::tensor::descriptor::{Descriptor, Major, unused_bits};
use crate::tensor::panel::{self, Element};
use crate::tensor::{fp8, fragment, gemm};

/// Decoded right-hand sides that are kept while shared memory does not change.
const PANELS: usize = 48;

/// Element type, depth and accumulator type of an instruction, in `Op::aux`.
pub(super) fn pack(element: Element, depth: u32, half: bool) -> u32 {
    element as u32 | depth << 8 | u32::from(half) << 16
}

fn element_of(code: u32) -> Element {
    match code & 0xff {
        x if x == Element::F16 as u32 => Element::F16,
        x if x == Element::Bf16 as u32 => Element::Bf16,
        x if x == Element::Tf32 as u32 => Element::Tf32,
        x if x == Element::E4m3 as u32 => Element::E4m3,
        _ => Element::E5m2,
    }
}

fn count_flops(block: &mut BlockState, element: Element, flops: u64) {
    let tensor = &mut block.counters.tensor;
    match element {
        Element::F16 => tensor.f16 += flops,
        Element::E4m3 | Element::E5m2 => tensor.fp8 += flops,
        _ => tensor.bf16 += flops,
    }
}

/// Reads 16 bytes of shared memory in the name of `agent`. `None` after a finding.
fn chunk(ctx: &mut Ctx<'_>, op: &Op, agent: usize, address: u32) -> Option<[u8; 16]> {
    let block = &mut *ctx.block;
    let clock = &ctx.warp.clock;
    if let Err(refusal) = block.shared.note_read(Who { agent, clock, line: op.line }, address, 16) {
        let (kind, message) = super::access::refusal(refusal, address, 16, block.shared.len());
        ctx.fail(op, kind, None, message);
        return None;
    }
    // SAFETY: `note_read` found the 16 bytes inside shared memory.
    Some(unsafe { block.shared.host().add((address - BASE) as usize).cast::<[u8; 16]>().read() })
}

/// list = 8×8 matrices of 16-bit elements; lane 8i + r gives the address of row r of matrix i.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn ldmatrix(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    if !converged(ctx, op, active, u32::MAX) {
        return;
    }
    // SAFETY: Exec's contract.
    let addresses = unsafe { *ctx.cell::<u32>(op.a) };
    for (matrix, &cell) in op.list.iter().enumerate() {
        let mut rows = [[0u16; 8]; 8];
        for (r, row) in rows.iter_mut().enumerate() {
            let address = addresses[matrix * 8 + r].wrapping_add(op.imm as u32);
            if address % 16 != 0 {
                let lane = Some((matrix * 8 + r) as u32);
                return ctx.fail(
                    op,
                    Kind::Misaligned,
                    lane,
                    format!("matrix row at {address:#x}, not 16-byte aligned"),
                );
            }
            let Some(bytes) = chunk(ctx, op, ctx.warp.id as usize, address) else { return };
            for (value, raw) in row.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = u16::from_le_bytes(*raw);
            }
        }
        let out = std::array::from_fn(|l| {
            let of = |slot| {
                let (r, c) = fragment::matrix8x8(l as u32, slot, op.aux == 1);
                u32::from(rows[r as usize][c as usize])
            };
            of(0) | of(1) << 16
        });
        // SAFETY: Exec's contract.
        unsafe { ctx.write(cell, active, &out) };
    }
    ctx.block.counters.shared_requests += op.list.len() as u64;
}

/// ldmatrix backwards.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn stmatrix(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    if !converged(ctx, op, active, u32::MAX) {
        return;
    }
    // SAFETY: Exec's contract.
    let addresses = unsafe { *ctx.cell::<u32>(op.a) };
    for (matrix, &cell) in op.list.iter().enumerate() {
        // SAFETY: Exec's contract.
        let values = unsafe { *ctx.cell::<u32>(cell) };
        let mut rows = [[0u16; 8]; 8];
        for (l, value) in values.iter().enumerate() {
            for slot in 0..2 {
                let (r, c) = fragment::matrix8x8(l as u32, slot, op.aux == 1);
                rows[r as usize][c as usize] = (value >> (16 * slot)) as u16;
            }
        }
        for (r, row) in rows.iter().enumerate() {
            let address = addresses[matrix * 8 + r].wrapping_add(op.imm as u32);
            let (warp, block) = (&*ctx.warp, &mut *ctx.block);
            let who = Who { agent: warp.id as usize, clock: &warp.clock, line: op.line };
            if address % 16 != 0 {
                let lane = Some((matrix * 8 + r) as u32);
                return ctx.fail(
                    op,
                    Kind::Misaligned,
                    lane,
                    format!("matrix row at {address:#x}, not 16-byte aligned"),
                );
            }
            if let Err(refusal) = block.shared.note_write(who, address, 16) {
                let (kind, message) = super::access::refusal(refusal, address, 16, block.shared.len());
                return ctx.fail(op, kind, None, message);
            }
            // SAFETY: `note_write` found the 16 bytes inside shared memory; the address is aligned.
            unsafe { block.shared.host().add((address - BASE) as usize).cast::<[u16; 8]>().write(*row) };
        }
    }
    ctx.block.progress += 1;
}

/// Gathers an accumulator from the cells of D or C: \[16\]\[columns\].
fn accumulators(ctx: &Ctx<'_>, cells: &[u32], columns: usize, half: bool, out: &mut [f32]) {
    if half {
        // A cell of two halves is two cells of one element each.
        let apart = |&cell| {
            // SAFETY: accumulators are 32-bit cells of the program.
            let raw = unsafe { ctx.cell::<u32>(cell) };
            [raw.map(|x| f16_to_f32(x as u16)), raw.map(|x| f16_to_f32((x >> 16) as u16))]
        };
        let elements: Vec<[f32; 32]> = cells.iter().flat_map(apart).collect();
        let registers: Vec<&[f32; 32]> = elements.iter().collect();
        return fragment::gather(&registers, columns, out);
    }
    // SAFETY: as above.
    let registers: Vec<&[f32; 32]> = cells.iter().map(|&cell| unsafe { ctx.cell::<f32>(cell) }).collect();
    fragment::gather(&registers, columns, out);
}

/// [`accumulators`] backwards.
fn scatter(ctx: &mut Ctx<'_>, cells: &[u32], columns: usize, half: bool, values: &[f32]) {
    if half {
        let mut elements = vec![[0f32; 32]; cells.len() * 2];
        let mut registers: Vec<&mut [f32; 32]> = elements.iter_mut().collect();
        fragment::scatter(values, columns, &mut registers);
        let round = |x| u32::from(f32_to_f16(x, Rounding::Nearest, false));
        for (&cell, [low, high]) in cells.iter().zip(elements.as_chunks::<2>().0) {
            // SAFETY: accumulators are 32-bit cells of the program.
            let out = unsafe { ctx.cell_mut::<u32>(cell) };
            *out = std::array::from_fn(|l| round(low[l]) | round(high[l]) << 16);
        }
        return;
    }
    let file = ctx.warp.file();
    // SAFETY: accumulators are distinct 32-bit cells of the program, in a file that is borrowed through the warp.
    let cell = |&cell: &u32| unsafe { &mut *file.add(cell as usize * 32).cast::<[f32; 32]>() };
    let mut registers: Vec<&mut [f32; 32]> = cells.iter().map(cell).collect();
    fragment::scatter(values, columns, &mut registers);
}

/// A fragment of A (16 rows) from registers, as the 32 bytes of a K step a row (fewer for short shapes).
fn a_rows(ctx: &Ctx<'_>, cells: &[u32], element: Element) -> [[u8; 32]; 16] {
    let mut rows = [[0u8; 32]; 16];
    for (register, &cell) in cells.iter().enumerate() {
        // SAFETY: fragments are 32-bit cells of the program.
        let values = unsafe { ctx.cell::<u32>(cell) };
        for (l, value) in values.iter().enumerate() {
            let bits = element.size() as u32 * 8;
            let (row, column) = fragment::mma_a(l as u32, register as u32, 0, bits);
            let at = column as usize * element.size();
            rows[row as usize][at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
    rows
}

fn multiply(ctx: &Ctx<'_>, element: Element, a: &[f32], b: &[f32], acc: &mut [f32], n: usize, k: usize) {
    match element {
        Element::E4m3 | Element::E5m2 if ctx.grid.settings.fp8 == Fp8Accumulation::Truncated => {
            fp8::multiply(Fp8Accumulation::Truncated, a, b, acc, 16, n, k);
        }
        _ => gemm::multiply(a, b, acc, 16, n, k),
    }
}

/// mma.sync m16n8kK: list is D, then A, B, C.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn mma(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    if !converged(ctx, op, active, u32::MAX) {
        return;
    }
    let (element, depth, half) = (element_of(op.aux), (op.aux >> 8 & 0xff) as usize, op.aux >> 16 & 1 == 1);
    let words = depth * element.size() / 4;
    let (d, rest) = op.list.split_at(op.writes as usize);
    let (a, rest) = rest.split_at(words / 2);
    let (b, c) = rest.split_at(words / 4);
    let rows = a_rows(ctx, a, element);
    let mut a_panel = [0f32; 16 * 32];
    for (row, out) in rows.iter().zip(a_panel.chunks_exact_mut(depth)) {
        panel::decode(element, &row[..words * 4], out);
    }
    let mut columns = [[0u8; 32]; 8];
    for (register, &cell) in b.iter().enumerate() {
        // SAFETY: Exec's contract.
        let values = unsafe { ctx.cell::<u32>(cell) };
        for (l, value) in values.iter().enumerate() {
            let (k, column) = fragment::mma_b(l as u32, register as u32, 0, element.size() as u32 * 8);
            let at = k as usize * element.size();
            columns[column as usize][at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
    let mut b_panel = [0f32; 32 * 8];
    panel::decode_transposed(element, &columns, &mut b_panel, 8);
    let mut acc = [0f32; 16 * 8];
    accumulators(ctx, c, 8, half, &mut acc);
    multiply(ctx, element, &a_panel[..16 * depth], &b_panel[..depth * 8], &mut acc, 8, depth);
    scatter(ctx, d, 8, half, &acc);
    count_flops(ctx.block, element, 2 * 16 * 8 * depth as u64);
}

/// wgmma.fence: the warp must be whole.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn wgmma_fence(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    converged(ctx, op, active, u32::MAX);
}

/// wgmma.mma_async: executed now, at its wait, or at either, as the schedule has it.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn wgmma_issue(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
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
        ctx.warp.owned.extend(&op.list[..op.writes as usize]);
        ctx.warp.owned.sort_unstable();
        ctx.warp.owned.dedup();
    }
}

/// wgmma.commit_group.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn wgmma_commit(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    if converged(ctx, op, active, u32::MAX) {
        ctx.warp.wgmma.push(Wgmma::Commit);
    }
}

/// wgmma.wait_group `imm`.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn wgmma_wait(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
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
    if op.imm == 0 && !ctx.warp.wgmma.iter().any(|w| w.is_issued()) {
        ctx.warp.owned.clear();
    }
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
        if gather(ctx, op, Descriptor::decode(a), major, element, first, 16, &mut a_panel, false).is_none() {
            return;
        }
    }
    if bit(16) {
        a_panel.iter_mut().for_each(|x| *x = -*x);
    }

    let b_type = element_of(op.aux >> 24);
    let major = if bit(19) { Major::Mn } else { Major::K };
    let key = (b, op.aux, op.imm);
    let version = ctx.block.progress;
    let mut panels = std::mem::take(&mut ctx.block.panels);
    if panels.version != version || ctx.grid.settings.checks {
        panels.kept.clear();
        panels.version = version;
    }
    let found = panels.kept.iter().position(|(k, _)| *k == key);
    let at = match found {
        Some(at) => at,
        None => {
            let mut panel = vec![0f32; depth * columns];
            let columns = columns as u32;
            if gather(ctx, op, Descriptor::decode(b), major, b_type, 0, columns, &mut panel, true).is_none() {
                return;
            }
            if bit(17) {
                panel.iter_mut().for_each(|x| *x = -*x);
            }
            if panels.kept.len() >= PANELS {
                panels.kept.remove(0);
            }
            panels.kept.push((key, panel));
            panels.kept.len() - 1
        }
    };
    let mut acc = std::mem::take(&mut panels.accumulator);
    acc.clear();
    acc.resize(16 * columns, 0.0);
    let cells = &op.list[..op.writes as usize];
    if scale_d {
        accumulators(ctx, cells, columns, half, &mut acc);
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

/// One K step of an operand in shared memory: `count` rows from `first` on, decoded to [row][k], or to [k][row] if
/// `transposed`.
#[allow(clippy::too_many_arguments, reason = "what a descriptor leaves open")]
fn gather(
    ctx: &mut Ctx<'_>,
    op: &Op,
    descriptor: Descriptor,
    major: Major,
    element: Element,
    first: u32,
    count: u32,
    out: &mut [f32],
    transposed: bool,
) -> Option<()> {
    let agent = ASYNC + ctx.warp.id as usize;
    let (size, depth) = (element.size() as u32, element.per_step() as u32);
    if major == Major::K {
        let mut rows = vec![[0u8; 32]; count as usize];
        for (r, row) in rows.iter_mut().enumerate() {
            for half in 0..2 {
                let address = descriptor.address(major, size, first + r as u32, half * depth / 2);
                let at = half as usize * 16;
                row[at..at + 16].copy_from_slice(&chunk(ctx, op, agent, address)?);
            }
        }
        if transposed {
            panel::decode_transposed(element, &rows, out, count as usize);
        } else {
            for (row, out) in rows.iter().zip(out.chunks_exact_mut(depth as usize)) {
                panel::decode(element, row, out);
            }
        }
        return Some(());
    }
    // MN-major: eight rows are side by side for each k; only 16-bit types have it.
    for k in 0..depth {
        for r in (0..count).step_by(8) {
            let address = descriptor.address(major, size, first + r, k);
            let mut eight = [0f32; 8];
            panel::decode(element, &chunk(ctx, op, agent, address)?, &mut eight);
            for (i, value) in eight.iter().enumerate() {
                let row = (r as usize) + i;
                let at = if transposed {
                    k as usize * count as usize + row
                } else {
                    row * depth as usize + k as usize
                };
                out[at] = *value;
            }
        }
    }
    Some(())
}

/// Fails if an operation touches the accumulators of an unfinished wgmma.
pub(super) fn check_owned(ctx: &mut Ctx<'_>, op: &Op) {
    let mut touched = None;
    for cell in [op.a, op.b, op.c].into_iter().chain(op.list.iter().copied()) {
        if ctx.warp.owned.binary_search(&cell).is_ok() {
            touched = Some(cell);
        }
    }
    if !op.d_pred && ctx.warp.owned.binary_search(&op.d).is_ok() {
        touched = Some(op.d);
    }
    if touched.is_some() {
        let message = "an accumulator of a wgmma is touched before wgmma.wait_group";
        ctx.fail(op, Kind::WgmmaAccumulator, None, message);
    }
}
