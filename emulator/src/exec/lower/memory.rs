//! Loads, stores, atomics.

use super::super::access::space;
use super::super::atomic;
use super::super::load_store::{load, load_param, store};
use super::super::op::{Exec, NONE};
use super::{Draft, Lower, Opcode, Operand, Scalar};
use crate::ptx::ast::Space;

const CACHE: [&str; 34] = [
    "weak",
    "volatile",
    "relaxed",
    "acquire",
    "release",
    "acq_rel",
    "mmio",
    "cta",
    "cluster",
    "gpu",
    "sys",
    "nc",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "global",
    "shared",
    "shared::cta",
    "shared::cluster",
    "local",
    "const",
    "param",
    "L1::evict_normal",
    "L1::evict_last",
    "L1::evict_first",
    "L1::no_allocate",
    "L2::cache_hint",
    "L2::64B",
    "L2::128B",
    "L2::256B",
];

impl Lower<'_> {
    pub(super) fn memory(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        match (op.name(), operands) {
            ("ld" | "ldu", [d, address, ..]) => self.load(op, d, address)?,
            ("st", [address, value, ..]) => self.store(op, address, value)?,
            ("atom", [d, address, values @ ..]) => self.atomic(op, Some(d), address, values)?,
            ("red", [address, values @ ..]) if !op.has("async") => self.atomic(op, None, address, values)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The state space of an access: what the opcode says, or the space of the symbol it names.
    fn space(&mut self, op: &Opcode<'_>, address: &Operand) -> u8 {
        let named = |names: &[&str]| names.iter().any(|n| op.has(n));
        if named(&["shared", "shared::cta", "shared::cluster"]) {
            return space::SHARED;
        }
        if named(&["local"]) {
            return space::LOCAL;
        }
        if named(&["global", "const"]) {
            return space::GLOBAL;
        }
        if named(&["param", "param::entry", "param::func"]) {
            let Operand::Address(a) = address else { return space::GENERIC };
            if let Operand::Symbol(name, _) = &a.base
                && let Some((Space::Local, _)) = self.symbol(name)
            {
                return space::LOCAL;
            }
        }
        space::GENERIC
    }

    fn load(&mut self, op: &Opcode<'_>, d: &Operand, address: &Operand) -> Result<(), String> {
        op.only(
            &[
                &CACHE[..],
                &["v2", "v4", "v8", "param::entry", "param::func", "L2::evict_last", "L2::evict_first"],
            ]
            .concat(),
        )?;
        let ty = op.ty()?;
        let parts: Vec<&Operand> = match d {
            Operand::Vector(parts) => parts.iter().collect(),
            one => vec![one],
        };
        if parts.len() != op.vector() {
            return Err(format!("{} destinations for `{}`", parts.len(), op.text));
        }
        let wide = ty.bytes() == 8 || parts.iter().any(|p| self.is_wide(p));
        let register = if wide { Scalar::U64 } else { Scalar::U32 };
        let mut cells = Vec::new();
        for part in parts {
            cells.push(self.destination(part, register)?);
        }
        if let Some(offset) = self.kernel_parameter(address) {
            let run = load_param(ty, wide);
            self.push(Draft::new(run).imm(offset).list(cells, Vec::new()));
            return Ok(());
        }
        let space = self.space(op, address);
        let (a, offset, wide_address) = self.address(address)?;
        let run = load(space, ty, wide, cells.len(), wide_address).ok_or("this load is not known")?;
        self.push(Draft::new(run).a(a).imm(offset).list(cells, Vec::new()));
        Ok(())
    }

    fn store(&mut self, op: &Opcode<'_>, address: &Operand, value: &Operand) -> Result<(), String> {
        op.only(
            &[&CACHE[..], &["v2", "v4", "v8", "param::func", "L2::evict_last", "L2::evict_first"]].concat(),
        )?;
        let ty = op.ty()?;
        let parts: Vec<&Operand> = match value {
            Operand::Vector(parts) => parts.iter().collect(),
            one => vec![one],
        };
        if parts.len() != op.vector() {
            return Err(format!("{} sources for `{}`", parts.len(), op.text));
        }
        let register = if ty.bytes() == 8 {
            Scalar::U64
        } else if ty == Scalar::F32 {
            ty
        } else {
            Scalar::U32
        };
        let mut cells = Vec::new();
        for part in parts {
            cells.push(self.source(part, register)?);
        }
        let space = self.space(op, address);
        let (a, offset, wide_address) = self.address(address)?;
        let run = store(space, ty, cells.len(), wide_address).ok_or("this store is not known")?;
        self.push(Draft::new(run).a(a).imm(offset).list(Vec::new(), cells));
        Ok(())
    }

    fn atomic(
        &mut self,
        op: &Opcode<'_>,
        d: Option<&Operand>,
        address: &Operand,
        values: &[Operand],
    ) -> Result<(), String> {
        let ty = op.ty()?;
        let vector = op.vector();
        if vector > 1 {
            return Err("vector atomics are not supported".into());
        }
        let kinds = ["add", "min", "max", "inc", "dec", "and", "or", "xor", "exch", "cas"];
        let kind = kinds.iter().find(|k| op.has(k)).ok_or("which operation?")?;
        let run = atomic::atomic(kind, ty, self.space(op, address)).ok_or("this atomic is not known")?;
        let (mut a, offset, wide_address) = self.address(address)?;
        if !wide_address {
            a = self.resized(a, true);
        }
        let register = if ty.bytes() == 8 { Scalar::U64 } else { Scalar::U32 };
        let register = if matches!(ty, Scalar::F32 | Scalar::F64) { ty } else { register };
        let d = match d {
            Some(d) => self.destination(d, ty)?,
            None => NONE,
        };
        let mut draft = Draft::new(run as Exec).d(d).a(a).imm(offset);
        if let Some(b) = values.first() {
            draft = draft.b(self.source(b, register)?);
        }
        if let (true, Some(c)) = (*kind == "cas", values.get(1)) {
            draft = draft.c(self.source(c, register)?);
        }
        self.push(draft);
        Ok(())
    }
}
