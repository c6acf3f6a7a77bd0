//! Making the tensors of a plan: copied where nothing changes, else decoded and encoded a few rows at a time.

use std::sync::atomic::{AtomicU64, Ordering};

use super::kept::KeptScales;
use super::merging::Merging;
use super::plan::{Convert, Plan, Work};
use crate::checkpoint::write::{Produce, Sink};
use crate::checkpoint::{Checkpoint, Located, Source};
use crate::error::{Error, Result};
use crate::quant::{Encoded, Format, MatrixLayout, MatrixView, fp8};

/// Bytes copied at a time.
const PIECE: u64 = 1 << 20;

/// Rows converted at a time: they begin with a block of scales in every format. Kimi-K2's widest rows take 9 MB decoded.
pub(super) const ROWS: usize = fp8::BLOCK;

/// Makes the units of a plan. Memory: a few megabytes a thread, and what [`Merging`] says.
pub(super) struct Producer<'a> {
    pub source: &'a Checkpoint,
    pub plan: &'a Plan<'a>,
    /// Scales that the source's matrices once had.
    pub kept: Option<&'a KeptScales>,
    /// The share of a tensor's values that may be beyond the largest of its format.
    pub allow_saturation: f64,
    pub merging: Merging,
    pub counts: Counts,
}

/// What conversion cost, over all tensors made by this process.
#[derive(Default)]
pub(super) struct Counts {
    saturated: AtomicU64,
    vanished: AtomicU64,
    kept_scales: AtomicU64,
    fresh_scales: AtomicU64,
}

impl Counts {
    fn add(&self, encoded: Encoded) {
        self.saturated.fetch_add(encoded.saturated, Ordering::Relaxed);
        self.vanished.fetch_add(encoded.vanished, Ordering::Relaxed);
        self.kept_scales.fetch_add(encoded.kept_scales, Ordering::Relaxed);
        self.fresh_scales.fetch_add(encoded.fresh_scales, Ordering::Relaxed);
    }

    pub(super) fn sum(&self) -> Encoded {
        Encoded {
            saturated: self.saturated.load(Ordering::Relaxed),
            vanished: self.vanished.load(Ordering::Relaxed),
            kept_scales: self.kept_scales.load(Ordering::Relaxed),
            fresh_scales: self.fresh_scales.load(Ordering::Relaxed),
        }
    }
}

/// Where a matrix goes: its weight is tensor number `first` of the unit, then come its scale and its shape, if it has any.
#[derive(Clone, Copy)]
pub(super) struct Into<'a> {
    pub sink: &'a Sink<'a>,
    pub first: usize,
    /// The weight's name in the new model, for errors.
    pub name: &'a str,
}

impl Produce for Producer<'_> {
    fn produce(&self, unit: usize, sink: &Sink<'_>) -> Result<()> {
        let tensors = &self.plan.units[unit].tensors;
        for job in &self.plan.jobs[unit] {
            let into = Into { sink, first: job.first, name: &tensors[job.first].name };
            match &job.work {
                Work::Convert(convert) => self.convert(convert, into)?,
                Work::Gather { source, rows, layout } => self.gather(source, rows, *layout, into)?,
                Work::Store(values) => {
                    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                    sink.put(job.first, 0, &bytes)?;
                }
                Work::Merge { members, layouts, scale_by } => {
                    let names = |part: usize| {
                        let before: usize = layouts.each()[..part].iter().map(|l| tensors_in(l)).sum();
                        Into { first: job.first + before, name: &tensors[job.first + before].name, ..into }
                    };
                    self.merging.merge(self, members, layouts, *scale_by, names)?;
                }
            }
        }
        // What was made of a file that changed on the way is not to count as finished.
        self.source.check_unchanged()
    }
}

impl Producer<'_> {
    fn convert(&self, convert: &Convert<'_>, into: Into<'_>) -> Result<()> {
        let Convert { source, layout, scale_by } = convert;
        self.source.check_recorded_shape(source)?;
        let (same, scaled) = (source.layout.format == layout.format, *scale_by != 1.0);
        match &source.scale {
            _ if !same => self.reencode(convert, into)?,
            None if scaled => self.reencode(convert, into)?,
            None => self.copy(&source.weight, into.sink, into.first)?,
            Some(scale) => {
                self.copy(&source.weight, into.sink, into.first)?;
                match scaled {
                    false => self.copy(scale, into.sink, into.first + 1)?,
                    true => self.multiply(scale, *scale_by, into.sink, into.first + 1)?,
                }
            }
        }
        put_shape(layout, into)
    }

    /// Copies a tensor's bytes.
    fn copy(&self, tensor: &Located, sink: &Sink<'_>, to: usize) -> Result<()> {
        self.pieces(tensor, |at, piece| sink.put(to, at, piece))
    }

    /// Copies a tensor of scales, each multiplied and rounded to its own type again.
    fn multiply(&self, tensor: &Located, by: f32, sink: &Sink<'_>, to: usize) -> Result<()> {
        self.pieces(tensor, |at, piece| {
            match tensor.entry.dtype.bytes() {
                2 => piece.as_chunks_mut().0.iter_mut().for_each(|scale| {
                    *scale =
                        half::bf16::from_f32(half::bf16::from_le_bytes(*scale).to_f32() * by).to_le_bytes();
                }),
                _ => piece.as_chunks_mut().0.iter_mut().for_each(|scale| {
                    *scale = (f32::from_le_bytes(*scale) * by).to_le_bytes();
                }),
            }
            sink.put(to, at, piece)
        })
    }

    fn pieces(&self, tensor: &Located, mut put: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<()> {
        let mut buffer = vec![0; tensor.entry.len.min(PIECE) as usize];
        for at in (0..tensor.entry.len).step_by(PIECE as usize) {
            let piece = &mut buffer[..(tensor.entry.len - at).min(PIECE) as usize];
            self.source.read_piece(tensor, at, piece)?;
            put(at, piece)?;
        }
        Ok(())
    }

    fn reencode(&self, convert: &Convert<'_>, into: Into<'_>) -> Result<()> {
        let Convert { source, layout, scale_by } = convert;
        let module = source.weight.entry.name.strip_suffix(".weight");
        // Multiplied values are not those that the scales were for.
        let kept = self.kept.filter(|_| *scale_by == 1.0).zip(module);
        let mut reader = Rows::of(source);
        let mut writer = Encoder::new(*layout, into);
        for first in (0..layout.rows).step_by(ROWS) {
            let values = reader.read(self.source, first)?;
            if *scale_by != 1.0 {
                values.iter_mut().for_each(|v| *v *= scale_by);
            }
            let scales = match kept {
                Some((kept, module)) => kept.of_rows(module, layout, first)?,
                None => None,
            };
            writer
                .put(self, first, values, scales.as_deref())
                .map_err(|e| e.in_source(self.source, source))?;
        }
        writer.finish(self)
    }

    /// Rows of a plain matrix one by one: routers are small.
    fn gather(&self, source: &Source, rows: &[usize], layout: MatrixLayout, into: Into<'_>) -> Result<()> {
        let row_layout = MatrixLayout { rows: 1, ..source.layout };
        let mut raw = vec![0; row_layout.weight_bytes()];
        let mut values = vec![0.0; source.layout.cols];
        let mut writer = Encoder::new(layout, into);
        for (new, &row) in rows.iter().enumerate() {
            self.source.read_piece(&source.weight, (row * raw.len()) as u64, &mut raw)?;
            MatrixView::new(row_layout, &raw, &[]).decode(0, 0, &mut values);
            writer.put(self, new, &values, None).map_err(|e| e.in_source(self.source, source))?;
        }
        writer.finish(self)
    }
}

/// How many tensors a matrix has in a file.
fn tensors_in(layout: &MatrixLayout) -> usize {
    1 + usize::from(layout.scale_shape().is_some()) + usize::from(layout.format == Format::Int4Group32)
}

/// INT4 records its shape behind weight and scale.
pub(super) fn put_shape(layout: &MatrixLayout, into: Into<'_>) -> Result<()> {
    if layout.format != Format::Int4Group32 {
        return Ok(());
    }
    let shape: Vec<u8> = [layout.rows, layout.cols].iter().flat_map(|&n| (n as i32).to_le_bytes()).collect();
    into.sink.put(into.first + 2, 0, &shape)
}

/// Decodes a matrix of the source, [`ROWS`] rows at a time.
pub(super) struct Rows<'a> {
    source: &'a Source,
    weight: Vec<u8>,
    scale: Vec<u8>,
    values: Vec<f32>,
}

impl<'a> Rows<'a> {
    pub(super) fn of(source: &'a Source) -> Rows<'a> {
        Rows { source, weight: Vec::new(), scale: Vec::new(), values: Vec::new() }
    }

    /// The rows from `first` on, which begins a block of scales.
    pub(super) fn read(&mut self, checkpoint: &Checkpoint, first: usize) -> Result<&mut [f32]> {
        let Source { layout, weight, scale, .. } = self.source;
        let before = MatrixLayout { rows: first, ..*layout };
        let part = MatrixLayout { rows: (layout.rows - first).min(ROWS), ..*layout };
        self.weight.resize(part.weight_bytes(), 0);
        self.scale.resize(part.scale_bytes(), 0);
        self.values.resize(part.rows * part.cols, 0.0);
        checkpoint.read_piece(weight, before.weight_bytes() as u64, &mut self.weight)?;
        if let Some(scale) = scale {
            checkpoint.read_piece(scale, before.scale_bytes() as u64, &mut self.scale)?;
        }
        let view = MatrixView::new(part, &self.weight, &self.scale);
        for (row, values) in self.values.chunks_exact_mut(part.cols).enumerate() {
            view.decode(row, 0, values);
        }
        Ok(&mut self.values)
    }
}

impl Rows<'_> {
    /// The whole matrix.
    pub(super) fn read_all(&mut self, checkpoint: &Checkpoint) -> Result<Vec<f32>> {
        let MatrixLayout { rows, cols, .. } = self.source.layout;
        let mut values = Vec::with_capacity(rows * cols);
        for first in (0..rows).step_by(ROWS) {
            values.extend_from_slice(self.read(checkpoint, first)?);
        }
        Ok(values)
    }
}

/// Encodes rows of a matrix of the new model and counts what does not fit its format.
pub(super) struct Encoder<'a> {
    layout: MatrixLayout,
    into: Into<'a>,
    weight: Vec<u8>,
    scale: Vec<u8>,
    encoded: Encoded,
}

/// What keeps a row from being encoded.
pub(super) enum Refused {
    /// A value, by its index in the matrix, is not finite.
    NonFinite {
        index: u64,
    },
    Failed(Error),
}

impl Refused {
    /// As a fault of the matrix that the values were made of: its scales overflow, or the product with them does.
    pub(super) fn in_source(self, checkpoint: &Checkpoint, source: &Source) -> Error {
        match self {
            Refused::NonFinite { index } => checkpoint.overflows(source, index),
            Refused::Failed(error) => error,
        }
    }
}

impl<'a> Encoder<'a> {
    pub(super) fn new(layout: MatrixLayout, into: Into<'a>) -> Encoder<'a> {
        Encoder { layout, into, weight: Vec::new(), scale: Vec::new(), encoded: Encoded::default() }
    }

    /// Encodes whole rows from `first` on.
    pub(super) fn put(
        &mut self,
        producer: &Producer<'_>,
        first: usize,
        values: &[f32],
        kept: Option<&[u8]>,
    ) -> Result<(), Refused> {
        let before = MatrixLayout { rows: first, ..self.layout };
        let part = MatrixLayout { rows: values.len() / self.layout.cols, ..self.layout };
        self.weight.resize(part.weight_bytes(), 0);
        self.scale.resize(part.scale_bytes(), 0);
        let encoded = self.layout.encode(first, values, kept, &mut self.weight, &mut self.scale);
        let encoded =
            encoded.map_err(|e| Refused::NonFinite { index: (first * self.layout.cols + e.index) as u64 })?;
        producer.counts.add(encoded);
        self.encoded += encoded;
        let Into { sink, first: tensor, .. } = self.into;
        sink.put(tensor, before.weight_bytes() as u64, &self.weight).map_err(Refused::Failed)?;
        if !self.scale.is_empty() {
            sink.put(tensor + 1, before.scale_bytes() as u64, &self.scale).map_err(Refused::Failed)?;
        }
        Ok(())
    }

    /// After all rows: refuses a matrix of which too much was cut off.
    pub(super) fn finish(self, producer: &Producer<'_>) -> Result<()> {
        let (saturated, all) = (self.encoded.saturated, (self.layout.rows * self.layout.cols) as f64);
        if saturated as f64 > producer.allow_saturation * all {
            let problem = format!(
                "is {}, but {saturated} of {all} values of {} are beyond the largest that {} has; choose bf16, or allow \
                 so large a share",
                producer.allow_saturation,
                self.into.name,
                self.layout.format.name()
            );
            return Err(Error::argument("allow-saturation", problem));
        }
        Ok(())
    }
}
