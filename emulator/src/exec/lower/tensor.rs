//! ldmatrix, stmatrix, mma, wgmma.

use super::super::op::{Exec, NONE};
use super::super::{tensor_ops as t, wgmma};
use super::{Draft, Lower, Opcode, Operand, Scalar};
use crate::tensor::panel::Element;

/// The operand type of a matrix instruction.
fn element(name: &str) -> Option<Element> {
    Some(match name {
        "f16" => Element::F16,
        "bf16" => Element::Bf16,
        "tf32" => Element::Tf32,
        "e4m3" => Element::E4m3,
        "e5m2" => Element::E5m2,
        _ => return None,
    })
}

/// `m64n128k16` → (64, 128, 16).
fn shape(op: &Opcode<'_>) -> Option<(u32, u32, u32)> {
    op.modifiers().iter().find_map(|m| {
        let (rows, rest) = m.strip_prefix('m')?.split_once('n')?;
        let (columns, depth) = rest.split_once('k')?;
        Some((rows.parse().ok()?, columns.parse().ok()?, depth.parse().ok()?))
    })
}

impl Lower<'_> {
    pub(super) fn tensor(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        match (op.name(), operands) {
            ("ldmatrix", [d, address]) => self.matrices(op, d, address, true)?,
            ("stmatrix", [address, value]) => self.matrices(op, value, address, false)?,
            ("mma", [d, a, b, c]) => self.mma(op, d, a, b, c)?,
            ("wgmma", _) => return self.wgmma(op, operands),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn cells(&mut self, operand: &Operand, writes: bool) -> Result<Vec<u32>, String> {
        let parts = match operand {
            Operand::Vector(parts) => parts.as_slice(),
            one => std::slice::from_ref(one),
        };
        parts
            .iter()
            .map(|p| if writes { self.destination(p, Scalar::B32) } else { self.source(p, Scalar::F32) })
            .collect()
    }

    fn matrices(
        &mut self,
        op: &Opcode<'_>,
        values: &Operand,
        address: &Operand,
        load: bool,
    ) -> Result<(), String> {
        op.only(&["sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta"])?;
        let cells = self.cells(values, load)?;
        let (a, offset) = self.shared_address(address)?;
        let run: Exec = if load { t::ldmatrix } else { t::stmatrix };
        let draft = Draft::new(run).a(a).imm(offset).aux(u32::from(op.has("trans")));
        self.push(if load { draft.list(cells, Vec::new()) } else { draft.list(Vec::new(), cells) });
        Ok(())
    }

    fn mma(
        &mut self,
        op: &Opcode<'_>,
        d: &Operand,
        a: &Operand,
        b: &Operand,
        c: &Operand,
    ) -> Result<(), String> {
        op.only(&[
            "sync", "aligned", "row", "col", "m16n8k16", "m16n8k8", "m16n8k32", "m16n8k4", "tf32", "e4m3",
            "e5m2",
        ])?;
        let (_, _, depth) = shape(op).ok_or("which shape?")?;
        let names: Vec<&str> =
            op.modifiers().iter().filter(|m| element(m).is_some() || **m == "f32").copied().collect();
        let [to, of_a, of_b, _] = names[..] else { return Err("expected four types".into()) };
        let (a_type, b_type) = (element(of_a), element(of_b));
        let (Some(a_type), true) = (a_type, a_type == b_type) else {
            return Err("these operand types are not known".into());
        };
        let half = to == "f16";
        let writes = self.cells(d, true)?;
        let mut reads = self.cells(a, false)?;
        reads.extend(self.cells(b, false)?);
        reads.extend(self.cells(c, false)?);
        let aux = t::pack(a_type, depth, half);
        self.push(Draft::new(t::mma as Exec).aux(aux).list(writes, reads));
        Ok(())
    }

    fn wgmma(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        match (op.part(0), operands) {
            ("fence", []) => self.push(Draft::new(wgmma::fence as Exec).tolerant()),
            ("commit_group", []) => self.push(Draft::new(wgmma::commit as Exec).tolerant()),
            ("wait_group", [Operand::Int(n)]) => {
                self.push(Draft::new(wgmma::wait as Exec).imm(*n as i64).tolerant());
            }
            ("mma_async", [d, a, b, scale_d, rest @ ..]) => {
                let (rows, columns, depth) = shape(op).ok_or("which shape?")?;
                let names: Vec<&str> = op
                    .modifiers()
                    .iter()
                    .filter(|m| element(m).is_some() || matches!(**m, "f32" | "s32"))
                    .copied()
                    .collect();
                let [to, of_a, of_b] = names[..] else { return Err("expected three types".into()) };
                let (Some(a_type), Some(b_type)) = (element(of_a), element(of_b)) else {
                    return Err("these operand types are not known".into());
                };
                let step = 32 / a_type.size() as u32;
                if rows != 64 || depth != step || columns % 8 != 0 || !(8..=256).contains(&columns) {
                    return Err(format!("m{rows}n{columns}k{depth} is no wgmma shape of this type"));
                }
                if op.has("sp") {
                    return Err("sparse wgmma is not supported".into());
                }
                let half = to == "f16";
                let accumulators = self.cells(d, true)?;
                let expected = if half { columns / 4 } else { columns / 2 };
                if accumulators.len() != expected as usize {
                    return Err(format!("{} accumulators, expected {expected}", accumulators.len()));
                }
                let immediate = |o: &Operand| match o {
                    Operand::Int(v) => Ok(*v as i64),
                    _ => Err("expected a constant".to_owned()),
                };
                let flags: Vec<i64> = rest.iter().map(immediate).collect::<Result<_, _>>()?;
                let from_registers = matches!(a, Operand::Vector(_));
                let at = |i: usize| flags.get(i).copied().unwrap_or(0);
                let transposed = if from_registers { (0, at(2)) } else { (at(2), at(3)) };
                if (transposed.0 | transposed.1) & 1 == 1 && a_type.size() != 2 {
                    return Err("only matrices of 16-bit elements can be MN-major".into());
                }
                let mut draft = Draft::new(wgmma::issue as Exec).tolerant();
                draft.0.imm = i64::from(columns)
                    | i64::from(at(0) < 0) << 16
                    | i64::from(at(1) < 0) << 17
                    | (transposed.0 & 1) << 18
                    | (transposed.1 & 1) << 19
                    | i64::from(from_registers) << 20;
                draft.0.aux = t::pack(a_type, depth, half) | (b_type as u32) << 24;
                let reads = if from_registers {
                    self.cells(a, false)?
                } else {
                    draft = draft.a(self.source(a, Scalar::B64)?);
                    Vec::new()
                };
                draft = draft.b(self.source(b, Scalar::B64)?);
                let (p, negated) = self.predicate_source(scale_d)?;
                draft = draft.pred(p);
                draft.0.second = u32::from(negated);
                draft.0.adds = true;
                self.push(draft.list(accumulators, reads));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Accumulators belong to an unfinished wgmma until a wait: each wait names those that are open there, so that
    /// their cells are not given to anybody else meanwhile.
    pub(super) fn extend_accumulators(&mut self) {
        let mut open: Vec<u32> = Vec::new();
        for op in &mut self.code {
            if std::ptr::fn_addr_eq(op.run, wgmma::issue as Exec) {
                open.extend(&op.list[..op.writes as usize]);
                open.sort_unstable();
                open.dedup();
            } else if std::ptr::fn_addr_eq(op.run, wgmma::wait as Exec) {
                op.list = open.clone().into();
                debug_assert_eq!(op.pred, NONE);
                if op.imm == 0 {
                    open.clear();
                }
            }
        }
    }
}
