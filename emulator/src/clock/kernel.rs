//! A kernel's modelled duration from what it was counted to do.
//!
//! `launch + max(memory, second-level cache, tensor cores, issue, shared memory)`: a kernel that overlaps perfectly
//! takes as long as its busiest resource. Blocks are spread evenly, so what happens inside SMs takes as long as on the
//! SM with most blocks (wave quantisation); few resident warps issue less often than the schedulers could.

use super::occupancy::SCHEDULERS;
use super::{Footprint, Profile, blocks_per_sm};
use crate::counters::Counters;

/// The parts of a kernel's duration, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct KernelCost {
    /// Before the first instruction.
    pub launch: f64,
    /// Device memory.
    pub memory: f64,
    /// Second-level cache.
    pub l2: f64,
    /// Tensor cores.
    pub tensor: f64,
    /// Instruction issue.
    pub issue: f64,
    /// Shared memory, with bank conflicts.
    pub shared: f64,
    /// Blocks an SM holds.
    pub blocks_per_sm: u32,
    /// Rounds in which the grid runs.
    pub waves: u64,
}

impl KernelCost {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.launch + self.memory.max(self.l2).max(self.tensor).max(self.issue).max(self.shared)
    }

    /// What it is limited by.
    pub fn bound(&self) -> &'static str {
        [
            (self.memory, "memory"),
            (self.tensor, "tensor"),
            (self.issue, "issue"),
            (self.shared, "shared"),
            (self.l2, "l2"),
        ]
        .into_iter()
        .fold((self.launch, "launch"), |best, part| if part.0 > best.0 { part } else { best })
        .1
    }
}

/// What `counters`, counted over a grid of `blocks` blocks of `footprint`, cost on `profile`.
pub fn kernel_cost(profile: &Profile, footprint: Footprint, blocks: u64, counters: &Counters) -> KernelCost {
    let resident = u64::from(blocks_per_sm(&profile.limits, footprint)).max(1);
    let sms = u64::from(profile.sms);
    let blocks = blocks.max(1);
    let clock = profile.clock_ghz * 1e3;
    // Of the SM with most to do.
    let full_waves = blocks / (sms * resident);
    let last_wave = (blocks % (sms * resident)).div_ceil(sms);
    let busiest = full_waves * resident + last_wave;
    let share = busiest as f64 / blocks as f64;

    let (read, written) = (counters.dram_read_bytes, counters.dram_write_bytes);
    let asked = counters.global_load_bytes + counters.global_store_bytes + counters.async_bytes;
    let dram = if read + written > 0 { read + written } else { asked };
    let into_sms = blocks.min(sms) as f64 * profile.sm_bytes_per_clock * profile.clock_ghz;
    let through_l2 =
        (counters.global_sectors * 32).max(counters.global_load_bytes + counters.global_store_bytes);

    let per_sm = |tflops: f64| tflops * 1e6 / sms as f64;
    let tensor = counters.tensor.bf16 as f64 / per_sm(profile.tensor_tflops.bf16)
        + counters.tensor.f16 as f64 / per_sm(profile.tensor_tflops.f16)
        + counters.tensor.fp8 as f64 / per_sm(profile.tensor_tflops.fp8);

    // A wave of `n` blocks an SM issues at the schedulers' rate, or slower if its warps are too few to fill them.
    let warps = u64::from(footprint.threads.div_ceil(32));
    let instructions = counters.warp_instructions as f64 / blocks as f64;
    let wave = |n: u64| {
        let rate = ((n * warps) as f64 / profile.cost.dependent_issue_clocks).min(f64::from(SCHEDULERS));
        if n == 0 || warps == 0 { 0.0 } else { n as f64 * instructions / rate / clock }
    };

    KernelCost {
        launch: profile.cost.launch_us,
        memory: Profile::transfer_us(dram, profile.memory_gb_s.min(into_sms)),
        l2: Profile::transfer_us(through_l2 + counters.async_bytes, profile.l2_gb_s.min(into_sms)),
        tensor: tensor * share,
        issue: full_waves as f64 * wave(resident) + wave(last_wave),
        shared: (counters.shared_requests + counters.bank_replays) as f64 * share / clock,
        blocks_per_sm: resident as u32,
        waves: blocks.div_ceil(sms * resident),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::TensorFlops;

    fn h100() -> Profile {
        Profile::named("h100-80gb").unwrap()
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} against {b}");
    }

    #[test]
    fn a_streaming_kernel_takes_its_bytes_over_the_bandwidth() {
        let counters = Counters {
            dram_read_bytes: 2_000_000_000,
            dram_write_bytes: 1_350_000_000,
            ..Counters::default()
        };
        let cost =
            kernel_cost(&h100(), Footprint { threads: 256, ..Footprint::default() }, 10_000, &counters);
        close(cost.total(), 3.0 + 1000.0);
        assert_eq!(cost.bound(), "memory");
        // One block takes 64 bytes a clock: 64 × 1.83 = 117.12 GB/s.
        let cost = kernel_cost(&h100(), Footprint { threads: 256, ..Footprint::default() }, 1, &counters);
        close(cost.total(), 3.0 + 3_350_000_000.0 / 117_120.0);
    }

    #[test]
    fn tensor_work_is_quantised_in_waves() {
        let profile = h100();
        let footprint = Footprint { threads: 384, registers: 168, shared: 228_000 };
        let tile = 2 * 128 * 128 * 7168_u64;
        let time = |blocks: u64| {
            let tensor = TensorFlops { bf16: tile * blocks, ..TensorFlops::default() };
            kernel_cost(&profile, footprint, blocks, &Counters { tensor, ..Counters::default() })
        };
        let one = tile as f64 * 132.0 / 989.4e6;
        close(time(1).tensor, one);
        close(time(132).tensor, one);
        close(time(133).tensor, 2.0 * one);
        close(time(264).tensor, 2.0 * one);
        assert_eq!((time(132).waves, time(133).waves, time(265).waves), (1, 2, 3));
    }

    #[test]
    fn few_warps_issue_slowly_and_bank_conflicts_cost_cycles() {
        let profile = h100();
        // One warp a block, one block: an instruction every fourth clock.
        let counters = Counters { warp_instructions: 1830, ..Counters::default() };
        close(
            kernel_cost(&profile, Footprint { threads: 32, ..Footprint::default() }, 1, &counters).issue,
            4.0,
        );
        // 16 warps fill the four schedulers: four a clock.
        let counters = Counters { warp_instructions: 1830 * 16, ..Counters::default() };
        close(
            kernel_cost(&profile, Footprint { threads: 512, ..Footprint::default() }, 1, &counters).issue,
            4.0,
        );
        // 132 SMs × 4 resident blocks of 512 threads + 1: a second wave of one block on one SM.
        let blocks = 132 * 4 + 1;
        let counters = Counters { warp_instructions: 1830 * 16 * blocks, ..Counters::default() };
        let cost =
            kernel_cost(&profile, Footprint { threads: 512, ..Footprint::default() }, blocks, &counters);
        close(cost.issue, 16.0 + 4.0);
        let counters = Counters { shared_requests: 1000, bank_replays: 830, ..Counters::default() };
        close(
            kernel_cost(&profile, Footprint { threads: 32, ..Footprint::default() }, 1, &counters).shared,
            1.0,
        );
    }
}
