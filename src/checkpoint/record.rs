//! Expert records: everything of one expert in one contiguous, page-aligned piece of memory.
//!
//! A record holds gate, up and down, weights then scales, exactly as the checkpoint has them, each part aligned. So a
//! load is plain reads into place, a copy to a device is one copy or, with gate and up before down, two, and a device slot has
//! the same layout.

use std::ops::Range;

use super::region::{PART_ALIGN, RECORD_ALIGN};
use super::weights::GatedMlp;
use crate::quant::{MatrixLayout, MatrixView};

/// Where a matrix lies in a record or region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Format and size.
    pub layout: MatrixLayout,
    /// Bytes of the weights.
    pub weight: Range<usize>,
    /// Bytes of the scales; empty for formats without.
    pub scale: Range<usize>,
}

impl Placed {
    /// Places a matrix at the first aligned offset from `end` on, and moves `end` behind it.
    pub(super) fn after(layout: MatrixLayout, end: &mut usize) -> Placed {
        let mut take = |bytes: usize| {
            let start = end.next_multiple_of(PART_ALIGN);
            *end = start + bytes;
            start..*end
        };
        Placed { layout, weight: take(layout.weight_bytes()), scale: take(layout.scale_bytes()) }
    }
}

/// Layout of an expert record, the same for every expert of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordLayout {
    parts: GatedMlp<Placed>,
    size: usize,
}

impl RecordLayout {
    /// Lays out the three matrices.
    pub fn new(layouts: &GatedMlp<MatrixLayout>) -> RecordLayout {
        let mut end = 0;
        let parts = layouts.map(|&layout| Placed::after(layout, &mut end));
        RecordLayout { parts, size: end.next_multiple_of(RECORD_ALIGN) }
    }

    /// Bytes of a record, a multiple of [`RECORD_ALIGN`].
    pub fn size(&self) -> usize {
        self.size
    }

    /// The first byte of down: all of gate and up lies before it, whatever the format.
    pub fn down_start(&self) -> usize {
        self.parts.down.weight.start
    }

    /// Where gate, up and down lie.
    pub fn parts(&self) -> &GatedMlp<Placed> {
        &self.parts
    }

    /// The matrices in the bytes of a record.
    ///
    /// # Panics
    /// If the record is not of this size.
    pub fn views<'a>(&self, record: &'a [u8]) -> GatedMlp<MatrixView<'a>> {
        assert_eq!(record.len(), self.size, "bytes of a record");
        self.parts.map(|part| {
            MatrixView::new(part.layout, &record[part.weight.clone()], &record[part.scale.clone()])
        })
    }
}
