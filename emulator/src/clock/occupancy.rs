//! How many blocks of a kernel an SM holds at a time.

use super::Limits;

/// What a block of a kernel takes up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Threads.
    pub threads: u32,
    /// Registers a thread, 0 if unknown.
    pub registers: u32,
    /// Static and dynamic shared memory.
    pub shared: u32,
}

/// Registers are given out to warps in pieces of this many (CUDA occupancy calculator, compute capability 9.0).
const REGISTER_UNIT: u32 = 256;
/// Shared memory is given out to blocks in pieces of this many bytes (same source).
const SHARED_UNIT: u32 = 128;
/// Schedulers of an SM; the registers are split evenly between them.
pub(super) const SCHEDULERS: u32 = 4;

/// Blocks of `footprint` that fit on an SM at a time; 0 if not even one does.
pub fn blocks_per_sm(limits: &Limits, footprint: Footprint) -> u32 {
    let Footprint { threads, registers, shared } = footprint;
    if threads == 0 || threads > limits.threads_per_block {
        return 0;
    }
    let warps = threads.div_ceil(32);
    let by_threads = limits.threads_per_sm / 32 / warps;
    let by_registers = if registers == 0 {
        u32::MAX
    } else {
        let warp = (registers * 32).next_multiple_of(REGISTER_UNIT);
        let warps_per_scheduler = limits.registers_per_sm / SCHEDULERS / warp;
        warps_per_scheduler * SCHEDULERS / warps
    };
    let by_shared = match shared.checked_next_multiple_of(SHARED_UNIT) {
        Some(shared) if shared <= limits.shared_per_block_optin => {
            limits.shared_per_sm / (shared + limits.shared_reserved)
        }
        _ => 0,
    };
    limits.blocks_per_sm.min(by_threads).min(by_registers).min(by_shared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Profile;

    fn blocks(threads: u32, registers: u32, shared: u32) -> u32 {
        blocks_per_sm(&Profile::named("h100-80gb").unwrap().limits, Footprint { threads, registers, shared })
    }

    #[test]
    fn each_resource_limits_in_its_turn() {
        assert_eq!(blocks(32, 0, 0), 32);
        assert_eq!(blocks(256, 0, 0), 8);
        assert_eq!(blocks(33, 0, 0), 32);
        assert_eq!(blocks(1024, 0, 0), 2);
        // 64 registers × 1,024 threads fill the file.
        assert_eq!(blocks(1024, 64, 0), 1);
        assert_eq!(blocks(1024, 65, 0), 0);
        assert_eq!(blocks(384, 168, 0), 1);
        // 227 KB leave no room for a second block; 100 KB + 1 KB do.
        assert_eq!(blocks(128, 32, 232_448), 1);
        assert_eq!(blocks(128, 32, 232_449), 0);
        assert_eq!(blocks(128, 32, 100 << 10), 2);
        assert_eq!(blocks(0, 0, 0), 0);
        assert_eq!(blocks(1025, 0, 0), 0);
    }
}
