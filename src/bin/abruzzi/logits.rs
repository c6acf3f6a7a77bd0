//! `abruzzi logits`: logits of given tokens, for comparing engines.

use std::path::Path;

use abruzzi::{CancelToken, SessionOptions};
use anyhow::Context;
use safetensors::tensor::{Dtype, TensorView};

use crate::args::LogitsArgs;
use crate::ui;

pub fn run(args: LogitsArgs, cancel: &CancelToken) -> anyhow::Result<()> {
    let engine = ui::load(&args.model, cancel)?;
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

/// Writes to a temporary name first, so that what stood there is whole until the new file is.
fn write(path: &Path, logits: &[f32], shape: Vec<usize>) -> anyhow::Result<()> {
    let bytes: Vec<u8> = logits.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, shape, &bytes)?;
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let written = safetensors::serialize_to_file([("logits", view)], None, Path::new(&partial))
        .map_err(anyhow::Error::from)
        .and_then(|()| Ok(std::fs::rename(&partial, path)?));
    if written.is_err() {
        // Nothing to do if even this fails: the error that matters is the first.
        let _ = std::fs::remove_file(&partial);
    }
    written
}
