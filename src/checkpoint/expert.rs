//! Reading one expert at a time into place, around the system's file cache where the file system allows.

use std::sync::atomic::Ordering;

use rayon::prelude::*;

use super::Checkpoint;
use super::catalogue::Located;
use super::direct::ReadBuffer;
use super::manifest::Source;
use super::read::{CHUNK, Finding, LoadOptions, Piece, Run, changed, merge, wrong_shape};
use super::record::RecordLayout;
use super::weights::GatedMlp;
use crate::error::{Error, Fault, Result};

impl Checkpoint {
    /// Reads the record of an expert, laid out as [`Checkpoint::record_layout`] says, and checks that every value is
    /// finite. Padding becomes zero: a record's bytes depend on the expert alone.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming each damaged tensor and its file, [`Error::Io`]; [`Error::Argument`] if there is no
    /// such expert or `into` is not of the record's size. `into` then holds nothing of use.
    pub fn read_expert(&self, layer: usize, expert: usize, into: &mut [u8]) -> Result<()> {
        self.read_record(layer, expert, into, None)
    }

    /// [`Checkpoint::read_expert`] without filling the system's file cache, where that is possible; what that has is taken
    /// from there.
    ///
    /// # Errors
    /// As [`Checkpoint::read_expert`].
    pub fn read_expert_direct(
        &self,
        layer: usize,
        expert: usize,
        into: &mut [u8],
        buffer: &mut ReadBuffer,
    ) -> Result<()> {
        self.read_record(layer, expert, into, Some(buffer))
    }

    /// All that is damaged in the experts; each is read and forgotten.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Cancelled`].
    pub(crate) fn damaged_experts(&self, options: &LoadOptions) -> Result<Vec<Fault>> {
        let experts = self.bound.experts.iter().enumerate();
        let ids: Vec<_> = experts.flat_map(|(l, experts)| (0..experts.len()).map(move |e| (l, e))).collect();
        let run = Run::new(&self.catalogue, options, self.bytes);
        let faults: Result<Vec<Vec<Fault>>> = run.pool(options.threads)?.install(|| {
            let faults_of = |buffer: &mut Vec<u8>, &(layer, expert): &(usize, usize)| {
                if options.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                    return Err(Error::Cancelled);
                }
                buffer.resize(self.record_layout(layer).map_or(0, |layout| layout.size()), 0);
                match self.read_expert(layer, expert, buffer) {
                    Ok(()) => Ok(Vec::new()),
                    Err(Error::Checkpoint { faults, .. }) => Ok(faults.0),
                    Err(error) => Err(error),
                }
            };
            ids.par_iter().map_init(Vec::new, faults_of).collect()
        });
        Ok(faults?.into_iter().flatten().collect())
    }

    fn read_record(
        &self,
        layer: usize,
        expert: usize,
        into: &mut [u8],
        buffer: Option<&mut ReadBuffer>,
    ) -> Result<()> {
        let source = self.expert_source(layer, expert)?;
        let layout = RecordLayout::new(&source.map(|m| m.layout));
        if into.len() != layout.size() {
            let problem = format!("has {} bytes, expected the record's {}", into.len(), layout.size());
            return Err(Error::argument("into", problem));
        }
        let mut shapes = [[0u8; 8]; 3];
        let mut pieces = Vec::new();
        let (mut rest, mut end) = (into, 0);
        for ((place, source), raw) in layout.parts().each().into_iter().zip(source.each()).zip(&mut shapes) {
            let Source { weight, scale, shape, .. } = source;
            for (tensor, range) in [(Some(weight), &place.weight), (scale.as_ref(), &place.scale)] {
                let Some(tensor) = tensor else { continue };
                let (padding, from) = rest.split_at_mut(range.start - end);
                let (part, behind) = from.split_at_mut(range.len());
                padding.fill(0);
                (rest, end) = (behind, range.end);
                pieces.extend(cut(tensor, part));
            }
            if let Some(tensor) = shape {
                pieces.extend(cut(tensor, raw));
            }
        }
        rest.fill(0);

        let found = self.read_pieces(&mut pieces, buffer)?;
        let findings = pieces.iter().zip(found);
        let mut findings: Vec<Finding<'_>> = findings
            .filter_map(|(piece, kind)| Some(Finding { tensor: piece.tensor, kind: kind? }))
            .collect();
        for ((place, source), raw) in layout.parts().each().into_iter().zip(source.each()).zip(shapes) {
            let Some(tensor) = &source.shape else { continue };
            let wrong = wrong_shape(raw, [place.layout.rows, place.layout.cols]);
            findings.extend(wrong.map(|kind| Finding { tensor, kind }));
        }
        self.sound_expert(source, merge(&self.catalogue, findings))
    }

    /// Where an expert lies.
    pub(super) fn expert_source(&self, layer: usize, expert: usize) -> Result<&GatedMlp<Source>> {
        let source = self.bound.experts.get(layer).and_then(|experts| experts.get(expert));
        source.ok_or_else(|| {
            Error::argument("expert", format!("is {expert} of layer {layer}, which has none such"))
        })
    }

    /// An error with what was found wrong with an expert, and which of its files have changed since they were opened.
    pub(super) fn sound_expert(&self, source: &GatedMlp<Source>, mut faults: Vec<Fault>) -> Result<()> {
        let tensors = source.each().into_iter().flat_map(|m| [Some(&m.weight), m.scale.as_ref()]).flatten();
        let mut shards: Vec<usize> = tensors.map(|tensor| tensor.shard).collect();
        shards.sort_unstable();
        shards.dedup();
        faults.extend(shards.into_iter().filter_map(|shard| changed(&self.catalogue.shards[shard])));
        if faults.is_empty() { Ok(()) } else { Err(self.damaged(faults)) }
    }
}

/// A tensor in pieces, in its order.
fn cut<'t, 'm>(tensor: &'t Located, into: &'m mut [u8]) -> impl Iterator<Item = Piece<'t, 'm>> {
    let pieces = into.chunks_mut(CHUNK).enumerate();
    pieces.map(move |(i, into)| Piece { tensor, at: (i * CHUNK) as u64, into })
}
