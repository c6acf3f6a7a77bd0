//! `abruzzi synth`: a random checkpoint of true dimensions.

use std::io::Write;
use std::sync::Arc;

use abruzzi::{CancelToken, LoadOptions, Synth};

use crate::args::SynthArgs;
use crate::ui;

pub fn run(args: SynthArgs, cancel: &CancelToken) -> anyhow::Result<()> {
    let mut synth = Synth::like(args.like).seed(args.seed);
    if let Some(layers) = args.layers {
        synth = synth.layers(layers);
    }
    if let Some(experts) = args.experts {
        synth = synth.experts(experts);
    }
    if let Some(format) = args.format {
        synth = synth.format(format.into());
    }
    let bar = ui::progress_bar().with_message("writing");
    let shown = bar.clone();
    let mut options = LoadOptions::default();
    options.threads = args.threads;
    options.progress = Some(Arc::new(move |p| ui::advance(&shown, p)));
    options.cancel = Some(cancel.flag());
    let written = synth.write(&args.out, &options);
    bar.finish_and_clear();
    let report = written?;
    if args.output.json {
        let mut value = serde_json::to_value(report)?;
        value["event"] = "done".into();
        writeln!(std::io::stdout(), "{value}")?;
    } else {
        eprintln!(
            "{}: {} tensors in {} shards, {}, {:.2} GB/s",
            args.out.display(),
            ui::thousands(report.tensors as u64),
            report.shards,
            ui::bytes(report.bytes),
            report.bytes as f64 / 1e9 / report.seconds.max(1e-9)
        );
    }
    Ok(())
}
