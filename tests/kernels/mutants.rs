//! Kernels with one fault each, compiled from the same source with `-DABRUZZI_MUTANT=n`: a test of the family must fail.
//!
//! A child of this process runs that test with the mutant in the place of the healthy code.

#[path = "../../build/toolchain.rs"]
#[allow(dead_code, unreachable_pub, missing_docs, reason = "shared with xtask, which uses all of it")]
mod toolchain;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};

use toolchain::{Environment, Found, Toolchain};

/// File in `cuda/`, number, what is wrong, the test that notices.
const MUTANTS: &[(&str, u32, &str, &str)] = &[];

/// Mutant 0 is the healthy kernel: that its test passes shows that replaced code is run, and that it is not the replacing
/// that fails.
fn cases() -> Vec<(&'static str, u32, &'static str, &'static str)> {
    let mut cases: Vec<_> = MUTANTS.to_vec();
    let mut healthy: Vec<_> = MUTANTS.iter().map(|&(file, _, _, test)| (file, 0, "healthy", test)).collect();
    healthy.sort_unstable();
    healthy.dedup();
    cases.extend(healthy);
    cases
}

#[test]
fn every_mutant_is_caught_and_the_healthy_kernels_are_not() {
    if super::harness::real() {
        // A real GPU need not punish these faults; that is what the emulator is for.
        return;
    }
    let cases = cases();
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(&(file, number, what, test)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let output = run(&ptx(file, number), file, test);
                    let said = String::from_utf8_lossy(&output.stdout);
                    assert!(said.contains("running 1 test"), "{test}: no such test\n{said}");
                    if output.status.success() != (number == 0) {
                        let errors = String::from_utf8_lossy(&output.stderr);
                        wrong.lock().unwrap().push(format!("{file} {number} ({what}) in {test}\n{said}{errors}"));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    eprintln!("{} mutants, {} healthy runs", MUTANTS.len(), cases.len() - MUTANTS.len());
    assert!(wrong.is_empty(), "{} of {} went wrong:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

fn run(ptx: &Path, file: &str, test: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env("ABRUZZI_TEST_REPLACE", format!("{file}={}", ptx.display()))
        .output()
        .unwrap()
}

/// The mutant's PTX.
fn ptx(file: &str, number: u32) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile_dir().join(format!("{file}-{number}.ptx"));
    let mut nvcc = TOOLCHAIN.nvcc_command();
    nvcc.current_dir(root).args(["-std=c++17", "-arch=compute_90a", "-ptx", "-lineinfo", "-Icuda/include"]);
    nvcc.arg(format!("-DABRUZZI_MUTANT={number}")).arg("-o").arg(&out).arg(format!("cuda/{file}.cu"));
    let output = nvcc.output().unwrap();
    assert!(output.status.success(), "{file} {number}: {}", String::from_utf8_lossy(&output.stderr));
    out
}

fn tempfile_dir() -> &'static Path {
    static DIR: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());
    DIR.path()
}

static TOOLCHAIN: LazyLock<Toolchain> = LazyLock::new(|| {
    let environment = Environment::of_process();
    match Toolchain::of_machine(&environment) {
        Ok(Found::Toolkit(toolchain)) => toolchain,
        _ => Toolchain::in_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("target/toolchain"), &environment)
            .unwrap_or_else(|e| panic!("{e}; `cargo xtask toolchain` installs a CUDA compiler")),
    }
});
