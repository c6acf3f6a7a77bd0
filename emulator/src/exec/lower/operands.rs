//! Operands to cells: registers, constants, special registers, symbols, addresses, predicates.

use super::super::access::PARAM_WINDOW;
use super::super::isa;
use super::super::op::{Exec, Fixed, Guard, NONE};
use super::super::warp::special_is_wide;
use super::{Draft, Lower, Operand, Scalar, Space, Special, Where, control};

impl Lower<'_> {
    /// A source operand as a cell of 32 (or fewer) or 64 bits, as `ty` says.
    pub(super) fn source(&mut self, operand: &Operand, ty: Scalar) -> Result<u32, String> {
        let wide = ty.bytes() == 8;
        match operand {
            Operand::Reg(reg) => match self.frame.registers.get(*reg as usize) {
                Some(Where::Cell(cell)) if self.cells[*cell as usize].wide == wide => Ok(*cell),
                Some(Where::Cell(cell)) => Ok(self.resized(*cell, wide)),
                _ => Err("a predicate stands where a value is expected".into()),
            },
            Operand::Int(bits) => Ok(self.constant(*bits, wide)),
            Operand::F32(bits) => match ty {
                Scalar::F64 => Ok(self.constant(f64::from(f32::from_bits(*bits)).to_bits(), true)),
                _ => Ok(self.constant(u64::from(*bits), wide)),
            },
            Operand::F64(bits) => match ty {
                Scalar::F32 => Ok(self.constant(u64::from((f64::from_bits(*bits) as f32).to_bits()), false)),
                _ => Ok(self.constant(*bits, wide)),
            },
            Operand::Special(special) => self.special(*special, wide),
            Operand::Symbol(name, offset) => {
                let (space, address) =
                    self.symbol(name).ok_or_else(|| format!("`{name}` is declared nowhere"))?;
                let address = match space {
                    Space::Param => PARAM_WINDOW + address,
                    _ => address,
                };
                Ok(self.constant(address.wrapping_add(*offset as u64), wide))
            }
            other => Err(format!("{other:?} cannot be a source here")),
        }
    }

    /// A register of the other width: truncated or zero-extended.
    pub(super) fn resized(&mut self, cell: u32, wide: bool) -> u32 {
        let to = self.fresh(wide);
        let run = if wide { isa::unary(|x: u32| u64::from(x)) } else { isa::unary(|x: u64| x as u32) };
        // Copies for a guarded instruction happen in all lanes; nobody else reads the copy.
        let guard = std::mem::replace(&mut self.guard, Guard { reg: NONE, flip: 0 });
        self.push(Draft::new(run).d(to).a(cell));
        self.guard = guard;
        to
    }

    pub(super) fn special(&mut self, special: Special, wide: bool) -> Result<u32, String> {
        if matches!(special, Special::Clock | Special::Clock64 | Special::Clock32Hi | Special::GlobalTimer) {
            let cell = self.fresh(wide);
            let run = if wide { control::clock::<u64> as Exec } else { control::clock::<u32> };
            self.push(Draft::new(run).d(cell));
            return Ok(cell);
        }
        let own = special_is_wide(special);
        let cell = self.fixed(Fixed::Special(special), own);
        Ok(if own == wide { cell } else { self.resized(cell, wide) })
    }

    /// A destination register, which must have the width of `ty` (or be wider, for loads and conversions).
    pub(super) fn destination(&mut self, operand: &Operand, ty: Scalar) -> Result<u32, String> {
        match operand {
            Operand::Discard => Ok(self.fresh(ty.bytes() == 8)),
            Operand::Reg(reg) => match self.frame.registers.get(*reg as usize) {
                Some(Where::Cell(cell)) => {
                    let wide = self.cells[*cell as usize].wide;
                    if wide == (ty.bytes() == 8) {
                        Ok(*cell)
                    } else {
                        Err(format!("the destination has {} bits", if wide { 64 } else { 32 }))
                    }
                }
                _ => Err("the destination is a predicate".into()),
            },
            other => Err(format!("{other:?} cannot be a destination")),
        }
    }

    /// Destination and sources of an instruction whose operands all have its type.
    pub(super) fn operands(
        &mut self,
        mut draft: Draft,
        ty: Scalar,
        operands: &[Operand],
    ) -> Result<Draft, String> {
        let [d, sources @ ..] = operands else { return Err("expected operands".into()) };
        draft = draft.d(self.destination(d, ty)?);
        for (i, operand) in sources.iter().enumerate() {
            let cell = self.source(operand, ty)?;
            draft = match i {
                0 => draft.a(cell),
                1 => draft.b(cell),
                2 => draft.c(cell),
                _ => return Err("too many operands".into()),
            };
        }
        Ok(draft)
    }

    /// Whether a register operand has 64 bits.
    pub(super) fn is_wide(&self, operand: &Operand) -> bool {
        match operand {
            Operand::Reg(reg) => match self.frame.registers.get(*reg as usize) {
                Some(Where::Cell(cell)) => self.cells[*cell as usize].wide,
                _ => false,
            },
            _ => false,
        }
    }

    /// A predicate destination; `_` gets one that nobody reads.
    pub(super) fn predicate(&mut self, operand: &Operand) -> Result<u32, String> {
        match operand {
            Operand::Discard => {
                self.preds += 1;
                Ok(self.preds - 1)
            }
            Operand::Reg(reg) => match self.frame.registers.get(*reg as usize) {
                Some(Where::Pred(pred)) => Ok(*pred),
                _ => Err("expected a predicate".into()),
            },
            other => Err(format!("{other:?} is no predicate")),
        }
    }

    /// A predicate source and whether it is negated; constants 0 and 1 count, too.
    pub(super) fn predicate_source(&mut self, operand: &Operand) -> Result<(u32, bool), String> {
        match operand {
            Operand::NotReg(reg) => Ok((self.predicate(&Operand::Reg(*reg))?, true)),
            Operand::Int(value) => {
                // A predicate nobody writes is false.
                self.preds += 1;
                Ok((self.preds - 1, *value != 0))
            }
            other => Ok((self.predicate(other)?, false)),
        }
    }

    /// An address operand: cell and constant offset.
    pub(super) fn address(&mut self, operand: &Operand) -> Result<(u32, i64, bool), String> {
        let Operand::Address(address) = operand else { return Err("expected an address in brackets".into()) };
        match &address.base {
            Operand::Reg(_) => {
                let wide = self.is_wide(&address.base);
                let ty = if wide { Scalar::U64 } else { Scalar::U32 };
                Ok((self.source(&address.base, ty)?, address.offset, wide))
            }
            base => Ok((self.source(base, Scalar::U64)?, address.offset, true)),
        }
    }
}
