//! `abruzzi generate`: continues a text.

use std::io::Write;
use std::path::Path;

use abruzzi::experts::stats::ExpertStats;
use abruzzi::{CancelToken, Engine, Generation, Stats, Tracer};
use serde_json::json;

use crate::args::GenerateArgs;
use crate::ui;

pub fn run(args: GenerateArgs, cancel: &CancelToken) -> anyhow::Result<()> {
    let sampling = ui::sampling(&args.sampling);
    sampling.validate()?;
    let prompt = match (&args.prompt, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => ui::read_text("the prompt", file)?,
        (None, None) => String::new(),
    };
    let tracer = if args.trace.is_some() { Tracer::on() } else { Tracer::off() };
    let builder = ui::builder(&args.model, args.sampling.ctx_size)?.trace(tracer.clone());
    let engine = ui::load(builder, cancel)?;
    let mut session = engine.session(ui::session_options(&args.sampling, cancel))?;
    let json = args.output.json;
    // Whatever can be refused is refused before the first byte of output.
    let generation = session.generate(&prompt, &sampling)?;
    if let Some(file) = &args.trace {
        tracer.save(file)?;
    }
    let streamed = prompt_and_reply(&prompt, generation, json);
    // A run that failed or was interrupted is the more interesting one.
    if let Some(file) = &args.trace {
        let saved = save(&tracer, file);
        streamed.and(saved)?;
    } else {
        streamed?;
    }
    if json {
        writeln!(std::io::stdout(), "{}", done(&engine, session.stats()))?;
    } else {
        report(&engine, session.stats(), args.stats);
    }
    Ok(())
}

fn prompt_and_reply(prompt: &str, generation: Generation<'_>, json: bool) -> anyhow::Result<()> {
    if !json {
        write!(std::io::stdout(), "{prompt}")?;
        std::io::stdout().flush()?;
    }
    stream(generation, json).map(drop)
}

fn save(tracer: &Tracer, file: &Path) -> anyhow::Result<()> {
    tracer.save(file)?;
    let spans = ui::thousands(tracer.spans() as u64);
    let tokens = tracer.routing().map_or(0, |routing| routing.tokens());
    eprint!("trace {}: {spans} spans, routing of {} tokens", file.display(), ui::thousands(tokens as u64));
    match tracer.dropped() {
        (0, 0) => eprintln!(),
        (spans, tokens) => eprintln!(
            "; too much to keep: {} spans, routing of {} tokens",
            ui::thousands(spans),
            ui::thousands(tokens)
        ),
    }
    Ok(())
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
        "experts": stats.experts.map(|experts| experts_json(&experts, stats)),
    })
}

/// The counts, and what follows from them.
fn experts_json(experts: &ExpertStats, stats: &Stats) -> serde_json::Value {
    let mut value = json!(experts);
    value["hit_rate"] = experts.hit_rate().into();
    value["cpu_share"] = experts.cpu_share().into();
    value["overlap"] = experts.overlap().into();
    value["prefetch"]["precision"] = experts.prefetch.precision().into();
    value["prefetch"]["recall"] = experts.prefetch.recall().into();
    value["limit_share"] = stats.limit_share().into();
    value
}

/// The closing line, on stderr; with `full` what loading, memory and experts were, too.
pub fn report(engine: &Engine, stats: &Stats, full: bool) {
    if full {
        let load = engine.load_stats();
        let rate = load.bytes as f64 / 1e9 / load.seconds.max(1e-9);
        line("load", format_args!("{} in {:.2} s, {rate:.2} GB/s", ui::bytes(load.bytes), load.seconds));
        line("placement", format_args!("{}", engine.placement()));
        if let Some(peak) = ui::peak_memory() {
            line("memory", format_args!("{} at most", ui::bytes(peak)));
        }
        if let Some(experts) = &stats.experts {
            report_experts(experts, stats, engine.placement().contains("(emulated)"));
        }
    }
    eprintln!("{stats}");
}

fn line(name: &str, text: std::fmt::Arguments<'_>) {
    eprintln!("{name:<10} {text}");
}

fn report_experts(experts: &ExpertStats, stats: &Stats, emulated: bool) {
    let of_needed = |n: u64| percent((experts.needed() > 0).then(|| n as f64 / experts.needed() as f64));
    line(
        "experts",
        format_args!(
            "{} needed: {} on the device, {} over the link, {} on the CPU; {} from a file first",
            ui::thousands(experts.needed()),
            of_needed(experts.hits),
            of_needed(experts.over_link),
            of_needed(experts.on_cpu),
            of_needed(experts.from_file)
        ),
    );
    line(
        "bytes",
        format_args!(
            "link {}, CPU {}, files {}; {} experts evicted",
            at(experts.link_bytes + experts.ahead_bytes, experts.link_rate()),
            at(experts.cpu_bytes, experts.cpu_rate()),
            at(experts.file_bytes, experts.file_rate()),
            ui::thousands(experts.evicted)
        ),
    );
    line(
        "overlap",
        format_args!(
            "{} of link and CPU time hidden; the CPU computed {} of the missed bytes",
            percent(experts.overlap()),
            percent(experts.cpu_share())
        ),
    );
    let ahead = &experts.prefetch;
    if ahead.issued + ahead.refilled > 0 {
        line(
            "prefetch",
            format_args!(
                "precision {}, recall {}; {} guesses copied, {} wasted, {} missed experts copied later",
                percent(ahead.precision()),
                percent(ahead.recall()),
                ui::thousands(ahead.issued),
                ui::thousands(ahead.wasted),
                ui::thousands(ahead.refilled)
            ),
        );
    }
    if let Some(share) = stats.limit_share() {
        let modelled = if emulated { " (modelled: the GPU is emulated)" } else { "" };
        let share = percent(Some(share));
        line("limit", format_args!("decoding at {share} of what the bytes allow at these rates{modelled}"));
    }
}

fn at(bytes: u64, rate: Option<f64>) -> String {
    match rate {
        Some(rate) => format!("{} at {}/s", ui::bytes(bytes), ui::bytes(rate as u64)),
        None => ui::bytes(bytes),
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", 100.0 * share))
}
