//! `cargo xtask emulate -- CMD …`: any program, with the stand-in driver where it looks for CUDA's.
//!
//! The dynamic loader finds libraries in `LD_LIBRARY_PATH` before those of the system, by file name; so a folder with
//! the emulator under the driver's names, first in that list, is all it takes. The program itself is not changed.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Names under which programs look for the driver.
const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// Builds the emulator and runs a command on it; the process ends with the command's exit code.
pub fn run(command: &[OsString]) -> Result<()> {
    let Some((program, arguments)) = command.split_first() else { bail!("which command?") };
    crate::cargo(&["build", "--release", "--package", "cuda-emulator", "--lib"])?;
    let target = crate::target_dir();
    let library = target.join("release/libcuda_emulator.so");
    let folder = target.join("emulator");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for name in NAMES {
        link(&library, &folder.join(name))?;
    }
    let mut path = folder.into_os_string();
    if let Some(more) = std::env::var_os("LD_LIBRARY_PATH").filter(|p| !p.is_empty()) {
        path.push(":");
        path.push(more);
    }
    eprintln!("emulated GPU: every time is modelled");
    let status = Command::new(program)
        .args(arguments)
        .env("LD_LIBRARY_PATH", path)
        .env("CUDA_EMULATOR_LIBRARY", &library)
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    std::process::exit(status.code().unwrap_or(1));
}

fn link(to: &Path, at: &Path) -> Result<()> {
    if std::fs::read_link(at).is_ok_and(|old| old == to) {
        return Ok(());
    }
    let _ = std::fs::remove_file(at);
    std::os::unix::fs::symlink(to, at).with_context(|| format!("cannot create {}", at.display()))
}
