//! Writing a plan into a folder that gets its name last.

use std::path::Path;
use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;

use super::fill::{CHUNK, Tables};
use super::plan::Plan;
use crate::checkpoint::LoadOptions;
use crate::checkpoint::write::{Folder, Produce, Sink, Written};
use crate::error::Result;

/// What was written.
#[derive(Debug, Clone, Copy, Serialize)]
#[non_exhaustive]
pub struct SynthReport {
    /// Tensors.
    pub tensors: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Files they lie in.
    pub shards: usize,
    /// Seconds it took.
    pub seconds: f64,
}

pub(super) fn write(
    out: &Path,
    config: &Value,
    plan: &Plan,
    seed: u64,
    shard_bytes: u64,
    options: &LoadOptions,
) -> Result<SynthReport> {
    let begun = Instant::now();
    let mut folder = Folder::begin(out, identity(config, seed, shard_bytes), plan.bytes)?;
    let filler = Filler { plan, seed, tables: Tables::of(&plan.fills) };
    let written = folder.json("config.json", config).and_then(|()| {
        let written = folder.shards(&plan.units, &filler, shard_bytes, options)?;
        folder.finish()?;
        Ok(written)
    });
    match written {
        Ok(Written { shards, tensors, bytes, .. }) => {
            Ok(SynthReport { tensors, bytes, shards, seconds: begun.elapsed().as_secs_f64() })
        }
        Err(e) => {
            // Random values are soon made again. Nothing to do if even this fails: the error that matters is the first.
            let _ = folder.abandon();
            Err(e)
        }
    }
}

/// A hash of all that decides the bytes.
fn identity(config: &Value, seed: u64, shard_bytes: u64) -> [u8; 32] {
    let what = (env!("CARGO_PKG_VERSION"), seed, shard_bytes, config);
    let text = serde_json::json!({ "synth": what }).to_string();
    blake3::hash(text.as_bytes()).into()
}

/// Makes tensors in chunks, each from a generator of its own.
struct Filler<'a> {
    plan: &'a Plan,
    seed: u64,
    tables: Tables,
}

impl Produce for Filler<'_> {
    fn produce(&self, unit: usize, sink: &Sink<'_>) -> Result<()> {
        for (number, tensor) in self.plan.units[unit].tensors.iter().enumerate() {
            let len = tensor.bytes();
            (0..len.div_ceil(CHUNK as u64)).into_par_iter().try_for_each_init(
                || vec![0u8; CHUNK.min(len as usize)],
                |buffer, chunk| {
                    let at = chunk * CHUNK as u64;
                    let bytes = &mut buffer[..(len - at).min(CHUNK as u64) as usize];
                    self.tables.fill(self.plan.fills[unit], &tensor.name, self.seed, chunk, bytes);
                    sink.put(number, at, bytes)
                },
            )?;
        }
        Ok(())
    }
}
