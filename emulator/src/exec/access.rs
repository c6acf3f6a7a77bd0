//! From an instruction's addresses to host memory: windows, bounds, alignment, shadow, counters.

use super::op::{Ctx, Op};
use super::sectors::SECTOR;
use super::shared::{BASE, Refusal, Who};
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
struct Access<'a> {
    active: u32,
    size: u32,
    mode: Mode,
    pattern: Pattern,
    address: &'a [u64; 32],
    /// Least and greatest address of an active lane.
    low: u64,
    high: u64,
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
    let pattern = pattern(active, size, &address);
    let (mut low, mut high, mut bits) = (address[0], address[0], address[0]);
    match pattern {
        // Of a power of two that divides the first, it divides all.
        Pattern::Row => high = address[31],
        Pattern::Same => {}
        Pattern::Scattered => {
            (low, high, bits) = (u64::MAX, 0, 0);
            for l in 0..32 {
                let on = active >> l & 1 == 1;
                low = if on { low.min(address[l]) } else { low };
                high = if on { high.max(address[l]) } else { high };
                bits = if on { bits | address[l] } else { bits };
            }
        }
    }
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
fn pattern(active: u32, size: u32, address: &[u64; 32]) -> Pattern {
    if active != u32::MAX {
        return Pattern::Scattered;
    }
    let (mut apart, mut differ) = (0, 0);
    for l in 0..32 {
        apart |= address[l] ^ (address[0].wrapping_add(l as u64 * u64::from(size)));
        differ |= address[l] ^ address[0];
    }
    if apart == 0 {
        Pattern::Row
    } else if differ == 0 {
        Pattern::Same
    } else {
        Pattern::Scattered
    }
}

/// The accesses as few ranges: (first lane, address, bytes).
#[inline(always)]
fn ranges(access: &Access<'_>, mut f: impl FnMut(u32, u64, u64) -> bool) -> bool {
    let Access { active, size, pattern, address, .. } = *access;
    match pattern {
        Pattern::Row => f(0, address[0], u64::from(size) * 32),
        Pattern::Same => f(0, address[0], u64::from(size)),
        Pattern::Scattered => {
            for l in 0..32 {
                if active >> l & 1 == 1 && !f(l, address[l as usize], u64::from(size)) {
                    return false;
                }
            }
            true
        }
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

fn check_global(ctx: &mut Ctx<'_>, op: &Op, access: &Access<'_>) -> bool {
    let Access { size, mode, .. } = *access;
    let memory = ctx.grid.memory;
    let arena = memory.arena();
    ranges(access, |lane, at, len| {
        let shadow = arena.shadow(at);
        // SAFETY: `resolve` found first and last byte in the arena, so all between are in its shadow.
        let fine = unsafe { states_allow(shadow, len as usize, mode == Mode::Write) };
        if !fine {
            let wanted = |s: State| s == State::Valid || (mode == Mode::Write && s == State::Uninitialised);
            let found = (0..len).find_map(|i| {
                let (at, state) = arena.first_other(at + i, 1, State::Valid)?;
                (!wanted(state)).then_some((at, state))
            });
            let (first, state) = found.unwrap_or((at, State::Unallocated));
            let (kind, message) = bad_state(memory, first, state, mode == Mode::Write);
            let lane = if len > u64::from(size) { ((first - at) / u64::from(size)) as u32 } else { lane };
            ctx.fail(op, kind, Some(lane), message);
            return false;
        }
        if mode == Mode::Write {
            // SAFETY: as above; several threads write the same value.
            unsafe { std::ptr::write_bytes(shadow, State::Valid as u8, len as usize) };
        }
        true
    })
}

/// Whether `len` bytes may all be read (were written) or written (are allocated).
///
/// # Safety
/// `shadow` is the first of `len` shadow bytes.
#[inline(always)]
unsafe fn states_allow(shadow: *const u8, len: usize, write: bool) -> bool {
    const VALID: u32 = State::Valid as u32 * 0x0101_0101;
    // Adding one makes 2 and 3 of the two states that may be written, and nothing else of the others.
    const ONES: u32 = 0x0101_0101;
    let word_allows = |word: u32| {
        if write { word.wrapping_add(ONES) & 0xfefe_fefe == VALID } else { word == VALID }
    };
    let mut fine = true;
    for word in 0..len / 4 {
        // SAFETY: the caller's contract.
        fine &= word_allows(unsafe { shadow.add(word * 4).cast::<u32>().read_unaligned() });
    }
    for byte in len / 4 * 4..len {
        // SAFETY: as above.
        let state = unsafe { *shadow.add(byte) };
        fine &= if write { state == 1 || state == 2 } else { state == State::Valid as u8 };
    }
    fine
}

fn count_sectors(ctx: &mut Ctx<'_>, access: &Access<'_>) {
    let Access { active, size, mode, pattern, address, low, high } = *access;
    let Some(sectors) = &ctx.grid.sectors else { return };
    let write = mode == Mode::Write;
    let mut fresh = 0;
    ranges(access, |_, at, len| {
        fresh += sectors.touch(at, len, write);
        if mode == Mode::Update {
            fresh += sectors.touch(at, len, true);
        }
        true
    });
    let touched = match pattern {
        Pattern::Row | Pattern::Same => (high + u64::from(size) - 1) / SECTOR - low / SECTOR + 1,
        Pattern::Scattered => {
            let (mut of_lane, mut n, mut ascending) = ([0u64; 32], 0, true);
            for l in (0..32).filter(|l| active >> l & 1 == 1) {
                of_lane[n] = address[l] / SECTOR;
                ascending &= n == 0 || of_lane[n] >= of_lane[n - 1];
                n += 1;
            }
            let of_lane = &mut of_lane[..n];
            if !ascending {
                of_lane.sort_unstable();
            }
            let distinct = 1 + of_lane.windows(2).filter(|w| w[0] != w[1]).count() as u64;
            distinct * u64::from(size).div_ceil(SECTOR)
        }
    };
    let counters = &mut ctx.block.counters;
    counters.global_sectors += touched;
    let bytes = if write { &mut counters.dram_write_bytes } else { &mut counters.dram_read_bytes };
    *bytes += fresh * SECTOR;
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

fn check_shared(ctx: &mut Ctx<'_>, op: &Op, access: &Access<'_>) -> bool {
    let Access { size, mode, .. } = *access;
    let warp = &mut *ctx.warp;
    let block = &mut *ctx.block;
    let who = Who { agent: warp.id as usize, clock: &warp.clock, line: op.line };
    let mut failed = None;
    ranges(access, |lane, at, len| {
        let (at, len) = (at as u32, len as u32);
        let result = match mode {
            Mode::Read => block.shared.note_read(who, at, len),
            Mode::Write => block.shared.note_write(who, at, len),
            Mode::Update => block.shared.note_update(at, len),
        };
        result.map_err(|refusal| failed = Some((lane, at, len, refusal))).is_ok()
    });
    let Some((lane, at, len, why)) = failed else { return true };
    let (kind, message) = refusal(why, at, len.min(size), ctx.block.shared.len());
    ctx.fail(op, kind, Some(lane), message);
    false
}

/// Extra cycles: 32 banks of 4 bytes; 8-byte accesses go by half warps, 16-byte ones by quarters.
fn bank_replays(access: &Access<'_>) -> u64 {
    let Access { active, size, pattern, address, .. } = *access;
    // Neighbours are in different banks or the same word.
    if pattern != Pattern::Scattered {
        return 0;
    }
    let lanes_at_once = (32 / size.div_ceil(4)).max(8) as usize;
    let mut replays = 0;
    for group in 0..32 / lanes_at_once {
        let mut words = [[u64::MAX; 32]; 32];
        let mut depth = [0usize; 32];
        for l in group * lanes_at_once..(group + 1) * lanes_at_once {
            if active >> l & 1 == 0 {
                continue;
            }
            for word in address[l] / 4..(address[l] + u64::from(size)).div_ceil(4) {
                let bank = (word % 32) as usize;
                if depth[bank] < 32 && !words[bank][..depth[bank]].contains(&word) {
                    words[bank][depth[bank]] = word;
                    depth[bank] += 1;
                }
            }
        }
        replays += depth.iter().max().map_or(0, |d| d.saturating_sub(1)) as u64;
    }
    replays
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
