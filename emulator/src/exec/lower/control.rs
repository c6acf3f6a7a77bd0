//! Branches, calls, exits, traps, clocks.

use super::super::access::PARAM_WINDOW;
use super::super::op::{Ctx, Flow, NONE, Op, Signal};
use super::{Draft, Guard, Lower, MAX_DEPTH, Opcode, Operand, nothing};
use crate::check::Kind;
use crate::ptx::ast::Space;

impl Lower<'_> {
    pub(super) fn control(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        match (op.name(), operands) {
            ("bra", [Operand::Label(label)]) => self.jump(Some(*label)),
            ("brx", [index, Operand::Symbol(table, _)]) => self.indexed(index, table)?,
            ("ret", []) if self.frame.inlined => self.jump(None),
            ("ret" | "exit", []) => {
                let mut draft = Draft::new(nothing);
                draft.0.flow = Flow::Exit;
                self.push(draft);
            }
            ("call", _) => self.call(operands)?,
            ("trap", []) => self.push(Draft::new(trap)),
            ("brkpt", []) => self.push(Draft::new(trap)),
            ("nanosleep", [_]) => self.push(Draft::new(pause)),
            ("pmevent" | "discard" | "applypriority" | "prefetch" | "prefetchu", _) => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn jump(&mut self, label: Option<u32>) {
        let mut draft = Draft::new(nothing);
        draft.0.flow = Flow::Branch(0);
        self.frame.jumps.push((self.code.len(), label));
        self.push(draft);
    }

    fn indexed(&mut self, index: &Operand, table: &str) -> Result<(), String> {
        let index = self.source(index, super::Scalar::U32)?;
        let targets = self.targets(table)?;
        let mut draft = Draft::new(nothing).a(index).list(Vec::new(), targets);
        draft.0.flow = Flow::Indexed;
        self.frame.jumps.push((self.code.len(), None));
        self.push(draft);
        Ok(())
    }

    fn targets(&self, table: &str) -> Result<Vec<u32>, String> {
        let mut lists = self.module.functions.iter().filter_map(|f| f.branch_targets.get(table));
        lists.next_back().cloned().ok_or_else(|| format!("no .branchtargets `{table}`"))
    }

    fn call(&mut self, operands: &[Operand]) -> Result<(), String> {
        let mut lists = operands.iter().filter_map(|o| match o {
            Operand::List(items) => Some(items.as_slice()),
            _ => None,
        });
        let starts_with_list = matches!(operands.first(), Some(Operand::List(_)));
        let returns = if starts_with_list { lists.next().unwrap_or(&[]) } else { &[] };
        let arguments = lists.next().unwrap_or(&[]);
        let name = operands.iter().find_map(|o| match o {
            Operand::Function(name) => Some(name.as_str()),
            _ => None,
        });
        let Some(name) = name else { return Err("indirect calls are not supported".into()) };
        match name {
            "vprintf" => {
                let [format, values] = arguments else { return Err("vprintf takes two arguments".into()) };
                let (format, values) = (self.parameter_of_call(format)?, self.parameter_of_call(values)?);
                let mut draft = Draft::new(super::super::print::vprintf).imm(i64::from(format)).aux(values);
                if let [result] = returns {
                    draft.0.second = self.parameter_of_call(result)?;
                }
                self.push(draft);
                return Ok(());
            }
            "__assertfail" => {
                self.push(Draft::new(assertion));
                return Ok(());
            }
            _ => {}
        }
        let module = self.module;
        let function = module.functions.iter().find(|f| f.name == name && f.defined);
        let Some(function) = function else { return Err(format!("`{name}` has no body in this module")) };
        let mut offsets = Vec::new();
        for argument in arguments.iter().chain(returns) {
            offsets.push(self.parameter_of_call(argument)?);
        }
        if offsets.len() != function.params.len() + function.returns.len() {
            return Err(format!("`{name}` takes {} arguments", function.params.len()));
        }
        let depth = self.frame.depth + 1;
        if self.calls.contains(&function.name.as_str()) {
            return Err(format!("`{name}` calls itself; recursion is not supported"));
        }
        if depth > MAX_DEPTH {
            return Err(format!("calls nest more than {MAX_DEPTH} deep"));
        }
        self.calls.push(&function.name);
        // Lanes that are guarded off jump over the inlined body.
        let guard = std::mem::replace(&mut self.guard, Guard { reg: NONE, flip: 0 });
        let skip = self.code.len();
        if guard.reg != NONE {
            let mut draft = Draft::new(nothing);
            draft.0.flow = Flow::Branch(0);
            self.push(draft);
            self.code[skip].guard = Guard { reg: guard.reg, flip: !guard.flip };
        }
        let line = self.line;
        self.function(function, &offsets, depth)
            .map_err(|e| format!("in `{name}`, line {}: {}", e.line, e.problem))?;
        self.calls.pop();
        self.line = line;
        if guard.reg != NONE {
            self.code[skip].flow = Flow::Branch(self.code.len() as u32);
        }
        Ok(())
    }

    /// Local offset of a `.param` variable that a call names.
    fn parameter_of_call(&mut self, operand: &Operand) -> Result<u32, String> {
        let Operand::Symbol(variable, 0) = operand else {
            return Err("an argument of a call must be a .param variable".into());
        };
        match self.symbol(variable) {
            Some((Space::Local, offset)) => Ok(offset as u32),
            _ => Err(format!("`{variable}` is no .param variable of this function")),
        }
    }

    /// Where a parameter symbol lies, if it is a kernel parameter.
    pub(super) fn kernel_parameter(&mut self, operand: &Operand) -> Option<i64> {
        let Operand::Address(address) = operand else { return None };
        let Operand::Symbol(name, offset) = &address.base else { return None };
        match self.symbol(name)? {
            (Space::Param, at) => Some(at as i64 + offset + address.offset),
            _ => None,
        }
    }
}

/// Generic addresses of kernel parameters are their window's.
const _: () = assert!(PARAM_WINDOW >> 56 == 3);

/// # Safety
/// As [`super::super::op::Exec`].
unsafe fn trap(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    ctx.fail(op, Kind::Trap, Some(active.trailing_zeros()), "the kernel executed a trap");
}

/// # Safety
/// As [`super::super::op::Exec`].
unsafe fn assertion(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    ctx.fail(op, Kind::Assertion, Some(active.trailing_zeros()), "a device-side assertion failed");
}

/// # Safety
/// As [`super::super::op::Exec`].
unsafe fn pause(ctx: &mut Ctx<'_>, _: &Op, _: u32) {
    ctx.signal = Signal::Pause;
}

/// d = a clock: the warp instructions this block has executed, which is all the time there is here.
///
/// # Safety
/// As [`super::super::op::Exec`]; `R` is the width of `d`.
pub(super) unsafe fn clock<R: Copy + TryFrom<u64> + Default>(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    let now = ctx.block.counters.warp_instructions + u64::from(ctx.pc);
    let value = R::try_from(now).unwrap_or_default();
    // SAFETY: the caller's contract.
    unsafe { ctx.write(op.d, active, &[value; 32]) };
}
