//! `cargo xtask bench`: measurements that need more than one process.

mod compress;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::{cargo, run};

pub use compress::{compress, compress_table};

/// The checkpoint of `bench load`: 4.3 GB, a third BF16 (embedding and head), the rest FP8 experts of 8.7 MB.
const SYNTH: [&str; 8] = ["--like", "moonlight", "--layers", "6", "--format", "fp8-block", "--seed", "1"];

/// What loading must reach: a share of dd's rate, and a peak of memory over the model's bytes.
const LEAST_SHARE: f64 = 0.6;
const MOST_MEMORY: f64 = 1.1;

/// A folder that goes when this goes, on failure too.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // A failure to clean up must not hide the result.
        if let Err(e) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{}: {e}", self.0.display());
        }
    }
}

/// One load by the library.
struct Load {
    bytes: f64,
    seconds: f64,
    peak: f64,
}

impl Load {
    fn rate(&self) -> f64 {
        self.bytes / 1e9 / self.seconds
    }
}

/// Loads a synthetic checkpoint and reads its shards with dd, alternately, page cache warm.
///
/// Medians are judged. The best rounds are printed beside them: a virtual machine gives memory that lay free back to its
/// host, whoever touches it next pays for that (docs/notes/loading.md), and the best rounds are those that it spared.
pub fn load(rounds: usize) -> Result<()> {
    ensure!(rounds > 0, "--rounds is 0, expected at least 1");
    cargo(&["build", "--release", "--bin", "abruzzi", "--example", "load"])?;
    let target = crate::target_dir();
    let dir = target.join(format!("bench-load-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let temporary = Temporary(dir);
    let model = temporary.0.join("model");
    run(Command::new(target.join("release/abruzzi")).arg("synth").arg("-o").arg(&model).args(SYNTH))?;
    let shards = shards(&model)?;
    let example = target.join("release/examples/load");

    let warm = |seconds: f64, bytes: f64| println!("warming   dd {:.2} GB/s", bytes / 1e9 / seconds);
    let bytes = size(&shards)?;
    warm(dd(&shards)?, bytes);
    load_once(&example, &model)?;
    let (mut dds, mut loads) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let (seconds, load) = (dd(&shards)?, load_once(&example, &model)?);
        println!(
            "round {round:<3} dd {:.2} GB/s   load {:.2} GB/s   peak {:.3} of the model's bytes",
            bytes / 1e9 / seconds,
            load.rate(),
            load.peak / load.bytes,
        );
        dds.push(bytes / 1e9 / seconds);
        loads.push(load);
    }
    let rates: Vec<f64> = loads.iter().map(Load::rate).collect();
    let best = |of: &[f64]| of.iter().copied().fold(0.0, f64::max);
    let memory = best(&loads.iter().map(|l| l.peak / l.bytes).collect::<Vec<_>>());
    println!("best      dd {:.2} GB/s   load {:.2} GB/s", best(&dds), best(&rates));
    let (dd, rate) = (median(dds), median(rates));
    println!(
        "median    dd {dd:.2} GB/s   load {rate:.2} GB/s   share {:.0} %   peak at most {memory:.3}   model {:.2} GB",
        100.0 * rate / dd,
        bytes / 1e9
    );
    if rate < LEAST_SHARE * dd || memory > MOST_MEMORY {
        bail!("required: a share of {:.0} % and a peak of {MOST_MEMORY}", 100.0 * LEAST_SHARE);
    }
    Ok(())
}

/// Seconds that dd takes to read the shards one after another.
fn dd(shards: &[PathBuf]) -> Result<f64> {
    let begun = Instant::now();
    for shard in shards {
        let mut input = std::ffi::OsString::from("if=");
        input.push(shard);
        let status = Command::new("dd").arg(input).args(["of=/dev/null", "bs=16M", "status=none"]).status();
        ensure!(status.context("cannot start dd")?.success(), "dd failed on {}", shard.display());
    }
    Ok(begun.elapsed().as_secs_f64())
}

fn load_once(example: &Path, model: &Path) -> Result<Load> {
    let out = Command::new(example).arg(model).output().context("cannot start the load example")?;
    let text = String::from_utf8_lossy(&out.stdout);
    ensure!(out.status.success(), "the load failed: {}", String::from_utf8_lossy(&out.stderr));
    let value = |name: &str| -> Result<f64> {
        let found = text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok());
        found.with_context(|| format!("the load example did not say {name:?}"))
    };
    Ok(Load { bytes: value("bytes")?, seconds: value("seconds")?, peak: value("peak")? })
}

fn shards(model: &Path) -> Result<Vec<PathBuf>> {
    let mut shards = Vec::new();
    for item in std::fs::read_dir(model)? {
        let path = item?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            shards.push(path);
        }
    }
    shards.sort();
    Ok(shards)
}

fn size(files: &[PathBuf]) -> Result<f64> {
    let mut bytes = 0;
    for file in files {
        bytes += std::fs::metadata(file)?.len();
    }
    Ok(bytes as f64)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
