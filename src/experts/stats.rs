//! Where experts were found, and what it took to bring them.

use serde::Serialize;

use super::prefetch::PrefetchStats;

/// Counts of one engine, since it was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ExpertStats {
    /// Experts that a layer needed (once for all tokens of a pass) and found on the device.
    pub hits: u64,
    /// Experts that were copied to the device because a layer needed them.
    pub over_link: u64,
    /// Experts that the CPU computed.
    pub on_cpu: u64,
    /// Bytes copied to the device.
    pub link_bytes: u64,
    /// Experts that left the device for others.
    pub evicted: u64,
    /// What was copied before it was asked for.
    pub prefetch: PrefetchStats,
    /// Copies that the device refused; the CPU computed these experts.
    pub failed_copies: u64,
    /// Copies that brought a wrong checksum and were repeated.
    pub repeated_copies: u64,
}

impl ExpertStats {
    /// Share of needed experts that the device had, 0 to 1; 1 if none was needed.
    pub fn hit_rate(&self) -> f64 {
        let needed = self.hits + self.over_link + self.on_cpu;
        if needed == 0 { 1.0 } else { self.hits as f64 / needed as f64 }
    }
}
