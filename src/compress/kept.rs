//! The FP8 scales that a plain model once had, in a file beside its weights.
//!
//! Decoding FP8 forgets how blocks were scaled, and fresh scales round anew. With the old ones at hand, FP8 → BF16 → FP8
//! gives back the same bytes. The file is a safetensors file that no index names, so loaders pass it by.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::plan::{Convert, Plan, Work};
use crate::checkpoint::write::header;
use crate::checkpoint::{Checkpoint, Dtype, Located, open_regular, parse_header};
use crate::error::{Error, Fault, FaultList, Result};
use crate::quant::{Format, MatrixLayout};

/// The file's name.
pub(super) const KEPT_SCALES: &str = "fp8-scales.safetensors";

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;

/// Scales read from such a file.
pub(super) struct KeptScales {
    path: PathBuf,
    file: File,
    /// Offset and shape by module.
    places: HashMap<String, (u64, Vec<u64>)>,
}

impl KeptScales {
    /// Opens the file beside a model, if there is one.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] if it is damaged.
    pub(super) fn beside(dir: &Path) -> Result<Option<KeptScales>> {
        let path = dir.join(KEPT_SCALES);
        if std::fs::symlink_metadata(&path).is_err() {
            return Ok(None);
        }
        let file = open_regular(&path)?;
        let len = file.metadata().map_err(Error::io(&path, "examine"))?.len();
        let damaged = |faults| Error::Checkpoint { dir: dir.to_owned(), faults: FaultList(faults) };
        let header =
            parse_header(&file, len).map_err(|kind| damaged(vec![Fault::file(KEPT_SCALES, kind)]))?;
        if !header.faults.is_empty() {
            let fault = |(tensor, kind)| Fault { file: Some(KEPT_SCALES.into()), tensor, kind };
            return Err(damaged(header.faults.into_iter().map(fault).collect()));
        }
        let scales = header.entries.into_iter().filter(|entry| entry.dtype == Dtype::F32);
        let places = scales.filter_map(|entry| {
            let module = entry.name.strip_suffix(".weight_scale_inv")?;
            Some((module.to_owned(), (entry.offset, entry.shape.to_vec())))
        });
        let places = places.collect();
        Ok(Some(KeptScales { path, file, places }))
    }

    /// The scales of a module's rows from `first` on, as many as are encoded at a time; `None` if there are none for such
    /// a matrix.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn of_rows(
        &self,
        module: &str,
        layout: &MatrixLayout,
        first: usize,
    ) -> Result<Option<Vec<u8>>> {
        let expected = layout.scale_shape().map(|shape| shape.map(|n| n as u64).to_vec());
        let Some((offset, shape)) = self.places.get(module).filter(|_| layout.format == Format::Fp8Block)
        else {
            return Ok(None);
        };
        if Some(shape) != expected.as_ref() {
            return Ok(None);
        }
        let before = MatrixLayout { rows: first, ..*layout }.scale_bytes();
        let rows = (layout.rows - first).min(super::produce::ROWS);
        let mut scales = vec![0; MatrixLayout { rows, ..*layout }.scale_bytes()];
        self.file
            .read_exact_at(&mut scales, offset + before as u64)
            .map_err(Error::io(&self.path, "read"))?;
        Ok(Some(scales))
    }
}

/// Scales of the source that a new model, plain in their place, is to be accompanied by: the new module's name, the scales.
pub(super) fn scales_to_keep<'a>(plan: &'a Plan<'_>) -> Vec<(&'a str, &'a Located)> {
    let mut kept = Vec::new();
    for (unit, jobs) in plan.units.iter().zip(&plan.jobs) {
        for job in jobs {
            let Work::Convert(Convert { source, layout, scale_by }) = &job.work else { continue };
            let becomes_plain = source.layout.format == Format::Fp8Block && layout.scale_shape().is_none();
            let module = unit.tensors[job.first].name.strip_suffix(".weight");
            if let (Some(scale), Some(module), true) =
                (&source.scale, module, becomes_plain && *scale_by == 1.0)
            {
                kept.push((module, scale));
            }
        }
    }
    kept
}

/// Bytes the file will take at most.
pub(super) fn kept_bytes(scales: &[(&str, &Located)]) -> u64 {
    // Names, shapes and offsets take less than this beside a name.
    scales.iter().map(|(module, scale)| scale.entry.len + module.len() as u64 + 160).sum()
}

/// Writes the file.
///
/// # Errors
/// As reading the source's tensors; those of writing come as [`Error::Io`] with `path`.
pub(super) fn write(
    source: &Checkpoint,
    scales: &[(&str, &Located)],
    path: &Path,
    file: &mut impl Write,
) -> Result<()> {
    let failed = |e: io::Error| Error::io(path, "write")(e);
    let names: Vec<String> = scales.iter().map(|(module, _)| format!("{module}.weight_scale_inv")).collect();
    let tensors = names.iter().zip(scales);
    let header =
        header(tensors.map(|(name, (_, s))| (name.as_str(), Dtype::F32, &s.entry.shape[..], s.entry.len)));
    file.write_all(&header).map_err(failed)?;
    let mut buffer = vec![0; PIECE];
    for (_, scale) in scales {
        for at in (0..scale.entry.len).step_by(PIECE) {
            let piece = &mut buffer[..(scale.entry.len - at).min(PIECE as u64) as usize];
            source.read_piece(scale, at, piece)?;
            file.write_all(piece).map_err(failed)?;
        }
    }
    Ok(())
}
