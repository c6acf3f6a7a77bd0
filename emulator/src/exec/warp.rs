//! A warp: registers, predicates, local memory, and where its lanes stand.

use super::op::{Fixed, Program};
use super::owned::Owned;
use super::race::Clock;
use crate::ptx::ast::Special;

/// Lanes that stand at the same instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Group {
    pub pc: u32,
    pub mask: u32,
    /// It failed a wait and lets the others run first.
    pub yielded: bool,
    /// Barrier phase a two-step instruction waits for (see `barrier`), or `None` if it has not arrived yet.
    pub ticket: Option<u64>,
}

/// 128 bytes: 32 lanes of 32 bits.
#[derive(Clone, Copy)]
#[repr(C, align(128))]
pub(super) struct Cell([u32; 32]);

/// A wgmma that has not been waited for, or a commit mark.
#[derive(Debug, Clone)]
pub(super) enum Wgmma {
    /// Not executed yet: operation, descriptors, A if it came from registers, and what the warp knew at issue.
    Issued {
        pc: u32,
        a: u64,
        b: u64,
        scale_d: bool,
        rows: Vec<[u8; 32]>,
        stamp: Box<Clock>,
    },
    /// Executed, at this time of the warp's asynchronous agent. Nobody may rely on it before the wait.
    Executed(u32),
    Commit,
}

impl Wgmma {
    pub fn is_issued(&self) -> bool {
        matches!(self, Wgmma::Issued { .. })
    }
}

/// One warp of a block.
pub(super) struct Warp {
    pub id: u32,
    cells: Vec<Cell>,
    pub preds: Vec<u32>,
    pub local: Vec<u8>,
    pub groups: Vec<Group>,
    /// Lanes that have not exited.
    pub alive: u32,
    /// cp.async groups committed so far, and the one being filled.
    pub cp_group: u32,
    /// Bulk-store groups committed so far.
    pub bulk_group: u32,
    pub wgmma: Vec<Wgmma>,
    /// Accumulators that unfinished wgmmas own; none almost always.
    pub owned: Owned,
    /// Arrivals at `bar.warp.sync`.
    pub warp_barrier: u32,
    pub clock: Clock,
    /// A group executed `nanosleep` in this turn.
    pub paused: bool,
    /// Slices the lowest group has had in a row while others waited.
    pub monopoly: u32,
}

impl Warp {
    pub fn new(program: &Program, shape: &Shape, id: u32) -> Warp {
        let mut warp = Warp {
            id,
            cells: vec![Cell([0; 32]); program.cells as usize],
            preds: vec![0; program.preds as usize],
            local: vec![0; program.local_bytes as usize * 32],
            groups: Vec::new(),
            alive: 0,
            cp_group: 0,
            bulk_group: 0,
            wgmma: Vec::new(),
            owned: Owned::default(),
            warp_barrier: 0,
            clock: Clock::default(),
            paused: false,
            monopoly: 0,
        };
        for (cell, fixed) in &program.fixed {
            match fixed {
                Fixed::Constant { bits, wide } => warp.set(*cell, *wide, &[*bits; 32]),
                Fixed::Special(special) if of_the_thread(*special) => {
                    let values = std::array::from_fn(|l| shape.value(*special, id, l as u32));
                    warp.set(*cell, false, &values);
                }
                Fixed::Special(_) => {}
            }
        }
        warp
    }

    /// First lane of cell 0.
    #[inline(always)]
    pub fn file(&self) -> *mut u32 {
        self.cells.as_ptr().cast::<u32>().cast_mut()
    }

    /// All cells as 32 lanes of f32.
    pub fn floats(&mut self) -> &mut [[f32; 32]] {
        let (first, count) = (self.cells.as_mut_ptr().cast::<[f32; 32]>(), self.cells.len());
        // SAFETY: a cell is 128 bytes without padding, any of which are an f32; the slice borrows the warp.
        unsafe { std::slice::from_raw_parts_mut(first, count) }
    }

    fn set(&mut self, cell: u32, wide: bool, values: &[u64; 32]) {
        if wide {
            for (half, shift) in [(0, 0), (1, 16)] {
                // A 64-bit register is 32 little-endian u64 over two cells: lanes 0 to 15, then 16 to 31.
                let words = &mut self.cells[cell as usize + half].0;
                for (pair, value) in words.chunks_exact_mut(2).zip(&values[shift..]) {
                    pair.copy_from_slice(&[*value as u32, (*value >> 32) as u32]);
                }
            }
        } else {
            let words = &mut self.cells[cell as usize].0;
            for (word, value) in words.iter_mut().zip(values) {
                *word = *value as u32;
            }
        }
    }

    /// Places the warp at the start of a block.
    pub fn start(&mut self, program: &Program, shape: &Shape) {
        let first = self.id * 32;
        let threads = shape.block.iter().product::<u32>();
        let lanes = threads.saturating_sub(first).min(32);
        self.alive = if lanes == 32 { u32::MAX } else { (1 << lanes) - 1 };
        self.groups.clear();
        self.groups.push(Group { pc: 0, mask: self.alive, yielded: false, ticket: None });
        self.preds.fill(0);
        (self.cp_group, self.bulk_group, self.warp_barrier, self.monopoly) = (0, 0, 0, 0);
        self.wgmma.clear();
        self.owned.clear();
        self.clock = Clock::default();
        for (cell, fixed) in &program.fixed {
            if let Fixed::Special(special) = fixed
                && !of_the_thread(*special)
            {
                self.set(*cell, special_is_wide(*special), &[shape.value(*special, self.id, 0); 32]);
            }
        }
    }
}

/// Whether a special register depends on the thread alone, so that it is the same in every block.
fn of_the_thread(special: Special) -> bool {
    use Special as S;
    matches!(
        special,
        S::Tid(_) | S::LaneId | S::LanemaskEq | S::LanemaskLt | S::LanemaskLe | S::LanemaskGe | S::LanemaskGt
    )
}

/// Whether a special register is read as 64 bits.
pub(super) fn special_is_wide(special: Special) -> bool {
    matches!(special, Special::Clock64 | Special::GlobalTimer | Special::GridId)
}

/// Dimensions of a launch and of one of its blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: [u32; 3],
    pub index: [u32; 3],
    pub dynamic_shared: u32,
    pub total_shared: u32,
    pub sms: u32,
}

impl Shape {
    fn value(&self, special: Special, warp: u32, lane: u32) -> u64 {
        let thread = warp * 32 + lane;
        let [x, y, _] = self.block;
        let tid = [thread % x, thread / x % y, thread / (x * y)];
        let linear = |i: [u32; 3], n: [u32; 3]| (i[2] * n[1] + i[1]) * n[0] + i[0];
        let within: [u32; 3] = std::array::from_fn(|d| self.index[d] % self.cluster[d]);
        let value = match special {
            Special::Tid(d) => tid[d as usize],
            Special::Ntid(d) => self.block[d as usize],
            Special::Ctaid(d) => self.index[d as usize],
            Special::Nctaid(d) => self.grid[d as usize],
            Special::LaneId => lane,
            Special::WarpId => warp,
            Special::NwarpId => self.block.iter().product::<u32>().div_ceil(32),
            Special::SmId => linear(self.index, self.grid) % self.sms,
            Special::NsmId => self.sms,
            Special::LanemaskEq => 1 << lane,
            Special::LanemaskLt => (1 << lane) - 1,
            Special::LanemaskLe => (1 << lane) | ((1 << lane) - 1),
            Special::LanemaskGe => !((1 << lane) - 1),
            Special::LanemaskGt => !((1 << lane) | ((1 << lane) - 1)),
            Special::DynamicSmemSize => self.dynamic_shared,
            Special::TotalSmemSize => self.total_shared,
            Special::ClusterId(d) => self.index[d as usize] / self.cluster[d as usize],
            Special::NclusterId(d) => self.grid[d as usize] / self.cluster[d as usize],
            Special::ClusterCtaid(d) => within[d as usize],
            Special::ClusterNctaid(d) => self.cluster[d as usize],
            Special::ClusterCtarank => linear(within, self.cluster),
            Special::ClusterNctarank => self.cluster.iter().product(),
            Special::IsExplicitCluster => u32::from(self.cluster != [1, 1, 1]),
            // Clocks are instructions of their own; the rest is 0.
            _ => 0,
        };
        u64::from(value)
    }
}
