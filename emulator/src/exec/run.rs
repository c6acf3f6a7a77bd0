//! A warp's turn: groups of lanes chosen, their instructions executed, their ways parted and joined.

use super::block::BlockState;
use super::grid::Grid;
use super::op::{Ctx, Flow, NONE, Op, Signal};
use super::warp::{Group, Warp};
use crate::check::{Finding, Kind};

/// Turns of a group of lanes before lanes that wait behind it are run as well.
const MONOPOLY: u32 = 64;

/// How a warp's turn ended.
pub(super) enum Slice {
    Ended,
    /// Every group waits.
    Waits,
    /// The slice was used up.
    More,
}

impl Ctx<'_> {
    fn current(&mut self) -> Option<&mut Group> {
        self.warp.groups.first_mut()
    }

    /// Lanes that stand at this instruction.
    pub fn current_mask(&self) -> u32 {
        self.warp.groups.first().map_or(0, |g| g.mask)
    }

    /// The current group's ticket.
    pub fn ticket(&mut self) -> Option<u64> {
        self.current().and_then(|g| g.ticket)
    }

    /// Sets the current group's ticket.
    pub fn set_ticket(&mut self, ticket: Option<u64>) {
        if let Some(group) = self.current() {
            group.ticket = ticket;
        }
    }
}

/// Puts the group to run first and merges groups that stand at the same place. `false` if every group has yielded.
fn choose_group(warp: &mut Warp) -> bool {
    let groups = &mut warp.groups;
    if groups.len() > 1 {
        groups.sort_unstable_by_key(|g| (g.pc, g.ticket));
        groups.dedup_by(|later, kept| {
            let same = later.pc == kept.pc && later.ticket == kept.ticket;
            if same {
                kept.mask |= later.mask;
                // Whom it waited for has come: try again.
                kept.yielded = false;
            }
            same
        });
        if let Some(at) = groups.iter().position(|g| !g.yielded) {
            groups[..=at].rotate_right(1);
            return true;
        }
        return false;
    }
    groups.first().is_some_and(|g| !g.yielded)
}

/// Gives a warp a turn of `slice` instructions.
pub(super) fn run_warp(
    grid: &Grid<'_>,
    warp: &mut Warp,
    block: &mut BlockState,
    slice: u32,
) -> Result<Slice, Box<Finding>> {
    let code = &grid.program.code[..];
    for group in &mut warp.groups {
        group.yielded = false;
    }
    let mut left = slice;
    let mut ctx = Ctx { warp, block, grid, pc: 0, signal: Signal::None, fault: None };
    loop {
        if ctx.warp.alive == 0 {
            return Ok(Slice::Ended);
        }
        if !choose_group(ctx.warp) {
            // A pause waits for something outside the block.
            let paused = std::mem::take(&mut ctx.warp.paused);
            return Ok(if paused { Slice::More } else { Slice::Waits });
        }
        if left == 0 {
            if ctx.warp.groups.len() > 1 {
                ctx.warp.monopoly += 1;
                if ctx.warp.monopoly >= MONOPOLY {
                    // Fairness within the warp: the others get a slice before this group does again.
                    ctx.warp.monopoly = 0;
                    ctx.warp.groups[0].yielded = true;
                    left = slice;
                    continue;
                }
            }
            return Ok(Slice::More);
        }
        run_group(&mut ctx, code, &mut left);
        if let Some(fault) = ctx.fault.take() {
            return Err(fault);
        }
    }
}

/// What a group did in a turn, counted. Operations that all its lanes took part in are not counted one by one.
#[derive(Default)]
struct Tally {
    /// Operations, those that will be tried again included.
    used: u32,
    /// Those whose lanes are counted in `lanes`, or do not count.
    apart: u32,
    /// Those that will be tried again.
    retried: u32,
    lanes: u64,
    flops: u64,
}

impl Tally {
    /// The instruction at `pc` asks for something else to run; `lanes` if it was counted apart. Where to go on.
    #[cold]
    fn signalled(&mut self, ctx: &mut Ctx<'_>, pc: u32, lanes: Option<u64>) -> u32 {
        ctx.warp.groups[0].yielded = true;
        match std::mem::replace(&mut ctx.signal, Signal::None) {
            // It did not happen yet, so it does not count.
            Signal::Retry => {
                self.retried += 1;
                match lanes {
                    None => self.apart += 1,
                    Some(lanes) => self.lanes -= lanes,
                }
                return pc;
            }
            Signal::Pause => ctx.warp.paused = true,
            _ => {}
        }
        pc + 1
    }

    fn enter(&self, ctx: &mut Ctx<'_>, left: &mut u32, per_lane: u64) {
        *left -= self.used;
        let counters = &mut ctx.block.counters;
        counters.warp_instructions += u64::from(self.used - self.retried);
        counters.thread_instructions += u64::from(self.used - self.apart) * per_lane + self.lanes;
        counters.flops += self.flops;
    }
}

/// Runs the first group until it splits, meets another, waits or has used up the slice.
fn run_group(ctx: &mut Ctx<'_>, code: &[Op], left: &mut u32) {
    let Group { mut pc, mask, .. } = ctx.warp.groups[0];
    // The place where lanes that are ahead stand; passing it without stopping would miss the merge.
    let ahead = ctx.warp.groups[1..].iter().map(|g| g.pc).filter(|&p| p > pc).min().unwrap_or(u32::MAX);
    let per_lane = u64::from(mask.count_ones());
    let mut tally = Tally::default();
    while tally.used < *left {
        let op = &code[pc as usize];
        if op.stretch > 0 && ctx.warp.owned.is_empty() {
            let most = op.stretch.min(*left - tally.used).min(ahead - pc);
            let (mut done, mut work) = (0, 0);
            for op in &code[pc as usize..][..most as usize] {
                ctx.pc = pc + done;
                // SAFETY: the operation is the program's, the warp was made for it.
                unsafe { (op.run)(ctx, op, mask) };
                done += 1;
                work += u64::from(op.flops);
                if ctx.signal != Signal::None {
                    break;
                }
            }
            tally.used += done;
            tally.flops += work * per_lane;
            pc += done;
            if ctx.signal != Signal::None {
                pc = tally.signalled(ctx, pc - 1, None);
                break;
            }
        } else {
            let mut active = mask;
            if op.guard.reg != NONE {
                active &= ctx.warp.preds[op.guard.reg as usize] ^ op.guard.flip;
            }
            tally.used += 1;
            tally.apart += 1;
            if op.flow != Flow::Next {
                match jump(ctx, op, Group { pc, mask, ..ctx.warp.groups[0] }, active, ahead, &mut tally) {
                    Some(next) => pc = next,
                    None => return tally.enter(ctx, left, per_lane),
                }
                continue;
            }
            if active != 0 {
                let lanes = u64::from(active.count_ones());
                tally.lanes += lanes;
                tally.flops += u64::from(op.flops) * lanes;
                ctx.pc = pc;
                if !ctx.warp.owned.is_empty() && !op.tolerant {
                    super::wgmma::check_owned(ctx, op);
                }
                // SAFETY: as above.
                unsafe { (op.run)(ctx, op, active) };
                if ctx.signal != Signal::None {
                    pc = tally.signalled(ctx, pc, Some(lanes));
                    break;
                }
            }
            pc += 1;
        }
        if pc == ahead {
            break;
        }
    }
    ctx.warp.groups[0].pc = pc;
    tally.enter(ctx, left, per_lane);
}

/// Lets lanes `active` of the first group jump or end. Where the group goes on; `None` if others are to be chosen
/// from, with all groups where they belong.
fn jump(ctx: &mut Ctx<'_>, op: &Op, group: Group, active: u32, ahead: u32, tally: &mut Tally) -> Option<u32> {
    let Group { pc, mask, .. } = group;
    match op.flow {
        Flow::Next => return Some(pc + 1),
        Flow::Branch(target) => {
            tally.lanes += u64::from(mask.count_ones());
            if active == mask {
                let backward = target <= pc;
                if (backward || target < ahead) && !(backward && ctx.warp.groups.len() > 1) {
                    return Some(target);
                }
                ctx.warp.groups[0].pc = target;
            } else if active == 0 {
                if pc + 1 != ahead {
                    return Some(pc + 1);
                }
                ctx.warp.groups[0].pc = pc + 1;
            } else {
                ctx.block.counters.divergent_branches += 1;
                ctx.warp.groups[0] = Group { pc: pc + 1, mask: mask & !active, ..group };
                ctx.warp.groups.push(Group { pc: target, mask: active, yielded: false, ticket: None });
            }
        }
        Flow::Indexed => {
            // SAFETY: lowering made `a` a 32-bit cell.
            let index = unsafe { *ctx.cell::<u32>(op.a) };
            ctx.warp.groups[0] = Group { pc: pc + 1, mask: mask & !active, ..group };
            for l in (0..32).filter(|l| active >> l & 1 == 1) {
                let Some(&target) = op.list.get(index[l] as usize) else {
                    let n = op.list.len();
                    let message = format!("branch index {} of a table of {n}", index[l]);
                    ctx.fail(op, Kind::OutOfBounds, Some(l as u32), message);
                    break;
                };
                ctx.warp.groups.push(Group { pc: target, mask: 1 << l, yielded: false, ticket: None });
            }
            ctx.warp.groups.retain(|g| g.mask != 0);
            ctx.signal = Signal::None;
        }
        Flow::Exit => {
            tally.lanes += u64::from(active.count_ones());
            ctx.warp.alive &= !active;
            ctx.warp.groups[0] = Group { pc: pc + 1, mask: mask & !active, ..group };
            ctx.warp.groups.retain(|g| g.mask != 0);
        }
    }
    None
}
