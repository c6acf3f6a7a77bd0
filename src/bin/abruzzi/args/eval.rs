//! Flags of `abruzzi eval`.

use std::path::PathBuf;

use clap::Args;

use super::{JsonArgs, ModelArgs};

#[derive(Args)]
#[command(after_help = "\
Examples:
  abruzzi eval -f models/demo/heldout.txt --windows 16        perplexity of the demo model
  abruzzi eval -m SMALL --reference WHOLE -f text.txt         and what making it smaller lost
  abruzzi eval -m DIR -f text.txt --json | jq 'select(.event==\"done\").perplexity'

The text is cut into windows that do not overlap, each read from an empty cache. The first token of
a window is context only; nothing is put in front of it. What is left of the text after the last
whole window is not used. An error (±) is the standard error of the mean over windows. With
--reference both models are loaded, and divide --vram-budget and --host-budget evenly.")]
pub struct EvalArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text: UTF-8, at most 64 MB.
    #[arg(short, long, env = "ABRUZZI_FILE", value_name = "FILE")]
    pub file: PathBuf,
    /// Checkpoint folder of a model with the same vocabulary to compare with.
    #[arg(long, env = "ABRUZZI_REFERENCE", value_name = "DIR")]
    pub reference: Option<PathBuf>,
    /// Tokens predicted in a window.
    #[arg(
        long,
        env = "ABRUZZI_WINDOW",
        default_value_t = 256,
        allow_negative_numbers = true,
        value_name = "TOKENS"
    )]
    pub window: usize,
    /// Windows at most, from the text's beginning [default: the whole text]
    #[arg(long, env = "ABRUZZI_WINDOWS", allow_negative_numbers = true, value_name = "N")]
    pub windows: Option<usize>,
    #[command(flatten)]
    pub output: JsonArgs,
}
