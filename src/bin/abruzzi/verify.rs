//! `abruzzi verify`: the list of everything wrong with a checkpoint.

use std::io::Write;
use std::sync::Arc;

use abruzzi::{CancelToken, LoadOptions};
use serde_json::json;

use crate::args::VerifyArgs;
use crate::ui;

pub fn run(args: VerifyArgs, cancel: &CancelToken) -> anyhow::Result<()> {
    let path = ui::model_path(args.model.as_deref())?;
    let bar = ui::progress_bar().with_message("verifying");
    let shown = bar.clone();
    let mut options = LoadOptions::default();
    options.threads = args.threads;
    options.progress = Some(Arc::new(move |p| ui::advance(&shown, p)));
    options.cancel = Some(cancel.flag());
    let report = abruzzi::verify(&path, &options);
    bar.finish_and_clear();
    let report = report?;

    let mut out = std::io::stdout();
    for fault in &report.faults {
        if args.output.json {
            let value = json!({
                "event": "fault",
                "file": fault.file,
                "tensor": fault.tensor,
                "problem": fault.kind.to_string(),
            });
            writeln!(out, "{value}")?;
        } else {
            writeln!(out, "{fault}")?;
        }
    }
    if args.output.json {
        let value = json!({
            "event": "done",
            "faults": report.faults.len(),
            "tensors": report.tensors,
            "bytes": report.bytes,
            "skipped": report.skipped.0,
            "peak_memory": ui::peak_memory(),
        });
        writeln!(out, "{value}")?;
    } else {
        if !report.skipped.0.is_empty() {
            eprintln!("skipped: {}", report.skipped);
        }
        eprintln!("{} tensors, {} checked", ui::thousands(report.tensors as u64), ui::bytes(report.bytes));
    }
    match report.faults.len() {
        0 => Ok(()),
        1 => anyhow::bail!("{}: 1 fault", path.display()),
        n => anyhow::bail!("{}: {n} faults", path.display()),
    }
}
