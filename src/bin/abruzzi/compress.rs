//! `abruzzi compress` and `abruzzi quantize`: one checkpoint of another.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use abruzzi::compress::{
    CompressReport, Compression, Estimate, ExpertLists, Layers, Method, Recipe, Selection, Target, Tell,
    Text, report,
};
use abruzzi::config::Architecture;
use abruzzi::{CancelToken, Checkpoint, Error, LoadOptions, ModelConfig, Result, Tokenizer};

use crate::args::{CompressArgs, MakingArgs, MethodArg, QuantizeArgs};
use crate::bars::Bars;
use crate::ui::{self, bytes, thousands};

impl From<MethodArg> for Method {
    fn from(method: MethodArg) -> Self {
        match method {
            MethodArg::Usage => Method::Usage,
            MethodArg::Similarity => Method::Similarity,
            MethodArg::Merge => Method::Merge,
        }
    }
}

pub fn compress(args: CompressArgs, cancel: &CancelToken) -> anyhow::Result<()> {
    let job = Job::new(args.model.as_deref(), args.out, args.making)?;
    let config = job.config()?;
    let layers = match &args.layers {
        Some(text) => text.parse()?,
        None => Layers::Count(config.num_layers),
    };
    let method = match (args.method, &args.file) {
        (Some(method), _) => method.into(),
        (None, Some(_)) => Method::Usage,
        (None, None) => Method::Similarity,
    };
    let target = args.format.map_or(Ok(Target::AS_IS), |format| Target::new(format.into(), false))?;
    let lists = args.experts_list.as_ref().map(|file| ExpertLists::read(file, &config)).transpose()?;
    let experts = match args.experts {
        Some(experts) => vec![experts],
        None => args.steps.iter().map(|share| experts_of(*share, &config)).collect(),
    };
    if job.making.dry_run {
        // Which experts they are makes no difference to a count.
        let selection = match (&lists, experts.last()) {
            (Some(lists), _) => Selection::new(&config, &layers, |layer| lists.of_layer(layer))?,
            (None, Some(&experts)) => method.outline(&config, &layers, experts)?,
            (None, None) => Selection::all_experts(&config, &layers)?,
        };
        return job.run(Recipe::new(selection).target(target), &config, cancel);
    }
    let text = args.file.as_ref().map(|file| read(file, job.weights()?)).transpose()?;
    let compression = Compression {
        layers: args.layers.is_some().then_some(layers),
        experts,
        method,
        lists,
        target,
        allow_saturation: job.making.allow_saturation,
        text,
        heal: args.heal,
    };
    job.make(&compression, cancel)
}

/// A share of the experts of a layer, a multiple of what the router needs.
fn experts_of(share: f64, config: &ModelConfig) -> usize {
    let groups = config.moe.n_group;
    (config.moe.num_experts as f64 * share / groups as f64).round() as usize * groups
}

fn read(file: &Path, source: &Checkpoint) -> anyhow::Result<Text> {
    let text = ui::read_text("the text", file)?;
    let tokenizer = Tokenizer::from_dir(source.dir(), source.config().vocab_size)?;
    Ok(Text::new(&text, &tokenizer)?)
}

pub fn quantize(args: QuantizeArgs, cancel: &CancelToken) -> anyhow::Result<()> {
    let job = Job::new(args.model.as_deref(), args.out, args.making)?;
    let config = job.config()?;
    let target = Target::new(args.format.into(), args.experts_only)?;
    job.run(Recipe::new(Selection::everything(&config)).target(target), &config, cancel)
}

/// What both commands do with a recipe.
struct Job {
    model: PathBuf,
    /// The checkpoint; `None` where only its configuration was named.
    source: Option<Checkpoint>,
    out: Option<PathBuf>,
    making: MakingArgs,
}

impl Job {
    fn new(model: Option<&Path>, out: Option<PathBuf>, making: MakingArgs) -> anyhow::Result<Job> {
        let model = ui::model_path(model)?;
        let only_config = model.extension().is_some_and(|e| e == "json");
        let source = if only_config { None } else { Some(Checkpoint::open(&model)?) };
        Ok(Job { model, source, out, making })
    }

    fn config(&self) -> Result<ModelConfig> {
        match &self.source {
            Some(source) => Ok(source.config().clone()),
            None => ModelConfig::from_file(&self.model),
        }
    }

    fn weights(&self) -> Result<&Checkpoint> {
        self.source.as_ref().ok_or_else(|| {
            let path = self.model.display();
            let problem = format!("is {path}, a configuration without weights; --dry-run would do with that");
            Error::Argument { name: "model", problem }
        })
    }

    fn run(&self, recipe: Recipe, config: &ModelConfig, cancel: &CancelToken) -> anyhow::Result<()> {
        let recipe = recipe.allow_saturation(self.making.allow_saturation);
        if self.making.dry_run {
            let file = self.source.as_ref().map_or(self.model.as_path(), Checkpoint::dir);
            return self.show_estimate(&recipe.estimate(file, self.source.as_ref())?, config);
        }
        let source = self.weights()?;
        let out = self.begin(source);
        let bar = ui::progress_bar().with_message("writing and verifying");
        let shown = bar.clone();
        let mut options = self.options(cancel);
        options.progress = Some(Arc::new(move |p| ui::advance(&shown, p)));
        let written = recipe.write(source, out, &options);
        bar.finish_and_clear();
        self.say_how_to_go_on(&written);
        self.show_report(&written?, out)
    }

    /// Runs a compression with a bar for each of its steps.
    fn make(&self, what: &Compression, cancel: &CancelToken) -> anyhow::Result<()> {
        let out = self.begin(self.weights()?);
        let bars = Bars::default();
        let shown = bars.clone();
        let stages = what.experts.len();
        let tell: Tell = Arc::new(move |stage, step| shown.advance(stage, stages, step));
        let made = what.run(&self.model, out, &self.options(cancel), &tell);
        bars.finish();
        self.say_how_to_go_on(&made);
        let made = made?;
        if self.making.output.json {
            report::ndjson(&made.rows, &mut std::io::stdout())?;
        } else if !made.rows.is_empty() {
            write!(std::io::stdout(), "{}", report::table(&made.rows))?;
        }
        for (layer, fit) in made.healed.iter().flat_map(|h| h.layers.iter().enumerate()) {
            if let Some(fit) = fit.as_ref().filter(|_| !self.making.output.json) {
                eprintln!(
                    "layer {layer}: {:.2} % away from the source on held-aside text, {:.2} % healed",
                    100.0 * fit.error_before,
                    100.0 * fit.error_after
                );
            }
        }
        self.show_report(&made.report, out)
    }

    /// Says what there is to say before anything is written.
    fn begin(&self, source: &Checkpoint) -> &Path {
        let out = self.out();
        if self.partial().is_dir() {
            eprintln!("continuing {}", self.partial().display());
        }
        if !source.skipped().0.is_empty() {
            eprintln!("left behind: {}", source.skipped());
        }
        out
    }

    fn out(&self) -> &Path {
        self.out.as_deref().unwrap_or(Path::new("."))
    }

    fn partial(&self) -> PathBuf {
        let mut partial = self.out().as_os_str().to_owned();
        partial.push(".partial");
        PathBuf::from(partial)
    }

    fn options(&self, cancel: &CancelToken) -> LoadOptions {
        let mut options = LoadOptions::default();
        options.threads = self.making.threads;
        options.cancel = Some(cancel.flag());
        options
    }

    fn say_how_to_go_on<T>(&self, done: &abruzzi::Result<T>) {
        if matches!(done, Err(Error::Cancelled)) && self.partial().is_dir() {
            eprintln!("{} keeps what is finished; the same command continues it", self.partial().display());
        }
    }

    fn show_report(&self, report: &CompressReport, out: &Path) -> anyhow::Result<()> {
        if self.making.output.json {
            let mut value = serde_json::to_value(report)?;
            value["event"] = "done".into();
            value["peak_memory"] = ui::peak_memory().into();
            writeln!(std::io::stdout(), "{value}")?;
            return Ok(());
        }
        for file in &report.left_out {
            eprintln!("not copied: {file}");
        }
        for (count, what) in [
            (report.saturated, "values were beyond their new format and became its largest"),
            (report.vanished, "values became zero"),
            (
                report.fresh_scales,
                "FP8 blocks took a fresh scale: the one they had does not give back their values",
            ),
        ] {
            if count > 0 {
                eprintln!("{} {what}", thousands(count));
            }
        }
        eprintln!("proof: {}", report.proof);
        eprintln!(
            "{}: {} tensors in {} shards, {}, {:.2} GB/s",
            out.display(),
            thousands(report.tensors as u64),
            report.shards,
            bytes(report.bytes),
            report.bytes as f64 / 1e9 / report.seconds.max(1e-9)
        );
        Ok(())
    }

    fn show_estimate(&self, estimate: &Estimate, source: &ModelConfig) -> anyhow::Result<()> {
        let mut out = std::io::stdout();
        if self.making.output.json {
            let mut value = serde_json::to_value(estimate)?;
            value["event"] = "estimate".into();
            writeln!(out, "{value}")?;
            return Ok(());
        }
        let (layers, experts) = (estimate.layers, estimate.experts);
        writeln!(
            out,
            "{} of {} layers, {} of {} experts a layer: {} parameters, {} active a token\n",
            layers.kept,
            layers.of,
            experts.kept,
            experts.of,
            thousands(estimate.inventory.total.parameters),
            thousands(estimate.inventory.active.parameters)
        )?;
        write!(out, "{:<18}{:>20}", "part", "parameters")?;
        for format in estimate.formats.keys() {
            write!(out, "{format:>12}")?;
        }
        writeln!(out)?;
        let rows = estimate.inventory.parts.iter().map(|(part, amount)| (*part, amount.parameters));
        for (part, parameters) in rows.chain([("total", estimate.inventory.total.parameters)]) {
            write!(out, "{part:<18}{:>20}", thousands(parameters))?;
            for counted in estimate.formats.values() {
                let amount = counted.parts.get(part).unwrap_or(&counted.total);
                write!(out, "{:>12}", bytes(amount.bytes))?;
            }
            writeln!(out)?;
        }
        writeln!(out, "\n{:<18}{:>12}{:>12}{:>12}", "weights", "kept", "merged", "dropped")?;
        for (part, fate) in &estimate.weights {
            let counts = [fate.kept, fate.merged, fate.dropped].map(|n| thousands(n as u64));
            writeln!(out, "{part:<18}{:>12}{:>12}{:>12}", counts[0], counts[1], counts[2])?;
        }
        let assumed = if estimate.exact { "" } else { ", if what is plain in the source is BF16" };
        writeln!(out, "\nto be written: {} bytes of tensors{assumed}", thousands(estimate.bytes))?;
        writeln!(
            out,
            "{} shared experts dropped: every layer that is kept keeps its own",
            estimate.shared_experts_dropped
        )?;
        if is_kimi_k2(source) {
            writeln!(out, "{}", beside_k2_mini(estimate))?;
        }
        Ok(())
    }
}

fn is_kimi_k2(config: &ModelConfig) -> bool {
    config.architecture == Architecture::KimiK2 && (config.num_layers, config.moe.num_experts) == (61, 384)
}

/// How it differs from an earlier cut of the same model that failed.
fn beside_k2_mini(estimate: &Estimate) -> String {
    let shared = estimate.weights.get("shared experts").map_or(0, |fate| fate.kept);
    let fp16 = estimate.formats.get("fp16").map_or(0, |counted| counted.total.bytes);
    format!(
        "K2-Mini, 24 layers with 16 experts, had 39.83 GB on disk and was reported as 32.5 B parameters; 39.83 GB of FP16 \
         is 19.9 B. It lacked its 72 shared-expert weights and its first logits were not finite. This has {:.1} B \
         parameters, {} in FP16, and all {shared} shared-expert weights of its layers.",
        estimate.inventory.total.parameters as f64 / 1e9,
        bytes(fp16)
    )
}
