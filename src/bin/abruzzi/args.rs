//! Every flag, defined once: help, completions and environment variables come from here.

mod bench;
mod compress;
mod eval;
mod simulate;

use std::path::PathBuf;

use abruzzi::DeviceChoice;
use abruzzi::experts::policy::CachePolicy;
use clap::builder::FalseyValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::units;
pub use bench::BenchArgs;
pub use compress::{CompressArgs, MakingArgs, MethodArg, QuantizeArgs};
pub use eval::EvalArgs;
pub use simulate::SimulateArgs;

/// Runs Kimi-K2-class mixture-of-experts models.
#[derive(Parser)]
#[command(
    name = "abruzzi",
    version,
    propagate_version = true,
    after_help = "\
Examples:
  abruzzi generate -p \"In the beginning\"        text from the demo model that ships with abruzzi
  abruzzi verify -m DIR                         is every tensor there, and sound?
  abruzzi inspect -m DIR/config.json --json     parameters and bytes, without the weights

Exit codes: 0 done, 1 the work failed, 2 usage, 130 interrupted. Every long flag can be set as ABRUZZI_<FLAG>."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Continue a text.
    Generate(GenerateArgs),
    /// Talk, with the model's chat template.
    Chat(ChatArgs),
    /// Say how well a model predicts a text, and how far it is from a reference model.
    Eval(EvalArgs),
    /// Write the logits of given token ids to a safetensors file.
    Logits(LogitsArgs),
    /// Turn text into token ids, or back.
    Tokenize(TokenizeArgs),
    /// Count a model's parameters and bytes; needs only its config.json.
    Inspect(InspectArgs),
    /// Check that every tensor is present, of the right shape and type, and finite.
    Verify(VerifyArgs),
    /// Say where every byte would go, and what to expect; needs only a config.json.
    Plan(PlanArgs),
    /// Write a random checkpoint of true dimensions, for benchmarks.
    Synth(SynthArgs),
    /// Make a smaller model: fewer layers, fewer experts, another format.
    Compress(CompressArgs),
    /// Store a model's weights in another format.
    Quantize(QuantizeArgs),
    /// Replay a routing trace through the real policies and schedule, on modelled hardware.
    Simulate(SimulateArgs),
    /// Measure how fast a model prefills and decodes at several depths of context.
    Bench(BenchArgs),
    /// Say what this machine offers.
    Doctor(DoctorArgs),
    /// Print a shell completion script.
    Completions(CompletionsArgs),
}

#[derive(Args, Clone)]
pub struct ModelArgs {
    /// Checkpoint folder [default: the demo model]
    #[arg(short, long, env = "ABRUZZI_MODEL", value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Where to compute: `auto`, `cpu`, `cuda` or `cuda:N`.
    #[arg(long, env = "ABRUZZI_DEVICE", value_parser = device, default_value = "auto")]
    pub device: DeviceChoice,
    /// Worker threads; 0 takes one per core.
    #[arg(short, long, env = "ABRUZZI_THREADS", default_value_t = 0)]
    pub threads: usize,
    /// GPU memory to use, for everything [default: what is free]
    #[arg(long, alias = "vram", env = "ABRUZZI_VRAM_BUDGET", value_parser = units::bytes, value_name = "BYTES")]
    pub vram_budget: Option<u64>,
    /// Host memory for experts; the others are read from the checkpoint when needed [default: all, if they fit]
    #[arg(long, alias = "host", env = "ABRUZZI_HOST_BUDGET", value_parser = units::bytes, value_name = "BYTES")]
    pub host_budget: Option<u64>,
    /// Begin before all experts are loaded; damage in them is then found when it is met.
    #[arg(long, env = "ABRUZZI_SERVE_WHILE_LOADING", value_parser = FalseyValueParser::new())]
    pub serve_while_loading: bool,
    /// Which experts stay where not all fit: reuse, lru, lfru, s3-fifo or static.
    #[arg(long, env = "ABRUZZI_CACHE_POLICY", default_value_t, value_name = "POLICY")]
    pub cache_policy: CachePolicy,
    /// Leave experts that are not on the GPU to the link alone; the CPU computes none of them.
    #[arg(long, env = "ABRUZZI_NO_CPU_EXPERTS", value_parser = FalseyValueParser::new())]
    pub no_cpu_experts: bool,
}

fn device(text: &str) -> Result<DeviceChoice, String> {
    match text {
        "auto" => Ok(DeviceChoice::Auto),
        "cpu" => Ok(DeviceChoice::Cpu),
        "cuda" => Ok(DeviceChoice::Cuda(0)),
        _ => {
            let ordinal = text.strip_prefix("cuda:").and_then(|n| n.parse().ok());
            ordinal.map(DeviceChoice::Cuda).ok_or_else(|| "expected auto, cpu, cuda or cuda:N".to_owned())
        }
    }
}

#[derive(Args)]
pub struct JsonArgs {
    /// Machine-readable output on stdout.
    #[arg(long, env = "ABRUZZI_JSON", value_parser = FalseyValueParser::new())]
    pub json: bool,
}

#[derive(Args)]
pub struct SamplingArgs {
    /// Tokens to generate at most.
    #[arg(
        short,
        long,
        env = "ABRUZZI_N",
        default_value_t = 128,
        allow_negative_numbers = true,
        value_name = "N"
    )]
    pub n: usize,
    /// Temperature; 0 always takes the most probable token.
    #[arg(long, env = "ABRUZZI_TEMP", default_value_t = 0.6, allow_negative_numbers = true)]
    pub temp: f32,
    /// Keep this many most probable tokens; 0 keeps all.
    #[arg(long, env = "ABRUZZI_TOP_K", default_value_t = 40, allow_negative_numbers = true)]
    pub top_k: usize,
    /// Keep the most probable tokens up to this sum of probabilities.
    #[arg(long, env = "ABRUZZI_TOP_P", default_value_t = 0.95, allow_negative_numbers = true)]
    pub top_p: f32,
    /// Drop tokens below this share of the most probable one.
    #[arg(long, env = "ABRUZZI_MIN_P", default_value_t = 0.0, allow_negative_numbers = true)]
    pub min_p: f32,
    /// Seed; the same seed gives the same text [default: random, printed at the end]
    #[arg(short, long, env = "ABRUZZI_SEED", allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// Stop before this text (may be given several times).
    #[arg(long, env = "ABRUZZI_STOP", value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Go on past the model's stop tokens.
    #[arg(long, env = "ABRUZZI_IGNORE_EOS", value_parser = FalseyValueParser::new())]
    pub ignore_eos: bool,
    /// Tokens of context [default: the model's longest]
    #[arg(short, long, env = "ABRUZZI_CTX_SIZE", allow_negative_numbers = true, value_name = "TOKENS")]
    pub ctx_size: Option<usize>,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  abruzzi generate -p \"In the beginning\" -n 64 --seed 7
  abruzzi generate -f prompt.txt --temp 0 --json | jq -r 'select(.event==\"token\").text'
  abruzzi generate -p \"In the beginning\" --stats --trace run.json      then open it in ui.perfetto.dev")]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text to continue.
    #[arg(short, long, env = "ABRUZZI_PROMPT", required_unless_present = "file", value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Read the text to continue from a file.
    #[arg(short, long, env = "ABRUZZI_FILE", conflicts_with = "prompt", value_name = "FILE")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Print load, prefill and decode statistics in full.
    #[arg(long, env = "ABRUZZI_STATS", value_parser = FalseyValueParser::new())]
    pub stats: bool,
    /// Write what happened when, and each token's experts, for a trace viewer and for `abruzzi simulate`.
    #[arg(long, env = "ABRUZZI_TRACE", value_name = "FILE")]
    pub trace: Option<PathBuf>,
    #[command(flatten)]
    pub output: JsonArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  abruzzi chat -m DIR                       type, Enter; Ctrl-D ends
  echo \"Who are you?\" | abruzzi chat -m DIR --temp 0")]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// System message.
    #[arg(long, visible_alias = "sys", env = "ABRUZZI_SYSTEM", value_name = "TEXT")]
    pub system: Option<String>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub output: JsonArgs,
}

#[derive(Args)]
#[command(after_help = "\
Example:
  abruzzi logits --tokens 5,6,7 --out logits.safetensors     one f32 tensor `logits` [tokens, vocab]")]
pub struct LogitsArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Token ids, separated by commas.
    #[arg(long, env = "ABRUZZI_TOKENS", value_delimiter = ',', required = true, value_name = "IDS")]
    pub tokens: Vec<u32>,
    /// The file to write.
    #[arg(short, long, env = "ABRUZZI_OUT", value_name = "FILE")]
    pub out: PathBuf,
    /// Decode token by token through the cache instead of one prefill.
    #[arg(long, env = "ABRUZZI_STEP", value_parser = FalseyValueParser::new())]
    pub step: bool,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  abruzzi tokenize \"In the beginning\"
  abruzzi tokenize --decode 82,315,708")]
pub struct TokenizeArgs {
    /// Checkpoint folder [default: the demo model]
    #[arg(short, long, env = "ABRUZZI_MODEL", value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// The text.
    #[arg(required_unless_present = "decode")]
    pub text: Option<String>,
    /// Token ids to turn into text, separated by commas.
    #[arg(long, env = "ABRUZZI_DECODE", value_delimiter = ',', conflicts_with = "text", value_name = "IDS")]
    pub decode: Option<Vec<u32>>,
    #[command(flatten)]
    pub output: JsonArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  abruzzi inspect -m DIR
  abruzzi inspect -m config.json --json | jq .total.parameters     without any weights")]
pub struct InspectArgs {
    /// Checkpoint folder or config.json [default: the demo model]
    #[arg(short, long, env = "ABRUZZI_MODEL", value_name = "PATH")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub output: JsonArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  abruzzi verify -m DIR                     exit code 1 and the list of faults if there are any
  abruzzi verify -m DIR --json | jq -r 'select(.event==\"fault\").tensor'")]
pub struct VerifyArgs {
    /// Checkpoint folder [default: the demo model]
    #[arg(short, long, env = "ABRUZZI_MODEL", value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Reading threads; 0 takes one per core.
    #[arg(short, long, env = "ABRUZZI_THREADS", default_value_t = 0)]
    pub threads: usize,
    #[command(flatten)]
    pub output: JsonArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  abruzzi plan -m config.json --vram 80GiB --host 2TiB
  abruzzi plan -m DIR --vram 10GiB --hbm 418GB/s --host 2TiB          a 1g.10gb slice of an H100
  abruzzi plan -m DIR --vram 80GiB --host 256GiB --nvme --ctx-size 32768 --json | jq .slots.count

Sizes are written 80GiB, 500MB or in bytes; rates 55GB/s. Hit rates and speeds are modelled, nothing is measured.")]
pub struct PlanArgs {
    /// Checkpoint folder or config.json [default: the demo model]
    #[arg(short, long, env = "ABRUZZI_MODEL", value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// GPU memory to use [default: what is free on the first GPU]
    #[arg(long, env = "ABRUZZI_VRAM", value_parser = units::bytes, value_name = "BYTES")]
    pub vram: Option<u64>,
    /// Host memory to use [default: what is available here]
    #[arg(long, env = "ABRUZZI_HOST", value_parser = units::bytes, value_name = "BYTES")]
    pub host: Option<u64>,
    /// Experts may be read from the checkpoint's disk while generating, at this rate [without a rate: 7GB/s]
    #[arg(
        long,
        env = "ABRUZZI_NVME",
        value_parser = units::rate,
        num_args = 0..=1,
        default_missing_value = "7GB/s",
        value_name = "RATE"
    )]
    pub nvme: Option<f64>,
    /// Rate of copies to the GPU.
    #[arg(long, env = "ABRUZZI_PCIE", value_parser = units::rate, default_value = "55GB/s", value_name = "RATE")]
    pub pcie: f64,
    /// Rate of host memory.
    #[arg(long, env = "ABRUZZI_DRAM", value_parser = units::rate, default_value = "400GB/s", value_name = "RATE")]
    pub dram: f64,
    /// Rate of GPU memory.
    #[arg(long, env = "ABRUZZI_HBM", value_parser = units::rate, default_value = "3350GB/s", value_name = "RATE")]
    pub hbm: f64,
    /// Tokens of context [default: the longest of the model that takes at most a quarter of the GPU's memory]
    #[arg(short, long, env = "ABRUZZI_CTX_SIZE", allow_negative_numbers = true, value_name = "TOKENS")]
    pub ctx_size: Option<usize>,
    /// Tokens that prefill takes at once [default: chosen, at most an eighth of what the trunk leaves]
    #[arg(long, env = "ABRUZZI_CHUNK", allow_negative_numbers = true, value_name = "TOKENS")]
    pub chunk: Option<usize>,
    #[command(flatten)]
    pub output: JsonArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  abruzzi synth -o k2-small --like kimi-k2 --layers 2 --experts 32         6.7 GB; the widths stay true
  abruzzi synth -o v3-int4 --like deepseek-v3 --layers 4 --experts 16 --format int4-g32
  abruzzi synth -o mine --like DIR/config.json --seed 3

The same seed and options give the same bytes on every machine.")]
pub struct SynthArgs {
    /// The folder to write; it must not exist.
    #[arg(short, long, env = "ABRUZZI_OUT", value_name = "DIR")]
    pub out: PathBuf,
    /// The model to imitate: kimi-k2, kimi-k2-thinking, deepseek-v3, moonlight, or the path of a config.json.
    #[arg(long, env = "ABRUZZI_LIKE", value_name = "MODEL")]
    pub like: String,
    /// Transformer layers [default: the model's own number]
    #[arg(long, env = "ABRUZZI_LAYERS", allow_negative_numbers = true, value_name = "N")]
    pub layers: Option<usize>,
    /// Routed experts a layer [default: the model's own number]
    #[arg(long, env = "ABRUZZI_EXPERTS", allow_negative_numbers = true, value_name = "N")]
    pub experts: Option<usize>,
    /// How to store the weights [default: as the model does]
    #[arg(long, env = "ABRUZZI_FORMAT", value_enum)]
    pub format: Option<SynthFormat>,
    /// Seed of the values.
    #[arg(short, long, env = "ABRUZZI_SEED", default_value_t = 0, allow_negative_numbers = true)]
    pub seed: u64,
    /// Writing threads; 0 takes one per core.
    #[arg(short, long, env = "ABRUZZI_THREADS", default_value_t = 0)]
    pub threads: usize,
    #[command(flatten)]
    pub output: JsonArgs,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum SynthFormat {
    /// FP8 e4m3 with a scale per 128×128 block, every linear layer.
    #[value(alias = "fp8")]
    Fp8Block,
    /// INT4 with a scale per 32 columns, the routed experts; the rest BF16.
    #[value(name = "int4-g32", alias = "int4")]
    Int4Group32,
    /// BF16 throughout.
    Bf16,
}

impl From<SynthFormat> for abruzzi::quant::Format {
    fn from(format: SynthFormat) -> Self {
        match format {
            SynthFormat::Fp8Block => Self::Fp8Block,
            SynthFormat::Int4Group32 => Self::Int4Group32,
            SynthFormat::Bf16 => Self::Bf16,
        }
    }
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  abruzzi doctor -m DIR                         how fast are this model's files read?
  abruzzi doctor --json | jq .memory_available")]
pub struct DoctorArgs {
    /// Checkpoint folder whose files are read to see how fast that is [default: the demo model]
    #[arg(short, long, env = "ABRUZZI_MODEL", value_name = "DIR")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub output: JsonArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  abruzzi completions bash > ~/.local/share/bash-completion/completions/abruzzi
  abruzzi completions fish > ~/.config/fish/completions/abruzzi.fish")]
pub struct CompletionsArgs {
    /// The shell.
    pub shell: clap_complete::Shell,
}

/// The flag behind an argument of the library, as the help spells it; `None` if no flag of that name exists.
pub fn flag_of(argument: &str) -> Option<String> {
    let long = match argument {
        "temperature" => "temp",
        "context" => "ctx-size",
        "text" => "file",
        other => other,
    };
    let cli = Cli::command();
    let flag = cli.get_subcommands().flat_map(|c| c.get_arguments()).find(|a| a.get_long() == Some(long))?;
    Some(match flag.get_short() {
        Some(short) => format!("--{long} (-{short})"),
        None => format!("--{long}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_long_flag_has_its_environment_variable() {
        let cli = Cli::command();
        for (command, arg) in cli.get_subcommands().flat_map(|c| c.get_arguments().map(move |a| (c, a))) {
            let Some(long) = arg.get_long().filter(|&l| l != "help" && l != "version") else { continue };
            let expected = format!("ABRUZZI_{}", long.to_uppercase().replace('-', "_"));
            let found = arg.get_env().and_then(|e| e.to_str());
            assert_eq!(found, Some(expected.as_str()), "{} --{long}", command.get_name());
        }
    }

    #[test]
    fn every_argument_the_library_names_has_a_flag() {
        for (argument, flag) in [
            ("temperature", "--temp"),
            ("top-p", "--top-p"),
            ("min-p", "--min-p"),
            ("context", "--ctx-size (-c)"),
            ("prompt", "--prompt (-p)"),
            ("text", "--file (-f)"),
            ("window", "--window"),
            ("windows", "--windows"),
            ("reference", "--reference"),
            ("stop", "--stop"),
            ("threads", "--threads (-t)"),
            ("tokens", "--tokens"),
            ("like", "--like"),
            ("layers", "--layers"),
            ("experts", "--experts"),
            ("vram", "--vram"),
            ("chunk", "--chunk"),
            ("pcie", "--pcie"),
            ("dram", "--dram"),
            ("hbm", "--hbm"),
            ("nvme", "--nvme"),
            ("prompt-tokens", "--prompt-tokens (-p)"),
            ("depth", "--depth (-d)"),
            ("rounds", "--rounds (-r)"),
        ] {
            assert_eq!(flag_of(argument).as_deref(), Some(flag));
        }
    }
}
