//! On what was measured, when, and what.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A table of the machine, the date and the commit.
pub fn describe() -> Result<String> {
    let doctor = said(Command::new(crate::target_dir().join("release/abruzzi")).args(["doctor", "--json"]))?;
    let doctor: Value = serde_json::from_str(&doctor).context("abruzzi doctor")?;
    let text = |name: &str| doctor[name].as_str().unwrap_or("unknown").to_owned();
    let rows = [
        ("processor", format!("{}, {} cores", text("processor"), doctor["threads"])),
        ("instruction set", text("instructions")),
        ("memory", format!("{:.1} GB", memory()? as f64 / 1e9)),
        ("memory nodes, huge pages", format!("{}, {}", doctor["numa_nodes"], text("transparent_huge_pages"))),
        ("date", said(Command::new("date").args(["-u", "+%Y-%m-%d"]))?),
        ("commit", commit()?),
        ("compiler", said(Command::new("rustc").arg("--version"))?),
        ("load average before", load()?),
    ];
    let mut table = String::from("| | |\n|---|---|\n");
    for (name, value) in rows {
        table += &format!("| {name} | {value} |\n");
    }
    Ok(table)
}

/// Bytes of memory.
fn memory() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line =
        text.lines().find_map(|l| l.strip_prefix("MemTotal:")).context("/proc/meminfo has no MemTotal")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}

/// The commit, and whether files differ from it.
fn commit() -> Result<String> {
    let git = |args: &[&str]| said(Command::new("git").args(args).current_dir(crate::root()));
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs"])?;
    let changed = if changed.is_empty() { "" } else { ", with changes" };
    Ok(format!("{}{changed}", git(&["rev-parse", "--short=12", "HEAD"])?))
}

/// Processes that wanted to run in the last minute: on an idle machine none, or those that compiled what is measured.
fn load() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg").context("/proc/loadavg")?;
    text.split(' ').next().map(str::to_owned).context("/proc/loadavg is empty")
}

fn said(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}
