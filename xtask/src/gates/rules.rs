//! `cuda/gates.toml`: what is demanded of each kernel.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::formula;
use super::sass::Pattern;
use crate::clock::Profile;

/// The rules of one table, for the kernels its name stands for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What sort of kernel it is.
    pub kind: Kind,
    /// Registers of a thread, at most.
    pub registers: u32,
    /// Why those are more than are planned for kernels of this kind; there must be one then, and only then.
    pub reason: Option<String>,
    /// Threads of a block, as it is launched.
    pub threads: u32,
    /// Dynamic shared memory of a block in bytes, as it is launched; at most, where it depends on the shape.
    #[serde(default)]
    pub dynamic_shared: u32,
    /// Blocks that an SM must hold at a time, at least.
    pub occupancy: u32,
    /// What the machine code must have.
    #[serde(default)]
    pub require: Vec<Pattern>,
    /// What it must not have.
    #[serde(default)]
    pub forbid: Vec<Pattern>,
    pub main_loop: Option<MainLoop>,
    pub cost: Option<Cost>,
}

/// Sorts of kernels, each with the registers a thread of them is planned to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Passes over rows or elements: bandwidth, so many blocks an SM.
    Rows,
    /// The choice of experts.
    Router,
    /// Weights streamed for few tokens.
    Stream,
    /// Many tokens on tensor cores: registers at launch, before warps trade them.
    Gemm,
    /// Attention.
    Attention,
}

impl Kind {
    /// Registers of a thread that need no reason.
    pub fn registers(self) -> u32 {
        match self {
            Kind::Rows | Kind::Router => 40,
            Kind::Stream | Kind::Gemm => 168,
            Kind::Attention => 255,
        }
    }
}

/// Rules for the innermost loops that contain an instruction.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MainLoop {
    /// The instruction that marks the loop.
    pub of: Pattern,
    #[serde(default)]
    pub require: Vec<Pattern>,
    #[serde(default)]
    pub forbid: Vec<Pattern>,
}

/// The least that a kernel has to do for a shape.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// The shape, by name.
    pub shape: BTreeMap<String, f64>,
    /// Bytes that must cross the memory bus; a formula over the shape.
    pub bytes: String,
    /// Floating-point operations; a formula over the shape.
    #[serde(default)]
    pub flops: Option<String>,
    /// Where they are done.
    #[serde(default)]
    pub unit: Unit,
    /// Share of the limit that the emulator's clock gives the kernel; `cargo bench --bench kernels` prints it.
    pub modelled: Option<f64>,
}

/// What does the arithmetic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Ordinary f32 lanes.
    #[default]
    F32,
    /// Tensor cores on bf16.
    Bf16,
    /// Tensor cores on FP8.
    Fp8,
}

impl Unit {
    pub fn name(self) -> &'static str {
        match self {
            Unit::F32 => "f32",
            Unit::Bf16 => "bf16 tensor cores",
            Unit::Fp8 => "FP8 tensor cores",
        }
    }

    /// 10¹² operations a second.
    fn tflops(self, profile: &Profile) -> f64 {
        match self {
            // 128 lanes an SM, each a multiplication and an addition a clock.
            Unit::F32 => f64::from(profile.sms) * 256.0 * profile.clock_ghz * 1e-3,
            Unit::Bf16 => profile.tensor_tflops.bf16,
            Unit::Fp8 => profile.tensor_tflops.fp8,
        }
    }
}

/// A cost in figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    pub bytes: f64,
    pub flops: f64,
    /// Microseconds that no kernel can be faster than.
    pub limit_us: f64,
    /// Whether memory sets the limit, not arithmetic.
    pub by_memory: bool,
}

impl Cost {
    pub fn figures(&self, profile: &Profile) -> Result<Figures> {
        let bytes = formula::evaluate(&self.bytes, &self.shape).context("bytes")?;
        let flops = match &self.flops {
            Some(text) => formula::evaluate(text, &self.shape).context("flops")?,
            None => 0.0,
        };
        ensure!(bytes >= 0.0 && flops >= 0.0 && bytes + flops > 0.0, "bytes {bytes}, flops {flops}");
        let (memory, arithmetic) =
            (bytes / (profile.memory_gb_s * 1e3), flops / (self.unit.tflops(profile) * 1e6));
        Ok(Figures { bytes, flops, limit_us: memory.max(arithmetic), by_memory: memory >= arithmetic })
    }
}

/// All rules, by the name of their table.
pub type Rules = BTreeMap<String, Rule>;

/// Reads `cuda/gates.toml`.
pub fn parse(text: &str) -> Result<Rules> {
    Ok(toml::from_str(text)?)
}

/// Whether a table's name, in which `*` stands for anything, stands for a kernel.
pub fn names(pattern: &str, kernel: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == kernel,
        Some((front, rest)) => kernel
            .strip_prefix(front)
            .is_some_and(|end| (0..=end.len()).any(|at| end.is_char_boundary(at) && names(rest, &end[at..]))),
    }
}

/// The tables that stand for a kernel: the one of just its name, else all whose pattern it fits.
pub fn of_kernel<'a>(rules: &'a Rules, kernel: &str) -> Vec<(&'a str, &'a Rule)> {
    if let Some((name, rule)) = rules.get_key_value(kernel) {
        return vec![(name, rule)];
    }
    rules.iter().filter(|(name, _)| names(name, kernel)).map(|(name, rule)| (name.as_str(), rule)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_stars() {
        assert!(names("echo_*", "echo_rms_norm") && names("echo_*", "echo_") && names("*_f32", "norm_f32"));
        assert!(names("a*b*c", "a1b2c") && names("x", "x"));
        assert!(!names("echo_*", "echo") && !names("x", "xy") && !names("a*b*c", "acb"));
    }

    #[test]
    fn a_kernels_own_table_wins() {
        let text = "[\"k_*\"]\nkind = \"rows\"\nregisters = 1\nthreads = 32\noccupancy = 1\n[k_a]\nkind = \"rows\"\nregisters = 2\nthreads = 32\noccupancy = 1\n";
        let rules = parse(text).unwrap();
        assert_eq!(of_kernel(&rules, "k_a")[0].1.registers, 2);
        assert_eq!(of_kernel(&rules, "k_b")[0].0, "k_*");
        assert!(of_kernel(&rules, "other").is_empty());
        assert!(
            parse("[k]\nkind = \"rows\"\nregisters = 1\nthreads = 32\noccupancy = 1\nregister = 2").is_err()
        );
    }

    #[test]
    fn limits_are_of_the_slower_resource() {
        let profile = Profile::named(Profile::NAMES[0]).unwrap();
        let cost = |bytes: &str, flops: &str| Cost {
            shape: BTreeMap::from([("n".to_owned(), 1e6)]),
            bytes: bytes.into(),
            flops: Some(flops.into()),
            unit: Unit::Fp8,
            modelled: None,
        };
        let memory = cost("3.35 * n", "n").figures(&profile).unwrap();
        assert!(memory.by_memory && (memory.limit_us - 1.0).abs() < 1e-9, "{memory:?}");
        let tensor = cost("1", "1978.9 * n").figures(&profile).unwrap();
        assert!(!tensor.by_memory && (tensor.limit_us - 1.0).abs() < 1e-9, "{tensor:?}");
        assert!(cost("m", "0").figures(&profile).is_err() && cost("0", "0").figures(&profile).is_err());
    }
}
