//! A launch: blocks spread over host threads, each keeping several in execution when they wait for each other.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::block::{Block, Random, Turn};
use super::op::Program;
use super::sectors::Sectors;
use super::warp::Shape;
use crate::check::{Finding, Kind, Place};
use crate::counters::Counters;
use crate::memory::Memory;
use crate::settings::Settings;

/// Shared memory a block may have at most (H100, `MAX_SHARED_MEMORY_PER_BLOCK_OPTIN`).
const MAX_SHARED: u32 = 232_448;
/// Blocks one thread keeps in execution at a time.
const RESIDENT: usize = 48;
/// Blocks of a shuffled order are at most this far from their place: hardware dispatches in order, too, within what
/// is resident.
const WINDOW: u64 = 24;

/// Dimensions of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster; all ones without.
    pub cluster: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub dynamic_shared: u32,
}

impl Launch {
    /// A one-dimensional launch without dynamic shared memory.
    pub fn linear(blocks: u32, threads: u32) -> Launch {
        Launch { grid: [blocks, 1, 1], block: [threads, 1, 1], cluster: [1, 1, 1], dynamic_shared: 0 }
    }
}

impl Launch {
    /// Blocks of the grid.
    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|&n| u64::from(n)).product()
    }

    /// Threads of a block.
    pub fn threads(&self) -> u64 {
        self.block.iter().map(|&n| u64::from(n)).product()
    }
}

/// What all blocks of a launch share.
pub(super) struct Grid<'a> {
    pub program: &'a Program,
    pub memory: &'a Memory,
    pub settings: &'a Settings,
    pub params: &'a [u8],
    pub sectors: Option<Sectors>,
}

impl Grid<'_> {
    /// The place of a finding.
    pub fn place(&self, line: u32, block: [u32; 3], warp: u32, lane: Option<u32>) -> Place {
        let debug = &self.program.debug;
        let text = debug.lines.get(line.saturating_sub(1) as usize).map_or("", |l| l.trim());
        let source = debug.sources.get(&line).map(|(file, line)| {
            (debug.files.get(file).cloned().unwrap_or_else(|| format!("file {file}")), *line)
        });
        Place {
            kernel: self.program.name.clone(),
            ptx_line: line,
            instruction: text.to_owned(),
            source,
            block,
            warp,
            lane,
        }
    }
}

impl Program {
    /// The kernel's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Parameters: (offset, bytes).
    pub fn params(&self) -> &[(u32, u32)] {
        &self.params
    }

    /// Bytes of the parameter block.
    pub fn param_bytes(&self) -> u32 {
        self.param_bytes
    }

    /// Bytes of static shared memory.
    pub fn shared_bytes(&self) -> u32 {
        self.shared_bytes
    }

    /// Bytes of local memory a thread.
    pub fn local_bytes(&self) -> u32 {
        self.local_bytes
    }

    /// `.maxntid` or `.reqntid`, multiplied out.
    pub fn max_threads(&self) -> Option<u32> {
        self.max_threads
    }

    /// Line of the entry in the PTX text.
    pub fn line(&self) -> u32 {
        self.line
    }

    fn check_launch(&self, launch: &Launch, params: &[u8]) -> Result<Shape, String> {
        let Launch { grid, block, dynamic_shared, .. } = *launch;
        let cluster =
            if launch.cluster == [1, 1, 1] { self.cluster.unwrap_or([1; 3]) } else { launch.cluster };
        let product = |n: [u32; 3]| n.iter().map(|&n| u64::from(n)).product::<u64>();
        if product(grid) == 0 || grid[0] > 0x7fff_ffff || grid[1] > 65535 || grid[2] > 65535 {
            return Err(format!(
                "grid {grid:?}, expected at least one block and at most 2^31 − 1, 65535, 65535"
            ));
        }
        if product(block) == 0 || product(block) > 1024 || block[2] > 64 {
            return Err(format!("block {block:?}, expected 1 to 1024 threads"));
        }
        let threads = product(block) as u32;
        if let Some(max) = self.max_threads.filter(|&max| threads > max) {
            return Err(format!("{threads} threads a block, but the kernel was built for at most {max}"));
        }
        if let Some(required) = self.threads_required.filter(|&r| r != block) {
            return Err(format!("block {block:?}, but the kernel requires {required:?}"));
        }
        let total = u64::from(self.shared_bytes) + u64::from(dynamic_shared);
        if total > u64::from(MAX_SHARED) {
            return Err(format!("{total} bytes of shared memory a block, at most {MAX_SHARED} are there"));
        }
        if params.len() < self.param_bytes as usize {
            return Err(format!(
                "{} bytes of parameters, the kernel takes {}",
                params.len(),
                self.param_bytes
            ));
        }
        if product(cluster) > 16 || (0..3).any(|d| grid[d] % cluster[d] != 0) {
            return Err(format!(
                "cluster {cluster:?} does not divide the grid {grid:?} or has over 16 blocks"
            ));
        }
        let total_shared = self.shared_bytes + dynamic_shared;
        Ok(Shape { grid, block, cluster, index: [0; 3], dynamic_shared, total_shared, sms: 132 })
    }

    /// Runs the kernel to its end. `params` is the parameter block, laid out as [`Program::params`] says.
    ///
    /// # Errors
    /// The first finding.
    pub fn launch(
        &self,
        launch: &Launch,
        params: &[u8],
        memory: &Memory,
        settings: &Settings,
    ) -> Result<Counters, Box<Finding>> {
        let shape = self.check_launch(launch, params).map_err(|message| {
            let place = Place { kernel: self.name.clone(), ..Place::default() };
            Box::new(Finding { kind: Kind::LaunchConfig, message, place, details: Vec::new() })
        })?;
        let sectors = settings.counters.then(|| Sectors::new(memory.arena())).flatten();
        let grid = Grid { program: self, memory, settings, params, sectors };
        let blocks = shape.grid.iter().map(|&n| u64::from(n)).product::<u64>();
        // A seed gives one run: with several threads the order of global accesses would be the machine's.
        let cores = if settings.schedule.shuffle {
            1
        } else if settings.threads == 0 {
            std::thread::available_parallelism().map_or(1, usize::from)
        } else {
            settings.threads
        };
        let run = Run {
            grid: &grid,
            shape,
            blocks,
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            outcome: Mutex::new((Counters::default(), None)),
        };
        let threads = (cores as u64).min(blocks);
        if threads <= 1 {
            run.work();
        } else {
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| run.work());
                }
            });
        }
        let (counters, finding) = run.outcome.into_inner().unwrap_or_else(|e| e.into_inner());
        match finding {
            Some(finding) => Err(finding),
            None => Ok(counters),
        }
    }
}

struct Run<'a> {
    grid: &'a Grid<'a>,
    shape: Shape,
    blocks: u64,
    next: AtomicU64,
    stop: AtomicBool,
    outcome: Mutex<(Counters, Option<Box<Finding>>)>,
}

impl Run<'_> {
    fn work(&self) {
        let mut running: VecDeque<Box<Block>> = VecDeque::new();
        let mut spare: Vec<Box<Block>> = Vec::new();
        let result = self.turns(&mut running, &mut spare);
        let mut counters = Counters::default();
        for block in running.iter().chain(&spare) {
            counters.add(&block.state.counters);
        }
        let mut outcome = self.outcome.lock().unwrap_or_else(|e| e.into_inner());
        outcome.0.add(&counters);
        if let Err(finding) = result {
            self.stop.store(true, Ordering::Relaxed);
            outcome.1.get_or_insert(finding);
        }
    }

    fn turns(
        &self,
        running: &mut VecDeque<Box<Block>>,
        spare: &mut Vec<Box<Block>>,
    ) -> Result<(), Box<Finding>> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let mut block = match running.pop_front() {
                Some(block) => block,
                None => match self.start(spare) {
                    Some(block) => block,
                    None => return Ok(()),
                },
            };
            match block.turn(self.grid) {
                Ok(Turn::Done) => spare.push(block),
                Ok(Turn::Ran) if block.idles() => {
                    // It spins on memory, so another block has to move: one of those here, or one not started yet.
                    running.push_back(block);
                    if running.len() < RESIDENT
                        && let Some(another) = self.start(spare)
                    {
                        running.push_front(another);
                    }
                }
                Ok(Turn::Ran) => running.push_front(block),
                Ok(Turn::Stuck) => {
                    let finding = block.stuck(self.grid, Kind::Deadlock);
                    running.push_front(block);
                    return Err(finding);
                }
                Err(finding) => {
                    running.push_front(block);
                    return Err(finding);
                }
            }
        }
    }

    fn start(&self, spare: &mut Vec<Box<Block>>) -> Option<Box<Block>> {
        let place = self.next.fetch_add(1, Ordering::Relaxed);
        if place >= self.blocks {
            return None;
        }
        let schedule = &self.grid.settings.schedule;
        let number = if schedule.shuffle { self.shuffled(place, schedule.seed) } else { place };
        let [x, y, _] = self.shape.grid.map(u64::from);
        let index = [number % x, number / x % y, number / (x * y)].map(|n| n as u32);
        let mut block = spare.pop().unwrap_or_else(|| Box::new(Block::new(self.grid, self.shape)));
        block.start(self.grid, index, Random(schedule.seed ^ number.wrapping_mul(0x9e37_79b9)).next());
        Some(block)
    }

    /// The block at a place of the shuffled order: windows of consecutive blocks, each permuted.
    fn shuffled(&self, place: u64, seed: u64) -> u64 {
        let first = place / WINDOW * WINDOW;
        let count = (self.blocks - first).min(WINDOW) as usize;
        let mut order: Vec<u64> = (0..count as u64).collect();
        let mut random = Random(seed ^ first);
        for i in (1..count).rev() {
            order.swap(i, random.below(i + 1));
        }
        first + order[(place - first) as usize]
    }
}
