//! `cargo xtask fuzz`: each target for a while, from the committed seeds and what earlier runs found.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

const TARGETS: [&str; 5] =
    ["safetensors_header", "shard_index", "model_config", "tokenizer", "chat_template"];

/// What libFuzzer is told beside the time: an input that takes 10 s or 2 GB is a finding.
const LIMITS: [&str; 3] = ["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"];

pub fn run(seconds: u64, targets: &[String]) -> Result<()> {
    if let Some(unknown) = targets.iter().find(|t| !TARGETS.contains(&t.as_str())) {
        bail!("there is no target {unknown:?}; there are {}", TARGETS.join(", "));
    }
    let chosen: Vec<&str> = TARGETS
        .into_iter()
        .filter(|target| targets.is_empty() || targets.iter().any(|t| t == target))
        .collect();
    let cargo = nightly_cargo()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
    let mut failed = Vec::new();
    println!("{:<20} {:>12} {:>10}", "target", "executions", "corpus");
    for target in chosen {
        let grown = root.join("fuzz/corpus-grown").join(target);
        std::fs::create_dir_all(&grown).with_context(|| format!("cannot create {}", grown.display()))?;
        let (executions, sound) = one(&cargo, root, target, &grown, seconds)?;
        let corpus = std::fs::read_dir(&grown)?.count();
        println!("{target:<20} {executions:>12} {corpus:>10}");
        if !sound || executions == 0 {
            failed.push(target);
        }
    }
    if !failed.is_empty() {
        bail!("findings in {}; the inputs are in fuzz/artifacts", failed.join(", "));
    }
    Ok(())
}

/// Cargo of the nightly toolchain with cargo-fuzz, or what to install.
fn nightly_cargo() -> Result<Vec<String>> {
    let works = |words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let nightly = ["rustup", "run", "nightly", "cargo"];
    if !works(&[&nightly[..], &["--version"]].concat()) {
        bail!("fuzzing needs a nightly toolchain: rustup toolchain install nightly --profile minimal");
    }
    if !works(&[&nightly[..], &["fuzz", "--version"]].concat()) {
        bail!("fuzzing needs cargo-fuzz: cargo install cargo-fuzz --locked");
    }
    Ok(nightly.map(str::to_owned).to_vec())
}

/// Runs a target; returns its executions and whether it ended without a finding.
fn one(cargo: &[String], root: &Path, target: &str, grown: &Path, seconds: u64) -> Result<(u64, bool)> {
    let seeds: PathBuf = root.join("fuzz/seeds").join(target);
    let mut child = Command::new(&cargo[0])
        .args(&cargo[1..])
        // Debug assertions bring the overflow checks that the targets rely on.
        .args(["fuzz", "run", "--release", "--debug-assertions", target])
        .args([grown, &seeds])
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .args(LIMITS)
        .current_dir(root)
        .stdout(Stdio::inherit())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start cargo fuzz")?;
    let mut executions = 0;
    if let Some(stderr) = child.stderr.take() {
        // Not only text: a finding prints its input.
        for line in BufReader::new(stderr).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
                executions = count.trim().parse().unwrap_or(0);
            }
            eprintln!("{line}");
        }
    }
    Ok((executions, child.wait()?.success()))
}
