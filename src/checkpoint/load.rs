//! The trunk from disk into memory: mapped, or every byte read once, straight to where it stays; checked on the way.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use rayon::prelude::*;

use super::catalogue::Located;
use super::header::Dtype;
use super::manifest::Source;
use super::mapped;
use super::read::{CHUNK, Finding, LoadOptions, Piece, Run};
use super::record::{Placed, RecordLayout};
use super::region::{HostMatrix, HostPart, HostRegion, OwnRegion};
use super::weights::{Layer, TrunkPart, Weights};
use super::{Checkpoint, memory};
use crate::error::{Error, Result};
use crate::quant::{MatrixLayout, plain};

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
        self.load_trunk_apart(options, |_| false)
    }

    /// [`Checkpoint::load_trunk`] with some parts in a region of their own: it stays when the others' memory is freed.
    ///
    /// # Errors
    /// As [`Checkpoint::load_trunk`].
    pub fn load_trunk_apart(
        &self,
        options: &LoadOptions,
        apart: impl Fn(TrunkPart) -> bool,
    ) -> Result<LoadedTrunk> {
        self.trunk_of(apart, |parts| self.load_parts("the model's trunk", parts, options))
    }

    /// [`Checkpoint::load_trunk`] for what computes in host memory: matrices stay in the checkpoint's files, mapped. Files must
    /// then not be changed in place while the weights are in use; see [`MappedFile`](super::region::MappedFile).
    ///
    /// # Errors
    /// As [`Checkpoint::load_trunk`].
    pub fn map_trunk(&self, options: &LoadOptions) -> Result<LoadedTrunk> {
        self.trunk_of(|_| false, |parts| self.map_parts(parts, options))
    }

    fn trunk_of<'a>(
        &'a self,
        apart: impl Fn(TrunkPart) -> bool,
        load: impl FnOnce(&Parts<'a>) -> Result<LoadedParts>,
    ) -> Result<LoadedTrunk> {
        let trunk = &self.bound.trunk;
        let mut parts = Parts::default();
        let mut matrix = |part, m| {
            parts.apart.push(apart(part));
            parts.matrices.push(m);
            Ok::<_, Infallible>(())
        };
        let mut vector = |v| {
            parts.vectors.push(v);
            Ok(())
        };
        let Ok(_) = trunk.try_map_parts(&mut matrix, &mut vector);
        let loaded = load(&parts)?;
        let (mut matrices, mut vectors) = loaded.in_order();
        Ok(LoadedTrunk { trunk: trunk.map(&mut |_| matrices(), &mut |_| vectors()), stats: loaded.stats })
    }

    /// [`Checkpoint::load_trunk`] of one layer alone.
    ///
    /// # Errors
    /// As there; [`Error::Argument`] if there is no such layer.
    pub fn load_layer(&self, layer: usize, options: &LoadOptions) -> Result<Layer<HostMatrix, HostVector>> {
        let Some(source) = self.bound.trunk.layers.get(layer) else {
            let last = self.bound.trunk.layers.len().saturating_sub(1);
            return Err(Error::argument("layer", format!("is {layer}, expected at most {last}")));
        };
        let mut parts = Parts::default();
        source.map(&mut |m| parts.matrices.push(m), &mut |v| parts.vectors.push(v));
        parts.apart.resize(parts.matrices.len(), false);
        let loaded = self.load_parts(&format!("layer {layer}"), &parts, options)?;
        let (mut matrices, mut vectors) = loaded.in_order();
        Ok(source.map(&mut |_| matrices(), &mut |_| vectors()))
    }

    /// The final norm, and the head in blocks of at most `rows` rows: `take` is given the block's first row and the block. A
    /// tied head is the embedding.
    ///
    /// # Errors
    /// As [`Checkpoint::load_trunk`], and what `take` returns.
    pub fn each_head_block(
        &self,
        rows: usize,
        options: &LoadOptions,
        mut take: impl FnMut(&HostVector, usize, &HostMatrix) -> Result<()>,
    ) -> Result<()> {
        let trunk = &self.bound.trunk;
        let parts = Parts { vectors: vec![&trunk.norm], ..Parts::default() };
        let norm = self.load_parts("the final norm", &parts, options)?.in_order().1();
        let head = trunk.head.as_ref().unwrap_or(&trunk.embedding);
        for first in (0..head.layout.rows).step_by(rows.max(1)) {
            let count = rows.max(1).min(head.layout.rows - first);
            take(&norm, first, &self.load_rows(head, first, count, options)?)?;
        }
        Ok(())
    }

    /// Rows of the embedding table, decoded to f32, [ids, hidden].
    ///
    /// # Errors
    /// As [`Checkpoint::load_trunk`]; [`Error::Argument`] for an id beyond the table.
    pub fn load_embeddings(&self, ids: &[u32], options: &LoadOptions) -> Result<Vec<f32>> {
        let table = &self.bound.trunk.embedding;
        let MatrixLayout { rows, cols, .. } = table.layout;
        let mut out = vec![0.0; ids.len() * cols];
        let mut known: HashMap<u32, usize> = HashMap::new();
        for (i, &id) in ids.iter().enumerate() {
            if id as usize >= rows {
                return Err(Error::argument("tokens", format!("holds {id}, expected ids below {rows}")));
            }
            match known.get(&id) {
                Some(&seen) => out.copy_within(seen * cols..(seen + 1) * cols, i * cols),
                None => {
                    let row = self.load_rows(table, id as usize, 1, options)?;
                    row.view().decode(0, 0, &mut out[i * cols..][..cols]);
                    known.insert(id, i);
                }
            }
        }
        Ok(out)
    }

    /// Some rows of a matrix without scales, as a matrix of its own.
    fn load_rows(
        &self,
        source: &Source,
        first: usize,
        count: usize,
        options: &LoadOptions,
    ) -> Result<HostMatrix> {
        let layout = MatrixLayout { rows: count, ..source.layout };
        let (tensor, row) = (&source.weight, layout.row_bytes());
        let mut region = OwnRegion::new(layout.weight_bytes(), "rows of a matrix")?;
        let run = Run::new(&self.catalogue, options, layout.weight_bytes() as u64);
        let mut findings = Vec::new();
        for (i, into) in region.bytes_mut()[..layout.weight_bytes()].chunks_mut(CHUNK).enumerate() {
            let at = (first * row + i * CHUNK) as u64;
            findings.extend(run.read(Piece { tensor, at, into })?);
        }
        self.sound(&run, findings)?;
        let (region, range) = (Arc::new(HostRegion::Own(region)), 0..layout.weight_bytes());
        Ok(HostMatrix { layout, weight: HostPart { region, range }, scale: None })
    }

    /// Reads matrices into one region, those that are to lie apart into another, and vectors.
    fn load_parts(&self, what: &str, parts: &Parts<'_>, options: &LoadOptions) -> Result<LoadedParts> {
        let mut ends = [0; 2];
        let located = parts.matrices.iter().zip(&parts.apart);
        let places: Vec<(Placed, usize)> = located
            .map(|(m, &apart)| (Placed::after(m.layout, &mut ends[usize::from(apart)]), usize::from(apart)))
            .collect();
        let (needed, available) = (ends.iter().sum::<usize>() as u64, memory::available());
        if needed > available {
            return Err(Error::OutOfMemory { what: what.to_owned(), needed, available });
        }
        let mut regions = [OwnRegion::new(ends[0], what)?, OwnRegion::new(ends[1], what)?];
        let (mut pieces, mut segments, mut shapes) = (Vec::new(), [Vec::new(), Vec::new()], Vec::new());
        for ((place, region), source) in places.iter().zip(&parts.matrices) {
            segment(place, source, &mut segments[*region], &mut shapes);
        }
        for (region, segments) in regions.iter_mut().zip(segments) {
            carve(region, segments, &mut pieces);
        }

        let run = Run::new(&self.catalogue, options, parts.bytes());
        let findings = run.pool(options.threads)?.install(|| {
            let bulk = pieces.into_par_iter().with_max_len(4).filter_map(|piece| run.read(piece).transpose());
            let shapes = shapes
                .into_par_iter()
                .filter_map(|(tensor, shape)| run.recorded_shape(tensor, shape).transpose());
            bulk.chain(shapes).collect::<Result<_>>()
        })?;
        let regions = regions.map(|region| Arc::new(HostRegion::Own(region)));
        let matrices = places.into_iter().map(|(Placed { layout, weight, scale }, region)| {
            let part = |range| HostPart { region: regions[region].clone(), range };
            let scale = (!scale.is_empty()).then(|| part(scale));
            HostMatrix { layout, weight: part(weight), scale }
        });
        self.finish_parts(&run, parts, matrices.collect(), findings)
    }

    /// Maps the files of matrices and looks at every value, in the order of the files; reads vectors.
    fn map_parts(&self, parts: &Parts<'_>, options: &LoadOptions) -> Result<LoadedParts> {
        let run = Run::new(&self.catalogue, options, parts.bytes());
        let mut tensors: Vec<&Located> =
            parts.matrices.iter().flat_map(|m| [Some(&m.weight), m.scale.as_ref()]).flatten().collect();
        tensors.sort_unstable_by_key(|t| (t.shard, t.entry.offset));
        let pieces: Vec<_> =
            tensors.into_iter().flat_map(|t| mapped::pieces(t).map(move |piece| (t, piece))).collect();
        let findings = run.pool(options.lookers())?.install(|| {
            let bulk =
                pieces.into_par_iter().filter_map(|(tensor, piece)| run.look(tensor, piece).transpose());
            let shapes = parts.matrices.par_iter().filter_map(|m| {
                let shape = [m.layout.rows, m.layout.cols];
                m.shape.as_ref().and_then(|tensor| run.recorded_shape(tensor, shape).transpose())
            });
            bulk.chain(shapes).collect::<Result<_>>()
        })?;
        let matrices = parts.matrices.iter().map(|m| self.map_matrix(m)).collect::<Result<_>>()?;
        self.finish_parts(&run, parts, matrices, findings)
    }

    /// Reads the vectors that go with the matrices. An error if anything was found wrong.
    fn finish_parts<'a>(
        &self,
        run: &Run<'_>,
        parts: &Parts<'a>,
        matrices: Vec<HostMatrix>,
        mut findings: Vec<Finding<'a>>,
    ) -> Result<LoadedParts> {
        let vectors = parts.vectors.iter().map(|&tensor| vector(run, tensor, &mut findings));
        let vectors = vectors.collect::<Result<_>>()?;
        self.sound(run, findings)?;
        let stats = LoadStats { bytes: run.bytes_total, seconds: run.begun.elapsed().as_secs_f64() };
        Ok(LoadedParts { matrices, vectors, stats })
    }

    /// An error with all that was found wrong, if anything was.
    fn sound(&self, run: &Run<'_>, findings: Vec<Finding<'_>>) -> Result<()> {
        let mut faults = run.merge(findings);
        faults.extend(run.changed_files());
        if faults.is_empty() {
            return Ok(());
        }
        Err(self.damaged(faults))
    }
}

/// Leaves of a tree of weights, in the order they are visited.
#[derive(Default)]
struct Parts<'a> {
    matrices: Vec<&'a Source>,
    /// By matrix, whether it is to lie in the region that stays.
    apart: Vec<bool>,
    vectors: Vec<&'a Located>,
}

impl Parts<'_> {
    /// Bytes on disk.
    fn bytes(&self) -> u64 {
        let len = |part: &Option<Located>| part.as_ref().map_or(0, |t| t.entry.len);
        let matrices = self.matrices.iter().map(|m| m.weight.entry.len + len(&m.scale) + len(&m.shape));
        matrices.sum::<u64>() + self.vectors.iter().map(|v| v.entry.len).sum::<u64>()
    }
}

/// The same leaves in memory.
struct LoadedParts {
    matrices: Vec<HostMatrix>,
    vectors: Vec<HostVector>,
    stats: LoadStats,
}

impl LoadedParts {
    /// Functions that return the leaves one after the other, for mapping the tree they came from.
    fn in_order(&self) -> (impl FnMut() -> HostMatrix, impl FnMut() -> HostVector) {
        (one_by_one(&self.matrices), one_by_one(&self.vectors))
    }
}

fn one_by_one<T: Clone>(all: &[T]) -> impl FnMut() -> T {
    let mut next = 0;
    move || {
        next += 1;
        all[next - 1].clone()
    }
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
fn carve<'t, 'm>(region: &'m mut OwnRegion, segments: Vec<Segment<'t>>, pieces: &mut Vec<Piece<'t, 'm>>) {
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
fn vector<'a>(run: &Run<'_>, tensor: &'a Located, findings: &mut Vec<Finding<'a>>) -> Result<HostVector> {
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
