//! What commands share: finding the model, loading it with a progress bar, units.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use abruzzi::{CancelToken, DeviceChoice, Engine, EngineBuilder, LoadProgress, Sampling, SessionOptions};
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::{ModelArgs, SamplingArgs};

/// Below this a load is over before a bar could be read.
const BAR_FROM: Duration = Duration::from_millis(300);

/// A text file larger than this is no text to read at once.
const MAX_TEXT: u64 = 64 << 20;

/// The checkpoint to use: the one asked for, or the demo model beside the executable, the sources or here.
pub fn model_path(asked: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = asked {
        return Ok(path.to_owned());
    }
    let executable = std::env::current_exe().and_then(|exe| exe.canonicalize()).unwrap_or_default();
    let beside_executable = executable.ancestors().skip(1).take(4);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    let roots = beside_executable.chain([sources, Path::new(".")]);
    let shared = roots.flat_map(|root| [root.join("models/demo"), root.join("share/abruzzi/models/demo")]);
    let mut candidates = shared.filter(|dir| dir.join("config.json").is_file());
    candidates.next().ok_or_else(|| {
        anyhow::anyhow!(
            "the demo model (models/demo) was not found; name a checkpoint folder with -m or ABRUZZI_MODEL"
        )
    })
}

/// An engine set up as the flags say, for sessions of so many tokens.
pub fn builder(args: &ModelArgs, context: Option<usize>) -> anyhow::Result<EngineBuilder> {
    let mut builder = Engine::builder(model_path(args.model.as_deref())?)
        .device(args.device)
        .threads(args.threads)
        .cache_policy(args.cache_policy)
        .cpu_share(!args.no_cpu_experts);
    if let Some(bytes) = args.vram_budget {
        builder = builder.vram_budget(bytes);
    }
    if let Some(bytes) = args.host_budget {
        builder = builder.host_budget(bytes);
    }
    if args.serve_while_loading {
        builder = builder.serve_while_loading();
    }
    if let Some(tokens) = context {
        builder = builder.context(tokens);
    }
    Ok(builder)
}

/// Loads the model with a bar on a terminal, and says what matters about it.
pub fn load(builder: EngineBuilder, cancel: &CancelToken) -> anyhow::Result<Engine> {
    let bar = progress_bar();
    let shown = bar.clone();
    let loaded = builder.cancel(cancel.clone()).on_load(move |p| advance(&shown, p)).load();
    bar.finish_and_clear();
    let engine = loaded?;
    if let Some(why) = engine.fallback() {
        eprintln!("computing on the CPU: {why}");
    }
    if !engine.skipped().0.is_empty() {
        eprintln!("skipped: {}", engine.skipped());
    }
    Ok(engine)
}

/// The text of a file; `what` it is, for the message if it cannot be read.
pub fn read_text(what: &str, file: &Path) -> anyhow::Result<String> {
    let open = || -> std::io::Result<String> {
        if !std::fs::metadata(file)?.is_file() {
            return Err(std::io::Error::other("it is not a regular file"));
        }
        let mut text = String::new();
        std::fs::File::open(file)?.take(MAX_TEXT + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_TEXT {
            return Err(std::io::Error::other(format!("it is larger than {MAX_TEXT} bytes")));
        }
        Ok(text)
    };
    open().with_context(|| format!("cannot read {what} {}", file.display()))
}

/// Bytes that nobody uses of the GPU that `device` means; `None` without one.
#[cfg(feature = "cuda")]
pub fn free_on_gpu(device: DeviceChoice) -> abruzzi::Result<Option<u64>> {
    let ordinal = match device {
        DeviceChoice::Auto => 0,
        DeviceChoice::Cuda(ordinal) => ordinal,
        _ => return Ok(None),
    };
    Ok(abruzzi::device::cuda::gpus()?.get(ordinal).map(|gpu| gpu.memory_free))
}

/// Bytes that nobody uses of the GPU that `device` means; `None`, as this build can use none.
#[cfg(not(feature = "cuda"))]
pub fn free_on_gpu(_device: DeviceChoice) -> abruzzi::Result<Option<u64>> {
    Ok(None)
}

/// A byte bar that draws itself only on a terminal and only once the work has lasted a moment.
pub fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg} [{bar:40}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta}",
    );
    let bar = ProgressBar::new(0).with_message("loading");
    match style {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// A bar of so many layers, windows or whatever; it draws itself only on a terminal.
pub fn count_bar(unit: &str, all: usize) -> ProgressBar {
    let bar = ProgressBar::new(all as u64);
    match ProgressStyle::with_template(&format!("{{msg}} [{{bar:40}}] {{pos}}/{{len}} {unit} eta {{eta}}")) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// Moves a bar to where the work is.
pub fn advance(bar: &ProgressBar, progress: LoadProgress) {
    if progress.seconds >= BAR_FROM.as_secs_f64() {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes_done);
    }
}

/// The library's settings of the sampling flags.
pub fn sampling(args: &SamplingArgs) -> Sampling {
    let mut sampling = Sampling::default();
    sampling.temperature = args.temp;
    sampling.top_k = args.top_k;
    sampling.top_p = args.top_p;
    sampling.min_p = args.min_p;
    sampling.seed = args.seed;
    sampling.max_tokens = args.n;
    sampling.stop = args.stop.clone();
    sampling.ignore_eos = args.ignore_eos;
    sampling
}

/// Session options of the flags.
pub fn session_options(args: &SamplingArgs, cancel: &CancelToken) -> SessionOptions {
    let options = SessionOptions::default().cancel(cancel.clone());
    match args.ctx_size {
        Some(tokens) => options.context(tokens),
        None => options,
    }
}

/// Bytes in decimal units, as model sizes are quoted.
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

/// A count with thousands separated.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// The most memory this process has held, in bytes.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
