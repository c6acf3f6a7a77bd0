//! What is checked and counted of the accesses that `access` resolved.

use super::access::{Access, Mode, Pattern, bad_state, refusal};
use super::op::{Ctx, Op};
use super::sectors::SECTOR;
use super::shared::Who;
use crate::memory::{Arena, State};

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

/// Checks accesses to global memory, and notes what is written. `false` after a finding.
pub(super) fn check_global(ctx: &mut Ctx<'_>, op: &Op, access: &Access<'_>) -> bool {
    let Access { size, mode, .. } = *access;
    if access.pattern == Pattern::Scattered {
        let shadow = ctx.grid.memory.arena();
        // SAFETY: `resolve` found all active lanes in the arena.
        let fine = unsafe {
            match size {
                1 => lanes_allowed::<u8>(shadow, access),
                2 => lanes_allowed::<u16>(shadow, access),
                4 => lanes_allowed::<u32>(shadow, access),
                8 => lanes_allowed::<u64>(shadow, access),
                16 => lanes_allowed::<u128>(shadow, access),
                _ => false,
            }
        };
        if fine {
            return true;
        }
    }
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

/// The states of as many bytes as an access has.
trait States: Copy + PartialEq {
    const VALID: Self;
    /// Whether all these bytes may be written.
    fn writable(self) -> bool;
}

macro_rules! states {
    ($($ty:ty)*) => {$(
        impl States for $ty {
            const VALID: $ty = <$ty>::MAX / 0xff * State::Valid as $ty;
            #[inline(always)]
            fn writable(self) -> bool {
                // As in `states_allow`.
                const ONES: $ty = <$ty>::MAX / 0xff;
                self.wrapping_add(ONES) & (ONES * 0xfe) == <$ty as States>::VALID
            }
        }
    )*};
}

states! { u8 u16 u32 u64 u128 }

/// Whether all lanes may do what they want to, each at a place of its own; what is written is valid then. Nothing has
/// happened if not.
///
/// # Safety
/// Each active lane's address is in the arena, as far as `W` has bytes.
#[inline(always)]
unsafe fn lanes_allowed<W: States>(arena: &Arena, access: &Access<'_>) -> bool {
    let shadow = arena.shadow(arena.base()).wrapping_sub(arena.base() as usize);
    let (write, mut fine, mut known) = (access.mode == Mode::Write, true, true);
    let places = || (0..32).filter(|l| access.active >> l & 1 == 1).map(|l| access.address[l] as usize);
    for at in places() {
        // SAFETY: the caller's contract; the shadow follows addresses one to one.
        let states = unsafe { shadow.wrapping_add(at).cast::<W>().read_unaligned() };
        known &= states == W::VALID;
        fine &= states.writable();
    }
    if write && fine && !known {
        for at in places() {
            // SAFETY: as above; several threads write the same value.
            unsafe { shadow.wrapping_add(at).cast::<W>().write_unaligned(W::VALID) };
        }
    }
    if write { fine } else { known }
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

/// Counts the sectors that accesses to global memory touch.
pub(super) fn count_sectors(ctx: &mut Ctx<'_>, access: &Access<'_>) {
    let Access { active, size, mode, pattern, address, low, high } = *access;
    let Some(sectors) = &ctx.grid.sectors else { return };
    let write = mode == Mode::Write;
    let touch = |at, len| {
        let fresh = sectors.touch(at, len, write);
        fresh + if mode == Mode::Update { sectors.touch(at, len, true) } else { 0 }
    };
    let (fresh, touched) = match pattern {
        Pattern::Row | Pattern::Same => {
            let len = high + u64::from(size) - low;
            (touch(low, len), (low + len - 1) / SECTOR - low / SECTOR + 1)
        }
        Pattern::Scattered => {
            // Aligned accesses lie in one sector, or fill some. Lanes go up mostly: neighbours are taken together, and
            // only if one comes below another are the sectors sorted to count them once.
            let (mut of_lane, mut n, mut ascending) = ([0u64; 32], 0, true);
            let (mut fresh, mut from, mut to) = (0, 0, 0u64);
            for l in (0..32).filter(|l| active >> l & 1 == 1) {
                let (first, last) = (address[l], address[l] + u64::from(size));
                of_lane[n] = first / SECTOR;
                if n > 0 && first >= from && first <= to.next_multiple_of(SECTOR) {
                    to = to.max(last);
                } else {
                    fresh += if n > 0 { touch(from, to - from) } else { 0 };
                    (from, to) = (first, last);
                }
                ascending &= n == 0 || of_lane[n] >= of_lane[n - 1];
                n += 1;
            }
            fresh += touch(from, to - from);
            let of_lane = &mut of_lane[..n];
            if !ascending {
                of_lane.sort_unstable();
            }
            let distinct = 1 + of_lane.windows(2).filter(|w| w[0] != w[1]).count() as u64;
            (fresh, distinct * u64::from(size).div_ceil(SECTOR))
        }
    };
    let counters = &mut ctx.block.counters;
    counters.global_sectors += touched;
    let bytes = if write { &mut counters.dram_write_bytes } else { &mut counters.dram_read_bytes };
    *bytes += fresh * SECTOR;
}

/// Checks (and notes) accesses to shared memory. `false` after a finding.
pub(super) fn check_shared(ctx: &mut Ctx<'_>, op: &Op, access: &Access<'_>) -> bool {
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
pub(super) fn bank_replays(access: &Access<'_>) -> u64 {
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
