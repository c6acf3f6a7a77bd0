//! `cargo xtask bench`: measurements that need more than one process, and the page of all figures.

mod compress;
mod suite;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::{cargo, run};

pub use compress::{compress, compress_table};
pub use suite::suite;

/// The checkpoint of `bench load`: 4.3 GB, a third BF16 (embedding and head), the rest FP8 experts of 8.7 MB.
const SYNTH: [&str; 8] = ["--like", "moonlight", "--layers", "6", "--format", "fp8-block", "--seed", "1"];

/// What loading must reach: a share of dd's rate, and a peak of memory over the model's bytes.
const LEAST_SHARE: f64 = 0.9;
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

/// Whether the files are in the page cache before they are read.
#[derive(Clone, Copy)]
enum Cache {
    Warm,
    Cold,
}

/// What was measured with the page cache in one state, GB/s.
struct Rounds {
    cache: Cache,
    dds: Vec<f64>,
    loads: Vec<f64>,
}

impl Rounds {
    fn new(cache: Cache) -> Rounds {
        Rounds { cache, dds: Vec::new(), loads: Vec::new() }
    }

    /// Reads the shards with dd, then loads the model. Returns the load's peak of memory over the model's bytes.
    fn run(&mut self, shards: &[PathBuf], example: &Path, model: &Path) -> Result<f64> {
        let prepare = || if let Cache::Cold = self.cache { forget(shards) } else { Ok(()) };
        prepare()?;
        let dd = size(shards)? / 1e9 / dd(shards)?;
        prepare()?;
        let load = load_once(example, model)?;
        let (rate, peak) = (load.rate(), load.peak / load.bytes);
        println!(
            "{}         dd {dd:5.2} GB/s   load {rate:5.2} GB/s   peak {peak:.3} of the model's bytes",
            self.name()
        );
        self.dds.push(dd);
        self.loads.push(rate);
        Ok(peak)
    }

    /// Prints the medians and the best; returns the share of dd's rate that the load's median is.
    fn sum_up(self) -> f64 {
        let best = |of: &[f64]| of.iter().copied().fold(0.0, f64::max);
        let (name, best_dd, best_load) = (self.name(), best(&self.dds), best(&self.loads));
        let (dd, load) = (median(self.dds), median(self.loads));
        println!("{name} best    dd {best_dd:5.2} GB/s   load {best_load:5.2} GB/s");
        println!("{name} median  dd {dd:5.2} GB/s   load {load:5.2} GB/s   share {:.0} %", 100.0 * load / dd);
        load / dd
    }

    fn name(&self) -> &'static str {
        match self.cache {
            Cache::Warm => "warm",
            Cache::Cold => "cold",
        }
    }
}

/// Loads a synthetic checkpoint and reads its shards with dd, alternately, with the page cache warm and cold. Medians are
/// judged, the best rounds are printed beside them.
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
    // What waits to be written cannot be forgotten.
    run(&mut Command::new("sync"))?;

    let (mut warm, mut cold) = (Rounds::new(Cache::Warm), Rounds::new(Cache::Cold));
    let mut peak = 0f64;
    for _ in 0..rounds {
        // The cold load leaves the cache warm for the next round; the first finds it as writing left it.
        peak = peak.max(warm.run(&shards, &example, &model)?);
        peak = peak.max(cold.run(&shards, &example, &model)?);
    }
    println!("model {:.2} GB, {rounds} rounds, peak at most {peak:.3}", size(&shards)? / 1e9);
    let (warm, cold) = (warm.sum_up(), cold.sum_up());
    if warm.min(cold) < LEAST_SHARE || peak > MOST_MEMORY {
        bail!("required: a share of {:.0} % and a peak of {MOST_MEMORY}", 100.0 * LEAST_SHARE);
    }
    Ok(())
}

/// Takes files out of the page cache: what `posix_fadvise` with DONTNEED does, as dd asks for it.
fn forget(files: &[PathBuf]) -> Result<()> {
    for file in files {
        let mut input = std::ffi::OsString::from("if=");
        input.push(file);
        run(Command::new("dd").arg(input).args(["iflag=nocache", "count=0", "status=none"]))?;
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
