//! Flags of `abruzzi simulate`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::FalseyValueParser;

use super::{JsonArgs, SynthFormat};

#[derive(Args)]
#[command(after_help = "\
Examples:
  abruzzi simulate                                              Kimi-K2 on one H100, every policy
  abruzzi simulate --format int4 --machine h100,h200 --policy lru
  abruzzi simulate --trace run.json -m DIR --slots 64,128,256 --svg slots.svg

Every time and rate is modelled; decisions are those of the engine's own code.")]
pub struct SimulateArgs {
    /// Checkpoint folder or config.json, in place of --like
    #[arg(short, long, env = "ABRUZZI_MODEL", value_name = "PATH", conflicts_with_all = ["like", "format"])]
    pub model: Option<PathBuf>,
    /// The model's shape: kimi-k2, kimi-k2-thinking, deepseek-v3, moonlight, or the path of a config.json.
    #[arg(long, env = "ABRUZZI_LIKE", value_name = "MODEL", default_value = "kimi-k2")]
    pub like: String,
    /// How the weights are stored [default: as the model does]
    #[arg(long, env = "ABRUZZI_FORMAT", value_enum)]
    pub format: Option<SynthFormat>,
    /// The routing trace to replay, or `synthetic`.
    #[arg(long, env = "ABRUZZI_TRACE", value_name = "FILE", default_value = "synthetic")]
    pub trace: PathBuf,
    /// Tokens of a synthetic trace.
    #[arg(long, env = "ABRUZZI_TOKENS", value_name = "N", default_value_t = 1000)]
    pub tokens: usize,
    /// Machines: h100, h100-1tb, h100-512gb, mig-10gb, h200.
    #[arg(
        long,
        env = "ABRUZZI_MACHINE",
        value_delimiter = ',',
        value_name = "NAMES",
        default_value = "h100"
    )]
    pub machine: Vec<String>,
    /// Slots on the GPU, separated by commas [default: what the machine has room for]
    #[arg(long, env = "ABRUZZI_SLOTS", value_delimiter = ',', value_name = "N")]
    pub slots: Vec<usize>,
    /// Cache policies, and `belady` for the bound [default: all]
    #[arg(long, env = "ABRUZZI_POLICY", value_delimiter = ',', value_name = "NAMES")]
    pub policy: Vec<String>,
    /// Without experts on the CPU: every miss crosses the link.
    #[arg(long, env = "ABRUZZI_NO_CPU", value_parser = FalseyValueParser::new())]
    pub no_cpu: bool,
    /// Without copies ahead of need.
    #[arg(long, env = "ABRUZZI_NO_PREFETCH", value_parser = FalseyValueParser::new())]
    pub no_prefetch: bool,
    /// Tokens in the key/value cache.
    #[arg(short, long, env = "ABRUZZI_CTX_SIZE", value_name = "TOKENS", default_value_t = 4096)]
    pub ctx_size: usize,
    /// Seed of the synthetic trace and of the modelled guesses.
    #[arg(short, long, env = "ABRUZZI_SEED", default_value_t = 0)]
    pub seed: u64,
    /// Draw hit rate and tokens a second against slots, for the first machine.
    #[arg(long, env = "ABRUZZI_SVG", value_name = "FILE")]
    pub svg: Option<PathBuf>,
    #[command(flatten)]
    pub output: JsonArgs,
}
