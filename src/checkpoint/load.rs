//! From disk into aligned memory: every byte read once, straight to where it stays, checked on the way.

use std::sync::Arc;

use rayon::prelude::*;

use super::catalogue::Located;
use super::header::Dtype;
use super::manifest::Source;
use super::read::{CHUNK, Finding, LoadOptions, Piece, Run};
use super::record::{Placed, RecordLayout};
use super::region::{HostMatrix, HostRegion};
use super::weights::Weights;
use super::{Checkpoint, memory};
use crate::error::{Error, FaultList, Result};
use crate::quant::plain;

/// A vector in host memory, decoded to f32.
pub type HostVector = Arc<[f32]>;

/// Everything but the routed experts, in host memory.
#[derive(Debug)]
pub struct LoadedTrunk {
    /// The weights.
    pub trunk: Weights<HostMatrix, HostVector>,
    /// What loading cost.
    pub stats: LoadStats,
}

/// What loading cost.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct LoadStats {
    /// Bytes read.
    pub bytes: u64,
    /// Seconds from the first read to the last.
    pub seconds: f64,
}

/// A tensor and the range of a region it is read into.
struct Segment<'a> {
    tensor: &'a Located,
    start: usize,
}

impl Checkpoint {
    /// Layout of the expert records of a layer; `None` for dense layers and beyond the last.
    pub fn record_layout(&self, layer: usize) -> Option<RecordLayout> {
        let expert = self.bound.experts.get(layer)?.first()?;
        Some(RecordLayout::new(&expert.map(|m| m.layout)))
    }

    /// Reads everything but the routed experts into memory and checks that every value is finite. The experts are
    /// read one by one, with [`Checkpoint::read_expert`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] before anything is allocated, [`Error::Checkpoint`] with all damaged tensors of the trunk,
    /// [`Error::Io`], [`Error::Cancelled`].
    pub fn load_trunk(&self, options: &LoadOptions) -> Result<LoadedTrunk> {
        let mut end = 0;
        let placed: Weights<(Placed, &Source), &Located> =
            { self.bound.trunk.map(&mut |m| (Placed::after(m.layout, &mut end), m), &mut |v| v) };
        let available = memory::available();
        if end as u64 > available {
            let what = "the model's trunk".to_owned();
            return Err(Error::OutOfMemory { what, needed: end as u64, available });
        }
        let mut region = HostRegion::new(end, "the model's trunk")?;
        let (mut pieces, mut segments, mut shapes) = (Vec::new(), Vec::new(), Vec::new());
        placed.visit(&mut |(place, source)| segment(place, source, &mut segments, &mut shapes), &mut |_| {});
        carve(&mut region, segments, &mut pieces);

        let run = Run::new(&self.catalogue, options, trunk_bytes(&self.bound.trunk));
        let mut findings: Vec<Finding<'_>> = run.pool()?.install(|| {
            let bulk = pieces.into_par_iter().with_max_len(4).filter_map(|piece| run.read(piece).transpose());
            let shapes = shapes
                .into_par_iter()
                .filter_map(|(tensor, shape)| run.recorded_shape(tensor, shape).transpose());
            bulk.chain(shapes).collect::<Result<_>>()
        })?;
        let region = Arc::new(region);
        let trunk = placed.try_map::<_, _, Error>(
            &mut |(place, _)| {
                Ok(HostMatrix {
                    region: region.clone(),
                    layout: place.layout,
                    weight: place.weight.clone(),
                    scale: place.scale.clone(),
                })
            },
            &mut |tensor| vector(&run, tensor, &mut findings),
        )?;
        let mut faults = run.merge(findings);
        faults.extend(run.changed_files());
        if !faults.is_empty() {
            return Err(Error::Checkpoint { dir: self.dir.clone(), faults: FaultList(faults) });
        }
        let stats = LoadStats { bytes: run.bytes_total, seconds: run.begun.elapsed().as_secs_f64() };
        Ok(LoadedTrunk { trunk, stats })
    }
}

/// Bytes on disk of everything but the routed experts.
fn trunk_bytes(trunk: &Weights<Source, Located>) -> u64 {
    let (mut matrices, mut vectors) = (0, 0);
    let len = |part: &Option<Located>| part.as_ref().map_or(0, |t| t.entry.len);
    trunk.visit(&mut |m| matrices += m.weight.entry.len + len(&m.scale) + len(&m.shape), &mut |v| {
        vectors += v.entry.len;
    });
    matrices + vectors
}

/// Notes where a matrix's parts go.
fn segment<'a>(
    place: &Placed,
    source: &'a Source,
    segments: &mut Vec<Segment<'a>>,
    shapes: &mut Vec<(&'a Located, [usize; 2])>,
) {
    segments.push(Segment { tensor: &source.weight, start: place.weight.start });
    if let Some(scale) = &source.scale {
        segments.push(Segment { tensor: scale, start: place.scale.start });
    }
    if let Some(shape) = &source.shape {
        shapes.push((shape, [place.layout.rows, place.layout.cols]));
    }
}

/// Cuts a region into the pieces to be read. Segments come in ascending order, as they were placed.
fn carve<'t, 'm>(region: &'m mut HostRegion, segments: Vec<Segment<'t>>, pieces: &mut Vec<Piece<'t, 'm>>) {
    let mut rest = region.bytes_mut();
    let mut position = 0;
    for Segment { tensor, start } in segments {
        let len = tensor.entry.len as usize;
        let (part, later) = rest.split_at_mut(start - position).1.split_at_mut(len);
        (rest, position) = (later, start + len);
        let chunks = part.chunks_mut(CHUNK).enumerate();
        pieces.extend(chunks.map(|(i, into)| Piece { tensor, at: (i * CHUNK) as u64, into }));
    }
}

/// Reads a vector; few and small, they are decoded at once.
fn vector<'a>(run: &Run<'_>, tensor: &&'a Located, findings: &mut Vec<Finding<'a>>) -> Result<HostVector> {
    let mut raw = vec![0u8; tensor.entry.len as usize];
    findings.extend(run.read(Piece { tensor, at: 0, into: &mut raw })?);
    let mut values = vec![0.0; raw.len() / tensor.entry.dtype.bytes() as usize];
    match tensor.entry.dtype {
        Dtype::F32 => plain::decode_f32(&raw, 0, &mut values),
        Dtype::F16 => plain::decode_f16(&raw, 0, &mut values),
        _ => plain::decode_bf16(&raw, 0, &mut values),
    }
    Ok(values.into())
}
