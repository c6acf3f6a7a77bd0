//! What the commands say about themselves.

mod common;

use common::cli::stdout;
use common::root;

/// The help of a command. Clap leaves blanks at the ends of lines, which no editor keeps.
fn help(command: &str) -> String {
    stdout(&[command, "--help"]).lines().map(|l| format!("{}\n", l.trim_end())).collect()
}

#[test]
fn every_command_explains_itself_with_examples() {
    let overview = stdout(&["--help"]);
    let commands: Vec<&str> = overview
        .lines()
        .skip_while(|l| *l != "Commands:")
        .skip(1)
        .take_while(|l| !l.is_empty())
        .filter_map(|l| l.split_whitespace().next())
        .filter(|&c| c != "help")
        .collect();
    assert!(commands.len() >= 8, "{commands:?}");
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    for command in commands {
        let help = help(command);
        assert!(help.contains("Example"), "{command} has no example:\n{help}");
        assert!(help.contains(&format!("abruzzi {command} ")), "{command}:\n{help}");
        assert!(readme.contains(&format!("`{command}`")), "README's command list lacks {command}");
    }
    snapbox::assert_data_eq!(
        help("bench"),
        snapbox::str![[r#"
Measure how fast a model prefills and decodes at several depths of context

Usage: abruzzi bench [OPTIONS]

Options:
  -m, --model <DIR>            Checkpoint folder [default: the demo model] [env: ABRUZZI_MODEL=]
      --device <DEVICE>        Where to compute: `auto`, `cpu`, `cuda` or `cuda:N` [env:
                               ABRUZZI_DEVICE=] [default: auto]
  -t, --threads <THREADS>      Worker threads; 0 takes one per core [env: ABRUZZI_THREADS=]
                               [default: 0]
      --vram-budget <BYTES>    GPU memory to use, for everything [default: what is free] [env:
                               ABRUZZI_VRAM_BUDGET=]
      --host-budget <BYTES>    Host memory for experts; the others are read from the checkpoint when
                               needed [default: all, if they fit] [env: ABRUZZI_HOST_BUDGET=]
      --serve-while-loading    Begin before all experts are loaded; damage in them is then found
                               when it is met [env: ABRUZZI_SERVE_WHILE_LOADING=]
      --cache-policy <POLICY>  Which experts stay where not all fit: reuse, lru, lfru, s3-fifo or
                               static [env: ABRUZZI_CACHE_POLICY=] [default: reuse]
      --no-cpu-experts         Leave experts that are not on the GPU to the link alone; the CPU
                               computes none of them [env: ABRUZZI_NO_CPU_EXPERTS=]
  -p, --prompt-tokens <N>      Tokens of a prompt; 0 leaves prefill out [env:
                               ABRUZZI_PROMPT_TOKENS=] [default: 512]
  -n, --tokens <N>             Tokens to decode; 0 leaves decoding out [env: ABRUZZI_TOKENS=]
                               [default: 64]
  -d, --depth <TOKENS>         Tokens of context before prompt and decoding, separated by commas
                               [env: ABRUZZI_DEPTH=] [default: 0,4096]
  -r, --rounds <N>             How often each is measured; the table has medians [env:
                               ABRUZZI_ROUNDS=] [default: 5]
      --json                   Machine-readable output on stdout [env: ABRUZZI_JSON=]
  -h, --help                   Print help
  -V, --version                Print version

Examples:
  abruzzi bench                                       the demo model at depths 0 and 4,096
  abruzzi bench -m DIR -p 2048 -n 128 -d 0,16384      a long prompt, decoding behind 16,384 tokens
  abruzzi bench -m DIR -p 0 -t 1                      decoding alone, on one thread
  abruzzi bench --json | jq 'select(.phase=="decode") | [.depth, .tok_s]'

A test is named as llama-bench names it: pp512 is a prompt of 512 tokens, tg64 are 64 decoded
tokens, each behind as many tokens of context as its depth says. Contexts and prompts are drawn
from the whole vocabulary with a fixed seed, and what is decoded is sampled at temperature 1:
repeated text would meet the same experts again and again. One prompt that does not count comes
first.

On the CPU a rate stands beside plain reads of the model's files where they are mapped (at most 4
GiB), by the same threads and in the same rounds; where experts have to be brought, beside what
the rates of the links allow. A decoded token reads weights, and the cache of what stands before
it.

"#]]
    );
    snapbox::assert_data_eq!(
        help("eval"),
        snapbox::str![[r#"
Say how well a model predicts a text, and how far it is from a reference model

Usage: abruzzi eval [OPTIONS] --file <FILE>

Options:
  -m, --model <DIR>            Checkpoint folder [default: the demo model] [env: ABRUZZI_MODEL=]
      --device <DEVICE>        Where to compute: `auto`, `cpu`, `cuda` or `cuda:N` [env:
                               ABRUZZI_DEVICE=] [default: auto]
  -t, --threads <THREADS>      Worker threads; 0 takes one per core [env: ABRUZZI_THREADS=]
                               [default: 0]
      --vram-budget <BYTES>    GPU memory to use, for everything [default: what is free] [env:
                               ABRUZZI_VRAM_BUDGET=]
      --host-budget <BYTES>    Host memory for experts; the others are read from the checkpoint when
                               needed [default: all, if they fit] [env: ABRUZZI_HOST_BUDGET=]
      --serve-while-loading    Begin before all experts are loaded; damage in them is then found
                               when it is met [env: ABRUZZI_SERVE_WHILE_LOADING=]
      --cache-policy <POLICY>  Which experts stay where not all fit: reuse, lru, lfru, s3-fifo or
                               static [env: ABRUZZI_CACHE_POLICY=] [default: reuse]
      --no-cpu-experts         Leave experts that are not on the GPU to the link alone; the CPU
                               computes none of them [env: ABRUZZI_NO_CPU_EXPERTS=]
  -f, --file <FILE>            The text: UTF-8, at most 64 MB [env: ABRUZZI_FILE=]
      --reference <DIR>        Checkpoint folder of a model with the same vocabulary to compare with
                               [env: ABRUZZI_REFERENCE=]
      --window <TOKENS>        Tokens predicted in a window [env: ABRUZZI_WINDOW=] [default: 256]
      --windows <N>            Windows at most, from the text's beginning [default: the whole text]
                               [env: ABRUZZI_WINDOWS=]
      --json                   Machine-readable output on stdout [env: ABRUZZI_JSON=]
  -h, --help                   Print help
  -V, --version                Print version

Examples:
  abruzzi eval -f models/demo/heldout.txt --windows 16        perplexity of the demo model
  abruzzi eval -m SMALL --reference WHOLE -f text.txt         and what making it smaller lost
  abruzzi eval -m DIR -f text.txt --json | jq 'select(.event=="done").perplexity'

The text is cut into windows that do not overlap, each read from an empty cache. The first token of
a window is context only; nothing is put in front of it. What is left of the text after the last
whole window is not used. An error (±) is the standard error of the mean over windows. With
--reference both models are loaded, and divide --vram-budget and --host-budget evenly.

"#]]
    );
    snapbox::assert_data_eq!(
        help("logits"),
        snapbox::str![[r#"
Write the logits of given token ids to a safetensors file

Usage: abruzzi logits [OPTIONS] --tokens <IDS> --out <FILE>

Options:
  -m, --model <DIR>            Checkpoint folder [default: the demo model] [env: ABRUZZI_MODEL=]
      --device <DEVICE>        Where to compute: `auto`, `cpu`, `cuda` or `cuda:N` [env:
                               ABRUZZI_DEVICE=] [default: auto]
  -t, --threads <THREADS>      Worker threads; 0 takes one per core [env: ABRUZZI_THREADS=]
                               [default: 0]
      --vram-budget <BYTES>    GPU memory to use, for everything [default: what is free] [env:
                               ABRUZZI_VRAM_BUDGET=]
      --host-budget <BYTES>    Host memory for experts; the others are read from the checkpoint when
                               needed [default: all, if they fit] [env: ABRUZZI_HOST_BUDGET=]
      --serve-while-loading    Begin before all experts are loaded; damage in them is then found
                               when it is met [env: ABRUZZI_SERVE_WHILE_LOADING=]
      --cache-policy <POLICY>  Which experts stay where not all fit: reuse, lru, lfru, s3-fifo or
                               static [env: ABRUZZI_CACHE_POLICY=] [default: reuse]
      --no-cpu-experts         Leave experts that are not on the GPU to the link alone; the CPU
                               computes none of them [env: ABRUZZI_NO_CPU_EXPERTS=]
      --tokens <IDS>           Token ids, separated by commas [env: ABRUZZI_TOKENS=]
  -o, --out <FILE>             The file to write [env: ABRUZZI_OUT=]
      --step                   Decode token by token through the cache instead of one prefill [env:
                               ABRUZZI_STEP=]
  -h, --help                   Print help
  -V, --version                Print version

Example:
  abruzzi logits --tokens 5,6,7 --out logits.safetensors     one f32 tensor `logits` [tokens, vocab]

"#]]
    );
}
