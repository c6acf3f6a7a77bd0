//! Asynchronous copies: issued, and completed at once, as late as legal, or at random moments.
//!
//! Data moves when an entry completes, not when it is issued, so that a source overwritten or a destination read too
//! early shows in the result and in the race check. Memory is accessed in the name of the issuing warp's asynchronous
//! agent (see [`super::race`]) with what the warp knew when it issued the copy.

use super::block::{BlockState, Random};
use super::grid::Grid;
use super::race::{ASYNC, Clock, WARPS};
use super::shared::{BASE, Refusal, Who};
use crate::check::{Finding, Kind};
use crate::memory::State;
use crate::settings::{Schedule, Timing};
use crate::tensor::swizzle::{Swizzle, swizzle};
use crate::tensor::tensor_map::TensorMap;

/// What an entry does.
#[derive(Debug, Clone)]
pub(super) enum Work {
    /// cp.async of a warp: (shared, global) of each lane; `read` of `size` bytes come from memory, the rest are 0.
    Cp { lanes: Vec<(u32, u64, u32)>, size: u32 },
    /// cp.async.mbarrier.arrive: an arrival a lane once the warp's earlier cp.async are done.
    CpArrive { mbarrier: u32, lanes: u32 },
    /// Global to shared, announced to an mbarrier.
    BulkLoad { shared: u32, global: u64, bytes: u32, mbarrier: u32 },
    /// Shared to global.
    BulkStore { shared: u32, global: u64, bytes: u32 },
    /// A box of a tensor to shared memory, announced to an mbarrier.
    TensorLoad { map: Box<TensorMap>, coordinates: [i32; 5], shared: u32, mbarrier: u32 },
    /// A box of a tensor from shared memory.
    TensorStore { map: Box<TensorMap>, coordinates: [i32; 5], shared: u32 },
}

/// Which wait an entry belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// cp.async.wait_group.
    Cp,
    /// An mbarrier.
    Announced,
    /// cp.async.bulk.wait_group.
    Store,
}

/// An issued copy.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub warp: u32,
    pub class: Class,
    /// Commit group, for those that are waited for by group.
    pub group: u32,
    /// PTX line that issued it.
    pub line: u32,
    pub clock: Clock,
    pub work: Work,
}

/// A block's queue.
#[derive(Debug, Default)]
pub(super) struct Pending {
    queue: Vec<Entry>,
    /// Each warp's asynchronous agent's time.
    time: Vec<u32>,
}

impl Pending {
    pub fn clear(&mut self) {
        self.queue.clear();
        self.time.clear();
        self.time.resize(WARPS, 0);
    }

    /// The clock of an operation that `warp` issues now.
    pub fn stamp(&mut self, warp: u32, clock: &Clock) -> Clock {
        let agent = ASYNC + warp as usize;
        let mut stamped = clock.clone();
        self.time[warp as usize] += 1;
        stamped.set(agent, self.time[warp as usize]);
        stamped
    }

    /// What `warp` knows of its own asynchronous operations once all of a class below a group are done: everything
    /// but what is still queued.
    pub fn stamp_of(&self, warp: u32, class: Class, below: u32) -> Clock {
        let agent = ASYNC + warp as usize;
        let queued = self.queue.iter().filter(|e| e.warp == warp && (e.class != class || e.group >= below));
        let first = queued.map(|e| e.clock.of(agent)).min();
        let mut clock = Clock::default();
        clock.set(agent, first.map_or(self.time[warp as usize], |t| t - 1));
        clock
    }

    /// Whether a random schedule has something to complete.
    pub fn wants_random(&self, schedule: &Schedule) -> bool {
        !self.queue.is_empty() && (schedule.bulk == Timing::Random || schedule.cp_async == Timing::Random)
    }

    /// The entry to complete when nothing forces one: the oldest, or one that no older entry must precede.
    pub fn choose(&self, random: Option<&mut Random>) -> Option<usize> {
        let at = random.map_or(0, |r| r.below(self.queue.len()));
        let entry = self.queue.get(at)?;
        // Copies announced to an mbarrier may overtake each other, groups may not.
        Some(if entry.class == Class::Announced { at } else { self.first_of(entry.warp, entry.class) })
    }

    /// Copies of one warp and kind that wait groups count complete in order.
    fn first_of(&self, warp: u32, class: Class) -> usize {
        self.queue.iter().position(|e| e.warp == warp && e.class == class).unwrap_or(0)
    }

    /// Anything that a block must not leave behind: (warp, line, what).
    pub fn unfinished(&self) -> Option<(u32, u32, &'static str)> {
        let what = |work: &Work| match work {
            Work::Cp { .. } | Work::CpArrive { .. } => "cp.async",
            Work::BulkLoad { .. } | Work::TensorLoad { .. } => "a bulk copy into its shared memory",
            Work::BulkStore { .. } | Work::TensorStore { .. } => "a bulk copy out of its shared memory",
        };
        self.queue.first().map(|e| (e.warp, e.line, what(&e.work)))
    }

    pub fn describe(&self) -> impl Iterator<Item = String> + '_ {
        self.queue.iter().map(|e| format!("in flight: issued by warp {} at PTX line {}", e.warp, e.line))
    }

    /// The next entry of a class that `warp` must not leave beyond `below`.
    pub fn due(&self, warp: u32, class: Class, below: u32) -> Option<usize> {
        self.queue.iter().position(|e| e.warp == warp && e.class == class && e.group < below)
    }
}

impl BlockState {
    /// Issues a copy: it completes now or joins the queue, as the schedule has it.
    pub fn issue(&mut self, grid: &Grid<'_>, entry: Entry) -> Result<(), Box<Finding>> {
        let schedule = &grid.settings.schedule;
        let timing = if entry.class == Class::Cp { schedule.cp_async } else { schedule.bulk };
        self.progress += 1;
        let at_once = match timing {
            Timing::Eager => true,
            Timing::Lazy => false,
            Timing::Random => {
                self.random.below(2) == 0 && self.pending.due(entry.warp, entry.class, u32::MAX).is_none()
            }
        };
        if at_once {
            return complete(grid, self, &entry).map(|_| ());
        }
        self.pending.queue.push(entry);
        Ok(())
    }
}

/// Completes the entry at a place of the queue; returns the clock it completed with.
pub(super) fn complete_at(grid: &Grid<'_>, block: &mut BlockState, at: usize) -> Result<Clock, Box<Finding>> {
    let entry = block.pending.queue.remove(at);
    block.progress += 1;
    complete(grid, block, &entry)?;
    Ok(entry.clock)
}

fn complete(grid: &Grid<'_>, block: &mut BlockState, entry: &Entry) -> Result<(), Box<Finding>> {
    let mover = Mover { grid, entry };
    match &entry.work {
        Work::Cp { lanes, size } => {
            for &(shared, global, read) in lanes {
                mover.load(block, shared, Some(global), read)?;
                if read < *size {
                    mover.load(block, shared + read, None, size - read)?;
                }
            }
        }
        Work::CpArrive { mbarrier, lanes } => {
            let arrived = block.mbarriers.get(*mbarrier).and_then(|m| m.arrive(*lanes, &entry.clock));
            arrived.map_err(|e| mover.finding(block, Kind::Mbarrier, e))?;
        }
        Work::BulkLoad { shared, global, bytes, mbarrier } => {
            mover.load(block, *shared, Some(*global), *bytes)?;
            mover.announce(block, *mbarrier, *bytes)?;
        }
        Work::BulkStore { shared, global, bytes } => mover.store(block, *shared, *global, *bytes)?,
        Work::TensorLoad { map, coordinates, shared, mbarrier } => {
            let mut result = Ok(());
            let mut total = 0;
            let mut fill = [0u8; 16];
            map.fill(&mut fill);
            for_each_piece(map, coordinates, *shared, |at, global, bytes| {
                total += bytes;
                if result.is_ok() {
                    result = mover.load_filled(block, at, global, bytes, &fill);
                }
            });
            result?;
            mover.announce(block, *mbarrier, total)?;
        }
        Work::TensorStore { map, coordinates, shared } => {
            let mut result = Ok(());
            for_each_piece(map, coordinates, *shared, |at, global, bytes| {
                if let (Some(global), true) = (global, result.is_ok()) {
                    result = mover.store(block, at, global, bytes);
                }
            });
            result?;
        }
    }
    Ok(())
}

/// Calls `f(shared address, global address, bytes)` for the pieces of a box that stay together: whole runs, or what
/// lies within one 16-byte chunk where the map swizzles.
fn for_each_piece(
    map: &TensorMap,
    coordinates: &[i32; 5],
    shared: u32,
    mut f: impl FnMut(u32, Option<u64>, u32),
) {
    map.for_each_run(&coordinates[..map.rank as usize], |offset, global, bytes| {
        let mut done = 0;
        while done < bytes {
            let at = offset + done;
            let len = match map.swizzle {
                Swizzle::None => bytes - done,
                _ => (bytes - done).min(16 - at % 16),
            };
            f(swizzle(map.swizzle, shared + at as u32), global.map(|g| g + done), len as u32);
            done += len;
        }
    });
}

/// Moves bytes in an entry's name.
struct Mover<'a> {
    grid: &'a Grid<'a>,
    entry: &'a Entry,
}

impl Mover<'_> {
    fn who(&self) -> Who<'_> {
        let entry = self.entry;
        Who { agent: ASYNC + entry.warp as usize, clock: &entry.clock, line: entry.line }
    }

    fn finding(&self, block: &BlockState, kind: Kind, message: String) -> Box<Finding> {
        let place = self.grid.place(self.entry.line, block.index, self.entry.warp, None);
        Box::new(Finding { kind, message, place, details: Vec::new() })
    }

    fn refused(&self, block: &BlockState, refusal: Refusal, address: u32, bytes: u32) -> Box<Finding> {
        let (kind, message) = super::access::refusal(refusal, address, bytes, block.shared.len());
        self.finding(block, kind, message)
    }

    fn load(
        &self,
        block: &mut BlockState,
        shared: u32,
        global: Option<u64>,
        bytes: u32,
    ) -> Result<(), Box<Finding>> {
        self.load_filled(block, shared, global, bytes, &[0; 16])
    }

    /// Copies global to shared memory; without an address it becomes `fill`, over and over.
    fn load_filled(
        &self,
        block: &mut BlockState,
        shared: u32,
        global: Option<u64>,
        bytes: u32,
        fill: &[u8; 16],
    ) -> Result<(), Box<Finding>> {
        if bytes == 0 {
            return Ok(());
        }
        if let Err(refusal) = block.shared.note_write(self.who(), shared, bytes) {
            return Err(self.refused(block, refusal, shared, bytes));
        }
        let to = block.shared.host_mut().wrapping_add((shared - BASE) as usize);
        match global {
            Some(global) => {
                self.check_global(block, global, bytes, false)?;
                // SAFETY: both ranges were just checked to lie in the arena (or registered host memory) and in
                // shared memory.
                unsafe { std::ptr::copy_nonoverlapping(global as *const u8, to, bytes as usize) };
                block.counters.async_bytes += u64::from(bytes);
            }
            None => {
                for i in 0..bytes as usize {
                    // SAFETY: within the range checked above.
                    unsafe { *to.add(i) = fill[i % 16] };
                }
            }
        }
        Ok(())
    }

    fn store(
        &self,
        block: &mut BlockState,
        shared: u32,
        global: u64,
        bytes: u32,
    ) -> Result<(), Box<Finding>> {
        if bytes == 0 {
            return Ok(());
        }
        if let Err(refusal) = block.shared.note_read(self.who(), shared, bytes) {
            return Err(self.refused(block, refusal, shared, bytes));
        }
        self.check_global(block, global, bytes, true)?;
        let from = block.shared.host().wrapping_add((shared - BASE) as usize);
        // SAFETY: both ranges were just checked.
        unsafe { std::ptr::copy_nonoverlapping(from, global as *mut u8, bytes as usize) };
        block.counters.async_bytes += u64::from(bytes);
        Ok(())
    }

    fn check_global(
        &self,
        block: &mut BlockState,
        global: u64,
        bytes: u32,
        write: bool,
    ) -> Result<(), Box<Finding>> {
        let arena = self.grid.memory.arena();
        let len = u64::from(bytes);
        if !arena.contains(global) || !arena.contains(global + len - 1) {
            let reachable =
                self.grid.memory.host_range(global).is_some_and(|r| global + len <= r.start + r.len);
            if reachable {
                return Ok(());
            }
            let message = super::access::describe_global(self.grid.memory, global, len);
            return Err(self.finding(block, Kind::OutOfBounds, message));
        }
        if self.grid.settings.checks {
            let wanted = if write { None } else { arena.first_other(global, len, State::Valid) };
            let outside = if write && !arena.is_live(global, len) {
                Some((global, State::Unallocated))
            } else {
                wanted
            };
            if let Some((at, state)) = outside {
                let (kind, message) = super::access::bad_state(self.grid.memory, at, state, write);
                return Err(self.finding(block, kind, message));
            }
        }
        if write {
            arena.mark_valid(global, len);
        }
        if let Some(sectors) = &self.grid.sectors {
            let fresh = sectors.touch(global, len, write) * super::sectors::SECTOR;
            let counter = if write {
                &mut block.counters.dram_write_bytes
            } else {
                &mut block.counters.dram_read_bytes
            };
            *counter += fresh;
        }
        Ok(())
    }

    fn announce(&self, block: &mut BlockState, mbarrier: u32, bytes: u32) -> Result<(), Box<Finding>> {
        let done = block.mbarriers.get(mbarrier).and_then(|m| m.complete(bytes, &self.entry.clock));
        done.map_err(|e| self.finding(block, Kind::Mbarrier, e))
    }
}
