//! mbarriers, cp.async, bulk and tensor copies as a warp executes them.

use super::barrier::converged;
use super::op::{Ctx, NONE, Op, Signal};
use super::pending::{Class, Entry, Work, complete_at};
use crate::check::Kind;
use crate::tensor::tensor_map::TensorMap;

/// The named barrier that stands for `barrier.cluster`.
pub(super) const CLUSTER_BARRIER: u32 = 15;

/// Bytes of a tensor map.
const MAP_BYTES: usize = 128;
/// Alignment that tensor copies want of shared memory.
const BOX_ALIGN: u32 = 128;

/// The active lanes, lowest first.
fn lanes(active: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |l| active >> l & 1 == 1)
}

/// The shared address in cell `a` plus `imm`, checked to hold an mbarrier's 8 bytes.
unsafe fn barrier_address(ctx: &mut Ctx<'_>, op: &Op, lane: usize) -> Option<u32> {
    // SAFETY: Exec's contract: a 32-bit cell.
    let address = unsafe { ctx.cell::<u32>(op.a)[lane] }.wrapping_add(op.imm as u32);
    if address % 8 != 0 || !ctx.block.shared.contains(address, 8) {
        let message =
            format!("no mbarrier can be at {address:#x}: outside shared memory or not 8-byte aligned");
        ctx.fail(op, Kind::Mbarrier, Some(lane as u32), message);
        return None;
    }
    Some(address)
}

/// Reports a refusal of the mbarrier table.
fn settle<T>(ctx: &mut Ctx<'_>, op: &Op, lane: usize, result: Result<T, String>) -> Option<T> {
    result.map_err(|message| ctx.fail(op, Kind::Mbarrier, Some(lane as u32), message)).ok()
}

/// mbarrier.init [a], b.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn mbarrier_init(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    for l in lanes(active) {
        // SAFETY: Exec's contract.
        let (Some(address), count) = (unsafe { (barrier_address(ctx, op, l), ctx.cell::<u32>(op.b)[l]) })
        else {
            return;
        };
        let done = ctx.block.mbarriers.init(address, count, &ctx.warp.clock);
        if settle(ctx, op, l, done).is_none() {
            return;
        }
    }
    ctx.block.progress += 1;
}

/// mbarrier.inval [a].
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn mbarrier_inval(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    for l in lanes(active) {
        // SAFETY: Exec's contract.
        let Some(address) = (unsafe { barrier_address(ctx, op, l) }) else { return };
        let done = ctx.block.mbarriers.invalidate(address);
        if settle(ctx, op, l, done).is_none() {
            return;
        }
    }
}

/// mbarrier.expect_tx [a], b.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn mbarrier_expect(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    for l in lanes(active) {
        // SAFETY: Exec's contract.
        let (Some(address), bytes) = (unsafe { (barrier_address(ctx, op, l), ctx.cell::<u32>(op.b)[l]) })
        else {
            return;
        };
        let done = ctx.block.mbarriers.get(address).and_then(|m| m.expect(bytes));
        if settle(ctx, op, l, done).is_none() {
            return;
        }
    }
}

/// mbarrier.complete_tx [a], b.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn mbarrier_complete(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    for l in lanes(active) {
        // SAFETY: Exec's contract.
        let (Some(address), bytes) = (unsafe { (barrier_address(ctx, op, l), ctx.cell::<u32>(op.b)[l]) })
        else {
            return;
        };
        let clock = ctx.warp.clock.clone();
        let done = ctx.block.mbarriers.get(address).and_then(|m| m.complete(bytes, &clock));
        if settle(ctx, op, l, done).is_none() {
            return;
        }
    }
    ctx.block.progress += 1;
}

/// A state token: the phase, and what was pending after the arrival.
fn token(phase: u64, pending: u32) -> u64 {
    phase << 20 | u64::from(pending)
}

/// mbarrier.pending_count of a token.
pub(super) fn pending_of_token(token: u64) -> u32 {
    (token & 0xf_ffff) as u32
}

/// mbarrier.arrive d, [a], b: b is the count, or with `aux` 1 the bytes to expect first.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn mbarrier_arrive(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    let mut tokens = [0u64; 32];
    for l in lanes(active) {
        // SAFETY: Exec's contract.
        let Some(address) = (unsafe { barrier_address(ctx, op, l) }) else { return };
        // SAFETY: as above.
        let value = if op.b == NONE { None } else { Some(unsafe { ctx.cell::<u32>(op.b)[l] }) };
        let (count, bytes) = if op.aux == 1 { (1, value.unwrap_or(0)) } else { (value.unwrap_or(1), 0) };
        let clock = &ctx.warp.clock;
        let done = ctx.block.mbarriers.get(address).and_then(|m| {
            m.expect(bytes)?;
            let phase = m.arrive(count, clock)?;
            Ok(token(phase, m.pending_count()))
        });
        match settle(ctx, op, l, done) {
            Some(token) => tokens[l] = token,
            None => return,
        }
    }
    ctx.warp.clock.tick(ctx.warp.id as usize);
    ctx.block.progress += 1;
    if op.d != NONE {
        // SAFETY: Exec's contract.
        unsafe { ctx.write(op.d, active, &tokens) };
    }
}

/// What a wait compares the phase with.
pub(super) trait Awaited: Copy {
    fn over(self, mbarrier: &super::mbarrier::Mbarrier) -> bool;
}

impl Awaited for u32 {
    fn over(self, mbarrier: &super::mbarrier::Mbarrier) -> bool {
        mbarrier.passed(self)
    }
}

impl Awaited for u64 {
    fn over(self, mbarrier: &super::mbarrier::Mbarrier) -> bool {
        mbarrier.phase > self >> 20
    }
}

/// mbarrier.test_wait, try_wait p, [a], b: a parity (32 bits) or a token (64 bits).
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn mbarrier_wait<W: Awaited>(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    let mut passed = 0u32;
    for l in lanes(active) {
        // SAFETY: Exec's contract.
        let (Some(address), awaited) = (unsafe { (barrier_address(ctx, op, l), ctx.cell::<W>(op.b)[l]) })
        else {
            return;
        };
        let mbarrier = ctx.block.mbarriers.get(address);
        let Some(mbarrier) = (match mbarrier {
            Ok(m) => Some(m),
            Err(message) => {
                ctx.fail(op, Kind::Mbarrier, Some(l as u32), message);
                None
            }
        }) else {
            return;
        };
        if awaited.over(mbarrier) {
            ctx.warp.clock.join(&mbarrier.released);
            passed |= 1 << l;
        }
    }
    ctx.set_pred(op.d, active, passed);
    if passed != active {
        ctx.signal = Signal::Yield;
    }
}

/// Puts a copy into the block's queue.
fn issue(ctx: &mut Ctx<'_>, op: &Op, class: Class, group: u32, work: Work) {
    let warp = ctx.warp.id;
    let clock = ctx.block.pending.stamp(warp, &ctx.warp.clock);
    let entry = Entry { warp, class, group, line: op.line, clock, work };
    if let Err(finding) = ctx.block.issue(ctx.grid, entry) {
        ctx.fault = Some(finding);
        ctx.signal = Signal::Fault;
    }
}

/// Completes this warp's copies of a class up to a group; what they wrote is then known to the warp.
fn wait(ctx: &mut Ctx<'_>, class: Class, below: u32) {
    while let Some(at) = ctx.block.pending.due(ctx.warp.id, class, below) {
        match complete_at(ctx.grid, ctx.block, at) {
            Ok(clock) => ctx.warp.clock.join(&clock),
            Err(finding) => {
                ctx.fault = Some(finding);
                ctx.signal = Signal::Fault;
                return;
            }
        }
    }
    // Copies that completed earlier, too.
    let done = ctx.block.pending.stamp_of(ctx.warp.id, class, below);
    ctx.warp.clock.join(&done);
}

/// cp.async [b + list 0], [a + imm], `aux` bytes; of which c come from memory, none if the predicate is set.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn cp_async(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    // SAFETY: Exec's contract.
    let (global, shared, offset) =
        unsafe { (*ctx.cell::<u64>(op.a), *ctx.cell::<u32>(op.b), ctx.cell::<u32>(op.list[0])[0]) };
    // SAFETY: as above.
    let count = if op.c == NONE { [op.aux; 32] } else { unsafe { *ctx.cell::<u32>(op.c) } };
    let ignored = if op.pred == NONE { 0 } else { ctx.pred(op.pred) };
    let mut moves = Vec::with_capacity(active.count_ones() as usize);
    for l in lanes(active) {
        let (from, to) = (global[l].wrapping_add(op.imm as u64), shared[l].wrapping_add(offset));
        if from % u64::from(op.aux) != 0 || to % op.aux != 0 {
            let message = format!("cp.async from {from:#x} to {to:#x}: not aligned to its {} bytes", op.aux);
            return ctx.fail(op, Kind::Misaligned, Some(l as u32), message);
        }
        if count[l] > op.aux {
            let message = format!("cp.async of {} bytes reads {}", op.aux, count[l]);
            return ctx.fail(op, Kind::BulkCopy, Some(l as u32), message);
        }
        moves.push((to, from, if ignored >> l & 1 == 1 { 0 } else { count[l] }));
    }
    let group = ctx.warp.cp_group;
    issue(ctx, op, Class::Cp, group, Work::Cp { lanes: moves, size: op.aux });
}

/// cp.async.commit_group.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn cp_commit(ctx: &mut Ctx<'_>, _: &Op, _: u32) {
    ctx.warp.cp_group += 1;
}

/// cp.async.wait_group `imm`, or wait_all with `aux` 1.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn cp_wait(ctx: &mut Ctx<'_>, op: &Op, _: u32) {
    let below = if op.aux == 1 { u32::MAX } else { ctx.warp.cp_group.saturating_sub(op.imm as u32) };
    wait(ctx, Class::Cp, below);
}

/// cp.async.mbarrier.arrive [a]: an arrival a lane once its earlier cp.async are done.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn cp_arrive(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    for l in lanes(active) {
        // SAFETY: Exec's contract.
        let Some(address) = (unsafe { barrier_address(ctx, op, l) }) else { return };
        let there = ctx.block.mbarriers.get(address).map(|m| {
            if op.aux == 0 {
                m.grow(1);
            }
        });
        if settle(ctx, op, l, there).is_none() {
            return;
        }
        let group = ctx.warp.cp_group;
        issue(ctx, op, Class::Cp, group, Work::CpArrive { mbarrier: address, lanes: 1 });
    }
}

/// Checks the operands of a bulk copy.
fn bulk_fits(ctx: &mut Ctx<'_>, op: &Op, lane: usize, global: u64, shared: u32, bytes: u32) -> bool {
    if !global.is_multiple_of(16) || !shared.is_multiple_of(16) || !bytes.is_multiple_of(16) {
        let message = format!(
            "bulk copy of {bytes} bytes between {global:#x} and shared {shared:#x}: all three must be multiples of 16"
        );
        ctx.fail(op, Kind::BulkCopy, Some(lane as u32), message);
        return false;
    }
    true
}

/// cp.async.bulk [b + list 1], [a + imm], list 0, [c + list 2].
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn bulk_load(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    for l in lanes(active) {
        // SAFETY: Exec's contract.
        let (global, shared, mbarrier, bytes) = unsafe {
            (
                ctx.cell::<u64>(op.a)[l].wrapping_add(op.imm as u64),
                ctx.cell::<u32>(op.b)[l].wrapping_add(ctx.cell::<u32>(op.list[1])[0]),
                ctx.cell::<u32>(op.c)[l].wrapping_add(ctx.cell::<u32>(op.list[2])[0]),
                ctx.cell::<u32>(op.list[0])[l],
            )
        };
        if !bulk_fits(ctx, op, l, global, shared, bytes) {
            return;
        }
        issue(ctx, op, Class::Announced, 0, Work::BulkLoad { shared, global, bytes, mbarrier });
    }
}

/// cp.async.bulk [a + imm], [b + list 1], list 0.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn bulk_store(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    for l in lanes(active) {
        // SAFETY: Exec's contract.
        let (global, shared, bytes) = unsafe {
            (
                ctx.cell::<u64>(op.a)[l].wrapping_add(op.imm as u64),
                ctx.cell::<u32>(op.b)[l].wrapping_add(ctx.cell::<u32>(op.list[1])[0]),
                ctx.cell::<u32>(op.list[0])[l],
            )
        };
        if !bulk_fits(ctx, op, l, global, shared, bytes) {
            return;
        }
        let group = ctx.warp.bulk_group;
        issue(ctx, op, Class::Store, group, Work::BulkStore { shared, global, bytes });
    }
}

/// Reads the tensor map whose generic address is in cell `a` plus `imm`.
unsafe fn tensor_map(
    ctx: &mut Ctx<'_>,
    op: &Op,
    lane: usize,
    shared: u32,
) -> Option<(Box<TensorMap>, [i32; 5])> {
    // SAFETY: Exec's contract.
    let address = unsafe { ctx.cell::<u64>(op.a)[lane] }.wrapping_add(op.imm as u64);
    let arena = ctx.grid.memory.arena();
    let bytes: Option<[u8; MAP_BYTES]> = if address >> 56 == 3 {
        let offset = (address & 0xffff_ffff) as usize;
        ctx.grid.params.get(offset..offset + MAP_BYTES).and_then(|b| b.try_into().ok())
    } else if arena.is_live(address, MAP_BYTES as u64) {
        // SAFETY: the range lies in a live allocation of the arena.
        Some(unsafe { (address as *const [u8; MAP_BYTES]).read_unaligned() })
    } else {
        None
    };
    let map = bytes.as_ref().and_then(TensorMap::decode);
    let Some(map) = map.filter(|m| m.rank == op.aux && address % 64 == 0) else {
        let message = format!(
            "no {}-dimensional tensor map at {address:#x} (made by cuTensorMapEncodeTiled, 64-byte aligned)",
            op.aux
        );
        ctx.fail(op, Kind::TensorMap, Some(lane as u32), message);
        return None;
    };
    if !shared.is_multiple_of(BOX_ALIGN) {
        let message = format!("tensor copy with shared address {shared:#x}, not {BOX_ALIGN}-byte aligned");
        ctx.fail(op, Kind::TensorMap, Some(lane as u32), message);
        return None;
    }
    let mut coordinates = [0; 5];
    for (d, c) in coordinates.iter_mut().enumerate().take(op.aux as usize) {
        // SAFETY: Exec's contract: the first cells of the list are coordinates.
        *c = unsafe { ctx.cell::<i32>(op.list[d])[lane] };
    }
    Some((Box::new(map), coordinates))
}

/// cp.async.bulk.tensor [b + offset], [a + imm, {list}], [c + offset].
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn tensor_load(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    let rank = op.aux as usize;
    for l in lanes(active) {
        // SAFETY: Exec's contract.
        let (shared, mbarrier) = unsafe {
            (
                ctx.cell::<u32>(op.b)[l].wrapping_add(ctx.cell::<u32>(op.list[rank])[0]),
                ctx.cell::<u32>(op.c)[l].wrapping_add(ctx.cell::<u32>(op.list[rank + 1])[0]),
            )
        };
        // SAFETY: as above.
        let Some((map, coordinates)) = (unsafe { tensor_map(ctx, op, l, shared) }) else { return };
        issue(ctx, op, Class::Announced, 0, Work::TensorLoad { map, coordinates, shared, mbarrier });
    }
}

/// cp.async.bulk.tensor [a + imm, {list}], [b + offset].
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn tensor_store(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    let rank = op.aux as usize;
    for l in lanes(active) {
        // SAFETY: Exec's contract.
        let shared = unsafe { ctx.cell::<u32>(op.b)[l].wrapping_add(ctx.cell::<u32>(op.list[rank])[0]) };
        // SAFETY: as above.
        let Some((map, coordinates)) = (unsafe { tensor_map(ctx, op, l, shared) }) else { return };
        let group = ctx.warp.bulk_group;
        issue(ctx, op, Class::Store, group, Work::TensorStore { map, coordinates, shared });
    }
}

/// cp.async.bulk.commit_group.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn bulk_commit(ctx: &mut Ctx<'_>, _: &Op, _: u32) {
    ctx.warp.bulk_group += 1;
}

/// cp.async.bulk.wait_group `imm`; `.read` waits for no less here.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn bulk_wait(ctx: &mut Ctx<'_>, op: &Op, _: u32) {
    let below = ctx.warp.bulk_group.saturating_sub(op.imm as u32);
    wait(ctx, Class::Store, below);
}

/// setmaxnreg: the whole warp must be here; registers are not counted.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn setmaxnreg(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    converged(ctx, op, active, u32::MAX);
}

/// mapa d, a, b: an address in the shared memory of the cluster's block b, which must be this one.
///
/// # Safety
/// As [`super::op::Exec`]; `R` is the width of a and d.
pub(super) unsafe fn mapa<R: Copy>(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    // SAFETY: Exec's contract.
    let (a, rank) = unsafe { (*ctx.cell::<R>(op.a), *ctx.cell::<u32>(op.b)) };
    let own = ctx.block.cluster_rank;
    if let Some(l) = lanes(active).find(|&l| rank[l] != own) {
        let message =
            format!("shared memory of block {} of the cluster: only a block's own is supported", rank[l]);
        return ctx.fail(op, Kind::LaunchConfig, Some(l as u32), message);
    }
    // SAFETY: as above.
    unsafe { ctx.write(op.d, active, &a) };
}
