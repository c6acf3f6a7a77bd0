//! `abruzzi eval`: perplexity of a text, and distance to a reference model.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use abruzzi::evaluate::{Evaluation, Options, Summary, Windows};
use abruzzi::{CancelToken, ModelConfig, Tokenizer};
use serde_json::json;

use crate::args::{EvalArgs, ModelArgs};
use crate::ui::{self, thousands};

pub fn run(args: EvalArgs, cancel: &CancelToken) -> anyhow::Result<()> {
    let mut options = Options::default();
    (options.window, options.windows) = (args.window, args.windows);
    (options.threads, options.cancel) = (args.model.threads, cancel.clone());
    // What can be refused is refused before weights are read, which may take minutes.
    let windows = windows(&args, &options)?;
    let (model, reference) = share(&args)?;
    let load = |args: &ModelArgs| ui::load(ui::builder(args, Some(options.window))?, cancel);
    let model = load(&model)?;
    let reference = reference.as_ref().map(load).transpose()?;

    let begun = Instant::now();
    let mut evaluation = Evaluation::new(&model, reference.as_ref(), windows, &options)?;
    let bar = ui::count_bar("windows", evaluation.windows().len()).with_message("evaluating");
    let ended = evaluation.by_ref().enumerate().try_for_each(|(i, scores)| -> anyhow::Result<()> {
        let mut event = json!(scores?);
        bar.inc(1);
        if args.output.json {
            (event["event"], event["window"]) = ("window".into(), i.into());
            bar.suspend(|| writeln!(std::io::stdout(), "{event}"))?;
        }
        Ok(())
    });
    bar.finish_and_clear();
    ended?;
    let seconds = begun.elapsed().as_secs_f64();
    let summary = evaluation.summary();
    if args.output.json {
        let mut event = json!(summary);
        event["event"] = "done".into();
        event["window_tokens"] = args.window.into();
        event["text_tokens"] = evaluation.windows().text_tokens().into();
        event["perplexity"] = summary.perplexity().into();
        event["reference_perplexity"] = summary.reference_perplexity().into();
        event["seconds"] = seconds.into();
        writeln!(std::io::stdout(), "{event}")?;
        return Ok(());
    }
    table(&mut std::io::stdout(), &args, &evaluation, &summary)?;
    eprintln!(
        "{} tokens in {seconds:.1} s, {:.1} tok/s",
        thousands(summary.tokens as u64),
        summary.tokens as f64 / seconds.max(1e-9)
    );
    Ok(())
}

fn windows(args: &EvalArgs, options: &Options) -> anyhow::Result<Windows> {
    let text = ui::read_text("the text", &args.file)?;
    let model = tokenizer(&ui::model_path(args.model.model.as_deref())?)?;
    let reference = args.reference.as_deref().map(tokenizer).transpose()?;
    Ok(Windows::of_text(&text, &model, reference.as_ref(), options)?)
}

fn tokenizer(checkpoint: &Path) -> abruzzi::Result<Tokenizer> {
    let parent = || checkpoint.parent().unwrap_or(checkpoint);
    let dir = if checkpoint.is_file() { parent() } else { checkpoint };
    let config = ModelConfig::from_file(&dir.join("config.json"))?;
    Tokenizer::from_dir(dir, config.vocab_size)
}

/// The flags of the model and of the reference, which divide the memory evenly. The model is loaded first: without a budget it would
/// leave nothing of the GPU.
fn share(args: &EvalArgs) -> anyhow::Result<(ModelArgs, Option<ModelArgs>)> {
    let mut model = args.model.clone();
    let Some(dir) = &args.reference else { return Ok((model, None)) };
    let half = |budget: Option<u64>| budget.map(|bytes| bytes / 2);
    model.vram_budget = half(model.vram_budget);
    model.host_budget = half(model.host_budget);
    let reference = ModelArgs { model: Some(dir.clone()), ..model.clone() };
    if model.vram_budget.is_none() {
        model.vram_budget = half(ui::free_on_gpu(model.device)?);
    }
    Ok((model, Some(reference)))
}

fn table(
    out: &mut impl Write,
    args: &EvalArgs,
    evaluation: &Evaluation,
    summary: &Summary,
) -> anyhow::Result<()> {
    let windows = evaluation.windows();
    writeln!(
        out,
        "{}: {} tokens, {} of them predicted in {} windows of {}",
        args.file.display(),
        thousands(windows.text_tokens() as u64),
        thousands(summary.tokens as u64),
        thousands(summary.windows as u64),
        thousands(windows.predicted() as u64)
    )?;
    writeln!(out, "{:<12}{:>18}{:>14}", "", "nats a token", "perplexity")?;
    let mut row =
        |name: &str, nats: String, perplexity: f64| writeln!(out, "{name:<12}{nats:>18}{perplexity:>14.3}");
    row("model", format!("{:.4}", summary.scores.nll), summary.perplexity())?;
    let Some(beside) = summary.scores.reference else { return Ok(()) };
    row("reference", format!("{:.4}", beside.nll), beside.nll.mean.exp())?;
    let ratio = format!("× {:.4}", beside.nll_increase.mean.exp());
    writeln!(out, "{:<12}{:>18}{ratio:>14}", "increase", format!("{:.4}", beside.nll_increase))?;
    writeln!(out, "\nbeside the reference, a token")?;
    writeln!(out, "{:<38}{:.5} nats", "KL(reference ‖ model)", beside.kl)?;
    writeln!(out, "{:<38}{:.4}", "same most probable token", beside.agreement)?;
    writeln!(out, "{:<38}{:.5} nats", "|ln p − ln p of the reference|", beside.log_prob_difference)?;
    Ok(())
}
