//! `abruzzi logits`: logits of given tokens, for comparing engines.

use std::path::Path;

use abruzzi::{CancelToken, SessionOptions};
use anyhow::Context;
use safetensors::tensor::{Dtype, TensorView};

use crate::args::LogitsArgs;
use crate::ui;

pub fn run(args: LogitsArgs, cancel: &CancelToken) -> anyhow::Result<()> {
    check_target(&args.out)?;
    let engine = ui::load(ui::builder(&args.model, None)?, cancel)?;
    let mut session = engine.session(SessionOptions::default().cancel(cancel.clone()))?;
    let logits = if args.step {
        let mut rows = Vec::new();
        for &token in &args.tokens {
            rows.extend(session.logits(&[token])?);
        }
        rows
    } else {
        session.logits(&args.tokens)?
    };
    let shape = vec![args.tokens.len(), engine.config().vocab_size];
    write(&args.out, &logits, shape).with_context(|| format!("cannot write {}", args.out.display()))
}

/// Refuses a target that cannot become a file before the model is loaded, not after.
fn check_target(path: &Path) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    // What stands there is replaced by a rename, which would put a file in the place of a device or a socket.
    if let Ok(found) = std::fs::metadata(path) {
        anyhow::ensure!(found.is_file(), "{}: it exists and is not a regular file", cannot());
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = std::fs::metadata(folder).with_context(cannot)?;
    anyhow::ensure!(folder.is_dir(), "{}: its parent is not a folder", cannot());
    Ok(())
}

/// Written to a temporary name first (`serialize_to_file` sees to it), so that what stood there is whole until the new
/// file is.
fn write(path: &Path, logits: &[f32], shape: Vec<usize>) -> anyhow::Result<()> {
    let bytes: Vec<u8> = logits.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, shape, &bytes)?;
    Ok(safetensors::serialize_to_file([("logits", view)], None, path)?)
}
