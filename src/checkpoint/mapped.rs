//! Weights used where they are: shards mapped into memory, every value looked at before anybody computes with it.
//!
//! Nothing is copied, so nothing has to be allocated, cleared or held twice (`docs/notes/loading.md`). Each piece is first brought
//! by a call that reports what goes wrong, then looked at; what a plain touch would end the process for is an error here.

use std::ops::Range;
use std::sync::Arc;

use super::Checkpoint;
use super::catalogue::{Catalogue, Located};
use super::manifest::Source;
use super::read::{Finding, changed, merge, non_finite, wrong_shape};
use super::region::{HostMatrix, HostPart, HostRegion};
use super::weights::GatedMlp;
use crate::error::{Error, FaultKind, Result};
use crate::quant::MatrixView;

/// Bytes brought and looked at at a time, from one multiple in the file to the next: what one entry of a page table maps, and what
/// the system reads for it from the disk.
const BLOCK: u64 = 2 << 20;

/// A tensor in pieces that end where blocks of its file do, as far as elements allow.
pub(super) fn pieces(tensor: &Located) -> impl Iterator<Item = Range<u64>> + use<> {
    let (offset, len, element) = (tensor.entry.offset, tensor.entry.len, tensor.entry.dtype.bytes());
    let mut at = 0;
    std::iter::from_fn(move || {
        let block_end = (offset + at) / BLOCK * BLOCK + BLOCK - offset;
        let end = block_end.next_multiple_of(element).min(len);
        let piece = at..end;
        at = end;
        (!piece.is_empty()).then_some(piece)
    })
}

/// What is wrong with a piece of a tensor, brought and looked at where its file is mapped.
pub(super) fn look(catalogue: &Catalogue, tensor: &Located, piece: Range<u64>) -> Result<Option<FaultKind>> {
    let shard = &catalogue.shards[tensor.shard];
    let region = shard.region()?;
    let first = (tensor.entry.offset + piece.start) as usize;
    let range = first..(tensor.entry.offset + piece.end) as usize;
    if let Err(error) = region.bring(range.clone()) {
        return match changed(shard) {
            Some(_) => Ok(Some(FaultKind::Changed)),
            None => Err(Error::io(&shard.name, "read")(error)),
        };
    }
    Ok(non_finite(tensor, piece.start, &region.bytes()[range]))
}

/// A tensor's bytes where its file is mapped.
fn part(catalogue: &Catalogue, tensor: &Located) -> Result<HostPart> {
    let region = catalogue.shards[tensor.shard].region()?.clone();
    let start = tensor.entry.offset as usize;
    Ok(HostPart { region, range: start..start + tensor.entry.len as usize })
}

impl Checkpoint {
    /// The shards, mapped, once for all who ask of this checkpoint.
    ///
    /// # Errors
    /// [`Error::Io`] naming the shard that the system refuses to map.
    pub fn mapped_shards(&self) -> Result<Vec<Arc<HostRegion>>> {
        self.catalogue.shards.iter().map(|shard| shard.region().cloned()).collect()
    }

    /// A matrix where its files are mapped.
    pub(super) fn map_matrix(&self, source: &Source) -> Result<HostMatrix> {
        let scale = source.scale.as_ref().map(|scale| part(&self.catalogue, scale)).transpose()?;
        Ok(HostMatrix { layout: source.layout, weight: part(&self.catalogue, &source.weight)?, scale })
    }

    /// Looks at every value of an expert where its files are mapped. Returns its bytes.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming each damaged tensor and its file, [`Error::Io`]; [`Error::Argument`] if there is no such
    /// expert.
    pub fn look_at_expert(&self, layer: usize, expert: usize) -> Result<u64> {
        let source = self.expert_source(layer, expert)?;
        let (mut bytes, mut findings) = (0, Vec::new());
        for Source { layout, weight, scale, shape } in source.each() {
            for tensor in [Some(weight), scale.as_ref()].into_iter().flatten() {
                bytes += tensor.entry.len;
                for piece in pieces(tensor) {
                    let kind = look(&self.catalogue, tensor, piece)?;
                    findings.extend(kind.map(|kind| Finding { tensor, kind }));
                }
            }
            if let Some(tensor) = shape {
                let mut raw = [0u8; 8];
                let wrong = match self.read_unchecked(tensor, 0, &mut raw)? {
                    None => wrong_shape(raw, [layout.rows, layout.cols]),
                    gone => gone,
                };
                findings.extend(wrong.map(|kind| Finding { tensor, kind }));
            }
        }
        self.sound_expert(source, merge(&self.catalogue, findings))?;
        Ok(bytes)
    }

    /// The matrices of an expert where its files are mapped. Nothing is looked at:
    /// [`Checkpoint::look_at_expert`] does that.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses to map; [`Error::Argument`] if there is no such expert.
    pub fn mapped_expert(&self, layer: usize, expert: usize) -> Result<GatedMlp<MatrixView<'_>>> {
        let bytes = |tensor: &Located| -> Result<&[u8]> {
            let start = tensor.entry.offset as usize;
            let region = self.catalogue.shards[tensor.shard].region()?;
            Ok(&region.bytes()[start..start + tensor.entry.len as usize])
        };
        self.expert_source(layer, expert)?.try_map(|m| {
            let scale = m.scale.as_ref().map_or(Ok(&[][..]), bytes)?;
            Ok(MatrixView::new(m.layout, bytes(&m.weight)?, scale))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::header::{Dtype, Entry};
    use super::*;

    #[test]
    fn pieces_are_whole_elements_and_end_with_blocks() {
        for dtype in [Dtype::F8E4m3, Dtype::Bf16, Dtype::F32] {
            let element = dtype.bytes();
            for offset in [0, 8, 9, BLOCK - 9, BLOCK - 1, BLOCK, 3 * BLOCK + 4001] {
                for elements in [0, 1, 3, BLOCK / element, 2 * BLOCK / element + 5] {
                    let entry = Entry {
                        name: "t".into(),
                        dtype,
                        shape: [elements].into(),
                        offset,
                        len: elements * element,
                    };
                    let pieces: Vec<_> = pieces(&Located { entry, shard: 0 }).collect();
                    let mut end = 0;
                    for piece in &pieces {
                        assert_eq!(piece.start, end, "{dtype:?} at {offset}: {pieces:?}");
                        assert!(
                            piece.end > end && piece.end - end < BLOCK + element && piece.end % element == 0
                        );
                        end = piece.end;
                        let over = (offset + end) % BLOCK;
                        let last = end == elements * element;
                        assert!(last || over < element);
                    }
                    assert_eq!(end, elements * element);
                    assert!(pieces.len() as u64 <= elements * element / BLOCK + 2, "{pieces:?}");
                }
            }
        }
    }
}
