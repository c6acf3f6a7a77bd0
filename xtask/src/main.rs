//! What a maintainer runs: tests, continuous integration, the CUDA toolchain, measurements, fuzzing.

mod bench;
mod clock;
mod emulate;
mod fuzz;
mod gates;
mod gpu;
mod install;
#[path = "../../build/nvcc.rs"]
#[allow(dead_code, reason = "the build script uses all of it")]
mod nvcc;
#[path = "../../build/toolchain.rs"]
mod toolchain;
#[cfg(test)]
mod toolchain_tests;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use toolchain::Toolchain;

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
    /// What continuous integration runs: formatting, lints, documentation, the kernels' gates, then every test.
    Ci,
    /// Finds a CUDA compiler and libclang, or installs them from PyPI into target/toolchain; says what it uses.
    Toolchain {
        /// KEY=value lines on stdout instead: NVCC, CUDA_HOME, LIBCLANG_PATH, CUOBJDUMP, NVDISASM, CUTLASS.
        #[arg(long)]
        print: bool,
        /// CUTLASS's headers and examples too, into target/toolchain-cutlass.
        #[arg(long)]
        cutlass: bool,
    },
    /// Holds the compiled kernels to cuda/gates.toml and the table of docs/kernels.md: registers, spills, shared memory,
    /// occupancy, machine code. Needs no GPU.
    Gates {
        /// Writes the table anew.
        #[arg(long)]
        write: bool,
    },
    /// The kernels on a real GPU: tests, compute-sanitizer, benches beside their modelled times. The report goes to
    /// docs/gpu-runs.
    Gpu {
        /// Makes target/abruzzi-gpu.tar.gz instead, for a machine with a GPU and neither Rust nor a network.
        #[arg(long)]
        package: bool,
        /// Runs a few tests and the benches on the emulator; the report goes to target/gpu-dry-run.
        #[arg(long)]
        dry_run: bool,
    },
    /// Writes src/device/cuda/params.rs anew from cuda/include/params.h.
    Bindings,
    /// The fuzz targets, one after the other; fails on a finding. Needs cargo-fuzz and a nightly toolchain.
    Fuzz {
        /// For how long each target runs.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Which ones; all if none is named.
        #[arg(value_name = "TARGET")]
        targets: Vec<String>,
    },
    /// Runs any program on the stand-in CUDA driver: `cargo xtask emulate -- ./my_program --its-flags`.
    Emulate {
        /// The program and its arguments.
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<std::ffi::OsString>,
    },
    /// Measures what docs/benchmarks.md states, and writes it; the subcommands are measurements of their own.
    #[command(args_conflicts_with_subcommands = true)]
    Bench {
        #[command(subcommand)]
        which: Option<Bench>,
        /// Also a checkpoint of Kimi-K2's dimensions: 8.3 GB of disk, minutes.
        #[arg(long)]
        full: bool,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// Loading a synthetic FP8 checkpoint against dd, page cache warm; fails below 60 % of dd or above 110 % of the
    /// model's bytes in memory.
    Load {
        /// How often each is run.
        #[arg(long, default_value_t = 7)]
        rounds: usize,
    },
    /// Cutting a 10 GB checkpoint of Kimi-K2's dimensions against copying as many bytes to the disk; then under kills. Fails below
    /// 60 % of the copy, above 2 GiB of memory, or if kills change a byte. Takes 30 GB of disk.
    Compress {
        /// How often each is run.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// How often the last compression is killed.
        #[arg(long, default_value_t = 20)]
        kills: usize,
    },
    /// What each way of making the demo model smaller costs in perplexity: a table and a chart for docs/.
    CompressTable,
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::Test => test(),
        Task::Bench { which: None, full } => bench::suite(full),
        Task::Bench { which: Some(bench), .. } => match bench {
            Bench::Load { rounds } => bench::load(rounds),
            Bench::Compress { rounds, kills } => bench::compress(rounds, kills),
            Bench::CompressTable => bench::compress_table(),
        },
        Task::Bindings => {
            Toolchain::find_or_install()?;
            let check = ["check", "--package", "abruzzi", "--lib", "--features", "cuda"];
            run(command(&check).env("ABRUZZI_WRITE_BINDINGS", "1"))
        }
        Task::Gates { write } => gates::run(write),
        Task::Gpu { package, dry_run } => gpu::run(package, dry_run),
        Task::Emulate { command } => emulate::run(&command),
        Task::Fuzz { seconds, targets } => fuzz::run(seconds, &targets),
        Task::Ci => ci(),
        Task::Toolchain { print, cutlass } => show_toolchain(print, cutlass),
    }
}

/// Everything a change must pass, cheapest first.
fn ci() -> Result<()> {
    // Lints and documentation with every feature compile the kernels.
    let found = Toolchain::find_or_install()?;
    eprintln!("nvcc {} at {}", found.version, found.nvcc.display());
    cargo(&["fmt", "--all", "--", "--check"])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"])?;
    let doc = ["doc", "--workspace", "--no-deps", "--all-features"];
    run(command(&doc).env("RUSTDOCFLAGS", "-D warnings"))?;
    // The crate as an embedder takes it, without the command line's dependencies.
    cargo(&["check", "--package", "abruzzi", "--lib", "--no-default-features"])?;
    // What everybody else builds: the command line, without CUDA.
    cargo(&["clippy", "--package", "abruzzi", "--bins", "--", "-D", "warnings"])?;
    gates::run(false)?;
    test()?;
    // With what the tests have built.
    gpu::run(false, true)
}

/// Shows where the tools are, having installed what is missing.
fn show_toolchain(print: bool, cutlass: bool) -> Result<()> {
    let found = Toolchain::find_or_install()?;
    let cutlass = if cutlass { Some(install::cutlass()?) } else { None };
    let version = format!("nvcc {}", found.version);
    let lines = [
        ("NVCC", version.as_str(), Some(found.nvcc)),
        ("CUDA_HOME", "toolkit", Some(found.cuda_home)),
        ("CUOBJDUMP", "cuobjdump", found.cuobjdump),
        ("NVDISASM", "nvdisasm", found.nvdisasm),
        ("LIBCLANG_PATH", "libclang", found.libclang),
        ("CUTLASS", "CUTLASS", cutlass),
    ];
    let mut out = std::io::stdout().lock();
    for (key, label, path) in lines {
        match path {
            Some(path) if print => writeln!(out, "{key}={}", path.display())?,
            Some(path) => writeln!(out, "{label:<11}{}", path.display())?,
            None => {}
        }
    }
    Ok(())
}

/// Runs all tests and adds up what the test runner reports.
fn test() -> Result<()> {
    // The emulator's tests compile kernels. Fetched here, once, and not by each test that finds it missing.
    if cfg!(target_os = "linux") {
        let found = Toolchain::find_or_install()?;
        eprintln!("nvcc {} at {}", found.version, found.nvcc.display());
        // CuTe's headers and kernels, which the emulator is held to.
        install::cutlass()?;
    } else {
        eprintln!("no CUDA compiler: the tests that need one run on Linux only");
    }
    let mut runs = vec!["--workspace --features abruzzi/cuda --no-fail-fast"];
    if cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        // What the CPU's kernels execute is a matter of how they are compiled.
        runs.push("--profile counts --no-default-features --package abruzzi --test cpu_counts");
    }
    let (mut passed, mut failed, mut problems) = (0, 0, Vec::new());
    for run in runs {
        let tests = run_tests(&format!("test {run}"))?;
        passed += tests.passed;
        failed += tests.failed;
        if !tests.success || tests.failed > 0 {
            problems.push(format!("tests failed: cargo test {run}"));
        } else if tests.passed == 0 {
            problems.push(format!("no test ran: cargo test {run}"));
        }
    }
    println!("\n{passed} passed, {failed} failed");
    if !problems.is_empty() {
        bail!("{}", problems.join("; "));
    }
    Ok(())
}

/// What a run of cargo's reported.
struct Tests {
    passed: u64,
    failed: u64,
    success: bool,
}

/// Runs tests, shows what they report and adds it up.
fn run_tests(arguments: &str) -> Result<Tests> {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let mut child = command(&arguments).stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
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
    Ok(Tests { passed, failed, success: child.wait()?.success() })
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

/// The workspace.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where cargo puts what it builds.
fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into)
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
