//! Occupancy.

use crate::clock::{Footprint, blocks_per_sm};
use crate::driver::args::Out;
use crate::driver::session::Session;
use crate::driver::status::{Result, Status};

impl Session {
    /// Blocks of a kernel that an SM holds.
    fn resident(&self, function: u64, threads: i32, dynamic: usize) -> Result<u32> {
        let f = self.kernel(function)?;
        let threads = u32::try_from(threads).ok().filter(|&n| n > 0).ok_or(Status::INVALID_VALUE)?;
        if threads > self.thread_limit(f) {
            return Ok(0);
        }
        let dynamic = u32::try_from(dynamic).map_err(|_| Status::INVALID_VALUE)?;
        let shared = f.info.static_shared.saturating_add(dynamic);
        let registers = f.info.registers.unwrap_or(0);
        Ok(blocks_per_sm(&self.profile.limits, Footprint { threads, registers, shared }))
    }

    fn best_block(
        &self,
        function: u64,
        dynamic_of: Option<extern "C" fn(i32) -> usize>,
        dynamic: usize,
        limit: i32,
    ) -> Result<(i32, i32)> {
        let f = self.kernel(function)?;
        let most = self.thread_limit(f) as i32;
        let most = if limit > 0 { most.min(limit) } else { most };
        let mut best = (0, 0, 0);
        for threads in (1..=most / 32).rev().map(|warps| warps * 32) {
            let dynamic = dynamic_of.map_or(dynamic, |of| of(threads));
            let resident = self.resident(function, threads, dynamic)? as i32;
            if resident * threads > best.0 {
                best = (resident * threads, resident * self.profile.sms as i32, threads);
            }
        }
        Ok((best.1, best.2))
    }
}

api! {
    context fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: Out<i32>, function: u64, threads: i32, dynamic: usize,
    ) |s| { blocks.set(s.resident(function, threads, dynamic)? as i32) }

    context fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: Out<i32>, function: u64, threads: i32, dynamic: usize, _flags: u32,
    ) |s| { blocks.set(s.resident(function, threads, dynamic)? as i32) }

    context fn cuOccupancyMaxPotentialBlockSize(
        grid: Out<i32>, block: Out<i32>, function: u64, dynamic_of: Option<extern "C" fn(i32) -> usize>,
        dynamic: usize, limit: i32,
    ) |s| {
        let best = s.best_block(function, dynamic_of, dynamic, limit)?;
        grid.set(best.0)?;
        block.set(best.1)
    }

    context fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: Out<i32>, block: Out<i32>, function: u64, dynamic_of: Option<extern "C" fn(i32) -> usize>,
        dynamic: usize, limit: i32, _flags: u32,
    ) |s| {
        let best = s.best_block(function, dynamic_of, dynamic, limit)?;
        grid.set(best.0)?;
        block.set(best.1)
    }

    context fn cuOccupancyAvailableDynamicSMemPerBlock(
        bytes: Out<usize>, function: u64, blocks: i32, threads: i32,
    ) |s| {
        let blocks = u32::try_from(blocks).ok().filter(|&n| n > 0).ok_or(Status::INVALID_VALUE)?;
        if s.resident(function, threads, 0)? < blocks {
            return Err(Status::INVALID_VALUE);
        }
        let limits = s.profile.limits;
        let share = (limits.shared_per_sm / blocks).saturating_sub(limits.shared_reserved) / 128 * 128;
        let shared = share.min(limits.shared_per_block_optin);
        bytes.set(shared.saturating_sub(s.kernel(function)?.info.static_shared) as usize)
    }
}
