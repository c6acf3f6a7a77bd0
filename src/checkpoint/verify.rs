//! The whole truth about a checkpoint without loading it: structure first, then every value, streamed.

use std::path::Path;

use rayon::prelude::*;

use super::Opened;
use super::catalogue::Located;
use super::manifest::SkippedTensors;
use super::read::{CHUNK, Finding, LoadOptions, Piece, Run};
use crate::error::{Fault, Result};

/// What [`verify`] found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Everything wrong, structure first, then values by tensor name.
    pub faults: Vec<Fault>,
    /// Tensors whose every value was looked at.
    pub tensors: usize,
    /// Bytes read.
    pub bytes: u64,
    /// Tensors that no part of the architecture uses.
    pub skipped: SkippedTensors,
}

/// Checks a checkpoint: every expected tensor present once, of the right shape and type, nothing unexplained, every
/// value finite. Values are checked in all tensors that lie soundly in their files, also when others are damaged.
/// Memory stays below a few megabytes a thread.
///
/// # Errors
/// A configuration or folder that cannot be read, [`crate::Error::Cancelled`]. Damage is in the report.
pub fn verify(path: &Path, options: &LoadOptions) -> Result<VerifyReport> {
    let opened = Opened::new(path)?;
    let mut tensors: Vec<&Located> = opened.catalogue.tensors.values().collect();
    tensors.sort_by_key(|t| (t.shard, t.entry.offset));
    let bytes = tensors.iter().map(|t| t.entry.len).sum();
    let run = Run::new(&opened.catalogue, options, bytes);

    let pieces: Vec<(&Located, u64)> =
        tensors.iter().flat_map(|&t| (0..t.entry.len).step_by(CHUNK).map(move |at| (t, at))).collect();
    let shapes = opened.recorded_shapes();
    let findings: Vec<Finding<'_>> = run.pool(options.threads)?.install(|| {
        let bulk = pieces.par_iter().map_init(
            || vec![0u8; CHUNK],
            |buffer, &(tensor, at)| {
                let len = (tensor.entry.len - at).min(CHUNK as u64) as usize;
                run.read(Piece { tensor, at, into: &mut buffer[..len] })
            },
        );
        let shapes = shapes.par_iter().map(|&(tensor, shape)| run.recorded_shape(tensor, shape));
        bulk.chain(shapes).filter_map(Result::transpose).collect::<Result<_>>()
    })?;
    let mut faults = opened.faults.clone();
    faults.extend(run.merge(findings));
    faults.extend(run.changed_files());
    Ok(VerifyReport { faults, tensors: tensors.len(), bytes, skipped: opened.skipped.clone() })
}
