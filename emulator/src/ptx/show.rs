//! The tree as text again, for findings and logs: an instruction reads as it stood in the PTX.

use std::fmt::{self, Display, Formatter, Write};

use super::ast::{Function, Instruction, Operand, RegId};

/// Something of a function that displays with the function's own register and label names.
#[derive(Clone, Copy)]
pub struct Shown<'a, T> {
    item: &'a T,
    function: &'a Function,
}

impl Instruction {
    /// This instruction, of that function, for display.
    pub fn shown<'a>(&'a self, function: &'a Function) -> Shown<'a, Instruction> {
        Shown { item: self, function }
    }
}

impl Operand {
    /// This operand, of an instruction of that function, for display.
    pub fn shown<'a>(&'a self, function: &'a Function) -> Shown<'a, Operand> {
        Shown { item: self, function }
    }
}

/// A function's instructions with their labels and PTX lines.
pub fn describe(function: &Function) -> String {
    let mut labels: Vec<(usize, &str)> =
        function.labels.iter().copied().zip(function.label_names.iter().map(String::as_str)).collect();
    labels.sort_by_key(|(index, _)| *index);
    let mut labels = labels.into_iter().peekable();
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(text, "{} {}:", if function.entry { ".entry" } else { ".func" }, function.name);
    for (index, instruction) in function.body.iter().enumerate() {
        while let Some((_, name)) = labels.next_if(|(at, _)| *at <= index) {
            let _ = writeln!(text, "{name}:");
        }
        let _ = writeln!(text, "{:>6}  {}", instruction.line, instruction.shown(function));
    }
    for (_, name) in labels {
        let _ = writeln!(text, "{name}:");
    }
    text
}

impl Display for Shown<'_, Instruction> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(guard) = self.item.guard {
            write!(f, "@{}{} ", if guard.negated { "!" } else { "" }, register(self.function, guard.reg))?;
        }
        f.write_str(&self.item.opcode)?;
        if !self.item.operands.is_empty() {
            f.write_char(' ')?;
        }
        list(f, &self.item.operands, self.function)?;
        f.write_char(';')
    }
}

impl Display for Shown<'_, Operand> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let function = self.function;
        match self.item {
            Operand::Reg(reg) => f.write_str(register(function, *reg)),
            Operand::NotReg(reg) => write!(f, "!{}", register(function, *reg)),
            Operand::Int(value) => write!(f, "{}", *value as i64),
            Operand::F32(bits) => write!(f, "0f{bits:08X}"),
            Operand::F64(bits) => write!(f, "0d{bits:016X}"),
            Operand::Symbol(name, 0) | Operand::Function(name) => f.write_str(name),
            Operand::Symbol(name, offset) => write!(f, "{name}{offset:+}"),
            Operand::Label(label) => {
                f.write_str(function.label_names.get(*label as usize).map_or("?", String::as_str))
            }
            Operand::Special(special) => write!(f, "{special}"),
            Operand::Vector(items) => bracketed(f, '{', items, '}', function),
            Operand::List(items) => bracketed(f, '(', items, ')', function),
            Operand::Address(address) => {
                write!(f, "[{}", address.base.shown(function))?;
                if address.offset != 0 {
                    write!(f, "{:+}", address.offset)?;
                }
                for extra in &address.extra {
                    write!(f, ", {}", extra.shown(function))?;
                }
                f.write_char(']')
            }
            Operand::Pair(pair) => write!(f, "{}|{}", pair.0.shown(function), pair.1.shown(function)),
            Operand::Discard => f.write_char('_'),
        }
    }
}

fn register(function: &Function, reg: RegId) -> &str {
    function.registers.get(reg as usize).map_or("?", |(name, _)| name)
}

fn bracketed(
    f: &mut Formatter<'_>,
    open: char,
    items: &[Operand],
    close: char,
    function: &Function,
) -> fmt::Result {
    f.write_char(open)?;
    list(f, items, function)?;
    f.write_char(close)
}

fn list(f: &mut Formatter<'_>, items: &[Operand], function: &Function) -> fmt::Result {
    for (n, item) in items.iter().enumerate() {
        if n > 0 {
            f.write_str(", ")?;
        }
        write!(f, "{}", item.shown(function))?;
    }
    Ok(())
}
