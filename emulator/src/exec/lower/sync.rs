//! Barriers, fences, mbarriers, asynchronous copies, and what only hints.

use super::super::asynchronous as a;
use super::super::barrier::{self, what};
use super::super::op::{Exec, NONE};
use super::{Draft, Lower, Opcode, Operand, Scalar, nothing};

pub(super) use super::super::asynchronous::mapa;

impl Lower<'_> {
    pub(super) fn sync(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        match op.name() {
            "bar" | "barrier" => self.bar(op, operands),
            "mbarrier" => self.mbarrier(op, operands),
            "cp" => self.copy(op, operands),
            // One host thread runs a block, and host atomics order what blocks do to each other.
            "membar" | "fence" => {
                op.only(&[
                    "cta",
                    "gl",
                    "sys",
                    "gpu",
                    "cluster",
                    "sc",
                    "acq_rel",
                    "acquire",
                    "release",
                    "proxy",
                    "async",
                    "async::generic",
                    "global",
                    "alias",
                    "mbarrier_init",
                    "tensormap::generic",
                    "shared::cta",
                    "shared::cluster",
                    "sync_restrict::shared::cta",
                    "sync_restrict::shared::cluster",
                ])?;
                self.push(Draft::new(nothing));
                Ok(true)
            }
            "griddepcontrol" => {
                op.only(&["wait", "launch_dependents"])?;
                self.push(Draft::new(nothing));
                Ok(true)
            }
            "setmaxnreg" => {
                let [Operand::Int(count)] = operands else { return Err("expected a register count".into()) };
                if !(24..=256).contains(count) || count % 8 != 0 {
                    return Err(format!("{count} registers, expected a multiple of 8 from 24 to 256"));
                }
                self.push(Draft::new(a::setmaxnreg));
                Ok(true)
            }
            "createpolicy" => {
                let (zero, d) = (self.constant(0, true), self.destination(&operands[0], Scalar::B64)?);
                self.push(Draft::new(super::isa::unary(|x: u64| x)).d(d).a(zero));
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn bar(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        if op.has("warp") {
            let mask = self.source(&operands[0], Scalar::B32)?;
            self.push(Draft::new(barrier::warp_sync as Exec).a(mask));
            return Ok(true);
        }
        if op.has("cluster") {
            // Blocks of a cluster share nothing here but global memory; within the block both halves are a barrier.
            if op.has("wait") {
                let zero = self.constant(u64::from(a::CLUSTER_BARRIER), false);
                self.push(Draft::new(barrier::bar as Exec).a(zero).aux(what::SYNC));
            } else {
                self.push(Draft::new(nothing));
            }
            return Ok(true);
        }
        if op.has("red") {
            let kind = if op.has("popc") {
                what::POPC
            } else if op.has("and") {
                what::AND
            } else {
                what::OR
            };
            let (d, id, rest) = (&operands[0], &operands[1], &operands[2..]);
            let (count, predicate) =
                if rest.len() == 2 { (Some(&rest[0]), &rest[1]) } else { (None, &rest[0]) };
            let (p, negated) = self.predicate_source(predicate)?;
            let mut draft = Draft::new(barrier::bar as Exec).aux(kind).pred(p).imm(-i64::from(negated));
            draft = if kind == what::POPC {
                draft.d(self.destination(d, Scalar::U32)?)
            } else {
                draft.d_pred(self.predicate(d)?)
            };
            draft = draft.a(self.source(id, Scalar::U32)?);
            if let Some(count) = count {
                draft = draft.b(self.source(count, Scalar::U32)?);
            }
            self.push(draft);
            return Ok(true);
        }
        let kind = if op.has("arrive") { what::ARRIVE } else { what::SYNC };
        if !op.has("sync") && kind == what::SYNC {
            return Ok(false);
        }
        let mut draft = Draft::new(barrier::bar as Exec).aux(kind).a(self.source(&operands[0], Scalar::U32)?);
        if let Some(count) = operands.get(1) {
            draft = draft.b(self.source(count, Scalar::U32)?);
        }
        self.push(draft);
        Ok(true)
    }

    /// A shared address as a 32-bit cell.
    pub(super) fn shared_address(&mut self, operand: &Operand) -> Result<(u32, i64), String> {
        let (cell, offset, wide) = self.address(operand)?;
        Ok((if wide { self.resized(cell, false) } else { cell }, offset))
    }

    /// A global or generic address as a 64-bit cell.
    fn global_address(&mut self, operand: &Operand) -> Result<(u32, i64), String> {
        let (cell, offset, wide) = self.address(operand)?;
        Ok((if wide { cell } else { self.resized(cell, true) }, offset))
    }

    fn mbarrier(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        if op.part(0) == "pending_count" {
            let (a, d) =
                (self.source(&operands[1], Scalar::B64)?, self.destination(&operands[0], Scalar::U32)?);
            self.push(Draft::new(super::isa::unary(a::pending_of_token)).d(d).a(a));
            return Ok(true);
        }
        let has_destination = !matches!(operands.first(), Some(Operand::Address(_)));
        let (d, rest) = if has_destination { (Some(&operands[0]), &operands[1..]) } else { (None, operands) };
        let (address, offset) = self.shared_address(&rest[0])?;
        let value = rest.get(1);
        let draft = |run: Exec| Draft::new(run).a(address).imm(offset);
        match op.part(0) {
            "init" => {
                let count = self.source(value.ok_or("expected a count")?, Scalar::U32)?;
                self.push(draft(a::mbarrier_init).b(count));
            }
            "inval" => self.push(draft(a::mbarrier_inval)),
            "expect_tx" => {
                let bytes = self.source(value.ok_or("expected a byte count")?, Scalar::U32)?;
                self.push(draft(a::mbarrier_expect).b(bytes));
            }
            "complete_tx" => {
                let bytes = self.source(value.ok_or("expected a byte count")?, Scalar::U32)?;
                self.push(draft(a::mbarrier_complete).b(bytes));
            }
            "arrive" | "arrive_drop" => {
                if op.part(0) == "arrive_drop" {
                    return Err("mbarrier.arrive_drop is not supported".into());
                }
                let mut draft = draft(a::mbarrier_arrive).aux(u32::from(op.has("expect_tx")));
                if let Some(value) = value {
                    draft = draft.b(self.source(value, Scalar::U32)?);
                }
                // A third operand, the count of an arrive.expect_tx, does not exist.
                if let Some(d) = d.filter(|d| !matches!(d, Operand::Discard)) {
                    draft = draft.d(self.destination(d, Scalar::B64)?);
                }
                self.push(draft);
            }
            "test_wait" | "try_wait" => {
                let parity = op.has("parity");
                let value = value.ok_or("expected a state or parity")?;
                let b = self.source(value, if parity { Scalar::U32 } else { Scalar::B64 })?;
                let d = self.predicate(d.ok_or("expected a predicate")?)?;
                let run: Exec = if parity { a::mbarrier_wait::<u32> } else { a::mbarrier_wait::<u64> };
                self.push(draft(run).d_pred(d).b(b));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn copy(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        if op.part(0) != "async" {
            return Ok(false);
        }
        if op.has("bulk") {
            return self.bulk(op, operands);
        }
        match operands {
            [] if op.has("commit_group") => self.push(Draft::new(a::cp_commit)),
            [] if op.has("wait_all") => self.push(Draft::new(a::cp_wait).imm(0).aux(1)),
            [Operand::Int(n)] if op.has("wait_group") => self.push(Draft::new(a::cp_wait).imm(*n as i64)),
            [address] if op.has("mbarrier") => {
                let (address, offset) = self.shared_address(address)?;
                let aux = u32::from(op.has("noinc"));
                self.push(Draft::new(a::cp_arrive).a(address).imm(offset).aux(aux));
            }
            [to, from, Operand::Int(size), rest @ ..] if matches!(size, 4 | 8 | 16) => {
                let (shared, shared_offset) = self.shared_address(to)?;
                let (global, global_offset) = self.global_address(from)?;
                if shared_offset.unsigned_abs() > u64::from(u32::MAX >> 1) {
                    return Err("the shared offset is too large".into());
                }
                let mut draft = Draft::new(a::cp_async).a(global).imm(global_offset).b(shared);
                // The shared offset and the size share a word.
                draft = draft
                    .aux(*size as u32)
                    .list(Vec::new(), vec![self.constant(shared_offset as u64, false)]);
                match rest {
                    [] => {}
                    [_policy] if op.has("L2::cache_hint") => {}
                    [Operand::Reg(reg), ..] if self.is_predicate(*reg) => {
                        draft = draft.pred(self.predicate(&Operand::Reg(*reg))?);
                    }
                    [count, ..] => draft = draft.c(self.source(count, Scalar::U32)?),
                }
                self.push(draft);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn is_predicate(&self, reg: u32) -> bool {
        matches!(self.frame.registers.get(reg as usize), Some(super::Where::Pred(_)))
    }

    fn bulk(&mut self, op: &Opcode<'_>, operands: &[Operand]) -> Result<bool, String> {
        if op.has("multicast::cluster") {
            return Err("multicast to a cluster is not supported".into());
        }
        if op.has("prefetch") {
            self.push(Draft::new(nothing));
            return Ok(true);
        }
        match operands {
            [] if op.has("commit_group") => self.push(Draft::new(a::bulk_commit)),
            [Operand::Int(n)] if op.has("wait_group") => self.push(Draft::new(a::bulk_wait).imm(*n as i64)),
            [to, map, mbarrier, ..] if op.has("tensor") && op.has("mbarrier::complete_tx::bytes") => {
                let (shared, shared_offset) = self.shared_address(to)?;
                let (barrier, barrier_offset) = self.shared_address(mbarrier)?;
                let draft = self.tensor_map(op, map, a::tensor_load)?;
                let offsets = vec![
                    self.constant(shared_offset as u64, false),
                    self.constant(barrier_offset as u64, false),
                ];
                self.push_with(draft.b(shared).c(barrier), offsets);
            }
            [map, from, ..] if op.has("tensor") && op.has("bulk_group") => {
                let (shared, shared_offset) = self.shared_address(from)?;
                let draft = self.tensor_map(op, map, a::tensor_store)?;
                let offset = self.constant(shared_offset as u64, false);
                self.push_with(draft.b(shared), vec![offset, offset]);
            }
            [to, from, size, mbarrier, ..] if op.has("mbarrier::complete_tx::bytes") => {
                let (shared, shared_offset) = self.shared_address(to)?;
                let (global, offset) = self.global_address(from)?;
                let (barrier, barrier_offset) = self.shared_address(mbarrier)?;
                let size = self.source(size, Scalar::U32)?;
                let list = vec![
                    size,
                    self.constant(shared_offset as u64, false),
                    self.constant(barrier_offset as u64, false),
                ];
                let draft = Draft::new(a::bulk_load).a(global).imm(offset).b(shared).c(barrier);
                self.push(draft.list(Vec::new(), list));
            }
            [to, from, size, ..] if op.has("bulk_group") => {
                let (global, offset) = self.global_address(to)?;
                let (shared, shared_offset) = self.shared_address(from)?;
                let size = self.source(size, Scalar::U32)?;
                let list = vec![size, self.constant(shared_offset as u64, false)];
                let draft = Draft::new(a::bulk_store).a(global).imm(offset).b(shared);
                self.push(draft.list(Vec::new(), list));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `[map, {x, y}]`: the map's address in `a`, coordinates first in the list.
    fn tensor_map(&mut self, op: &Opcode<'_>, operand: &Operand, run: Exec) -> Result<Draft, String> {
        let rank = (1..=5).find(|n| op.has(&format!("{n}d"))).ok_or("expected .1d to .5d")?;
        if op.modifiers().iter().any(|m| m.starts_with("im2col") || m.starts_with("tile::")) {
            return Err("only .tile copies are supported".into());
        }
        let Operand::Address(address) = operand else { return Err("expected [map, {coordinates}]".into()) };
        let Some(Operand::Vector(coordinates)) = address.extra.first() else {
            return Err("expected coordinates".into());
        };
        if coordinates.len() != rank {
            return Err(format!("{} coordinates for .{rank}d", coordinates.len()));
        }
        let (map, offset) = self.global_address(operand)?;
        let mut cells = Vec::new();
        for c in coordinates {
            cells.push(self.source(c, Scalar::S32)?);
        }
        let mut draft = Draft::new(run).a(map).imm(offset).aux(rank as u32).list(Vec::new(), cells);
        draft.0.second = NONE;
        Ok(draft)
    }

    fn push_with(&mut self, mut draft: Draft, more: Vec<u32>) {
        draft.0.list = draft.0.list.iter().copied().chain(more).collect();
        self.push(draft);
    }
}
