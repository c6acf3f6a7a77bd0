//! mma, ldmatrix and stmatrix as a warp executes them: fragments gathered, multiplied, scattered. What wgmma shares
//! with them is here, too.

use super::barrier::converged;
use super::block::BlockState;
use super::op::{Ctx, Op};
use super::shared::{BASE, Who};
use crate::check::Kind;
use crate::num::Rounding;
use crate::num::small_float::{f16_to_f32, f32_to_f16};
use crate::settings::Fp8Accumulation;
use crate::tensor::panel::{self, Element};
use crate::tensor::{fp8, fragment, gemm};

/// Element type, depth and accumulator type of an instruction, in `Op::aux`.
pub(super) fn pack(element: Element, depth: u32, half: bool) -> u32 {
    element as u32 | depth << 8 | u32::from(half) << 16
}

pub(super) fn element_of(code: u32) -> Element {
    match code & 0xff {
        x if x == Element::F16 as u32 => Element::F16,
        x if x == Element::Bf16 as u32 => Element::Bf16,
        x if x == Element::Tf32 as u32 => Element::Tf32,
        x if x == Element::E4m3 as u32 => Element::E4m3,
        _ => Element::E5m2,
    }
}

pub(super) fn count_flops(block: &mut BlockState, element: Element, flops: u64) {
    let tensor = &mut block.counters.tensor;
    match element {
        Element::F16 => tensor.f16 += flops,
        Element::E4m3 | Element::E5m2 => tensor.fp8 += flops,
        _ => tensor.bf16 += flops,
    }
}

/// Checks (and notes) a read of shared memory in the name of `agent`. `None` after a finding.
#[inline]
pub(super) fn note(ctx: &mut Ctx<'_>, op: &Op, agent: usize, address: u32, len: u32) -> Option<()> {
    let block = &mut *ctx.block;
    let clock = &ctx.warp.clock;
    if let Err(refusal) = block.shared.note_read(Who { agent, clock, line: op.line }, address, len) {
        let (kind, message) = super::access::refusal(refusal, address, len, block.shared.len());
        ctx.fail(op, kind, None, message);
        return None;
    }
    Some(())
}

/// Reads 16 bytes of shared memory that [`note`] found to be there.
#[inline(always)]
pub(super) fn chunk(ctx: &Ctx<'_>, address: u32) -> [u8; 16] {
    assert!(ctx.block.shared.contains(address, 16), "a chunk that was not noted");
    // SAFETY: just asserted.
    unsafe { ctx.block.shared.host().add((address - BASE) as usize).cast::<[u8; 16]>().read() }
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
            if note(ctx, op, ctx.warp.id as usize, address, 16).is_none() {
                return;
            }
            let bytes = chunk(ctx, address);
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
            unsafe { block.shared.host_mut().add((address - BASE) as usize).cast::<[u16; 8]>().write(*row) };
        }
    }
    ctx.block.progress += 1;
}

/// Gathers an accumulator from the cells of D or C: \[16\]\[columns\].
pub(super) fn accumulators(ctx: &Ctx<'_>, cells: &[u32], columns: usize, half: bool, out: &mut [f32]) {
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
pub(super) fn scatter(ctx: &mut Ctx<'_>, cells: &[u32], columns: usize, half: bool, values: &[f32]) {
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
pub(super) fn a_rows(ctx: &Ctx<'_>, cells: &[u32], element: Element) -> [[u8; 32]; 16] {
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

pub(super) fn multiply(
    ctx: &Ctx<'_>,
    element: Element,
    a: &[f32],
    b: &[f32],
    acc: &mut [f32],
    n: usize,
    k: usize,
) {
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
