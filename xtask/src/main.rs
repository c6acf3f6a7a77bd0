//! What a maintainer runs: `cargo xtask test`, `cargo xtask ci`, `cargo xtask fuzz`.

mod fuzz;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "What a maintainer of abruzzi runs")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Every test: unit, integration, documentation; prints how many ran.
    Test,
    /// What continuous integration runs: formatting, lints, documentation, then every test.
    Ci,
    /// The fuzz targets, one after the other; fails on a finding. Needs cargo-fuzz and a nightly toolchain.
    Fuzz {
        /// For how long each target runs.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Which ones; all if none is named.
        #[arg(value_name = "TARGET")]
        targets: Vec<String>,
    },
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::Test => test(),
        Task::Fuzz { seconds, targets } => fuzz::run(seconds, &targets),
        Task::Ci => {
            cargo(&["fmt", "--all", "--", "--check"])?;
            cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
            run(command(&["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
            // The crate as an embedder takes it, without the command line's dependencies.
            cargo(&["check", "--package", "abruzzi", "--lib", "--no-default-features"])?;
            test()
        }
    }
}

/// Runs all tests and adds up what the test runner reports.
fn test() -> Result<()> {
    let mut child = command(&["test", "--workspace", "--no-fail-fast"])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let (mut passed, mut failed) = (0u64, 0u64);
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            if let Some(result) = line.strip_prefix("test result: ") {
                passed += count(result, "passed");
                failed += count(result, "failed");
            }
        }
    }
    let status = child.wait()?;
    println!("\n{passed} passed, {failed} failed");
    if !status.success() || failed > 0 {
        bail!("tests failed");
    }
    if passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// The number before `what` in a line such as "ok. 12 passed; 0 failed; …".
fn count(line: &str, what: &str) -> u64 {
    let mut words = line.split([' ', ';']).filter(|w| !w.is_empty()).peekable();
    while let Some(word) = words.next() {
        if words.peek() == Some(&what) {
            return word.parse().unwrap_or(0);
        }
    }
    0
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(args);
    command
}

fn cargo(args: &[&str]) -> Result<()> {
    run(&mut command(args))
}

fn run(command: &mut Command) -> Result<()> {
    eprintln!("+ {command:?}");
    if !command.status().context("cannot start cargo")?.success() {
        bail!("{command:?} failed");
    }
    Ok(())
}
