//! How a launch is executed: what is checked, in which order things happen.

/// When an asynchronous operation takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Timing {
    /// At once.
    #[default]
    Eager,
    /// As late as legal: when a wait needs it or nothing else can run.
    Lazy,
    /// At moments drawn from the schedule's seed.
    Random,
}

/// The order in which concurrent things happen. The same schedule gives the same run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Schedule {
    /// cp.async.
    pub cp_async: Timing,
    /// Bulk and tensor copies.
    pub bulk: Timing,
    /// wgmma.
    pub wgmma: Timing,
    /// Host↔device copies on streams.
    pub host_copies: Timing,
    /// Warps and blocks run in random order rather than ascending.
    pub shuffle: bool,
    /// Seed of everything random.
    pub seed: u64,
}

impl Schedule {
    /// Everything asynchronous with the same timing; warps and blocks in order unless it is random.
    pub fn all(timing: Timing, seed: u64) -> Schedule {
        let shuffle = timing == Timing::Random;
        Schedule { cp_async: timing, bulk: timing, wgmma: timing, host_copies: timing, shuffle, seed }
    }
}

/// How FP8 tensor-core products are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fp8Accumulation {
    /// In f32, every product exact.
    #[default]
    Exact,
    /// As Hopper does: addends aligned to the largest exponent and cut to 14 bits.
    Truncated,
}

/// Settings of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// All checks; without them only accesses that would crash the emulator itself are caught.
    pub checks: bool,
    /// Sector, bank-conflict and unique-DRAM counters (instruction and FLOP counts are always kept).
    pub counters: bool,
    /// Order of things.
    pub schedule: Schedule,
    /// FP8 tensor cores.
    pub fp8: Fp8Accumulation,
    /// Host threads that blocks run on; 0 takes one per core.
    pub threads: usize,
    /// Warp instructions a block may execute without any warp of it getting past a wait or to its end, before it
    /// is called a runaway.
    pub spin_limit: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            checks: true,
            counters: true,
            schedule: Schedule::default(),
            fp8: Fp8Accumulation::default(),
            threads: 0,
            spin_limit: 50_000_000,
        }
    }
}

impl Settings {
    /// Neither checks nor counters: for end-to-end runs.
    pub fn fast() -> Settings {
        Settings { checks: false, counters: false, ..Settings::default() }
    }
}
