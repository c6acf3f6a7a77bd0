//! What a launch did, counted.

use serde::Serialize;

/// Floating-point operations of the tensor cores by operand type; a multiply-add counts two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "named by operand type")]
pub struct TensorFlops {
    pub bf16: u64,
    pub f16: u64,
    pub fp8: u64,
}

/// Counts of one launch. Those marked † stay 0 when [`crate::Settings::counters`] is off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Blocks run.
    pub blocks: u64,
    /// Warps run.
    pub warps: u64,
    /// Instructions times active lanes.
    pub thread_instructions: u64,
    /// Instructions times warps.
    pub warp_instructions: u64,
    /// Branches at which a warp split.
    pub divergent_branches: u64,
    /// Global and generic load/store instructions of warps.
    pub global_requests: u64,
    /// † 32-byte sectors those touched.
    pub global_sectors: u64,
    /// Bytes lanes asked global memory for.
    pub global_load_bytes: u64,
    /// Bytes lanes stored to global memory.
    pub global_store_bytes: u64,
    /// † Distinct 32-byte sectors read, times 32, without those that this launch has written whole before: what must come
    /// from DRAM if the second-level cache holds a launch.
    pub dram_read_bytes: u64,
    /// † Distinct 32-byte sectors written, times 32.
    pub dram_write_bytes: u64,
    /// Bytes of bulk and tensor copies and cp.async, both directions.
    pub async_bytes: u64,
    /// Shared-memory requests of warps.
    pub shared_requests: u64,
    /// † Extra cycles of shared-memory requests because of bank conflicts.
    pub bank_replays: u64,
    /// Local-memory bytes.
    pub local_bytes: u64,
    /// Atomic operations times lanes.
    pub atomics: u64,
    /// Barriers times warps.
    pub barriers: u64,
    /// f32, f16x2 and f64 arithmetic, times lanes; a multiply-add counts two.
    pub flops: u64,
    /// Tensor cores.
    pub tensor: TensorFlops,
}

impl Counters {
    /// Adds another block's counts.
    pub fn add(&mut self, other: &Counters) {
        self.blocks += other.blocks;
        self.warps += other.warps;
        self.thread_instructions += other.thread_instructions;
        self.warp_instructions += other.warp_instructions;
        self.divergent_branches += other.divergent_branches;
        self.global_requests += other.global_requests;
        self.global_sectors += other.global_sectors;
        self.global_load_bytes += other.global_load_bytes;
        self.global_store_bytes += other.global_store_bytes;
        self.dram_read_bytes += other.dram_read_bytes;
        self.dram_write_bytes += other.dram_write_bytes;
        self.async_bytes += other.async_bytes;
        self.shared_requests += other.shared_requests;
        self.bank_replays += other.bank_replays;
        self.local_bytes += other.local_bytes;
        self.atomics += other.atomics;
        self.barriers += other.barriers;
        self.flops += other.flops;
        self.tensor.bf16 += other.tensor.bf16;
        self.tensor.f16 += other.tensor.f16;
        self.tensor.fp8 += other.tensor.fp8;
    }
}
