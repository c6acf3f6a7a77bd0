//! From an instruction's addresses to host memory: windows, bounds, alignment, shadow, counters.

use super::access_checks::{bank_replays, check_global, check_shared, count_sectors};
use super::op::{Ctx, Op};
use super::shared::{BASE, Refusal};
use crate::check::Kind;
use crate::memory::{Memory, State};

/// Generic addresses of shared, local and parameter memory; device and host memory are what they are.
pub(super) const SHARED_WINDOW: u64 = 1 << 56;
pub(super) const LOCAL_WINDOW: u64 = 2 << 56;
pub(super) const PARAM_WINDOW: u64 = 3 << 56;

/// State spaces of an access, as const parameters.
pub(super) mod space {
    pub const GLOBAL: u8 = 0;
    pub const SHARED: u8 = 1;
    pub const LOCAL: u8 = 2;
    pub const GENERIC: u8 = 3;
}

/// Whether an access reads, writes or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Read,
    Write,
    /// Atomics: synchronise by themselves, so they do not race.
    Update,
}

/// Host addresses of 32 lanes.
pub(super) type Pointers = [*mut u8; 32];

/// An address register.
pub(super) trait AddressCell: Copy + Into<u64> {}
impl AddressCell for u32 {}
impl AddressCell for u64 {}

/// How the lanes' accesses lie to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pattern {
    /// All 32 lanes, side by side: the first pointer stands for all.
    Row,
    /// All 32 lanes at the same place: so it does here.
    Same,
    /// Each active lane where its pointer says.
    Scattered,
}

/// The accesses of an instruction.
pub(super) struct Access<'a> {
    pub active: u32,
    pub size: u32,
    pub mode: Mode,
    pub pattern: Pattern,
    pub address: &'a [u64; 32],
    /// Least and greatest address of an active lane.
    pub low: u64,
    pub high: u64,
}

/// Resolves the addresses in cell `a` plus `imm` for accesses of `size` bytes, a power of two; `None` after a finding.
///
/// # Safety
/// As [`super::op::Exec`]; `A` is the width of cell `a`.
#[inline(always)]
pub(super) unsafe fn resolve<A: AddressCell, const SPACE: u8>(
    ctx: &mut Ctx<'_>,
    op: &Op,
    active: u32,
    size: u32,
    mode: Mode,
    out: &mut Pointers,
) -> Option<Pattern> {
    // SAFETY: Exec's contract.
    let base = unsafe { *ctx.cell::<A>(op.a) };
    let mut address = [0u64; 32];
    for l in 0..32 {
        let base: u64 = base[l].into();
        address[l] = base.wrapping_add(op.imm as u64);
        if SPACE == space::SHARED {
            address[l] = u64::from(address[l] as u32);
        }
    }
    // Opaque, or else the compiler takes lane 0, which it knows, out of the vectors and computes with odd pieces.
    let first = std::hint::black_box(address[0]);
    let pattern = pattern(active, size, &address, first);
    let (low, high, bits) = match pattern {
        // A power of two that divides the size and the first divides all.
        Pattern::Row => (first, first.wrapping_add(31 * u64::from(size)), first),
        Pattern::Same => (first, first, first),
        Pattern::Scattered => {
            let (mut low, mut high, mut bits) = (u64::MAX, 0, 0);
            for l in 0..32 {
                let on = if active >> l & 1 == 1 { u64::MAX } else { 0 };
                low = low.min(address[l] | !on);
                high = high.max(address[l] & on);
                bits |= address[l] & on;
            }
            (low, high, bits)
        }
    };
    if bits & u64::from(size - 1) != 0 {
        misaligned(ctx, op, active, size, &address);
        return None;
    }
    let access = Access { active, size, mode, pattern, address: &address, low, high };
    let arena = ctx.grid.memory.arena();
    let in_arena = arena.contains(low) && arena.contains(high + u64::from(size) - 1) && high >= low;
    match SPACE {
        space::SHARED => shared(ctx, op, &access, out),
        // Lanes have local memories of their own.
        space::LOCAL => local(ctx, op, &access, out).then_some(Pattern::Scattered),
        _ if in_arena => global(ctx, op, &access, out),
        space::GENERIC if low >> 56 == 1 && high >> 56 == 1 => {
            let mut offsets = address;
            offsets.iter_mut().for_each(|a| *a &= 0xffff_ffff);
            shared(ctx, op, &Access { address: &offsets, ..access }, out)
        }
        _ => elsewhere(ctx, op, &access, out, SPACE == space::GENERIC),
    }
}

/// As [`resolve`], with a pointer for each lane.
///
/// # Safety
/// As [`resolve`].
#[inline(always)]
pub(super) unsafe fn resolve_each<A: AddressCell, const SPACE: u8>(
    ctx: &mut Ctx<'_>,
    op: &Op,
    active: u32,
    size: u32,
    mode: Mode,
    out: &mut Pointers,
) -> bool {
    // SAFETY: the caller's contract.
    let step = match unsafe { resolve::<A, SPACE>(ctx, op, active, size, mode, out) } {
        None => return false,
        Some(Pattern::Scattered) => return true,
        Some(Pattern::Same) => 0,
        Some(Pattern::Row) => size as usize,
    };
    for l in 1..32 {
        out[l] = out[0].wrapping_add(l * step);
    }
    true
}

#[cold]
fn misaligned(ctx: &mut Ctx<'_>, op: &Op, active: u32, size: u32, address: &[u64; 32]) {
    let lane =
        (0..32).find(|&l| active >> l & 1 == 1 && !address[l].is_multiple_of(u64::from(size))).unwrap_or(0);
    let message = format!("address {:#x} is not aligned to the {size} bytes of the access", address[lane]);
    ctx.fail(op, Kind::Misaligned, Some(lane as u32), message);
}

/// Whether the lanes' accesses lie side by side, or are all the same.
#[inline(always)]
fn pattern(active: u32, size: u32, address: &[u64; 32], first: u64) -> Pattern {
    if active != u32::MAX {
        return Pattern::Scattered;
    }
    let (mut apart, mut differ) = (0, 0);
    for l in 0..32 {
        apart |= address[l] ^ (first.wrapping_add(l as u64 * u64::from(size)));
        differ |= address[l] ^ first;
    }
    if apart == 0 {
        Pattern::Row
    } else if differ == 0 {
        Pattern::Same
    } else {
        Pattern::Scattered
    }
}

#[inline(never)]
fn global(ctx: &mut Ctx<'_>, op: &Op, access: &Access<'_>, out: &mut Pointers) -> Option<Pattern> {
    let Access { active, size, mode, pattern, address, .. } = *access;
    match pattern {
        Pattern::Row | Pattern::Same => out[0] = address[0] as *mut u8,
        Pattern::Scattered => (0..32).for_each(|l| out[l] = address[l] as *mut u8),
    }
    let lanes = u64::from(active.count_ones());
    let counters = &mut ctx.block.counters;
    counters.global_requests += 1;
    match mode {
        Mode::Write => counters.global_store_bytes += lanes * u64::from(size),
        _ => counters.global_load_bytes += lanes * u64::from(size),
    }
    if ctx.grid.settings.checks && !check_global(ctx, op, access) {
        return None;
    }
    if ctx.grid.sectors.is_some() {
        count_sectors(ctx, access);
    }
    Some(pattern)
}

#[inline(never)]
fn shared(ctx: &mut Ctx<'_>, op: &Op, access: &Access<'_>, out: &mut Pointers) -> Option<Pattern> {
    let Access { active, size, mode, pattern, address, .. } = *access;
    let (low, high) = (access.low as u32, access.high as u32);
    if !ctx.block.shared.contains(low, size) || !ctx.block.shared.contains(high, size) {
        let outside =
            |l: &usize| active >> l & 1 == 1 && !ctx.block.shared.contains(address[*l] as u32, size);
        let lane = (0..32usize).find(outside).unwrap_or(0);
        let (kind, message) =
            refusal(Refusal::OutOfBounds, address[lane] as u32, size, ctx.block.shared.len());
        ctx.fail(op, kind, Some(lane as u32), message);
        return None;
    }
    let shared = &mut ctx.block.shared;
    // Whoever reads does not write through these.
    let host = if mode == Mode::Read { shared.host().cast_mut() } else { shared.host_mut() };
    let of = |l: usize| host.wrapping_add((address[l] as u32).wrapping_sub(BASE) as usize);
    match pattern {
        Pattern::Row | Pattern::Same => out[0] = of(0),
        Pattern::Scattered => (0..32).for_each(|l| out[l] = of(l)),
    }
    ctx.block.counters.shared_requests += 1;
    if ctx.grid.settings.counters {
        ctx.block.counters.bank_replays += bank_replays(access);
    }
    (!ctx.grid.settings.checks || check_shared(ctx, op, access)).then_some(pattern)
}

fn local(ctx: &mut Ctx<'_>, op: &Op, access: &Access<'_>, out: &mut Pointers) -> bool {
    let Access { active, size, address, .. } = *access;
    let bytes = ctx.warp.local.len() as u64 / 32;
    let base = ctx.warp.local.as_mut_ptr();
    for l in 0..32usize {
        let offset = address[l] & 0xffff_ffff;
        if active >> l & 1 == 1 {
            if offset + u64::from(size) > bytes {
                let message = format!("local address {offset:#x} + {size} of {bytes} bytes");
                ctx.fail(op, Kind::OutOfBounds, Some(l as u32), message);
                return false;
            }
            out[l] = base.wrapping_add(l * bytes as usize + offset as usize);
        }
    }
    ctx.block.counters.local_bytes += u64::from(active.count_ones() * size);
    true
}

/// Lanes that go to different windows, to pinned host memory or nowhere.
#[cold]
fn elsewhere(
    ctx: &mut Ctx<'_>,
    op: &Op,
    access: &Access<'_>,
    out: &mut Pointers,
    generic: bool,
) -> Option<Pattern> {
    let Access { active, size, mode, address, .. } = *access;
    for l in 0..32usize {
        if active >> l & 1 == 0 {
            continue;
        }
        let (at, lane) = (address[l], 1 << l);
        let mut one = [std::ptr::null_mut(); 32];
        let arena = ctx.grid.memory.arena();
        let pattern = Pattern::Scattered;
        let alone = Access { active: lane, size, mode, pattern, address, low: at, high: at };
        let fine = if arena.contains(at) && arena.contains(at + u64::from(size) - 1) {
            global(ctx, op, &alone, &mut one).is_some()
        } else if generic && at >> 56 == 1 {
            let mut offsets = *address;
            offsets[l] &= 0xffff_ffff;
            shared(ctx, op, &Access { address: &offsets, ..alone }, &mut one).is_some()
        } else if generic && at >> 56 == 2 {
            local(ctx, op, &alone, &mut one)
        } else if generic && at >> 56 == 3 && mode == Mode::Read {
            let offset = (at & 0xffff_ffff) as usize;
            one[l] = ctx.grid.params.as_ptr().wrapping_add(offset).cast_mut();
            offset + size as usize <= ctx.grid.params.len()
        } else {
            let range = ctx.grid.memory.host_range(at);
            one[l] = at as *mut u8;
            range.is_some_and(|r| at + u64::from(size) <= r.start + r.len)
        };
        if !fine {
            if ctx.fault.is_none() {
                let message = describe_global(ctx.grid.memory, at, u64::from(size));
                ctx.fail(op, Kind::OutOfBounds, Some(l as u32), message);
            }
            return None;
        }
        out[l] = one[l];
    }
    Some(Pattern::Scattered)
}

/// What an address outside device memory is.
pub(super) fn describe_global(memory: &Memory, address: u64, len: u64) -> String {
    let near = memory
        .host_range(address)
        .map(|r| format!("; it runs over the end of the pinned host memory {:#x} + {}", r.start, r.len));
    let why = near.unwrap_or_else(|| "; it is neither device memory nor pinned host memory".to_owned());
    format!("global access to {address:#x} + {len}{why}")
}

/// Kind and words for a byte in the wrong state.
pub(super) fn bad_state(memory: &Memory, address: u64, state: State, write: bool) -> (Kind, String) {
    let what = if write { "write to" } else { "read of" };
    let around = memory.arena().allocation(address).map(|(a, freed)| {
        let offset = address - a.start;
        let state = if freed { ", freed" } else { "" };
        if offset < a.len {
            format!(" (byte {offset} of {}, {} bytes{state})", a.label, a.len)
        } else {
            format!(" ({} bytes past the end of {}, {} bytes{state})", offset - a.len, a.label, a.len)
        }
    });
    let around = around.unwrap_or_default();
    match state {
        State::Freed => (Kind::UseAfterFree, format!("{what} freed memory at {address:#x}{around}")),
        State::Uninitialised => {
            (Kind::Uninitialised, format!("{what} memory at {address:#x} that nobody wrote{around}"))
        }
        _ => (Kind::OutOfBounds, format!("{what} {address:#x}, outside every allocation{around}")),
    }
}

/// Kind and words for a refused access to shared memory.
pub(super) fn refusal(refusal: Refusal, address: u32, size: u32, len: u32) -> (Kind, String) {
    match refusal {
        Refusal::OutOfBounds => {
            let message = format!(
                "shared access to {address:#x} + {size}; the block has {BASE:#x} to {:#x}",
                BASE + len
            );
            (Kind::OutOfBounds, message)
        }
        Refusal::Uninitialised(at) => {
            (Kind::Uninitialised, format!("read of shared memory at {at:#x} that nobody wrote"))
        }
        Refusal::Race(earlier) => {
            let message = format!("shared memory at {:#x} was {}", BASE + earlier.offset, earlier.describe());
            (Kind::SharedRace, message)
        }
    }
}
