//! A block: its warps take turns until all have ended.

use super::barrier::Barrier;
use super::grid::Grid;
use super::mbarrier::Mbarriers;
use super::pending::Pending;
use super::run::{Slice, run_warp};
use super::shared::Shared;
use super::warp::{Shape, Warp};
use crate::check::{Finding, Kind};
use crate::counters::Counters;

/// Warp instructions of one turn.
const SLICE: u32 = 4096;
/// Rounds in which nothing changed before the block counts as stuck.
const STUCK_ROUNDS: u32 = 4;

/// What the warps of a block share.
pub(super) struct BlockState {
    pub index: [u32; 3],
    pub shared: Shared,
    pub barriers: [Barrier; 16],
    pub mbarriers: Mbarriers,
    pub pending: Pending,
    pub counters: Counters,
    pub live_warps: u32,
    /// Grows with everything that can end somebody's wait.
    pub progress: u64,
    pub random: Random,
    /// Right-hand sides of wgmma.
    pub panels: super::matrix::Panels,
    /// A buffer for wgmma's left-hand side.
    pub left: Vec<crate::tensor::warp_tile::Row>,
    pub cluster_rank: u32,
}

/// SplitMix64: seeds are any number, and a schedule is not cryptography.
#[derive(Debug, Clone)]
pub(super) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// How a turn of the whole block ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// All warps ended.
    Done,
    /// Something ran.
    Ran,
    /// Every warp waits for something that only the block itself could bring about.
    Stuck,
}

/// A block in execution.
pub(super) struct Block {
    pub warps: Vec<Warp>,
    pub state: BlockState,
    shape: Shape,
    quiet_rounds: u32,
    seen: u64,
    /// Warp instructions since the last progress.
    spun: u64,
}

impl Block {
    /// Makes a block for the program; [`Block::start`] places it.
    pub fn new(grid: &Grid<'_>, shape: Shape) -> Block {
        let warps = shape.block.iter().product::<u32>().div_ceil(32);
        Block {
            warps: (0..warps).map(|id| Warp::new(grid.program, &shape, id)).collect(),
            state: BlockState {
                index: shape.index,
                shared: Shared::new(shape.total_shared, grid.settings.checks),
                barriers: Default::default(),
                mbarriers: Mbarriers::default(),
                pending: Pending::default(),
                counters: Counters::default(),
                live_warps: warps,
                progress: 0,
                random: Random(0),
                panels: Default::default(),
                left: Vec::new(),
                cluster_rank: 0,
            },
            shape,
            quiet_rounds: 0,
            seen: 0,
            spun: 0,
        }
    }

    /// Places the block at an index of the grid.
    pub fn start(&mut self, grid: &Grid<'_>, index: [u32; 3], seed: u64) {
        self.shape.index = index;
        let state = &mut self.state;
        state.index = index;
        state.shared.reset();
        state.barriers = Default::default();
        state.mbarriers.clear();
        state.pending.clear();
        state.live_warps = self.warps.len() as u32;
        state.random = Random(seed);
        let [x, y, z] = std::array::from_fn(|d| index[d] % self.shape.cluster[d]);
        state.cluster_rank = (z * self.shape.cluster[1] + y) * self.shape.cluster[0] + x;
        state.counters.blocks += 1;
        state.counters.warps += u64::from(state.live_warps);
        for warp in &mut self.warps {
            warp.start(grid.program, &self.shape);
            warp.clock.tick(warp.id as usize);
        }
        (self.quiet_rounds, self.spun) = (0, 0);
    }

    /// Gives every warp a turn.
    pub fn turn(&mut self, grid: &Grid<'_>) -> Result<Turn, Box<Finding>> {
        let count = self.warps.len();
        let shuffle = grid.settings.schedule.shuffle;
        let first = if shuffle { self.state.random.below(count) } else { 0 };
        let before = self.state.counters.warp_instructions;
        let mut waits = true;
        for i in 0..count {
            let w = (first + i) % count;
            if self.warps[w].alive == 0 {
                continue;
            }
            if self.state.pending.wants_random(&grid.settings.schedule) && self.state.random.below(4) == 0 {
                self.complete_one(grid)?;
            }
            let slice = if shuffle { 1 + self.state.random.below(256) as u32 } else { SLICE };
            match run_warp(grid, &mut self.warps[w], &mut self.state, slice)? {
                Slice::Ended => {
                    self.state.live_warps -= 1;
                    self.state.progress += 1;
                    for barrier in &mut self.state.barriers {
                        barrier.after_exit(self.state.live_warps);
                    }
                    waits = false;
                }
                Slice::Waits => {}
                Slice::More => waits = false,
            }
        }
        if self.state.live_warps == 0 {
            self.end(grid)?;
            return Ok(Turn::Done);
        }
        if self.state.progress != self.seen {
            (self.seen, self.quiet_rounds, self.spun) = (self.state.progress, 0, 0);
            return Ok(Turn::Ran);
        }
        self.spun += self.state.counters.warp_instructions - before;
        if waits && self.complete_one(grid)? {
            return Ok(Turn::Ran);
        }
        if self.spun > grid.settings.spin_limit {
            return Err(self.stuck(grid, Kind::RunawaySpin));
        }
        self.quiet_rounds = if waits { self.quiet_rounds + 1 } else { 0 };
        Ok(if self.quiet_rounds >= STUCK_ROUNDS { Turn::Stuck } else { Turn::Ran })
    }

    /// Completes one asynchronous operation that nothing has forced yet. `false` if there is none.
    fn complete_one(&mut self, grid: &Grid<'_>) -> Result<bool, Box<Finding>> {
        let random = grid.settings.schedule.shuffle;
        let state = &mut self.state;
        let Some(at) = state.pending.choose(random.then_some(&mut state.random)) else { return Ok(false) };
        super::pending::complete_at(grid, state, at)?;
        Ok(true)
    }

    fn end(&mut self, grid: &Grid<'_>) -> Result<(), Box<Finding>> {
        match self.state.pending.unfinished() {
            None => Ok(()),
            Some((warp, line, what)) if grid.settings.checks => {
                let place = grid.place(line, self.state.index, warp, None);
                let message = format!("the block ended while {what} was still in flight; wait for it first");
                Err(Box::new(Finding { kind: Kind::ExitInFlight, message, place, details: Vec::new() }))
            }
            Some(_) => {
                while self.complete_one(grid)? {}
                Ok(())
            }
        }
    }

    /// Whether the block has been spinning for so long that others should run.
    pub fn idles(&self) -> bool {
        self.spun > u64::from(SLICE) * 4
    }

    /// The report of a block that cannot go on.
    pub fn stuck(&self, grid: &Grid<'_>, kind: Kind) -> Box<Finding> {
        let mut details = Vec::new();
        for warp in self.warps.iter().filter(|w| w.alive != 0) {
            for group in &warp.groups {
                let op = &grid.program.code[group.pc as usize];
                let place = grid.place(op.line, self.state.index, warp.id, None);
                let source = place.source.map(|(f, l)| format!(" ({f}:{l})")).unwrap_or_default();
                details.push(format!(
                    "warp {} lanes {:#010x}: PTX line {}{source}: {}",
                    warp.id, group.mask, op.line, place.instruction
                ));
            }
        }
        details.extend(self.state.mbarriers.describe());
        details.extend(self.state.pending.describe());
        for (id, barrier) in self.state.barriers.iter().enumerate().filter(|(_, b)| b.arrived > 0) {
            details.push(format!("barrier {id}: {} threads have arrived", barrier.arrived));
        }
        let first = self.warps.iter().find(|w| w.alive != 0);
        let group = first.and_then(|w| w.groups.first());
        let line = group.map_or(0, |g| grid.program.code[g.pc as usize].line);
        let place = grid.place(line, self.state.index, first.map_or(0, |w| w.id), None);
        let message = match kind {
            Kind::Deadlock => "no warp of any resident block can go on".to_owned(),
            _ => format!("{} warp instructions without getting past any wait", self.spun),
        };
        Box::new(Finding { kind, message, place, details })
    }
}
