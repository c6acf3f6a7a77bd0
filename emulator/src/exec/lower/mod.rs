//! From parsed PTX to operations: opcodes understood, operands placed, device functions inlined.
//!
//! An opcode or form that is not known is refused here, at module load, with its text and line.

mod alloc;
mod compare;
mod control;
mod convert;
mod float;
mod integer;
mod memory;
mod opcode;
mod operands;
mod sync;
mod tensor;
mod warp;

use std::collections::HashMap;
use std::sync::Arc;

use self::alloc::Virtual;
use self::opcode::Opcode;
use super::isa;
use super::op::{Debug, Exec, Fixed, Flow, Guard, NONE, Op, Program};
use super::shared::BASE;
use crate::ptx::ast::{self, Function, Instruction, Operand, Scalar, Space, Special, Variable};

/// Nested calls that are inlined; recursion would never end.
const MAX_DEPTH: usize = 64;
/// Operations of one kernel with everything inlined.
const MAX_CODE: usize = 4 << 20;

/// What cannot be lowered, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {problem}\n  {text}")]
pub struct LowerError {
    /// Line of the PTX text.
    pub line: u32,
    /// The instruction.
    pub text: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Addresses of module-scope variables.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    /// `.global` and `.const`, by name.
    pub global: HashMap<String, u64>,
}

/// Lowers one kernel of a module.
pub(super) fn lower(
    module: &ast::Module,
    kernel: &Function,
    symbols: &Symbols,
    debug: Arc<Debug>,
) -> Result<Program, LowerError> {
    let mut lower = Lower::new(module, symbols);
    let (mut offset, mut params) = (0u32, Vec::new());
    for param in &kernel.params {
        offset = offset.next_multiple_of(param.align.max(1));
        lower.params.insert(param.name.clone(), offset);
        params.push((offset, param.bytes as u32));
        offset += param.bytes as u32;
    }
    lower.function(kernel, &[], 0).map_err(|mut e| {
        e.text = debug.lines.get(e.line.saturating_sub(1) as usize).map_or(e.text, |l| l.trim().to_owned());
        e
    })?;
    // Lanes that run off the end are done.
    lower.exit(kernel.line);
    lower.finish(kernel, debug, params, offset)
}

/// Where a register of the function being lowered is.
#[derive(Debug, Clone, Copy)]
enum Where {
    Cell(u32),
    Pred(u32),
}

/// An operation's varying parts; the rest has defaults.
pub(super) struct Draft(Op);

impl Draft {
    fn new(run: Exec) -> Draft {
        Draft(Op {
            run,
            flow: Flow::Next,
            stretch: 0,
            guard: Guard { reg: NONE, flip: 0 },
            d: NONE,
            a: NONE,
            b: NONE,
            c: NONE,
            list: Box::new([]),
            imm: 0,
            aux: 0,
            pred: NONE,
            second: NONE,
            flops: 0,
            line: 0,
            writes: 0,
            d_pred: false,
            tolerant: false,
            adds: false,
        })
    }

    fn d(mut self, cell: u32) -> Draft {
        self.0.d = cell;
        self
    }

    /// The destination is a predicate.
    fn d_pred(mut self, pred: u32) -> Draft {
        (self.0.d, self.0.d_pred) = (pred, true);
        self
    }

    fn a(mut self, cell: u32) -> Draft {
        self.0.a = cell;
        self
    }

    fn b(mut self, cell: u32) -> Draft {
        self.0.b = cell;
        self
    }

    fn c(mut self, cell: u32) -> Draft {
        self.0.c = cell;
        self
    }

    /// Part of the wgmma protocol.
    fn tolerant(mut self) -> Draft {
        self.0.tolerant = true;
        self
    }

    fn imm(mut self, imm: i64) -> Draft {
        self.0.imm = imm;
        self
    }

    fn aux(mut self, aux: u32) -> Draft {
        self.0.aux = aux;
        self
    }

    fn pred(mut self, pred: u32) -> Draft {
        self.0.pred = pred;
        self
    }

    fn flops(mut self, flops: u8) -> Draft {
        self.0.flops = flops;
        self
    }

    /// Destinations, then sources.
    fn list(mut self, writes: Vec<u32>, reads: Vec<u32>) -> Draft {
        self.0.writes = writes.len() as u8;
        self.0.list = writes.into_iter().chain(reads).collect();
        self
    }
}

struct Lower<'m> {
    module: &'m ast::Module,
    symbols: &'m Symbols,
    cells: Vec<Virtual>,
    fixed: Vec<(u32, Fixed)>,
    by_value: HashMap<Fixed, u32>,
    preds: u32,
    code: Vec<Op>,
    /// Kernel parameters by name.
    params: HashMap<String, u32>,
    /// Shared addresses of variables.
    shared: HashMap<String, u32>,
    shared_bytes: u32,
    /// Alignment of dynamic shared memory; 0 if there is none.
    dynamic_align: u32,
    local_bytes: u32,
    frame: Frame,
    /// Device functions being inlined, outermost first.
    calls: Vec<&'m str>,
    guard: Guard,
    line: u32,
}

/// The function being lowered.
#[derive(Default)]
struct Frame {
    registers: Vec<Where>,
    types: Vec<Scalar>,
    /// `.local` and `.param` variables: offsets in local memory.
    local: HashMap<String, u32>,
    labels: Vec<usize>,
    /// Operation that each instruction begins with.
    starts: Vec<u32>,
    /// (operation, label or none for the function's end).
    jumps: Vec<(usize, Option<u32>)>,
    inlined: bool,
    depth: usize,
}

/// The predicate that carries `.cc`.
const CARRY: u32 = 0;

impl<'m> Lower<'m> {
    fn new(module: &'m ast::Module, symbols: &'m Symbols) -> Lower<'m> {
        Lower {
            module,
            symbols,
            cells: Vec::new(),
            fixed: Vec::new(),
            by_value: HashMap::new(),
            preds: 1,
            code: Vec::new(),
            params: HashMap::new(),
            shared: HashMap::new(),
            shared_bytes: 0,
            dynamic_align: 0,
            local_bytes: 0,
            frame: Frame::default(),
            calls: Vec::new(),
            guard: Guard { reg: NONE, flip: 0 },
            line: 0,
        }
    }

    /// Lowers a body; `arguments` are the local offsets of an inlined function's parameters, then returns.
    fn function(&mut self, f: &Function, arguments: &[u32], depth: usize) -> Result<(), LowerError> {
        let mut frame = Frame { inlined: depth > 0, depth, labels: f.labels.clone(), ..Frame::default() };
        for (_, ty) in &f.registers {
            frame.types.push(*ty);
            frame.registers.push(match ty {
                Scalar::Pred => {
                    self.preds += 1;
                    Where::Pred(self.preds - 1)
                }
                ty => Where::Cell(self.fresh(ty.bytes() == 8)),
            });
        }
        for (variable, &offset) in f.params.iter().chain(&f.returns).zip(arguments) {
            frame.local.insert(variable.name.clone(), offset);
        }
        for variable in &f.variables {
            self.declare(variable, &mut frame);
        }
        let outer = std::mem::replace(&mut self.frame, frame);
        let result = self.body(f);
        let frame = std::mem::replace(&mut self.frame, outer);
        result?;
        let end = self.code.len() as u32;
        for (op, label) in frame.jumps {
            let target = match label {
                Some(label) => frame.starts.get(frame.labels[label as usize]).copied().unwrap_or(end),
                None => end,
            };
            match self.code[op].flow {
                Flow::Indexed => {
                    for entry in self.code[op].list.iter_mut() {
                        *entry = frame.starts.get(frame.labels[*entry as usize]).copied().unwrap_or(end);
                    }
                }
                _ => self.code[op].flow = Flow::Branch(target),
            }
        }
        Ok(())
    }

    fn declare(&mut self, variable: &Variable, frame: &mut Frame) {
        match variable.space {
            Space::Shared => self.declare_shared(variable),
            _ => {
                let at = self.local_bytes.next_multiple_of(variable.align.max(1));
                self.local_bytes = at + variable.bytes as u32;
                frame.local.insert(variable.name.clone(), at);
            }
        }
    }

    fn declare_shared(&mut self, variable: &Variable) {
        if variable.bytes == 0 {
            self.dynamic_align = self.dynamic_align.max(variable.align).max(16);
        } else {
            let at = self.shared_bytes.next_multiple_of(variable.align.max(1));
            self.shared_bytes = at + variable.bytes as u32;
            self.shared.insert(variable.name.clone(), BASE + at);
        }
    }

    fn body(&mut self, f: &Function) -> Result<(), LowerError> {
        for instruction in &f.body {
            self.frame.starts.push(self.code.len() as u32);
            self.line = instruction.line;
            let error =
                |problem| LowerError { line: instruction.line, text: instruction.opcode.clone(), problem };
            self.guard = match instruction.guard {
                None => Guard { reg: NONE, flip: 0 },
                Some(guard) => match self.frame.registers.get(guard.reg as usize) {
                    Some(Where::Pred(reg)) => {
                        Guard { reg: *reg, flip: if guard.negated { u32::MAX } else { 0 } }
                    }
                    _ => return Err(error("the guard is no predicate".into())),
                },
            };
            self.instruction(instruction).map_err(error)?;
            if self.code.len() > MAX_CODE {
                return Err(error(format!("the kernel has more than {MAX_CODE} operations")));
            }
        }
        Ok(())
    }

    fn instruction(&mut self, i: &Instruction) -> Result<(), String> {
        let op = Opcode::new(&i.opcode);
        let known = self.control(&op, &i.operands)?
            || self.comparison(&op, &i.operands)?
            || self.integer(&op, &i.operands)?
            || self.float(&op, &i.operands)?
            || self.convert(&op, &i.operands)?
            || self.memory(&op, &i.operands)?
            || self.warp(&op, &i.operands)?
            || self.sync(&op, &i.operands)?
            || self.tensor(&op, &i.operands)?;
        if known { Ok(()) } else { Err("this instruction is not known to the emulator".into()) }
    }

    fn push(&mut self, draft: Draft) {
        let mut op = draft.0;
        (op.guard, op.line) = (self.guard, self.line);
        self.code.push(op);
    }

    fn exit(&mut self, line: u32) {
        self.guard = Guard { reg: NONE, flip: 0 };
        self.line = line;
        let mut draft = Draft::new(nothing);
        draft.0.flow = Flow::Exit;
        self.push(draft);
    }

    fn fresh(&mut self, wide: bool) -> u32 {
        self.cells.push(Virtual { wide, fixed: false });
        self.cells.len() as u32 - 1
    }

    /// The cell of a value that never changes.
    fn fixed(&mut self, value: Fixed, wide: bool) -> u32 {
        if let Some(&cell) = self.by_value.get(&value) {
            return cell;
        }
        self.cells.push(Virtual { wide, fixed: true });
        let cell = self.cells.len() as u32 - 1;
        self.by_value.insert(value, cell);
        self.fixed.push((cell, value));
        cell
    }

    fn constant(&mut self, bits: u64, wide: bool) -> u32 {
        let bits = if wide { bits } else { bits & 0xffff_ffff };
        self.fixed(Fixed::Constant { bits, wide }, wide)
    }

    /// Address of a variable, as a number: shared address, local offset or device address.
    fn symbol(&mut self, name: &str) -> Option<(Space, u64)> {
        if let Some(&offset) = self.frame.local.get(name) {
            return Some((Space::Local, u64::from(offset)));
        }
        if let Some(&offset) = self.params.get(name) {
            return Some((Space::Param, u64::from(offset)));
        }
        if let Some(&address) = self.symbols.global.get(name) {
            return Some((Space::Global, address));
        }
        if !self.shared.contains_key(name) {
            let module = self.module;
            let variable = module.variables.iter().find(|v| v.name == name && v.space == Space::Shared)?;
            self.declare_shared(variable);
        }
        match self.shared.get(name) {
            Some(&address) => Some((Space::Shared, u64::from(address))),
            // Dynamic shared memory: placed behind everything static, when that is known.
            None => Some((Space::Shared, DYNAMIC)),
        }
    }

    fn finish(
        mut self,
        kernel: &Function,
        debug: Arc<Debug>,
        params: Vec<(u32, u32)>,
        param_bytes: u32,
    ) -> Result<Program, LowerError> {
        if self.dynamic_align > 0 {
            self.shared_bytes = self.shared_bytes.next_multiple_of(self.dynamic_align);
        }
        let dynamic = u64::from(BASE + self.shared_bytes);
        for (_, fixed) in &mut self.fixed {
            if let Fixed::Constant { bits, .. } = fixed
                && bits.wrapping_sub(DYNAMIC) < DYNAMIC_SPAN
            {
                *bits = *bits - DYNAMIC + dynamic;
            }
        }
        self.extend_accumulators();
        let allocation = alloc::allocate(&self.code, &self.cells);
        let place = |cell: &mut u32| {
            if *cell != NONE {
                *cell = allocation.place[*cell as usize];
            }
        };
        let mut stretch = 0;
        for op in self.code.iter_mut().rev() {
            let straight = op.flow == Flow::Next && op.guard.reg == NONE && !op.adds;
            stretch = if straight { stretch + 1 } else { 0 };
            op.stretch = stretch;
            place(&mut op.a);
            place(&mut op.b);
            place(&mut op.c);
            if !op.d_is_pred() {
                place(&mut op.d);
            }
            if !matches!(op.flow, Flow::Indexed) {
                op.list.iter_mut().for_each(place);
            }
        }
        let fixed = self.fixed.iter().map(|(c, f)| (allocation.place[*c as usize], *f)).collect();
        Ok(Program {
            name: kernel.name.clone(),
            code: self.code,
            cells: allocation.cells,
            preds: self.preds,
            fixed,
            params,
            param_bytes,
            shared_bytes: self.shared_bytes,
            local_bytes: self.local_bytes.next_multiple_of(16),
            max_threads: kernel.max_threads.map(|t| t.iter().product()),
            threads_required: kernel.max_threads.filter(|_| kernel.threads_required),
            cluster: kernel.cluster,
            line: kernel.line,
            debug,
        })
    }
}

/// Stands for the address of dynamic shared memory until static shared memory is laid out. 32 bits, and no shared
/// address or plausible constant is that large.
const DYNAMIC: u64 = 0xd15a_0000;
/// Offsets into dynamic shared memory that may stand in an instruction.
const DYNAMIC_SPAN: u64 = 1 << 18;

/// An operation without effect of its own.
///
/// # Safety
/// None needed.
unsafe fn nothing(_: &mut super::op::Ctx<'_>, _: &Op, _: u32) {}
