//! Compressing as the command does it: measure, choose, write, heal, measure again, in one stage or several.
//!
//! Each stage starts from what the stage before has written, measured anew on the same text. Healing needs a student that runs, so
//! a stage is first written unhealed, distilled from the source, and written again. What a run that ended early has finished
//! is found in the folder `OUT.stages` and not done again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::calibrate::{Calibration, LayerUse, calibrate, foretold};
use super::choose::Method;
use super::distill::{Distilled, distill};
use super::layers::Layers;
use super::lists::ExpertLists;
use super::provenance;
use super::recipe::{CompressReport, Recipe};
use super::report::{self, Row};
use super::select::Selection;
use super::target::Target;
use super::text::Text;
use crate::checkpoint::{Checkpoint, Inventory, LoadOptions, LoadProgress};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::evaluate::{self, Evaluation};
use crate::generate::{CancelToken, DeviceChoice, Engine};
use crate::model::walk::{Walk, WalkOptions};

/// What is being done, for a progress bar.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Step {
    /// Layers of the stage's source that were measured, of how many.
    Measure(usize, usize),
    /// Writing and verifying.
    Write(LoadProgress),
    /// Layers that were distilled, of how many.
    Heal(usize, usize),
    /// Windows of the held-out text that were evaluated, of how many.
    Evaluate(usize, usize),
}

/// Who is told of each step; the number of the stage, from 0, comes with it.
pub type Tell = Arc<dyn Fn(usize, Step) + Send + Sync>;

/// How to make a smaller model.
pub struct Compression {
    /// Layers to keep in the end; all if `None`. A count keeps those of the greatest influence where there is text, else spreads them.
    pub layers: Option<Layers>,
    /// Experts a layer after each stage, the last stage's last; none keeps all.
    pub experts: Vec<usize>,
    /// How experts are chosen, where their number is given.
    pub method: Method,
    /// The experts to keep, in place of a number: in one stage.
    pub lists: Option<ExpertLists>,
    /// How the result is stored; stages before the last are stored as the source.
    pub target: Target,
    /// As [`Recipe::allow_saturation`].
    pub allow_saturation: f64,
    /// What to measure and heal on; the methods and healing that need it say so.
    pub text: Option<Text>,
    /// Whether to heal.
    pub heal: bool,
}

/// What came of it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Compressed {
    /// What the last stage wrote.
    pub report: CompressReport,
    /// The source and every stage, evaluated on the end of the text; empty without text.
    pub rows: Vec<Row>,
    /// The fits of the last stage, if it was healed.
    pub healed: Option<Distilled>,
}

impl Compression {
    /// Makes the folder `out` of the checkpoint at `source`.
    ///
    /// # Errors
    /// [`Error::Argument`] for what contradicts itself or the model (`text` where it is missing); [`Error::Unfinished`] if
    /// `out.stages` is another command's; what reading, measuring and [`Recipe::write`] report.
    pub fn run(&self, source: &Path, out: &Path, options: &LoadOptions, tell: &Tell) -> Result<Compressed> {
        self.check()?;
        let original = Arc::new(Checkpoint::open(source)?);
        let stages = Stages { what: self, original: &original, out, options, tell };
        stages.run()
    }

    /// Whether measurements decide anything, where there is a text to measure on.
    fn measures(&self) -> bool {
        let experts = !self.experts.is_empty() && self.method != Method::Similarity;
        experts || matches!(self.layers, Some(Layers::Count(_)))
    }

    /// Whether measurements decide which experts are kept.
    fn measures_experts(&self) -> bool {
        self.method.needs_text() && !self.experts.is_empty()
    }

    fn check(&self) -> Result<()> {
        if self.text.is_none() && (self.heal || self.measures_experts()) {
            return Err(Error::argument("text", "is not given; measuring and healing need a text to run"));
        }
        if self.lists.is_some() && !self.experts.is_empty() {
            return Err(Error::argument("experts-list", "is given beside a number of experts"));
        }
        if let Some(pair) = self.experts.windows(2).find(|pair| pair[1] >= pair[0]) {
            let problem = format!("goes from {} to {} experts, expected fewer each time", pair[0], pair[1]);
            return Err(Error::argument("steps", problem));
        }
        Ok(())
    }
}

/// What a chart calls a model that was made in several stages.
const SERIES: &str = "gradual";

/// A compression under way.
struct Stages<'a> {
    what: &'a Compression,
    original: &'a Arc<Checkpoint>,
    out: &'a Path,
    options: &'a LoadOptions,
    tell: &'a Tell,
}

/// Where a stage begins.
struct From {
    checkpoint: Arc<Checkpoint>,
    /// Its layers, by their numbers in the original.
    layers: Vec<usize>,
    /// Their experts, by their numbers in the original; of merged ones the heaviest. None in dense layers.
    experts: Vec<Vec<usize>>,
}

impl From {
    fn original(checkpoint: &Arc<Checkpoint>) -> From {
        let config = checkpoint.config();
        let experts = |layer| if layer < config.first_k_dense { 0 } else { config.moe.num_experts };
        From {
            checkpoint: checkpoint.clone(),
            layers: (0..config.num_layers).collect(),
            experts: (0..config.num_layers).map(|layer| (0..experts(layer)).collect()).collect(),
        }
    }

    /// What a stage from here has written.
    fn next(&self, dir: &Path) -> Result<From> {
        let selected = provenance::selected(dir)?;
        let not_of_here = || Error::Unfinished {
            folder: dir.to_owned(),
            problem: "was not made of the stage before it".to_owned(),
        };
        let mut next =
            From { checkpoint: Arc::new(Checkpoint::open(dir)?), layers: Vec::new(), experts: Vec::new() };
        for (layer, heads) in selected {
            let known = self.experts.get(layer).ok_or_else(not_of_here)?;
            let original = |head: usize| known.get(head).copied().ok_or_else(not_of_here);
            next.layers.push(self.layers[layer]);
            next.experts.push(heads.into_iter().map(original).collect::<Result<_>>()?);
        }
        Ok(next)
    }

    /// What the original's measurements say of what is left.
    fn of_original(&self, measured: &Calibration) -> Calibration {
        let layers = self.layers.iter().zip(&self.experts).map(|(&layer, experts)| {
            let measured = &measured.layers[layer];
            let experts = experts.iter().map(|&expert| measured.experts[expert]).collect();
            LayerUse { influence: measured.influence, experts }
        });
        Calibration { layers: layers.collect(), ..measured.clone() }
    }
}

impl Stages<'_> {
    fn run(&self) -> Result<Compressed> {
        let total = self.what.experts.len().max(1);
        let mut from = From::original(self.original);
        let mut rows = Vec::new();
        if self.what.text.is_some() {
            rows.push(self.row(0, "source", self.original.dir())?);
        }
        if self.keeps_files() {
            self.claim()?;
        }
        for stage in 0..total {
            let last = stage + 1 == total;
            let to = if last { self.out.to_owned() } else { self.folder().join(format!("{}", stage + 1)) };
            if !last && to.exists() {
                from = from.next(&to)?;
                if self.what.text.is_some() {
                    rows.push(self.row(stage, SERIES, &to)?);
                }
                continue;
            }
            let (report, healed) = self.stage(stage, &from, &to)?;
            if self.what.text.is_some() {
                let series = if total > 1 { SERIES } else { "one stage" };
                rows.push(self.row(stage, series, &to)?);
                if total > 1 {
                    self.publish(&rows)?;
                }
            }
            if last {
                if total == 1 && self.keeps_files() {
                    fs::remove_dir_all(self.folder()).map_err(Error::io(self.folder(), "remove"))?;
                }
                return Ok(Compressed { report, rows, healed });
            }
            from = from.next(&to)?;
        }
        Err(Error::Defect { what: "a compression had no last stage".to_owned() })
    }

    /// One stage, from a model to the next smaller.
    fn stage(&self, stage: usize, from: &From, to: &Path) -> Result<(CompressReport, Option<Distilled>)> {
        let measured = match &self.what.text {
            Some(text) if self.what.measures() => Some(self.measure(stage, from, text)?),
            _ => None,
        };
        let selection = self.select(stage, from, measured.as_ref())?;
        let layers: Vec<usize> = selection.layers().iter().map(|&l| from.layers[l]).collect();
        let last = stage + 1 >= self.what.experts.len();
        let recipe = Recipe::new(selection.clone()).allow_saturation(self.what.allow_saturation);
        let recipe = if last { recipe.target(self.what.target) } else { recipe };
        let Some(text) = self.what.text.as_ref().filter(|_| self.what.heal) else {
            return Ok((self.write(stage, &recipe, from, to)?, None));
        };
        let unhealed = self.folder().join(format!("{}.unhealed", stage + 1));
        if !unhealed.exists() {
            self.write(stage, &recipe, from, &unhealed)?;
        }
        let student = self.walk(&Arc::new(Checkpoint::open(&unhealed)?))?;
        let teacher = self.walk(self.original)?;
        let of = layers.len();
        let healed = distill(&teacher, &student, &layers, text.calibration(), &mut |layer| {
            (self.tell)(stage, Step::Heal(layer + 1, of));
        })?;
        drop(student);
        let recipe = recipe.healing(healed.healing(&selection)?);
        let report = self.write(stage, &recipe, from, to)?;
        fs::remove_dir_all(&unhealed).map_err(Error::io(&unhealed, "remove"))?;
        Ok((report, Some(healed)))
    }

    /// Measures the stage's source, or finds that an earlier run has.
    fn measure(&self, stage: usize, from: &From, text: &Text) -> Result<Calibration> {
        let file = self.folder().join(format!("{}.calibration.json", stage + 1));
        if let Ok(bytes) = fs::read(&file)
            && let Ok(measured) = serde_json::from_slice(&bytes)
        {
            return Ok(measured);
        }
        let of = from.checkpoint.config().num_layers;
        let measured = calibrate(&self.walk(&from.checkpoint)?, text.calibration(), &mut |layer| {
            (self.tell)(stage, Step::Measure(layer + 1, of));
        })?;
        if self.keeps_files() {
            replace(&file, &json!(measured))?;
        }
        Ok(measured)
    }

    fn select(&self, stage: usize, from: &From, measured: Option<&Calibration>) -> Result<Selection> {
        let config = from.checkpoint.config();
        let layers = self.layers(stage, config, measured)?;
        match (&self.what.lists, self.what.experts.get(stage)) {
            (Some(lists), _) => Selection::new(config, &layers, |layer| lists.of_layer(layer)),
            (None, Some(&experts)) => match (measured, &self.what.text) {
                (Some(measured), Some(text)) if stage > 0 && self.what.method == Method::Usage => {
                    self.select_used(stage, from, &layers, experts, measured, text)
                }
                _ => self.what.method.select(&from.checkpoint, &layers, experts, measured),
            },
            (None, None) => Selection::all_experts(config, &layers),
        }
    }

    /// Of the experts that this stage's measurements miss most and those that the original's do: the former where the stage's source
    /// foretells the text clearly better with them. Measuring anew must not make a stage worse than not measuring.
    fn select_used(
        &self,
        stage: usize,
        from: &From,
        layers: &Layers,
        experts: usize,
        measured: &Calibration,
        text: &Text,
    ) -> Result<Selection> {
        let choose = |measured| Method::Usage.select(&from.checkpoint, layers, experts, Some(measured));
        let first = self.measure(0, &From::original(self.original), text)?;
        let (anew, as_first) = (choose(measured)?, choose(&from.of_original(&first))?);
        if anew == as_first {
            return Ok(anew);
        }
        let walk = self.walk(&from.checkpoint)?;
        let of = from.checkpoint.config().num_layers;
        (self.tell)(stage, Step::Measure(0, of));
        let nats = |selection| foretold(&walk, selection, text.calibration());
        Ok(if is_clearly_less(&nats(&anew)?, &nats(&as_first)?) { anew } else { as_first })
    }

    /// Layers that a stage keeps, by the numbers of its source: a list at once, a count step by step.
    fn layers(&self, stage: usize, config: &ModelConfig, measured: Option<&Calibration>) -> Result<Layers> {
        let all = Layers::Count(config.num_layers);
        match &self.what.layers {
            None => Ok(all),
            Some(list @ Layers::List(_)) => Ok(if stage == 0 { list.clone() } else { all }),
            Some(Layers::Count(wanted)) => {
                let (of, stages) = (self.original.config().num_layers, self.what.experts.len().max(1));
                let dropped = of.saturating_sub(*wanted) * (stage + 1) / stages;
                let count = of - dropped;
                // What cannot be is refused in the words of the flag.
                Layers::Count(*wanted).choose(self.original.config())?;
                Ok(match measured {
                    Some(measured) => Layers::List(most_influential(measured, count, config)),
                    None => Layers::Count(count),
                })
            }
        }
    }

    fn write(&self, stage: usize, recipe: &Recipe, from: &From, to: &Path) -> Result<CompressReport> {
        let mut options = self.options.clone();
        let tell = self.tell.clone();
        options.progress = Some(Arc::new(move |p| tell(stage, Step::Write(p))));
        recipe.write(&from.checkpoint, to, &options)
    }

    fn walk(&self, checkpoint: &Arc<Checkpoint>) -> Result<Walk> {
        let load = LoadOptions { progress: None, ..self.options.clone() };
        Walk::new(checkpoint.clone(), &WalkOptions { load, ..WalkOptions::default() })
    }

    /// Evaluates a model on the end of the text, beside the original.
    fn row(&self, stage: usize, series: &str, model: &Path) -> Result<Row> {
        let Some(text) = &self.what.text else {
            return Err(Error::argument("text", "is not given"));
        };
        let engine = |dir: &Path| {
            let mut builder = Engine::builder(dir).device(DeviceChoice::Cpu).threads(self.options.threads);
            if let Some(cancel) = &self.options.cancel {
                builder = builder.cancel(CancelToken::of(cancel.clone()));
            }
            builder.host_budget(HOST_BUDGET).load()
        };
        let (engine, reference) = (engine(model)?, engine(self.original.dir())?);
        let mut options = evaluate::Options::default();
        options.threads = self.options.threads;
        options.window = text.window();
        if let Some(cancel) = &self.options.cancel {
            options.cancel = CancelToken::of(cancel.clone());
        }
        let windows = evaluate::Windows::new(text.evaluation().concat(), &options)?;
        let of = windows.len();
        let mut evaluation = Evaluation::new(&engine, Some(&reference), windows, &options)?;
        for done in 1..=of {
            if let Some(window) = evaluation.next() {
                window?;
            }
            (self.tell)(stage, Step::Evaluate(done, of));
        }
        let inventory = Inventory::of(engine.config());
        let name = model.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok(Row::new(series, name, inventory.total, evaluation.summary()))
    }

    /// Table, lines of JSON and chart of the stages so far.
    fn publish(&self, rows: &[Row]) -> Result<()> {
        let folder = self.folder();
        let mut lines = Vec::new();
        report::ndjson(rows, &mut lines).map_err(Error::io(&folder, "write"))?;
        write_whole(&folder.join("stages.ndjson"), &lines)?;
        write_whole(&folder.join("stages.txt"), report::table(rows).as_bytes())?;
        write_whole(&folder.join("stages.svg"), report::chart("size against perplexity", rows).as_bytes())
    }

    /// Whether anything has to be kept between the source and the result.
    fn keeps_files(&self) -> bool {
        self.what.heal || self.what.experts.len() > 1
    }

    fn folder(&self) -> PathBuf {
        let mut name = self.out.as_os_str().to_owned();
        name.push(".stages");
        PathBuf::from(name)
    }

    /// Makes the folder of the stages, or finds the one that the same command has begun.
    fn claim(&self) -> Result<()> {
        let folder = self.folder();
        let file = folder.join("command.json");
        let command = self.command();
        match fs::read(&file) {
            Ok(found) if serde_json::from_slice::<Value>(&found).is_ok_and(|found| found == command) => {
                Ok(())
            }
            Ok(_) => {
                let problem = "holds the stages of another command".to_owned();
                Err(Error::Unfinished { folder, problem })
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                fs::create_dir(&folder).map_err(Error::io(&folder, "create"))?;
                replace(&file, &command)
            }
            Err(e) => Err(Error::io(&file, "read")(e)),
        }
    }

    /// All that decides what the stages hold.
    fn command(&self) -> Value {
        let text = self.what.text.as_ref().map(|text| text.hash().to_hex().to_string());
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "source": self.original.structure().to_hex().to_string(),
            "source_version": self.original.version().to_hex().to_string(),
            "layers": format!("{:?}", self.what.layers),
            "experts": self.what.experts,
            "method": format!("{:?} {:?}", self.what.method, self.what.lists),
            "target": format!("{:?}", self.what.target),
            "text": text,
            "heal": self.what.heal,
        })
    }
}

/// Bytes of expert records that an evaluation keeps in memory, of each of two models.
const HOST_BUDGET: u64 = 512 << 20;

/// The `count` layers of the greatest influence, one with experts among them, ascending.
fn most_influential(measured: &Calibration, count: usize, config: &ModelConfig) -> Vec<usize> {
    let mut ranked: Vec<usize> = (0..config.num_layers).collect();
    ranked.sort_by(|&a, &b| {
        measured.layers[b].influence.total_cmp(&measured.layers[a].influence).then(a.cmp(&b))
    });
    let has_experts = |layer: &usize| *layer >= config.first_k_dense;
    if let Some(best) = ranked.iter().position(has_experts).filter(|&best| best >= count) {
        ranked.swap(best, count - 1);
    }
    ranked.truncate(count);
    ranked.sort_unstable();
    ranked
}

/// Whether `a` is less than `b`, which are of the same windows, by more than twice the standard error of the difference.
fn is_clearly_less(a: &[f64], b: &[f64]) -> bool {
    let gains: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    let n = gains.len() as f64;
    let mean = gains.iter().sum::<f64>() / n;
    let variance = gains.iter().map(|gain| (gain - mean).powi(2)).sum::<f64>() / (n - 1.0);
    mean > 2.0 * (variance / n).sqrt()
}

fn replace(file: &Path, value: &Value) -> Result<()> {
    write_whole(file, format!("{value:#}\n").as_bytes())
}

/// Writes a file beside its name and renames it: it is there whole or not at all.
fn write_whole(file: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = file.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    fs::write(&new, bytes).map_err(Error::io(&new, "write"))?;
    fs::rename(&new, file).map_err(Error::io(file, "create"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_does_not_decide() {
        let b = [3.0, 3.5, 4.0, 3.2];
        assert!(is_clearly_less(&b.map(|nats| nats - 0.01), &b));
        assert!(!is_clearly_less(&b, &b) && !is_clearly_less(&b.map(|nats| nats + 0.01), &b));
        // Better by 0.01 on average, but worse in two of four windows.
        assert!(!is_clearly_less(&[2.9, 3.6, 3.9, 3.26], &b));
        // One window says nothing about chance.
        assert!(!is_clearly_less(&[1.0], &[2.0]));
    }
}
