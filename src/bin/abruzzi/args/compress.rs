//! Flags of the commands that make one checkpoint of another.

use std::path::PathBuf;

use abruzzi::quant::Format;
use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};

use super::JsonArgs;

#[derive(Args)]
#[command(after_help = "\
Examples:
  abruzzi compress -m config.json --layers 24 --experts 16 --dry-run
                                  parameters and bytes, without the weights
  abruzzi compress -m DIR -o half --experts 192 -f text.txt --heal
                                  chosen by what they do on a text, then healed
  abruzzi compress -m DIR -o small --steps 75%,50%,25% -f text.txt --heal
                                  in stages, each measured anew
  abruzzi compress -m DIR -o blind --experts 192
                                  those whose routers cover the others best
  abruzzi compress -m DIR -o merged --experts 96 --method merge --format int4-g32
  abruzzi compress -m DIR -o mine --layers 0-3,8,12-60 --experts-list lists.json

Every shared expert, norm, the embedding and the head of what is kept are kept. A list of experts
is a JSON object from layers to experts: {\"1\": [0, 5, [[7, 0.6], [9, 0.4]]]} keeps 0 and 5 of layer
1 and merges 7 and 9; every result lists its own in abruzzi-provenance.json. The result is proven
before it gets its name. A run that was interrupted is continued by the same command.")]
pub struct CompressArgs {
    /// Checkpoint folder, or with --dry-run a config.json [default: the demo model]
    #[arg(short, long, env = "ABRUZZI_MODEL", value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// The folder to write; it must not exist.
    #[arg(short, long, env = "ABRUZZI_OUT", value_name = "DIR", required_unless_present = "dry_run")]
    pub out: Option<PathBuf>,
    /// Layers to keep: a list such as 0-3,8,12-15, or a number: those that change the stream most on the text, or without one
    /// spread evenly [default: all]
    #[arg(long, env = "ABRUZZI_LAYERS", allow_hyphen_values = true, value_name = "LAYERS")]
    pub layers: Option<String>,
    /// Routed experts a layer to keep [default: all]
    #[arg(long, env = "ABRUZZI_EXPERTS", allow_negative_numbers = true, value_name = "N")]
    pub experts: Option<usize>,
    /// Shares of the routed experts to go down to, one stage after the other; what stages leave is in OUT.stages.
    #[arg(
        long,
        env = "ABRUZZI_STEPS",
        value_delimiter = ',',
        value_parser = share,
        conflicts_with = "experts",
        value_name = "SHARES"
    )]
    pub steps: Vec<f64>,
    /// How experts are chosen [default: usage with a text, similarity without]
    #[arg(long, env = "ABRUZZI_METHOD", value_enum)]
    pub method: Option<MethodArg>,
    /// A text to measure and heal on, some 20,000 tokens of what the model is for; its last tenth judges the result.
    #[arg(short, long, env = "ABRUZZI_FILE", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Fit the router's biases and a scale for each expert to what the source does on the text.
    #[arg(long, env = "ABRUZZI_HEAL", value_parser = FalseyValueParser::new(), requires = "file")]
    pub heal: bool,
    /// The experts to keep of each layer, in a file.
    #[arg(
        long,
        env = "ABRUZZI_EXPERTS_LIST",
        value_name = "FILE",
        conflicts_with_all = ["experts", "method", "steps"]
    )]
    pub experts_list: Option<PathBuf>,
    /// How to store the weights [default: as the source does]
    #[arg(long, env = "ABRUZZI_FORMAT", value_enum)]
    pub format: Option<TargetFormat>,
    #[command(flatten)]
    pub making: MakingArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  abruzzi quantize -m DIR -o DIR-int4 --format int4-g32          routed experts INT4, all else BF16
  abruzzi quantize -m DIR -o DIR-bf16 --format bf16              and back with --format fp8-block, bit for bit
  abruzzi quantize -m config.json --format fp16 --dry-run

Every layer and expert is kept. What FP8 becomes BF16 or FP16 is accompanied by fp8-scales.safetensors, the scales it had.")]
pub struct QuantizeArgs {
    /// Checkpoint folder, or with --dry-run a config.json [default: the demo model]
    #[arg(short, long, env = "ABRUZZI_MODEL", value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// The folder to write; it must not exist.
    #[arg(short, long, env = "ABRUZZI_OUT", value_name = "DIR", required_unless_present = "dry_run")]
    pub out: Option<PathBuf>,
    /// How to store the weights.
    #[arg(long, env = "ABRUZZI_FORMAT", value_enum)]
    pub format: TargetFormat,
    /// Leave all but the routed experts as they are.
    #[arg(long, env = "ABRUZZI_EXPERTS_ONLY", value_parser = FalseyValueParser::new())]
    pub experts_only: bool,
    #[command(flatten)]
    pub making: MakingArgs,
}

#[derive(Args)]
pub struct MakingArgs {
    /// Share of a tensor's values that may be beyond the largest of its new format, and become that.
    #[arg(
        long,
        env = "ABRUZZI_ALLOW_SATURATION",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        value_name = "SHARE"
    )]
    pub allow_saturation: f64,
    /// Count what would be written, and write nothing.
    #[arg(long, env = "ABRUZZI_DRY_RUN", value_parser = FalseyValueParser::new())]
    pub dry_run: bool,
    /// Worker threads; 0 takes one per core.
    #[arg(short, long, env = "ABRUZZI_THREADS", default_value_t = 0)]
    pub threads: usize,
    #[command(flatten)]
    pub output: JsonArgs,
}

fn share(text: &str) -> Result<f64, String> {
    let percent = text.trim().strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    let share = percent.map(|percent| percent / 100.0).filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| "expected shares such as 75%,50%,25%".to_owned())
}

#[derive(Clone, Copy, ValueEnum)]
pub enum MethodArg {
    /// Those whose loss changes the layers' outputs most on the text.
    Usage,
    /// Those whose rows of the router are most like the others' (nothing is run, no text is needed).
    Similarity,
    /// Those of usage, or without a text those of similarity, and each other one merged into that which it is most like.
    Merge,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum TargetFormat {
    /// FP8 e4m3 with a scale per 128×128 block, every linear layer.
    #[value(alias = "fp8")]
    Fp8Block,
    /// INT4 with a scale per 32 columns, the routed experts; other quantised weights become BF16.
    #[value(name = "int4-g32", alias = "int4")]
    Int4Group32,
    /// BF16 throughout.
    Bf16,
    /// FP16 throughout.
    Fp16,
}

impl From<TargetFormat> for Format {
    fn from(format: TargetFormat) -> Self {
        match format {
            TargetFormat::Fp8Block => Self::Fp8Block,
            TargetFormat::Int4Group32 => Self::Int4Group32,
            TargetFormat::Bf16 => Self::Bf16,
            TargetFormat::Fp16 => Self::F16,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::args::flag_of;

    #[test]
    fn every_argument_that_recipes_name_has_a_flag() {
        for argument in
            ["layers", "experts", "experts-list", "format", "experts-only", "allow-saturation", "threads"]
        {
            let flag = flag_of(argument).unwrap();
            assert!(flag.starts_with(&format!("--{argument}")), "{flag}");
        }
        assert_eq!(flag_of("model").as_deref(), Some("--model (-m)"));
    }
}
