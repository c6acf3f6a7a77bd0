//! Comparisons: `setp` into predicates, `set` into registers.

use super::super::isa::{binary_with, compare};
use super::super::op::{Exec, NONE};
use super::super::predicate as p;
use super::{Draft, Lower, Opcode, Operand, Scalar};
use crate::num::halves::{self, Half, pair2};

/// How two numbers compare, one bit each; an operator is the set of those it holds for.
mod relation {
    pub const LESS: u32 = 1;
    pub const EQUAL: u32 = 2;
    pub const GREATER: u32 = 4;
    pub const UNORDERED: u32 = 8;
    /// Subnormals count as zero.
    pub const FTZ: u32 = 16;
    /// True is 1.0 rather than all ones.
    pub const ONE: u32 = 32;
}

impl Lower<'_> {
    pub(super) fn comparison(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        match (op.name(), op.types().as_slice()) {
            ("setp", _) => self.setp(op, operands),
            ("set", [_, Scalar::F16x2 | Scalar::Bf16x2]) => self.set_pair(op, operands),
            ("set", [result, _]) => self.set(op, *result, operands),
            _ => Ok(false),
        }
    }

    /// `set`: a comparison, then a choice of the result type's true and false.
    fn set(&mut self, op: &Opcode<'_>, result: Scalar, operands: &[Operand]) -> Result<bool, String> {
        let yes = match result {
            Scalar::F32 => u64::from(1f32.to_bits()),
            Scalar::F16 => u64::from(Half::F16.one()),
            Scalar::Bf16 => u64::from(Half::Bf16.one()),
            Scalar::U16 | Scalar::S16 => 0xffff,
            _ => u64::MAX,
        };
        self.preds += 1;
        let pred = self.preds - 1;
        self.compare_into(op, pred, NONE, &operands[1..])?;
        let (yes, no) = (self.constant(yes, false), self.constant(0, false));
        let d = self.destination(&operands[0], result)?;
        self.push(Draft::new(p::selp::<u32>()).d(d).a(yes).b(no).pred(pred));
        Ok(true)
    }

    /// `set` of pairs: each half of the result is its half's.
    fn set_pair(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        let [d, a, b] = operands else { return Ok(false) };
        let Some(mut aux) = relations(op.part(0)) else { return Ok(false) };
        if op.has("ftz") {
            aux |= relation::FTZ;
        }
        let ty = op.ty()?;
        if op.types()[0] == ty {
            aux |= relation::ONE;
        }
        let run = match ty {
            Scalar::F16x2 => {
                binary_with(|m, a: u32, b: u32| pair2(a, b, |a, b| compared(Half::F16, m, a, b)))
            }
            _ => binary_with(|m, a: u32, b: u32| pair2(a, b, |a, b| compared(Half::Bf16, m, a, b))),
        };
        let (a, b, d) = (self.source(a, ty)?, self.source(b, ty)?, self.destination(d, ty)?);
        self.push(Draft::new(run).d(d).a(a).b(b).aux(aux));
        Ok(true)
    }

    fn setp(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        let (first, second) = match &operands[0] {
            Operand::Pair(pair) => (&pair.0, Some(&pair.1)),
            one => (one, None),
        };
        let d = self.predicate(first)?;
        let other = second.map(|s| self.predicate(s)).transpose()?.unwrap_or(NONE);
        self.compare_into(op, d, other, &operands[1..])?;
        Ok(true)
    }

    /// Compares `sources`, the third being the predicate to combine with; `other` is the result's second predicate.
    fn compare_into(
        &mut self,
        op: &Opcode<'_>,
        d: u32,
        other: u32,
        sources: &[Operand],
    ) -> Result<(), String> {
        let ty = op.ty()?;
        let run = comparison(op, ty).ok_or_else(|| format!("`{}` is no comparison known here", op.text))?;
        let (a, b) = (self.source(&sources[0], ty)?, self.source(&sources[1], ty)?);
        let combine = if op.has("and") {
            p::combine::AND
        } else if op.has("or") {
            p::combine::OR
        } else if op.has("xor") {
            p::combine::XOR
        } else {
            p::combine::NONE
        };
        let (pred, negated) = match sources.get(2) {
            Some(c) => self.predicate_source(c)?,
            None => (NONE, false),
        };
        let mut draft = Draft::new(run).d_pred(d).a(a).b(b).aux(combine).pred(pred).imm(-i64::from(negated));
        draft.0.second = other;
        self.push(draft);
        Ok(())
    }
}

/// What an operator on floats holds for.
fn relations(operator: &str) -> Option<u32> {
    use relation::{EQUAL, GREATER, LESS, UNORDERED};
    // A `u` behind the operator: true, too, if either is NaN.
    let (ordered, unordered) = match operator.strip_suffix('u') {
        Some(ordered) => (ordered, UNORDERED),
        None => (operator, 0),
    };
    let holds = match ordered {
        "eq" => EQUAL,
        "ne" => LESS | GREATER,
        "lt" => LESS,
        "le" => LESS | EQUAL,
        "gt" => GREATER,
        "ge" => GREATER | EQUAL,
        "num" if unordered == 0 => LESS | EQUAL | GREATER,
        "nan" if unordered == 0 => UNORDERED,
        _ => return None,
    };
    Some(holds | unordered)
}

/// True or false of two halves, as `modes` says.
#[inline(always)]
fn compared(kind: Half, modes: u32, a: u16, b: u16) -> u16 {
    let value = |h: u16| kind.to_f32(if modes & relation::FTZ != 0 { halves::flush(kind, h) } else { h });
    let (a, b) = (value(a), value(b));
    let found = match a.partial_cmp(&b) {
        Some(std::cmp::Ordering::Less) => relation::LESS,
        Some(std::cmp::Ordering::Equal) => relation::EQUAL,
        Some(std::cmp::Ordering::Greater) => relation::GREATER,
        None => relation::UNORDERED,
    };
    let yes = if modes & relation::ONE != 0 { kind.one() } else { 0xffff };
    if modes & found != 0 { yes } else { 0 }
}

/// A comparison by its operator and type.
#[allow(
    clippy::neg_cmp_op_on_partial_ord,
    clippy::double_comparisons,
    reason = "written as the ISA defines them: what NaN makes of each is the point"
)]
fn comparison(op: &Opcode<'_>, ty: Scalar) -> Option<Exec> {
    macro_rules! of {
        ($t:ty) => {
            match op.part(0) {
                "eq" => Some(compare(|a: $t, b: $t| a == b)),
                "ne" => Some(compare(|a: $t, b: $t| a != b)),
                "lt" | "lo" => Some(compare(|a: $t, b: $t| a < b)),
                "le" | "ls" => Some(compare(|a: $t, b: $t| a <= b)),
                "gt" | "hi" => Some(compare(|a: $t, b: $t| a > b)),
                "ge" | "hs" => Some(compare(|a: $t, b: $t| a >= b)),
                _ => None,
            }
        };
    }
    macro_rules! float {
        ($t:ty, $f:ty, |$x:ident| $conv:expr) => {{
            macro_rules! by {
                (|$a:ident, $b:ident| $e:expr) => {
                    Some(compare(|a: $t, b: $t| {
                        let $a: $f = {
                            let $x = a;
                            $conv
                        };
                        let $b: $f = {
                            let $x = b;
                            $conv
                        };
                        $e
                    }))
                };
            }
            match op.part(0) {
                "eq" => by!(|a, b| a == b),
                // Ordered: false if either is NaN.
                "ne" => by!(|a, b| a < b || a > b),
                "lt" => by!(|a, b| a < b),
                "le" => by!(|a, b| a <= b),
                "gt" => by!(|a, b| a > b),
                "ge" => by!(|a, b| a >= b),
                // Unordered: true if either is NaN.
                "equ" => by!(|a, b| !(a < b || a > b)),
                "neu" => by!(|a, b| a != b),
                "ltu" => by!(|a, b| !(a >= b)),
                "leu" => by!(|a, b| !(a > b)),
                "gtu" => by!(|a, b| !(a <= b)),
                "geu" => by!(|a, b| !(a < b)),
                "num" => by!(|a, b| !a.is_nan() && !b.is_nan()),
                "nan" => by!(|a, b| a.is_nan() || b.is_nan()),
                _ => None,
            }
        }};
    }
    match ty {
        Scalar::U16 | Scalar::B16 => of!(u16),
        Scalar::S16 => of!(i16),
        Scalar::U32 | Scalar::B32 => of!(u32),
        Scalar::S32 => of!(i32),
        Scalar::U64 | Scalar::B64 => of!(u64),
        Scalar::S64 => of!(i64),
        Scalar::F32 if op.has("ftz") => float!(f32, f32, |x| crate::num::float::flush(x)),
        Scalar::F32 => float!(f32, f32, |x| x),
        Scalar::F64 => float!(f64, f64, |x| x),
        Scalar::F16 => float!(u16, f32, |x| crate::num::small_float::f16_to_f32(x)),
        Scalar::Bf16 => float!(u16, f32, |x| crate::num::small_float::bf16_to_f32(x)),
        _ => None,
    }
}
