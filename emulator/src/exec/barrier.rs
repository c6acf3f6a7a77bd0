//! `bar.sync` and its kin: sixteen named barriers of a block.
//!
//! Counted in threads of whole warps. A two-step instruction arrives when first executed, remembers the phase in its
//! group's ticket and is executed again until the phase is over.

use super::op::{Ctx, NONE, Op, Signal};
use super::race::Clock;
use crate::check::Kind;

/// One of a block's named barriers.
#[derive(Debug, Clone, Default)]
pub(super) struct Barrier {
    /// Completed phases.
    pub phase: u64,
    /// Threads that arrived in this phase.
    pub arrived: u32,
    /// Threads this phase waits for; 0 is every warp of the block that has not ended.
    pub expected: u32,
    /// What the arrivals knew, and what the last phase's arrivals knew.
    gathered: Clock,
    released: Clock,
    /// `bar.red`: votes of this phase (count, and, or) and the last one's.
    votes: (u32, bool, bool),
    result: (u32, bool, bool),
}

/// What a barrier instruction does (`Op::aux`).
pub(super) mod what {
    pub const SYNC: u32 = 0;
    pub const ARRIVE: u32 = 1;
    pub const POPC: u32 = 2;
    pub const AND: u32 = 3;
    pub const OR: u32 = 4;
}

impl Barrier {
    fn complete(&mut self) {
        self.phase += 1;
        self.arrived = 0;
        self.expected = 0;
        self.released = std::mem::take(&mut self.gathered);
        self.result = std::mem::replace(&mut self.votes, (0, true, false));
    }

    /// Ends the phase if a warp's exit made it complete. Returns whether it did.
    pub fn after_exit(&mut self, live_warps: u32) -> bool {
        let done = self.arrived > 0 && self.expected == 0 && self.arrived >= live_warps * 32;
        if done {
            self.complete();
        }
        done
    }
}

/// barrier `a` (cell), thread count `b` (cell or none), predicate `pred` for reductions, destination `d`.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn bar(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    if !converged(ctx, op, active, ctx.warp.alive) {
        return;
    }
    let lane = active.trailing_zeros() as usize;
    // SAFETY: Exec's contract.
    let id = unsafe { ctx.cell::<u32>(op.a)[lane] } as usize;
    // SAFETY: as above.
    let count = if op.b == NONE { 0 } else { unsafe { ctx.cell::<u32>(op.b)[lane] } };
    if id >= ctx.block.barriers.len() {
        return ctx.fail(op, Kind::Barrier, None, format!("barrier {id}; there are 16"));
    }
    if count % 32 != 0 {
        return ctx.fail(
            op,
            Kind::Barrier,
            None,
            format!("barrier count {count} is no multiple of the warp size"),
        );
    }
    let ticket = ctx.ticket();
    let live = ctx.block.live_warps;
    let barrier = &mut ctx.block.barriers[id];
    if let Some(phase) = ticket {
        if barrier.phase == phase {
            ctx.signal = Signal::Retry;
            return;
        }
        ctx.warp.clock.join(&barrier.released);
        let (popc, and, or) = barrier.result;
        ctx.set_ticket(None);
        match op.aux {
            // SAFETY: Exec's contract: `d` is a 32-bit cell for popc.
            what::POPC => unsafe { ctx.write::<u32>(op.d, active, &[popc; 32]) },
            what::AND => ctx.set_pred(op.d, active, if and { u32::MAX } else { 0 }),
            what::OR => ctx.set_pred(op.d, active, if or { u32::MAX } else { 0 }),
            _ => {}
        }
        return;
    }

    if barrier.arrived > 0 && barrier.expected != count {
        let (first, arrived) = (barrier.expected, barrier.arrived);
        let message =
            format!("barrier {id} used with counts {first} and {count} at once ({arrived} arrived)");
        return ctx.fail(op, Kind::Barrier, None, message);
    }
    barrier.expected = count;
    barrier.arrived += 32;
    barrier.gathered.join(&ctx.warp.clock);
    ctx.warp.clock.tick(ctx.warp.id as usize);
    if matches!(op.aux, what::POPC | what::AND | what::OR) {
        let votes = (ctx.warp.preds[op.pred as usize] ^ op.imm as u32) & active;
        let barrier = &mut ctx.block.barriers[id];
        barrier.votes.0 += votes.count_ones();
        barrier.votes.1 &= votes == active;
        barrier.votes.2 |= votes != 0;
    }
    let barrier = &mut ctx.block.barriers[id];
    let wanted = if count == 0 { live * 32 } else { count };
    let phase = barrier.phase;
    if barrier.arrived > wanted {
        let arrived = barrier.arrived;
        return ctx.fail(
            op,
            Kind::Barrier,
            None,
            format!("{arrived} threads at barrier {id}, expected {wanted}"),
        );
    }
    if barrier.arrived == wanted {
        barrier.complete();
    }
    ctx.block.progress += 1;
    ctx.block.counters.barriers += 1;
    if op.aux != what::ARRIVE {
        ctx.set_ticket(Some(phase));
        ctx.signal = Signal::Retry;
    }
}

/// Whether the active lanes are all that `wanted` asks for; otherwise they wait for the others to come here.
pub(super) fn converged(ctx: &mut Ctx<'_>, op: &Op, active: u32, wanted: u32) -> bool {
    let missing = wanted & ctx.warp.alive & !active;
    if missing == 0 {
        return true;
    }
    let somewhere = ctx.warp.groups.iter().any(|g| g.mask & missing != 0);
    if op.guard.reg != NONE && somewhere && ctx.current_mask() & missing != 0 {
        // Lanes that stand here but are guarded off will never come.
        let message = format!("lanes {missing:#010x} are named but do not execute this .sync instruction");
        ctx.fail(op, Kind::Convergence, Some(missing.trailing_zeros()), message);
        return false;
    }
    ctx.signal = Signal::Retry;
    false
}

/// `bar.warp.sync`: lanes of `a` meet, wherever they execute it.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn warp_sync(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    let lane = active.trailing_zeros() as usize;
    // SAFETY: Exec's contract.
    let wanted = unsafe { ctx.cell::<u32>(op.a)[lane] } & ctx.warp.alive;
    if let Some(_ticket) = ctx.ticket() {
        // Released when the warp's arrival mask lost this group's lanes.
        if ctx.warp.warp_barrier & active == 0 {
            ctx.set_ticket(None);
        } else {
            ctx.signal = Signal::Retry;
        }
        return;
    }
    if active & !wanted & ctx.warp.alive != 0 {
        let message = format!("lanes {active:#010x} at bar.warp.sync with mask {wanted:#010x}");
        return ctx.fail(op, Kind::Convergence, Some(lane as u32), message);
    }
    ctx.warp.warp_barrier |= active;
    if ctx.warp.warp_barrier & wanted == wanted {
        ctx.warp.warp_barrier &= !wanted;
        ctx.block.progress += 1;
    } else {
        ctx.set_ticket(Some(0));
        ctx.signal = Signal::Retry;
    }
}
