//! What a user can set, from the environment at cuInit and from `cuEmulatorConfigure`.

use std::path::PathBuf;

use serde::Deserialize;
use thiserror::Error;

use crate::clock::{Profile, ProfileError};
use crate::settings::{Fp8Accumulation, Schedule, Settings, Timing};

/// Why options cannot be used.
#[derive(Debug, Error)]
pub enum OptionsError {
    /// A value is none of those allowed.
    #[error("{name}: {value:?} is not {wanted}")]
    Value {
        /// Name of the option.
        name: &'static str,
        /// What was given.
        value: String,
        /// What may be given.
        wanted: &'static str,
    },
    /// No such profile.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// Not the JSON object it should be.
    #[error("configuration: {0}")]
    Json(#[from] serde_json::Error),
}

/// All options.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Name of the device profile.
    pub profile: String,
    /// How kernels are executed.
    pub settings: Settings,
    /// Each call is logged.
    pub log: bool,
    /// Where the Chrome trace goes.
    pub trace: Option<PathBuf>,
    /// Where the kernels' counters go: JSON if it ends in `.json`, else a table.
    pub counters: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            profile: Profile::NAMES[0].to_owned(),
            settings: Settings::default(),
            log: false,
            trace: None,
            counters: None,
        }
    }
}

/// Changes to options, as JSON; what is absent stays.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Changes {
    /// Destroys every context and forgets findings and counters first.
    pub reset: bool,
    profile: Option<String>,
    checks: Option<bool>,
    counters: Option<bool>,
    schedule: Option<String>,
    cp_async: Option<String>,
    bulk: Option<String>,
    wgmma: Option<String>,
    host_copies: Option<String>,
    fp8: Option<String>,
    threads: Option<usize>,
    spin_limit: Option<u64>,
    log: Option<bool>,
    trace_file: Option<PathBuf>,
    counters_file: Option<PathBuf>,
}

impl Options {
    /// Options from the environment, here as a function for tests.
    ///
    /// # Errors
    /// If a value is not allowed.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Options, OptionsError> {
        let on = |name: &'static str, value: String| match value.as_str() {
            "on" | "1" => Ok(true),
            "off" | "0" | "" => Ok(false),
            _ => Err(OptionsError::Value { name, value, wanted: "on or off" }),
        };
        let mut options = Options::default();
        if let Some(name) = get("CUDA_EMULATOR_PROFILE") {
            Profile::named(&name)?;
            options.profile = name;
        }
        if let Some(value) = get("CUDA_EMULATOR_CHECKS") {
            options.settings.checks = on("CUDA_EMULATOR_CHECKS", value)?;
        }
        if let Some(value) = get("CUDA_EMULATOR_SCHEDULE") {
            options.settings.schedule = schedule("CUDA_EMULATOR_SCHEDULE", value)?;
        }
        if let Some(value) = get("CUDA_EMULATOR_FP8") {
            options.settings.fp8 = fp8("CUDA_EMULATOR_FP8", value)?;
        }
        if let Some(value) = get("CUDA_EMULATOR_LOG") {
            options.log = on("CUDA_EMULATOR_LOG", value)?;
        }
        options.trace = get("CUDA_EMULATOR_TRACE").filter(|v| !v.is_empty()).map(PathBuf::from);
        options.counters = get("CUDA_EMULATOR_COUNTERS").filter(|v| !v.is_empty()).map(PathBuf::from);
        Ok(options)
    }

    /// These options with changes made.
    ///
    /// # Errors
    /// If a value is not allowed.
    pub fn changed(&self, changes: &Changes) -> Result<Options, OptionsError> {
        let mut options = self.clone();
        let settings = &mut options.settings;
        if let Some(name) = &changes.profile {
            Profile::named(name)?;
            options.profile.clone_from(name);
        }
        if let Some(value) = &changes.schedule {
            settings.schedule = schedule("schedule", value.clone())?;
        }
        let timings = [
            ("cp_async", &changes.cp_async, &mut settings.schedule.cp_async),
            ("bulk", &changes.bulk, &mut settings.schedule.bulk),
            ("wgmma", &changes.wgmma, &mut settings.schedule.wgmma),
            ("host_copies", &changes.host_copies, &mut settings.schedule.host_copies),
        ];
        for (name, value, timing) in timings {
            if let Some(value) = value {
                *timing = schedule(name, value.clone())?.host_copies;
            }
        }
        if let Some(value) = &changes.fp8 {
            settings.fp8 = fp8("fp8", value.clone())?;
        }
        settings.checks = changes.checks.unwrap_or(settings.checks);
        settings.counters = changes.counters.unwrap_or(settings.counters);
        settings.threads = changes.threads.unwrap_or(settings.threads);
        settings.spin_limit = changes.spin_limit.unwrap_or(settings.spin_limit);
        options.log = changes.log.unwrap_or(options.log);
        options.trace = changes.trace_file.clone().or(options.trace);
        options.counters = changes.counters_file.clone().or(options.counters);
        Ok(options)
    }
}

fn schedule(name: &'static str, value: String) -> Result<Schedule, OptionsError> {
    let random = value.strip_prefix("random").map(|seed| match seed.strip_prefix(':') {
        Some(seed) => seed.parse().ok(),
        None => seed.is_empty().then_some(0),
    });
    match (value.as_str(), random) {
        ("eager", _) => Ok(Schedule::all(Timing::Eager, 0)),
        ("lazy", _) => Ok(Schedule::all(Timing::Lazy, 0)),
        (_, Some(Some(seed))) => Ok(Schedule::all(Timing::Random, seed)),
        _ => Err(OptionsError::Value { name, value, wanted: "eager, lazy or random:SEED" }),
    }
}

fn fp8(name: &'static str, value: String) -> Result<Fp8Accumulation, OptionsError> {
    match value.as_str() {
        "exact" => Ok(Fp8Accumulation::Exact),
        "truncated" => Ok(Fp8Accumulation::Truncated),
        _ => Err(OptionsError::Value { name, value, wanted: "exact or truncated" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)]) -> Result<Options, OptionsError> {
        Options::from_variables(|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn variables_are_understood_or_refused_by_name() {
        assert_eq!(options(&[]).unwrap(), Options::default());
        let o = options(&[
            ("CUDA_EMULATOR_PROFILE", "h200"),
            ("CUDA_EMULATOR_SCHEDULE", "random:7"),
            ("CUDA_EMULATOR_CHECKS", "off"),
            ("CUDA_EMULATOR_FP8", "truncated"),
        ])
        .unwrap();
        assert_eq!(o.settings.schedule, Schedule::all(Timing::Random, 7));
        assert!(!o.settings.checks && o.profile == "h200" && o.settings.fp8 == Fp8Accumulation::Truncated);
        for (name, value) in [
            ("CUDA_EMULATOR_PROFILE", "a100"),
            ("CUDA_EMULATOR_SCHEDULE", "random:x"),
            ("CUDA_EMULATOR_SCHEDULE", "randomly"),
            ("CUDA_EMULATOR_CHECKS", "maybe"),
            ("CUDA_EMULATOR_FP8", "f16"),
        ] {
            let message = options(&[(name, value)]).unwrap_err().to_string();
            assert!(message.contains(value), "{message}");
        }
    }

    #[test]
    fn json_changes_only_what_it_names() {
        let changes: Changes =
            serde_json::from_str(r#"{"schedule": "random:3", "host_copies": "lazy", "log": true}"#).unwrap();
        let o = Options::default().changed(&changes).unwrap();
        assert_eq!(
            (o.settings.schedule.host_copies, o.settings.schedule.bulk),
            (Timing::Lazy, Timing::Random)
        );
        assert!(o.log && o.settings.checks);
        assert!(serde_json::from_str::<Changes>(r#"{"shedule": "lazy"}"#).is_err());
    }
}
