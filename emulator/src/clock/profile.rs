//! Device profiles, read from TOML files that name the source of each constant.

use serde::Deserialize;
use thiserror::Error;

/// Why there is no such profile.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// No built-in profile of that name.
    #[error("no device profile {0:?}; there are {names}", names = Profile::NAMES.join(", "))]
    Unknown(String),
    /// The text is not a profile.
    #[error("device profile: {0}")]
    Malformed(#[from] toml::de::Error),
}

/// A device: sizes and rates.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What cuDeviceGetName says.
    pub name: String,
    /// Major and minor.
    pub compute_capability: [u32; 2],
    /// Device memory.
    pub memory_bytes: u64,
    /// Streaming multiprocessors.
    pub sms: u32,
    /// The clock the model computes with.
    pub clock_ghz: f64,
    /// The clock the device claims.
    pub max_clock_khz: u32,
    /// Memory clock the device claims.
    pub memory_clock_khz: u32,
    /// Width of the memory bus.
    pub memory_bus_bits: u32,
    /// Device memory bandwidth, 10⁹ bytes a second.
    pub memory_gb_s: f64,
    /// Second-level cache.
    pub l2_bytes: u32,
    /// Bandwidth of the second-level cache.
    pub l2_gb_s: f64,
    /// Bytes an SM takes from the second-level cache in a clock.
    pub sm_bytes_per_clock: f64,
    /// Peaks of the tensor cores.
    pub tensor_tflops: TensorPeaks,
    /// Sizes a launch must respect.
    pub limits: Limits,
    /// The way to the host.
    pub link: Link,
    /// Fixed costs.
    pub cost: Costs,
}

/// Dense peaks by operand type, 10¹² operations a second.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "named by operand type")]
pub struct TensorPeaks {
    pub bf16: f64,
    pub f16: f64,
    pub fp8: f64,
}

/// Limits of blocks and SMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Threads a block may have.
    pub threads_per_block: u32,
    /// Threads an SM holds.
    pub threads_per_sm: u32,
    /// Blocks an SM holds.
    pub blocks_per_sm: u32,
    /// 32-bit registers of an SM.
    pub registers_per_sm: u32,
    /// Shared memory of an SM.
    pub shared_per_sm: u32,
    /// Shared memory a block may have when its kernel opted in.
    pub shared_per_block_optin: u32,
    /// Shared memory a block may have otherwise.
    pub shared_per_block: u32,
    /// Shared memory the system keeps for each block.
    pub shared_reserved: u32,
}

/// Copies between host and device.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Host to device, pinned.
    pub h2d_gb_s: f64,
    /// Device to host, pinned.
    pub d2h_gb_s: f64,
    /// Either way from pageable memory.
    pub pageable_gb_s: f64,
    /// Fixed cost of a copy.
    pub latency_us: f64,
    /// Copy engines; with one, both directions share it.
    pub copy_engines: u32,
}

/// Fixed costs.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// Device time before a kernel's first instruction.
    pub launch_us: f64,
    /// Host time of a call.
    pub call_us: f64,
    /// Host time of a launch.
    pub launch_call_us: f64,
    /// Host time from the end of work to the return of the call that waited for it.
    pub wake_us: f64,
    /// Clocks between two dependent instructions of a warp.
    pub dependent_issue_clocks: f64,
}

impl Profile {
    /// Names of the built-in profiles; the first is the default.
    pub const NAMES: [&str; 3] = ["h100-80gb", "h100-mig-10gb", "h200"];

    /// A built-in profile.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn named(name: &str) -> Result<Profile, ProfileError> {
        match name {
            "h100-80gb" => Profile::parse(include_str!("../../profiles/h100-80gb.toml")),
            "h100-mig-10gb" => Profile::parse(include_str!("../../profiles/h100-mig-10gb.toml")),
            "h200" => Profile::parse(include_str!("../../profiles/h200.toml")),
            _ => Err(ProfileError::Unknown(name.to_owned())),
        }
    }

    /// A profile from its TOML text.
    ///
    /// # Errors
    /// If a field is missing, unknown or of another type.
    pub fn parse(text: &str) -> Result<Profile, ProfileError> {
        Ok(toml::from_str(text)?)
    }

    /// Microseconds that `bytes` take at `gb_s` 10⁹ bytes a second.
    pub(super) fn transfer_us(bytes: u64, gb_s: f64) -> f64 {
        bytes as f64 / (gb_s * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_profiles_are_consistent() {
        for name in Profile::NAMES {
            let p = Profile::named(name).unwrap();
            assert_eq!(p.limits.shared_per_block_optin + p.limits.shared_reserved, p.limits.shared_per_sm);
            // 4,096 dense bf16 FLOPs a clock and SM.
            let peak = f64::from(p.sms) * 4096.0 * p.clock_ghz * 1e-3;
            assert!((peak / p.tensor_tflops.bf16 - 1.0).abs() < 2e-3, "{name}: {peak}");
            assert!((p.tensor_tflops.fp8 / p.tensor_tflops.bf16 - 2.0).abs() < 2e-3, "{name}");
        }
        assert!(matches!(Profile::named("a100"), Err(ProfileError::Unknown(_))));
    }
}
