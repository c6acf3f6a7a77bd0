//! `abruzzi generate`: continues a text.

use std::io::{Read, Write};
use std::path::Path;

use abruzzi::{CancelToken, Engine, Generation, Stats};
use anyhow::Context;
use serde_json::json;

use crate::args::GenerateArgs;
use crate::ui;

/// A prompt file larger than this holds no prompt.
const MAX_PROMPT: u64 = 64 << 20;

pub fn run(args: GenerateArgs, cancel: &CancelToken) -> anyhow::Result<()> {
    let sampling = ui::sampling(&args.sampling);
    sampling.validate()?;
    let prompt = match (&args.prompt, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => read_prompt(file)?,
        (None, None) => String::new(),
    };
    let engine = ui::load(&args.model, cancel)?;
    let mut session = engine.session(ui::session_options(&args.sampling, cancel))?;
    let json = args.output.json;
    // Whatever can be refused is refused before the first byte of output.
    let generation = session.generate(&prompt, &sampling)?;
    if !json {
        write!(std::io::stdout(), "{prompt}")?;
        std::io::stdout().flush()?;
    }
    stream(generation, json)?;
    if json {
        writeln!(std::io::stdout(), "{}", done(&engine, session.stats()))?;
    } else {
        report(&engine, session.stats(), args.stats);
    }
    Ok(())
}

fn read_prompt(file: &Path) -> anyhow::Result<String> {
    let open = || -> std::io::Result<String> {
        if !std::fs::metadata(file)?.is_file() {
            return Err(std::io::Error::other("it is not a regular file"));
        }
        let mut text = String::new();
        std::fs::File::open(file)?.take(MAX_PROMPT + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_PROMPT {
            return Err(std::io::Error::other(format!("it is larger than {MAX_PROMPT} bytes")));
        }
        Ok(text)
    };
    open().with_context(|| format!("cannot read the prompt {}", file.display()))
}

/// Writes tokens as they come; returns the whole reply. Text ends with a newline, also when it was cut short.
pub fn stream(generation: Generation<'_>, json: bool) -> anyhow::Result<String> {
    let mut out = std::io::stdout();
    let mut reply = String::new();
    for token in generation {
        match token {
            Ok(token) if json => {
                writeln!(out, "{}", json!({"event": "token", "id": token.id, "text": token.text}))?;
                reply += &token.text;
            }
            Ok(token) => {
                write!(out, "{}", token.text)?;
                reply += &token.text;
            }
            Err(e) => {
                if !json {
                    writeln!(out)?;
                }
                return Err(e.into());
            }
        }
        out.flush()?;
    }
    if !json {
        writeln!(out)?;
    }
    Ok(reply)
}

/// The event that ends a generation.
pub fn done(engine: &Engine, stats: &Stats) -> serde_json::Value {
    let load = engine.load_stats();
    json!({
        "event": "done",
        "finish": stats.finish,
        "seed": stats.seed,
        "prompt_tokens": stats.prompt_tokens,
        "generated_tokens": stats.generated_tokens,
        "prefill_tok_s": stats.prefill_rate(),
        "decode_tok_s": stats.decode_rate(),
        "decode_p50_ms": stats.decode_percentile(0.5).as_secs_f64() * 1e3,
        "decode_p99_ms": stats.decode_percentile(0.99).as_secs_f64() * 1e3,
        "load_bytes": load.bytes,
        "load_seconds": load.seconds,
        "placement": engine.placement(),
    })
}

/// The closing line, on stderr; with `full` what loading and memory were, too.
pub fn report(engine: &Engine, stats: &Stats, full: bool) {
    if full {
        let load = engine.load_stats();
        eprintln!(
            "load {} in {:.2} s, {:.2} GB/s; {}",
            ui::bytes(load.bytes),
            load.seconds,
            load.bytes as f64 / 1e9 / load.seconds.max(1e-9),
            engine.placement()
        );
        if let Some(peak) = ui::peak_memory() {
            eprintln!("peak memory {}", ui::bytes(peak));
        }
    }
    eprintln!("{stats}");
}
