//! `cargo xtask bench compress`: a cut of a checkpoint of Kimi-K2's dimensions against copying as many bytes, its memory, and
//! what is left after kills.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Temporary, median, shards, size};
use crate::{cargo, run};

/// The source: 9.7 GB, half of it embedding and head, with one dense layer and two of 48 experts.
const SYNTH: [&str; 8] = ["--like", "kimi-k2", "--layers", "3", "--experts", "48", "--seed", "1"];
/// What is made of it: as few experts a layer as the K2-Mini that failed had.
const CUT: [&str; 4] = ["--layers", "0-2", "--experts", "16"];

/// What compressing must reach: a share of a copy's rate, and a peak of memory.
const LEAST_SHARE: f64 = 0.6;
const MOST_MEMORY: f64 = 2.0 * (1u64 << 30) as f64;

/// Compresses and copies, alternately, then compresses under `kills` kills. Both sides end with their bytes on the disk: the copy
/// with `conv=fsync`, the compression because it names nothing before. Its time includes reading everything back.
pub fn compress(rounds: usize, kills: usize) -> Result<()> {
    ensure!(rounds > 0, "--rounds is 0, expected at least 1");
    cargo(&["build", "--release", "--bin", "abruzzi"])?;
    let target = crate::target_dir();
    let dir = target.join(format!("bench-compress-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let temporary = Temporary(dir);
    let binary = target.join("release/abruzzi");
    let source = temporary.0.join("source");
    run(Command::new(&binary).arg("synth").arg("-o").arg(&source).args(SYNTH))?;
    println!("source    {:.2} GB", size(&shards(&source)?)? / 1e9);

    let out = temporary.0.join("out");
    let (mut shares, mut most) = (Vec::new(), 0.0);
    for round in 1..=rounds {
        if out.exists() {
            std::fs::remove_dir_all(&out)?;
        }
        let begun = Instant::now();
        let peak = cut(&binary, &source, &out)?;
        let seconds = begun.elapsed().as_secs_f64();
        let written = shards(&out)?;
        let (bytes, copied) = (size(&written)? / 1e9, copy(&written, &temporary.0.join("copy"))?);
        println!(
            "round {round:<3} copy {:.2} GB/s   compress {:.2} GB/s   peak {:.0} MB",
            bytes / copied,
            bytes / seconds,
            peak / 1e6
        );
        shares.push(copied / seconds);
        most = f64::max(most, peak);
    }
    let share = median(shares);
    println!("median    share {:.0} %   peak at most {:.0} MB", 100.0 * share, most / 1e6);
    killed(&binary, &source, &out, kills)?;
    if share < LEAST_SHARE || most > MOST_MEMORY {
        bail!("required: a share of {:.0} % and a peak of {:.0} MB", 100.0 * LEAST_SHARE, MOST_MEMORY / 1e6);
    }
    Ok(())
}

/// Runs the example that makes the table, into `target/compress-table`.
pub fn compress_table() -> Result<()> {
    let out = crate::target_dir().join("compress-table");
    if out.exists() {
        std::fs::remove_dir_all(&out)?;
    }
    cargo(&["build", "--release", "--example", "compress_table"])?;
    let example = crate::target_dir().join("release/examples/compress_table");
    run(Command::new(example).args(["models/demo", "models/demo/heldout.txt"]).arg(&out))?;
    println!("{}: table.txt, table.ndjson, chart.svg", out.display());
    Ok(())
}

fn command(binary: &Path, source: &Path, out: &Path) -> Command {
    let mut command = Command::new(binary);
    command.arg("compress").arg("-m").arg(source).arg("-o").arg(out).args(CUT).arg("--json");
    command.stderr(Stdio::null());
    command
}

/// Compresses; returns the most memory that took, in bytes.
fn cut(binary: &Path, source: &Path, out: &Path) -> Result<f64> {
    let done = command(binary, source, out).output().context("cannot start compress")?;
    ensure!(done.status.success(), "compress failed");
    let text = String::from_utf8_lossy(&done.stdout);
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap_or_default())?;
    last["peak_memory"].as_f64().context("compress did not say what memory it took")
}

/// Seconds that copying the files takes, to the disk; the copies are removed.
fn copy(files: &[PathBuf], to: &Path) -> Result<f64> {
    std::fs::create_dir(to)?;
    let begun = Instant::now();
    for file in files {
        let (mut input, mut output) = (std::ffi::OsString::from("if="), std::ffi::OsString::from("of="));
        input.push(file);
        output.push(to.join(file.file_name().unwrap_or_default()));
        let args = ["bs=16M", "conv=fsync", "status=none"];
        let status =
            Command::new("dd").args([input, output]).args(args).status().context("cannot start dd")?;
        ensure!(status.success(), "dd failed on {}", file.display());
    }
    let seconds = begun.elapsed().as_secs_f64();
    std::fs::remove_dir_all(to)?;
    Ok(seconds)
}

/// Kills the compression at random moments, lets a last run finish, and compares every file with those of `whole`.
fn killed(binary: &Path, source: &Path, whole: &Path, kills: usize) -> Result<()> {
    let out = whole.with_file_name("killed");
    // Moments spread by the golden ratio over three seconds, so that some fall early and some late in what is left.
    let moments = (1..=kills).map(|i| Duration::from_secs_f64(3.0 * (i as f64 * 0.618_034).fract() + 0.05));
    let mut struck = 0;
    for moment in moments {
        let mut child = command(binary, source, &out).stdout(Stdio::null()).spawn()?;
        std::thread::sleep(moment);
        child.kill()?;
        struck += usize::from(!child.wait()?.success());
        if out.exists() {
            break;
        }
    }
    if !out.exists() {
        cut(binary, source, &out)?;
    }
    let mut names: Vec<_> =
        std::fs::read_dir(whole)?.map(|e| e.map(|e| e.file_name())).collect::<Result<_, _>>()?;
    names.sort();
    let mut found: Vec<_> =
        std::fs::read_dir(&out)?.map(|e| e.map(|e| e.file_name())).collect::<Result<_, _>>()?;
    found.sort();
    ensure!(names == found, "after kills there are {found:?}, expected {names:?}");
    for name in &names {
        let same = Command::new("cmp").arg(whole.join(name)).arg(out.join(name)).status()?;
        ensure!(same.success(), "{} differs after kills", name.to_string_lossy());
    }
    println!("killed    {struck} times; {} files are the same byte for byte", names.len());
    Ok(())
}
