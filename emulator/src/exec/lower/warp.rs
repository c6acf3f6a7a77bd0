//! Exchanges between the lanes of a warp.

use super::super::op::Exec;
use super::super::warp_ops as w;
use super::{Draft, Lower, Opcode, Operand, Scalar};

impl Lower<'_> {
    pub(super) fn warp(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        match (op.name(), operands) {
            ("shfl", [d, a, b, c, mask]) => {
                let kind = match op.part(1) {
                    "up" => w::shuffle::UP,
                    "down" => w::shuffle::DOWN,
                    "bfly" => w::shuffle::BUTTERFLY,
                    "idx" => w::shuffle::INDEX,
                    other => return Err(format!("unknown shuffle `{other}`")),
                };
                let (d, p) = match d {
                    Operand::Pair(pair) => (&pair.0, Some(&pair.1)),
                    d => (d, None),
                };
                let mut draft = Draft::new(w::shfl as Exec).aux(kind).d(self.destination(d, Scalar::B32)?);
                if let Some(p) = p {
                    draft = draft.pred(self.predicate(p)?);
                }
                let [a, b, c, mask] = [a, b, c, mask].map(|o| self.source(o, Scalar::B32));
                self.push(draft.a(a?).b(b?).c(c?).list(Vec::new(), vec![mask?]));
            }
            ("vote", [d, p, mask]) => {
                let kind = match op.part(1) {
                    "ballot" => w::vote::BALLOT,
                    "all" => w::vote::ALL,
                    "any" => w::vote::ANY,
                    "uni" => w::vote::UNI,
                    other => return Err(format!("unknown vote `{other}`")),
                };
                let (p, negated) = self.predicate_source(p)?;
                let mask = self.source(mask, Scalar::B32)?;
                let draft = Draft::new(w::vote as Exec).aux(kind).pred(p).imm(-i64::from(negated)).a(mask);
                let draft = if kind == w::vote::BALLOT {
                    draft.d(self.destination(d, Scalar::B32)?)
                } else {
                    draft.d_pred(self.predicate(d)?)
                };
                self.push(draft);
            }
            ("match", [d, a, mask]) => {
                let all = op.has("all");
                let ty = op.ty()?;
                let (d, p) = match d {
                    Operand::Pair(pair) => (&pair.0, Some(&pair.1)),
                    d => (d, None),
                };
                let run: Exec = if ty.bytes() == 8 { w::match_lanes::<u64> } else { w::match_lanes::<u32> };
                let mut draft = Draft::new(run).aux(u32::from(all)).d(self.destination(d, Scalar::B32)?);
                if let Some(p) = p {
                    draft = draft.pred(self.predicate(p)?);
                }
                let (a, mask) = (self.source(a, ty)?, self.source(mask, Scalar::B32)?);
                self.push(draft.a(a).b(mask));
            }
            ("redux", [d, a, mask]) => {
                let ty = op.ty()?;
                let kinds = ["add", "min", "max", "and", "or", "xor"];
                let kind = kinds.iter().position(|k| op.has(k)).ok_or("which reduction?")?;
                let signed = ty == Scalar::S32;
                let (a, mask) = (self.source(a, ty)?, self.source(mask, Scalar::B32)?);
                let d = self.destination(d, ty)?;
                let aux = kind as u32 | u32::from(signed) << 8;
                self.push(Draft::new(w::redux as Exec).aux(aux).d(d).a(a).b(mask));
            }
            ("activemask", [d]) => {
                let d = self.destination(d, Scalar::B32)?;
                self.push(Draft::new(w::activemask as Exec).d(d));
            }
            ("elect", [d, mask]) => {
                let (d, p) = match d {
                    Operand::Pair(pair) => (&pair.0, &pair.1),
                    _ => return Err("expected `d|p`".into()),
                };
                let d = self.destination(d, Scalar::B32)?;
                let p = self.predicate(p)?;
                let mask = self.source(mask, Scalar::B32)?;
                self.push(Draft::new(w::elect as Exec).d(d).pred(p).a(mask));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}
