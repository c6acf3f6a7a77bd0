//! Flags of `abruzzi bench`.

use clap::Args;

use super::{JsonArgs, ModelArgs};

#[derive(Args)]
#[command(after_help = "\
Examples:
  abruzzi bench                                       the demo model at depths 0 and 4,096
  abruzzi bench -m DIR -p 2048 -n 128 -d 0,16384      a long prompt, decoding behind 16,384 tokens
  abruzzi bench -m DIR -p 0 -t 1                      decoding alone, on one thread
  abruzzi bench --json | jq 'select(.phase==\"decode\") | [.depth, .tok_s]'

A test is named as llama-bench names it: pp512 is a prompt of 512 tokens, tg64 are 64 decoded
tokens, each behind as many tokens of context as its depth says. Contexts and prompts are drawn
from the whole vocabulary with a fixed seed, and what is decoded is sampled at temperature 1:
repeated text would meet the same experts again and again. One prompt that does not count comes
first.

On the CPU a rate stands beside plain reads of the model's files where they are mapped (at most 4
GiB), by the same threads and in the same rounds; where experts have to be brought, beside what
the rates of the links allow. A decoded token reads weights, and the cache of what stands before
it.")]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Tokens of a prompt; 0 leaves prefill out.
    #[arg(
        short,
        long,
        env = "ABRUZZI_PROMPT_TOKENS",
        default_value_t = 512,
        allow_negative_numbers = true,
        value_name = "N"
    )]
    pub prompt_tokens: usize,
    /// Tokens to decode; 0 leaves decoding out.
    #[arg(
        short = 'n',
        long,
        env = "ABRUZZI_TOKENS",
        default_value_t = 64,
        allow_negative_numbers = true,
        value_name = "N"
    )]
    pub tokens: usize,
    /// Tokens of context before prompt and decoding, separated by commas.
    #[arg(
        short,
        long,
        env = "ABRUZZI_DEPTH",
        value_delimiter = ',',
        default_value = "0,4096",
        allow_negative_numbers = true,
        value_name = "TOKENS"
    )]
    pub depth: Vec<usize>,
    /// How often each is measured; the table has medians.
    #[arg(
        short,
        long,
        env = "ABRUZZI_ROUNDS",
        default_value_t = 5,
        allow_negative_numbers = true,
        value_name = "N"
    )]
    pub rounds: usize,
    #[command(flatten)]
    pub output: JsonArgs,
}
