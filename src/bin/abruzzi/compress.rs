//! `abruzzi compress` and `abruzzi quantize`: one checkpoint of another.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use abruzzi::compress::{CompressReport, Estimate, ExpertLists, Layers, Method, Recipe, Selection, Target};
use abruzzi::config::Architecture;
use abruzzi::{CancelToken, Checkpoint, Error, LoadOptions, ModelConfig, Result};

use crate::args::{CompressArgs, MakingArgs, MethodArg, QuantizeArgs};
use crate::ui::{self, bytes, thousands};

impl From<MethodArg> for Method {
    fn from(method: MethodArg) -> Self {
        match method {
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
    let method = Method::from(args.method);
    let selection = match (&args.experts_list, args.experts) {
        (Some(file), _) => {
            let lists = ExpertLists::read(file, &config)?;
            Selection::new(&config, &layers, |layer| lists.of_layer(layer))?
        }
        (None, None) => Selection::all_experts(&config, &layers)?,
        // Which experts they are makes no difference to a count.
        (None, Some(experts)) if job.making.dry_run => method.outline(&config, &layers, experts)?,
        (None, Some(experts)) => method.select(job.weights()?, &layers, experts)?,
    };
    let target = args.format.map_or(Ok(Target::AS_IS), |format| Target::new(format.into(), false))?;
    job.run(Recipe::new(selection).target(target), &config, cancel)
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
        let out = self.out.as_deref().unwrap_or(Path::new("."));
        let mut partial = out.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        if partial.is_dir() {
            eprintln!("continuing {}", partial.display());
        }
        if !source.skipped().0.is_empty() {
            eprintln!("left behind: {}", source.skipped());
        }
        let bar = ui::progress_bar().with_message("writing and verifying");
        let shown = bar.clone();
        let mut options = LoadOptions::default();
        options.threads = self.making.threads;
        options.progress = Some(Arc::new(move |p| ui::advance(&shown, p)));
        options.cancel = Some(cancel.flag());
        let written = recipe.write(source, out, &options);
        bar.finish_and_clear();
        if matches!(written, Err(Error::Cancelled)) && partial.is_dir() {
            eprintln!("{} keeps what is finished; the same command continues it", partial.display());
        }
        self.show_report(&written?, out)
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
        eprintln!(
            "{}: {} tensors in {} shards, {}, verified, {:.2} GB/s",
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
