//! What each way of making a model smaller costs: `cargo run --release --example compress_table -- MODEL TEXT OUT`.
//!
//! Compresses MODEL to half and a quarter of its experts, and to all layers but one with half of them, by each method, in one
//! stage and in several, with and without healing, and evaluates each result on the last tenth of TEXT, which nothing is fitted
//! to. Writes table.txt, table.ndjson and chart.svg to the folder OUT, which must not exist; the models are removed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use abruzzi::checkpoint::Inventory;
use abruzzi::compress::calibrate::{Calibration, calibrate};
use abruzzi::compress::distill::distill;
use abruzzi::compress::report::{self, Row};
use abruzzi::compress::{Compression, Layers, Method, Recipe, Selection, Target, Tell, Text};
use abruzzi::evaluate::{Evaluation, Options, Windows};
use abruzzi::model::walk::{Walk, WalkOptions};
use abruzzi::{Checkpoint, DeviceChoice, Engine, LoadOptions, ModelConfig, Result, Tokenizer};

/// Shares of the experts that the stages of the gradual rows go through.
const STAGES: [f64; 3] = [0.75, 0.5, 0.25];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [model, text, out] = &args[..] else { return Err("usage: compress_table MODEL TEXT OUT".into()) };
    std::fs::create_dir(out)?;
    let tokenizer = Tokenizer::from_dir(model, ModelConfig::from_file(model)?.vocab_size)?;
    let text = Text::new(&std::fs::read_to_string(text)?, &tokenizer)?;
    let mut table = Table { model, text, out, rows: Vec::new(), source: walk(model)? };
    table.evaluate("source", "all", model)?;
    table.fill()?;

    let mut lines = Vec::new();
    report::ndjson(&table.rows, &mut lines)?;
    std::fs::write(out.join("table.ndjson"), lines)?;
    std::fs::write(out.join("table.txt"), report::table(&table.rows))?;
    std::fs::write(out.join("chart.svg"), report::chart("the demo model, made smaller", &table.rows))?;
    print!("{}", report::table(&table.rows));
    Ok(())
}

fn walk(dir: &Path) -> Result<Walk> {
    Walk::new(Arc::new(Checkpoint::open(dir)?), &WalkOptions::default())
}

struct Table<'a> {
    model: &'a Path,
    text: Text,
    out: &'a Path,
    rows: Vec<Row>,
    source: Walk,
}

impl Table<'_> {
    fn fill(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let config = self.source.config().clone();
        let experts = |share: f64| (config.moe.num_experts as f64 * share).round() as usize;
        let measured = calibrate(&self.source, self.text.calibration(), &mut |_| {})?;
        let all = Layers::Count(config.num_layers);
        let fewer = without_least(&measured, config.first_k_dense);
        let methods =
            [("usage", Method::Usage), ("similarity", Method::Similarity), ("merge", Method::Merge)];
        for (layers, share, what) in
            [(&all, 0.5, "50 %"), (&all, 0.25, "25 %"), (&fewer, 0.5, "50 %, a layer less")]
        {
            for (name, method) in methods {
                let source = Checkpoint::open(self.model)?;
                let selection = method.select(&source, layers, experts(share), Some(&measured))?;
                self.with_and_without_healing(self.model, &selection, selection.layers(), name, what)?;
            }
        }
        for heal in [false, true] {
            let out = self.out.join("gradual");
            let compression = Compression {
                layers: None,
                experts: STAGES.map(experts).to_vec(),
                method: Method::Usage,
                lists: None,
                target: Target::AS_IS,
                allow_saturation: 0.0,
                text: Some(self.text.clone()),
                heal,
            };
            let tell: Tell = Arc::new(|_, _| {});
            let made = compression.run(self.model, &out, &LoadOptions::default(), &tell)?;
            for (mut row, share) in made.rows.into_iter().skip(1).zip(STAGES) {
                row.series = if heal { "gradual, healed" } else { "gradual" }.to_owned();
                row.name = format!("{:.0} %", 100.0 * share);
                self.add(row);
            }
            std::fs::remove_dir_all(&out)?;
            std::fs::remove_dir_all(self.out.join("gradual.stages"))?;
        }
        Ok(())
    }

    fn with_and_without_healing(
        &mut self,
        from: &Path,
        selection: &Selection,
        layers: &[usize],
        method: &str,
        what: &str,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let (source, to) = (Checkpoint::open(from)?, self.out.join("model"));
        let recipe = Recipe::new(selection.clone());
        recipe.write(&source, &to, &LoadOptions::default())?;
        self.evaluate(method, what, &to)?;
        self.heal(&recipe, &source, &to, selection, layers)?;
        self.evaluate(&format!("{method}, healed"), what, &to)?;
        Ok(std::fs::remove_dir_all(&to)?)
    }

    /// Puts the healed model in the place of `to`, which is the unhealed one.
    fn heal(
        &self,
        recipe: &Recipe,
        source: &Checkpoint,
        to: &Path,
        selection: &Selection,
        layers: &[usize],
    ) -> Result<(), Box<dyn std::error::Error>> {
        let fits = distill(&self.source, &walk(to)?, layers, self.text.calibration(), &mut |_| {})?;
        std::fs::remove_dir_all(to)?;
        recipe.clone().healing(fits.healing(selection)?).write(source, to, &LoadOptions::default())?;
        Ok(())
    }

    fn evaluate(&mut self, series: &str, name: &str, model: &Path) -> Result<()> {
        let engine = |dir: &Path| Engine::builder(dir).device(DeviceChoice::Cpu).load();
        let (engine, reference) = (engine(model)?, engine(self.model)?);
        let mut options = Options::default();
        options.window = self.text.window();
        let windows = Windows::new(self.text.evaluation().concat(), &options)?;
        let summary = Evaluation::new(&engine, Some(&reference), windows, &options)?.run()?;
        self.add(Row::new(series, name, Inventory::of(engine.config()).total, summary));
        Ok(())
    }

    fn add(&mut self, row: Row) {
        eprintln!("{}, {}: perplexity {:.2}", row.series, row.name, row.perplexity);
        self.rows.push(row);
    }
}

/// All layers but the one of least influence among those with experts.
fn without_least(measured: &Calibration, first_with_experts: usize) -> Layers {
    let influence = |layer: &usize| measured.layers[*layer].influence;
    let with_experts = first_with_experts..measured.layers.len();
    let least = with_experts.min_by(|a, b| influence(a).total_cmp(&influence(b)));
    Layers::List((0..measured.layers.len()).filter(|layer| Some(*layer) != least).collect())
}
