//! A lowered instruction, and what it runs on.

use std::sync::Arc;

use super::block::BlockState;
use super::grid::Grid;
use super::warp::Warp;
use crate::check::{Finding, Kind};

/// "No register."
pub(super) const NONE: u32 = u32::MAX;

/// Executes one instruction for the lanes in `active`.
///
/// # Safety
/// The operation's cells must be those that lowering gave it, in a warp whose register file has the program's size.
pub(super) type Exec = unsafe fn(&mut Ctx<'_>, &Op, u32);

/// How an instruction moves the program counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// To the next instruction.
    Next,
    /// Lanes of the guard go to the target, the others to the next instruction.
    Branch(u32),
    /// Lanes go where a table says, by the index in cell `a`; `list` holds the targets.
    Indexed,
    /// Lanes of the guard are done.
    Exit,
}

/// A guard predicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Guard {
    /// Predicate register, or [`NONE`].
    pub reg: u32,
    /// All ones to negate.
    pub flip: u32,
}

/// One instruction.
#[derive(Debug, Clone)]
pub(super) struct Op {
    pub run: Exec,
    pub flow: Flow,
    /// How many instructions from this one on only go to the next, without a guard, and issue no wgmma.
    pub stretch: u32,
    pub guard: Guard,
    /// Destination cell.
    pub d: u32,
    /// Source cells.
    pub a: u32,
    pub b: u32,
    pub c: u32,
    /// Further cells, in the instruction's own order.
    pub list: Box<[u32]>,
    /// An address offset or immediate.
    pub imm: i64,
    /// Small parameters of the instruction's own.
    pub aux: u32,
    /// A second predicate destination or source, or [`NONE`].
    pub pred: u32,
    /// A further predicate, or [`NONE`].
    pub second: u32,
    /// Floating-point operations a lane.
    pub flops: u8,
    /// Line of the PTX text.
    pub line: u32,
    /// How many of `list` are destinations; they come first.
    pub writes: u8,
    /// `d` is a predicate.
    pub d_pred: bool,
    /// May name accumulators of an unfinished wgmma.
    pub tolerant: bool,
    /// Adds to the destinations in `list`, so it reads them as well.
    pub adds: bool,
}

impl Op {
    /// Whether `d` is a predicate rather than a cell.
    pub fn d_is_pred(&self) -> bool {
        self.d_pred
    }
}

/// What an instruction asks of the loop that runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// Go on.
    None,
    /// The wait failed: let others run, then go on behind it.
    Yield,
    /// As `Yield`, but what is waited for may come from outside the block (`nanosleep`).
    Pause,
    /// Not now: let others run, then execute it again.
    Retry,
    /// A finding was recorded: stop.
    Fault,
}

/// What an instruction runs on.
pub(super) struct Ctx<'a> {
    pub warp: &'a mut Warp,
    pub block: &'a mut BlockState,
    pub grid: &'a Grid<'a>,
    /// Index of the instruction, for what must know it.
    pub pc: u32,
    pub signal: Signal,
    pub fault: Option<Box<Finding>>,
}

impl Ctx<'_> {
    /// The 32 lanes of a register.
    ///
    /// # Safety
    /// `cell` is a cell of the program, `R` as wide as lowering made it.
    #[inline(always)]
    pub unsafe fn cell<R>(&self, cell: u32) -> &[R; 32] {
        // SAFETY: the caller's contract; the file is aligned to 64 bytes and cells are 128 bytes.
        unsafe { &*self.warp.file().add(cell as usize * 32).cast::<[R; 32]>() }
    }

    /// The 32 lanes of a register, to be written.
    ///
    /// # Safety
    /// As [`Ctx::cell`].
    #[inline(always)]
    pub unsafe fn cell_mut<R>(&mut self, cell: u32) -> &mut [R; 32] {
        // SAFETY: the caller's contract; the file is borrowed exclusively through the warp.
        unsafe { &mut *self.warp.file().add(cell as usize * 32).cast::<[R; 32]>() }
    }

    /// Writes the active lanes of a register.
    ///
    /// # Safety
    /// As [`Ctx::cell`].
    #[inline(always)]
    pub unsafe fn write<R: Copy>(&mut self, cell: u32, active: u32, value: &[R; 32]) {
        // SAFETY: the caller's contract.
        let out = unsafe { self.cell_mut::<R>(cell) };
        if active == u32::MAX {
            *out = *value;
        } else {
            let mut merged = *out;
            for l in 0..32 {
                merged[l] = if active >> l & 1 == 1 { value[l] } else { merged[l] };
            }
            *out = merged;
        }
    }

    /// A predicate's lanes.
    #[inline(always)]
    pub fn pred(&self, reg: u32) -> u32 {
        self.warp.preds[reg as usize]
    }

    /// Writes the active lanes of a predicate.
    #[inline(always)]
    pub fn set_pred(&mut self, reg: u32, active: u32, mask: u32) {
        let old = &mut self.warp.preds[reg as usize];
        *old = *old & !active | mask & active;
    }

    /// Records a finding at this instruction and stops the launch.
    #[cold]
    pub fn fail(&mut self, op: &Op, kind: Kind, lane: Option<u32>, message: impl Into<String>) {
        if self.fault.is_none() {
            let place = self.grid.place(op.line, self.block.index, self.warp.id, lane);
            self.fault =
                Some(Box::new(Finding { kind, message: message.into(), place, details: Vec::new() }));
        }
        self.signal = Signal::Fault;
    }
}

/// Where a cell's first value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Fixed {
    /// The same value in every lane, 32 or 64 bits wide.
    Constant { bits: u64, wide: bool },
    /// A special register.
    Special(crate::ptx::ast::Special),
}

/// A kernel, lowered.
pub struct Program {
    /// Its name.
    pub(super) name: String,
    pub(super) code: Vec<Op>,
    /// Cells of the register file.
    pub(super) cells: u32,
    /// Predicate registers.
    pub(super) preds: u32,
    /// Cells that hold constants and special registers.
    pub(super) fixed: Vec<(u32, Fixed)>,
    /// Parameters: (offset, bytes).
    pub(super) params: Vec<(u32, u32)>,
    pub(super) param_bytes: u32,
    /// Static shared memory.
    pub(super) shared_bytes: u32,
    pub(super) local_bytes: u32,
    pub(super) max_threads: Option<u32>,
    pub(super) threads_required: Option<[u32; 3]>,
    pub(super) cluster: Option<[u32; 3]>,
    pub(super) line: u32,
    pub(super) debug: Arc<Debug>,
}

/// What reports quote.
#[derive(Debug, Default)]
pub(super) struct Debug {
    /// The PTX text, by line.
    pub lines: Vec<String>,
    /// `.file` table.
    pub files: std::collections::HashMap<u32, String>,
    /// PTX line → source position.
    pub sources: std::collections::HashMap<u32, (u32, u32)>,
}
