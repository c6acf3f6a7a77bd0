//! From disk into aligned memory: every byte read once, straight to where it stays, checked on the way.

use std::sync::Arc;

use rayon::prelude::*;

use super::catalogue::Located;
use super::header::Dtype;
use super::manifest::{Bound, Source};
use super::read::{CHUNK, Finding, LoadOptions, Piece, Run};
use super::record::{ExpertRecords, Placed, RecordLayout};
use super::region::{HostMatrix, HostRegion};
use super::weights::{GatedMlp, Weights};
use super::{Checkpoint, memory};
use crate::error::{Error, FaultList, Result};
use crate::quant::plain;

/// A vector in host memory, decoded to f32.
pub type HostVector = Arc<[f32]>;

/// A model in host memory.
#[derive(Debug)]
pub struct LoadedWeights {
    /// Everything but the routed experts.
    pub trunk: Weights<HostMatrix, HostVector>,
    /// The routed experts, per layer; `None` in dense layers.
    pub experts: Vec<Option<ExpertRecords>>,
    /// What loading cost.
    pub stats: LoadStats,
}

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
    /// Reads all weights into memory and checks that every value is finite.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] before anything is allocated, [`Error::Checkpoint`] with all damaged tensors,
    /// [`Error::Io`], [`Error::Cancelled`].
    pub fn load(&self, options: &LoadOptions) -> Result<LoadedWeights> {
        self.read_in(options, true)
    }

    /// Reads everything but the routed experts into memory and checks that every value is finite. The experts are
    /// then read one by one, with [`Checkpoint::read_expert`].
    ///
    /// # Errors
    /// As [`Checkpoint::load`].
    pub fn load_trunk(&self, options: &LoadOptions) -> Result<LoadedTrunk> {
        let LoadedWeights { trunk, stats, .. } = self.read_in(options, false)?;
        Ok(LoadedTrunk { trunk, stats })
    }

    /// Layout of the expert records of a layer; `None` for dense layers and beyond the last.
    pub fn record_layout(&self, layer: usize) -> Option<RecordLayout> {
        self.bound.experts.get(layer)?.first().map(record)
    }

    fn read_in(&self, options: &LoadOptions, with_experts: bool) -> Result<LoadedWeights> {
        let Bound { trunk, experts } = &self.bound;
        let mut end = 0;
        let placed: Weights<(Placed, &Source), &Located> =
            { trunk.map(&mut |m| (Placed::after(m.layout, &mut end), m), &mut |v| v) };
        let layouts: Vec<Option<RecordLayout>> =
            experts.iter().map(|layer| layer.first().filter(|_| with_experts).map(record)).collect();
        let expert_bytes = |l: usize| layouts[l].as_ref().map_or(0, |r| r.size() * experts[l].len());
        let needed = end + (0..experts.len()).map(expert_bytes).sum::<usize>();
        let available = memory::available();
        if needed as u64 > available {
            let what = if with_experts { "the model's weights" } else { "the model's trunk" }.to_owned();
            return Err(Error::OutOfMemory { what, needed: needed as u64, available });
        }

        let mut trunk_region = HostRegion::new(end, "the model's trunk")?;
        let mut expert_regions = Vec::with_capacity(experts.len());
        for (l, layout) in layouts.iter().enumerate() {
            expert_regions.push(match layout {
                Some(_) => Some(HostRegion::new(expert_bytes(l), "a layer's experts")?),
                None => None,
            });
        }

        let mut pieces = Vec::new();
        let mut segments = Vec::new();
        let mut shapes = Vec::new();
        placed
            .visit(&mut |(place, source)| segment(place, source, 0, &mut segments, &mut shapes), &mut |_| {});
        carve(&mut trunk_region, segments, &mut pieces);
        for (l, region) in expert_regions.iter_mut().enumerate() {
            let (Some(region), Some(layout)) = (region, &layouts[l]) else { continue };
            let mut segments = Vec::with_capacity(experts[l].len() * 6);
            for (e, expert) in experts[l].iter().enumerate() {
                for (place, source) in layout.parts().each().into_iter().zip(expert.each()) {
                    segment(place, source, e * layout.size(), &mut segments, &mut shapes);
                }
            }
            carve(region, segments, &mut pieces);
        }

        let bytes = if with_experts { self.bytes } else { trunk_bytes(trunk) };
        let run = Run::new(&self.catalogue, options, bytes);
        let pool = run.pool()?;
        let mut findings: Vec<Finding<'_>> = pool.install(|| {
            let bulk = pieces.into_par_iter().with_max_len(4).filter_map(|piece| run.read(piece).transpose());
            let shapes = shapes
                .into_par_iter()
                .filter_map(|(tensor, shape)| run.recorded_shape(tensor, shape).transpose());
            bulk.chain(shapes).collect::<Result<_>>()
        })?;
        let trunk_region = Arc::new(trunk_region);
        let trunk = placed.try_map::<_, _, Error>(
            &mut |(place, _)| {
                Ok(HostMatrix {
                    region: trunk_region.clone(),
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
        let experts = expert_regions
            .into_iter()
            .zip(layouts)
            .zip(experts)
            .map(|((region, layout), experts)| {
                Some(ExpertRecords::new(Arc::new(region?), layout?, experts.len()))
            })
            .collect();
        let stats = LoadStats { bytes, seconds: run.begun.elapsed().as_secs_f64() };
        Ok(LoadedWeights { trunk, experts, stats })
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

fn record(expert: &GatedMlp<Source>) -> RecordLayout {
    RecordLayout::new(&expert.map(|m| m.layout))
}

/// Notes where a matrix's parts go, `base` bytes into their region.
fn segment<'a>(
    place: &Placed,
    source: &'a Source,
    base: usize,
    segments: &mut Vec<Segment<'a>>,
    shapes: &mut Vec<(&'a Located, [usize; 2])>,
) {
    segments.push(Segment { tensor: &source.weight, start: base + place.weight.start });
    if let Some(scale) = &source.scale {
        segments.push(Segment { tensor: scale, start: base + place.scale.start });
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
