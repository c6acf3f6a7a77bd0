//! `cargo xtask gpu`: the kernels on a real GPU, here or elsewhere. Tests, benches, the emulator and a script go into one
//! folder; the script does the rest, so what runs here and what runs from the archive on another machine is the same.

#[cfg(test)]
mod tests;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::toolchain::Toolchain;

const SCRIPT: &str = include_str!("gpu/run.sh");
/// Name of the folder, inside the archive too.
const FOLDER: &str = "abruzzi-gpu";
/// What an archive may take, so that it goes anywhere.
const MOST_BYTES: u64 = 40 << 20;

/// Builds what is to run, packs it, runs it.
///
/// A dry run that makes no package takes unoptimised programs: they are there once the tests have run, and a release
/// build of everything would be most of CI's time. It unpacks an archive as large as the real one all the same.
pub fn run(package: bool, dry_run: bool) -> Result<()> {
    if !package && !dry_run {
        find_gpu()?;
    }
    let release = package || !dry_run;
    let built = Built::build(release)?;
    let target = crate::target_dir();
    let staging = tempfile::Builder::new().prefix("gpu-").tempdir_in(&target)?;
    let folder = staging.path().join(FOLDER);
    stage(&built, &folder, release)?;
    if !package && !dry_run {
        return script(&folder, &["--out"], &crate::root().join("docs/gpu-runs"));
    }
    let archive =
        if package { target.join(format!("{FOLDER}.tar.gz")) } else { staging.path().join("dry.tar.gz") };
    pack(&folder, &archive)?;
    if package {
        println!(
            "{}: {:.1} MiB",
            archive.display(),
            fs::metadata(&archive)?.len() as f64 / f64::from(1 << 20)
        );
    }
    if dry_run {
        let elsewhere = staging.path().join("elsewhere");
        fs::create_dir(&elsewhere)?;
        command("tar", &["-xzf"], &[&archive], &elsewhere)?;
        script(&elsewhere.join(FOLDER), &["--dry-run", "--out"], &target.join("gpu-dry-run"))?;
    }
    Ok(())
}

fn find_gpu() -> Result<()> {
    let found = Command::new("nvidia-smi").arg("--list-gpus").stderr(Stdio::null()).output();
    if found.is_ok_and(|out| out.status.success() && out.stdout.starts_with(b"GPU")) {
        return Ok(());
    }
    bail!(
        "no NVIDIA GPU here (`nvidia-smi --list-gpus` shows none)\n\
         cargo xtask gpu --dry-run    runs on the emulator\n\
         cargo xtask gpu --package    makes an archive for a machine with a GPU and neither Rust nor a network"
    );
}

/// What cargo has built.
struct Built {
    tests: PathBuf,
    bench: PathBuf,
    emulator: PathBuf,
    /// CUDA's release.
    cuda: String,
}

impl Built {
    fn build(release: bool) -> Result<Built> {
        let toolchain = Toolchain::find_or_install()?;
        // The features and packages of `cargo xtask test`, so that a dry run finds everything built.
        let mut cargo = crate::command(&["test", "--workspace", "--features", "abruzzi/cuda", "--no-run"]);
        cargo.args([
            "--test",
            "kernels",
            "--bench",
            "kernels",
            "--message-format",
            "json-render-diagnostics",
        ]);
        if release {
            cargo.arg("--release");
        }
        eprintln!("+ {cargo:?}");
        let out = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
        ensure!(out.status.success(), "the kernels' tests and benches do not build");
        let text = String::from_utf8_lossy(&out.stdout);
        let messages: Vec<serde_json::Value> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let program = |kind: &str| {
            let this = |m: &&serde_json::Value| {
                m["target"]["name"] == "kernels"
                    && m["target"]["kind"][0] == kind
                    && m["executable"].is_string()
            };
            let path = messages.iter().find(this).and_then(|m| m["executable"].as_str());
            path.map(PathBuf::from).with_context(|| format!("cargo built no {kind} named kernels"))
        };
        let libraries = messages.iter().filter(|m| m["target"]["name"] == "cuda_emulator");
        let mut files = libraries.flat_map(|m| m["filenames"].as_array().into_iter().flatten());
        let emulator = files.find_map(|f| f.as_str().filter(|f| f.ends_with(".so")));
        Ok(Built {
            tests: program("test")?,
            bench: program("bench")?,
            emulator: emulator.context("cargo built no libcuda_emulator.so")?.into(),
            cuda: toolchain.version.to_string(),
        })
    }
}

/// Everything the script needs, in one folder.
fn stage(built: &Built, folder: &Path, release: bool) -> Result<()> {
    fs::create_dir_all(folder)?;
    for (from, name) in [
        (&built.tests, "kernels-tests"),
        (&built.bench, "kernels-bench"),
        (&built.emulator, "libcuda_emulator.so"),
    ] {
        let to = folder.join(name);
        fs::copy(from, &to).with_context(|| from.display().to_string())?;
        // Line tables are most of a test program.
        command("strip", &["--strip-unneeded"], &[&to], folder)?;
    }
    let commit =
        Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(crate::root()).output();
    let commit = commit.ok().filter(|out| out.status.success()).map(|out| out.stdout);
    let commit = commit.map_or("unknown".into(), |name| String::from_utf8_lossy(&name).trim().to_owned());
    let profile = if release { "release" } else { "dev" };
    let version = format!("commit: {commit}\nbuild: {profile}, code by CUDA {}\n", built.cuda);
    fs::write(folder.join("VERSION"), version)?;
    write_script(folder)
}

fn write_script(folder: &Path) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o755).open(folder.join("run.sh"))?;
    Ok(file.write_all(SCRIPT.as_bytes())?)
}

fn pack(folder: &Path, archive: &Path) -> Result<()> {
    let above = folder.parent().context("a folder within a folder")?;
    command("tar", &["-czf"], &[archive, Path::new(FOLDER)], above)?;
    let bytes = fs::metadata(archive)?.len();
    ensure!(bytes <= MOST_BYTES, "{} takes {bytes} bytes, at most {MOST_BYTES}", archive.display());
    Ok(())
}

fn script(folder: &Path, options: &[&str], reports: &Path) -> Result<()> {
    let status = Command::new("sh").arg(folder.join("run.sh")).args(options).arg(reports).status();
    ensure!(status.context("cannot start sh")?.success(), "run.sh found failures; its report says which");
    Ok(())
}

fn command(program: &str, options: &[&str], paths: &[&Path], folder: &Path) -> Result<()> {
    let status = Command::new(program).args(options).args(paths).current_dir(folder).status();
    let status = status.with_context(|| format!("cannot start {program}, which packing needs"))?;
    ensure!(status.success(), "{program} {options:?} {paths:?} failed");
    Ok(())
}
