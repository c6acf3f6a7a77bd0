//! Integer arithmetic, logic, selection and moves.

use super::super::isa::{binary, ternary, unary};
use super::super::op::Exec;
use super::super::predicate as p;
use super::{CARRY, Draft, Lower, Opcode, Operand, Scalar};
use crate::num::{bits as n, integer as i};

/// An operation on every integer type: `ints!(ty, binary, |a, b| …)`.
macro_rules! ints {
    ($ty:expr, $arity:ident, |$($x:ident),+| $e:expr) => {
        match $ty {
            Scalar::U8 | Scalar::B8 => Some($arity(|$($x: u8),+| $e)),
            Scalar::S8 => Some($arity(|$($x: i8),+| $e)),
            Scalar::U16 | Scalar::B16 => Some($arity(|$($x: u16),+| $e)),
            Scalar::S16 => Some($arity(|$($x: i16),+| $e)),
            Scalar::U32 | Scalar::B32 => Some($arity(|$($x: u32),+| $e)),
            Scalar::S32 => Some($arity(|$($x: i32),+| $e)),
            Scalar::U64 | Scalar::B64 => Some($arity(|$($x: u64),+| $e)),
            Scalar::S64 => Some($arity(|$($x: i64),+| $e)),
            _ => None,
        }
    };
}

/// An operation on every bit width.
macro_rules! bits {
    ($ty:expr, $arity:ident, |$($x:ident),+| $e:expr) => {
        match $ty.bytes() {
            2 => Some($arity(|$($x: u16),+| $e)),
            4 => Some($arity(|$($x: u32),+| $e)),
            8 => Some($arity(|$($x: u64),+| $e)),
            _ => None,
        }
    };
}

impl Lower<'_> {
    pub(super) fn integer(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        let Some(&ty) = op.types().last() else { return Ok(false) };
        match (op.name(), operands) {
            ("mov", [d, a]) => return self.mov(op, ty, d, a),
            ("selp", [d, a, b, c]) => {
                let run = if ty.bytes() == 8 { p::selp::<u64>() } else { p::selp::<u32>() };
                let (pred, negated) = self.predicate_source(c)?;
                let (a, b, d) = (self.source(a, ty)?, self.source(b, ty)?, self.destination(d, ty)?);
                self.push(Draft::new(run).d(d).a(a).b(b).pred(pred).imm(-i64::from(negated)));
                return Ok(true);
            }
            ("and" | "or" | "xor" | "not", _) if ty == Scalar::Pred => {
                return self.predicate_logic(op, operands);
            }
            ("add" | "addc" | "sub" | "subc" | "mad" | "madc", _)
                if op.has("cc") || op.name().ends_with('c') =>
            {
                return self.carry(op, ty, operands);
            }
            _ => {}
        }
        let is_float = matches!(
            ty,
            Scalar::F16 | Scalar::F16x2 | Scalar::Bf16 | Scalar::Bf16x2 | Scalar::F32 | Scalar::F64
        );
        if is_float {
            return Ok(false);
        }
        if let Some(run) = simple(op, ty) {
            let draft = self.operands(Draft::new(run), ty, operands)?;
            self.push(draft);
            return Ok(true);
        }
        self.mixed(op, ty, operands)
    }

    /// Operands of several types.
    fn mixed(&mut self, op: &Opcode<'_>, ty: Scalar, operands: &[Operand]) -> Result<bool, String> {
        let u32_ = Scalar::U32;
        let double = match ty {
            Scalar::U16 => Scalar::U32,
            Scalar::S16 => Scalar::S32,
            Scalar::U32 => Scalar::U64,
            Scalar::S32 => Scalar::S64,
            other => other,
        };
        let (run, types): (Option<Exec>, Vec<Scalar>) = match (op.name(), operands.len()) {
            ("mul", 3) if op.has("wide") => (
                match ty {
                    Scalar::U16 => Some(binary(i::mul_wide_u16)),
                    Scalar::S16 => Some(binary(i::mul_wide_s16)),
                    Scalar::U32 => Some(binary(i::mul_wide_u32)),
                    Scalar::S32 => Some(binary(i::mul_wide_s32)),
                    _ => None,
                },
                vec![double, ty, ty],
            ),
            ("mad", 4) if op.has("wide") => (
                match ty {
                    Scalar::U16 => {
                        Some(ternary(|a: u16, b: u16, c: u32| (u32::from(a) * u32::from(b)).wrapping_add(c)))
                    }
                    Scalar::S16 => {
                        Some(ternary(|a: i16, b: i16, c: i32| (i32::from(a) * i32::from(b)).wrapping_add(c)))
                    }
                    Scalar::U32 => {
                        Some(ternary(|a: u32, b: u32, c: u64| (u64::from(a) * u64::from(b)).wrapping_add(c)))
                    }
                    Scalar::S32 => {
                        Some(ternary(|a: i32, b: i32, c: i64| (i64::from(a) * i64::from(b)).wrapping_add(c)))
                    }
                    _ => None,
                },
                vec![double, ty, ty, double],
            ),
            ("shl", 3) => (
                match ty.bytes() {
                    2 => Some(binary(n::shl16)),
                    4 => Some(binary(n::shl32)),
                    _ => Some(binary(n::shl64)),
                },
                vec![ty, ty, u32_],
            ),
            ("shr", 3) => (
                match ty {
                    Scalar::S16 => Some(binary(n::sar16)),
                    Scalar::S32 => Some(binary(n::sar32)),
                    Scalar::S64 => Some(binary(n::sar64)),
                    _ => match ty.bytes() {
                        2 => Some(binary(n::shr16)),
                        4 => Some(binary(n::shr32)),
                        _ => Some(binary(n::shr64)),
                    },
                },
                vec![ty, ty, u32_],
            ),
            ("popc", 2) => (bits!(ty, unary, |a| a.count_ones()), vec![u32_, ty]),
            ("clz", 2) => (bits!(ty, unary, |a| a.leading_zeros()), vec![u32_, ty]),
            ("bfind", 2) => {
                let shift = op.has("shiftamt");
                let run = match ty {
                    Scalar::U32 if shift => unary(|a: u32| n::bfind_u32(a, true)),
                    Scalar::U32 => unary(|a: u32| n::bfind_u32(a, false)),
                    Scalar::S32 if shift => unary(|a: i32| n::bfind_s32(a, true)),
                    Scalar::S32 => unary(|a: i32| n::bfind_s32(a, false)),
                    Scalar::U64 if shift => unary(|a: u64| n::bfind_u64(a, true)),
                    Scalar::U64 => unary(|a: u64| n::bfind_u64(a, false)),
                    Scalar::S64 if shift => unary(|a: i64| n::bfind_s64(a, true)),
                    _ => unary(|a: i64| n::bfind_s64(a, false)),
                };
                (Some(run), vec![u32_, ty])
            }
            ("bfe", 4) => (
                match ty {
                    Scalar::U32 => Some(ternary(n::bfe_u32)),
                    Scalar::S32 => Some(ternary(n::bfe_s32)),
                    Scalar::U64 => Some(ternary(n::bfe_u64)),
                    Scalar::S64 => Some(ternary(n::bfe_s64)),
                    _ => None,
                },
                vec![ty, ty, u32_, u32_],
            ),
            ("bmsk", 3) if op.has("clamp") => {
                (Some(binary(|a: u32, b: u32| n::bmsk(a, b, true))), vec![ty; 3])
            }
            ("bmsk", 3) => (Some(binary(|a: u32, b: u32| n::bmsk(a, b, false))), vec![ty; 3]),
            ("szext", 3) => {
                let run: Exec = match (ty, op.has("clamp")) {
                    (Scalar::S32, true) => binary(|a: u32, b: u32| n::szext_s32(a, b, true)),
                    (Scalar::S32, false) => binary(|a: u32, b: u32| n::szext_s32(a, b, false)),
                    (_, true) => binary(|a: u32, b: u32| n::szext_u32(a, b, true)),
                    (_, false) => binary(|a: u32, b: u32| n::szext_u32(a, b, false)),
                };
                (Some(run), vec![ty; 3])
            }
            ("bfi", 5) => {
                let run = if ty.bytes() == 8 { p::bfi::<u64> as Exec } else { p::bfi::<u32> };
                let mut cells = Vec::new();
                for (operand, ty) in operands[1..].iter().zip([ty, ty, u32_, u32_]) {
                    cells.push(self.source(operand, ty)?);
                }
                let d = self.destination(&operands[0], ty)?;
                self.push(Draft::new(run).d(d).list(Vec::new(), cells));
                return Ok(true);
            }
            ("lop3", 5) => {
                let Operand::Int(table) = operands[4] else {
                    return Err("lop3 wants a constant table".into());
                };
                let mut draft =
                    Draft::new(p::lop3()).imm(table as i64).d(self.destination(&operands[0], ty)?);
                draft = draft.a(self.source(&operands[1], ty)?).b(self.source(&operands[2], ty)?);
                let c = self.source(&operands[3], ty)?;
                self.push(draft.c(c));
                return Ok(true);
            }
            ("shf", 4) => {
                let wrap = op.has("wrap");
                let run: Exec = match (op.has("l"), wrap) {
                    (true, true) => ternary(|a: u32, b: u32, c: u32| n::shf_left(a, b, c, false)),
                    (true, false) => ternary(|a: u32, b: u32, c: u32| n::shf_left(a, b, c, true)),
                    (false, true) => ternary(|a: u32, b: u32, c: u32| n::shf_right(a, b, c, false)),
                    (false, false) => ternary(|a: u32, b: u32, c: u32| n::shf_right(a, b, c, true)),
                };
                (Some(run), vec![ty, ty, ty, u32_])
            }
            ("prmt", 4) => {
                let run: Exec = match op.part(1) {
                    "" => ternary(|a: u32, b: u32, c: u32| n::prmt(a, b, c, n::Permute::Default)),
                    "f4e" => ternary(|a: u32, b: u32, c: u32| n::prmt(a, b, c, n::Permute::ForwardFour)),
                    "b4e" => ternary(|a: u32, b: u32, c: u32| n::prmt(a, b, c, n::Permute::BackwardFour)),
                    "rc8" => ternary(|a: u32, b: u32, c: u32| n::prmt(a, b, c, n::Permute::ReplicateByte)),
                    "ecl" => ternary(|a: u32, b: u32, c: u32| n::prmt(a, b, c, n::Permute::EdgeLeft)),
                    "ecr" => ternary(|a: u32, b: u32, c: u32| n::prmt(a, b, c, n::Permute::EdgeRight)),
                    _ => ternary(|a: u32, b: u32, c: u32| n::prmt(a, b, c, n::Permute::ReplicateHalf)),
                };
                (Some(run), vec![ty, ty, ty, u32_])
            }
            _ => return Ok(false),
        };
        let Some(run) = run else { return Ok(false) };
        let mut draft = Draft::new(run).d(self.destination(&operands[0], types[0])?);
        for (i, (operand, ty)) in operands[1..].iter().zip(&types[1..]).enumerate() {
            let cell = self.source(operand, *ty)?;
            draft = [Draft::a, Draft::b, Draft::c][i](draft, cell);
        }
        self.push(draft);
        Ok(true)
    }

    fn mov(&mut self, op: &Opcode<'_>, ty: Scalar, d: &Operand, a: &Operand) -> Result<bool, String> {
        op.only(&[])?;
        match (d, a) {
            _ if ty == Scalar::Pred => {
                let (source, negated) = self.predicate_source(a)?;
                let d = self.predicate(d)?;
                self.push(Draft::new(p::mov_pred).d_pred(d).pred(source).imm(-i64::from(negated)));
            }
            (Operand::Vector(parts), a) => {
                let whole = self.source(a, ty)?;
                let part_bytes = ty.bytes() / parts.len() as u32;
                let part = if part_bytes == 4 { Scalar::B32 } else { Scalar::B16 };
                let mut cells = Vec::new();
                for p in parts {
                    cells.push(self.destination(p, part)?);
                }
                let run: Exec = if ty.bytes() == 8 { p::unpack::<u64>() } else { p::unpack::<u32>() };
                self.push(Draft::new(run).a(whole).aux(part_bytes * 8).list(cells, Vec::new()));
            }
            (d, Operand::Vector(parts)) => {
                let part_bytes = ty.bytes() / parts.len() as u32;
                let part = if part_bytes == 4 { Scalar::B32 } else { Scalar::B16 };
                let mut cells = Vec::new();
                for p in parts {
                    cells.push(self.source(p, part)?);
                }
                let d = self.destination(d, ty)?;
                let run: Exec = if ty.bytes() == 8 { p::pack::<u64>() } else { p::pack::<u32>() };
                self.push(Draft::new(run).d(d).aux(part_bytes * 8).list(Vec::new(), cells));
            }
            (d, a) => {
                let run = if ty.bytes() == 8 { unary(|x: u64| x) } else { unary(|x: u32| x) };
                let (a, d) = (self.source(a, ty)?, self.destination(d, ty)?);
                self.push(Draft::new(run).d(d).a(a));
            }
        }
        Ok(true)
    }

    fn predicate_logic(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        let kind = match op.name() {
            "and" => p::combine::AND,
            "or" => p::combine::OR,
            "xor" => p::combine::XOR,
            _ => p::combine::NONE,
        };
        let d = self.predicate(&operands[0])?;
        let (a, negated) = self.predicate_source(&operands[1])?;
        if kind == p::combine::NONE {
            self.push(Draft::new(p::mov_pred).d_pred(d).pred(a).imm(-i64::from(!negated)));
            return Ok(true);
        }
        let (b, b_negated) = self.predicate_source(&operands[2])?;
        let mut draft = Draft::new(p::logic).d_pred(d).pred(a).aux(kind);
        draft.0.imm = i64::from(negated) | i64::from(b_negated) << 1;
        draft.0.second = b;
        self.push(draft);
        Ok(true)
    }

    /// Arithmetic that reads or writes the carry.
    fn carry(&mut self, op: &Opcode<'_>, ty: Scalar, operands: &[Operand]) -> Result<bool, String> {
        let wide = ty.bytes() == 8;
        let reads = op.name().ends_with('c');
        let kind = match op.name() {
            "add" | "addc" => p::carry::ADD,
            "sub" | "subc" => p::carry::SUB,
            _ if op.has("hi") => p::carry::MAD_HI,
            _ => p::carry::MAD_LO,
        };
        let run: Exec = if wide { p::with_carry::<u64> } else { p::with_carry::<u32> };
        let mut draft = Draft::new(run).d(self.destination(&operands[0], ty)?);
        for (i, operand) in operands[1..].iter().enumerate() {
            let cell = self.source(operand, ty)?;
            draft = [Draft::a, Draft::b, Draft::c][i.min(2)](draft, cell);
        }
        let flags = i64::from(reads) | i64::from(op.has("cc")) << 1;
        self.push(draft.aux(kind).pred(CARRY).imm(flags));
        Ok(true)
    }
}

/// Instructions whose operands all have the instruction's type.
fn simple(op: &Opcode<'_>, ty: Scalar) -> Option<Exec> {
    match op.name() {
        "add" if op.has("sat") => Some(binary(|a: i32, b: i32| a.saturating_add(b))),
        "sub" if op.has("sat") => Some(binary(|a: i32, b: i32| a.saturating_sub(b))),
        "add" if matches!(op.part(0), "u16x2" | "s16x2") => None,
        "add" => ints!(ty, binary, |a, b| a.wrapping_add(b)),
        "sub" => ints!(ty, binary, |a, b| a.wrapping_sub(b)),
        "mul" if op.has("lo") => ints!(ty, binary, |a, b| a.wrapping_mul(b)),
        "mul" if op.has("hi") => match ty {
            Scalar::U16 => Some(binary(i::mul_hi_u16)),
            Scalar::S16 => Some(binary(i::mul_hi_s16)),
            Scalar::U32 => Some(binary(i::mul_hi_u32)),
            Scalar::S32 => Some(binary(i::mul_hi_s32)),
            Scalar::U64 => Some(binary(i::mul_hi_u64)),
            Scalar::S64 => Some(binary(i::mul_hi_s64)),
            _ => None,
        },
        "mad" if op.has("lo") => ints!(ty, ternary, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        "mad" if op.has("hi") => match ty {
            Scalar::U32 => Some(ternary(i::mad_hi_u32)),
            Scalar::S32 => Some(ternary(i::mad_hi_s32)),
            Scalar::U64 => Some(ternary(i::mad_hi_u64)),
            Scalar::S64 => Some(ternary(i::mad_hi_s64)),
            _ => None,
        },
        "mul24" => match (ty, op.has("hi")) {
            (Scalar::U32, false) => Some(binary(i::mul24_lo_u32)),
            (Scalar::U32, true) => Some(binary(i::mul24_hi_u32)),
            (_, false) => Some(binary(i::mul24_lo_s32)),
            (_, true) => Some(binary(i::mul24_hi_s32)),
        },
        "div" => match ty {
            Scalar::U16 => Some(binary(i::div_u16)),
            Scalar::S16 => Some(binary(i::div_s16)),
            Scalar::U32 => Some(binary(i::div_u32)),
            Scalar::S32 => Some(binary(i::div_s32)),
            Scalar::U64 => Some(binary(i::div_u64)),
            Scalar::S64 => Some(binary(i::div_s64)),
            _ => None,
        },
        "rem" => match ty {
            Scalar::U16 => Some(binary(i::rem_u16)),
            Scalar::S16 => Some(binary(i::rem_s16)),
            Scalar::U32 => Some(binary(i::rem_u32)),
            Scalar::S32 => Some(binary(i::rem_s32)),
            Scalar::U64 => Some(binary(i::rem_u64)),
            Scalar::S64 => Some(binary(i::rem_s64)),
            _ => None,
        },
        "min" => ints!(ty, binary, |a, b| a.min(b)),
        "max" => ints!(ty, binary, |a, b| a.max(b)),
        "neg" => ints!(ty, unary, |a| a.wrapping_neg()),
        "abs" => match ty {
            Scalar::S16 => Some(unary(|a: i16| a.wrapping_abs())),
            Scalar::S32 => Some(unary(|a: i32| a.wrapping_abs())),
            Scalar::S64 => Some(unary(|a: i64| a.wrapping_abs())),
            _ => None,
        },
        "sad" => match ty {
            Scalar::U16 => Some(ternary(i::sad_u16)),
            Scalar::S16 => Some(ternary(i::sad_s16)),
            Scalar::U32 => Some(ternary(i::sad_u32)),
            Scalar::S32 => Some(ternary(i::sad_s32)),
            Scalar::U64 => Some(ternary(i::sad_u64)),
            Scalar::S64 => Some(ternary(i::sad_s64)),
            _ => None,
        },
        "and" => bits!(ty, binary, |a, b| a & b),
        "or" => bits!(ty, binary, |a, b| a | b),
        "xor" => bits!(ty, binary, |a, b| a ^ b),
        "not" => bits!(ty, unary, |a| !a),
        "cnot" => bits!(ty, unary, |a| if a == 0 { 1 } else { 0 }),
        "brev" => bits!(ty, unary, |a| a.reverse_bits()),
        "dp4a" => match (op.part(0), op.part(1)) {
            ("s32", "s32") => Some(ternary(|a: u32, b: u32, c: u32| i::dp4a(a, b, c, true, true))),
            ("u32", "u32") => Some(ternary(|a: u32, b: u32, c: u32| i::dp4a(a, b, c, false, false))),
            _ => None,
        },
        _ => None,
    }
}
