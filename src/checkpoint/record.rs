//! Expert records: everything of one expert in one contiguous, page-aligned piece of memory.
//!
//! A record holds gate, up and down, weights then scales, exactly as the checkpoint has them, each part aligned. So a
//! load is plain reads into place, a copy to a device is one copy, and a device slot has the same layout.

use std::ops::Range;
use std::sync::Arc;

use super::region::{HostMatrix, HostRegion, PART_ALIGN, RECORD_ALIGN};
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

    /// The same place, `by` bytes later.
    fn moved(&self, by: usize) -> (Range<usize>, Range<usize>) {
        let shift = |r: &Range<usize>| r.start + by..r.end + by;
        (shift(&self.weight), shift(&self.scale))
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

/// The bytes of one record, sharing the memory they lie in.
#[derive(Debug, Clone)]
pub struct SharedRecord {
    region: Arc<HostRegion>,
    range: Range<usize>,
}

impl AsRef<[u8]> for SharedRecord {
    fn as_ref(&self) -> &[u8] {
        &self.region.bytes()[self.range.clone()]
    }
}

/// The routed experts of one layer in host memory.
#[derive(Debug, Clone)]
pub struct ExpertRecords {
    region: Arc<HostRegion>,
    layout: RecordLayout,
    count: usize,
}

impl ExpertRecords {
    pub(super) fn new(region: Arc<HostRegion>, layout: RecordLayout, count: usize) -> ExpertRecords {
        ExpertRecords { region, layout, count }
    }

    /// Experts of the layer.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The layout every record has.
    pub fn layout(&self) -> &RecordLayout {
        &self.layout
    }

    /// The bytes of one expert's record.
    ///
    /// # Panics
    /// If there is no such expert.
    pub fn record(&self, expert: usize) -> &[u8] {
        assert!(expert < self.count, "expert {expert} of {}", self.count);
        &self.region.bytes()[expert * self.layout.size..][..self.layout.size]
    }

    /// [`ExpertRecords::record`], keeping the memory.
    ///
    /// # Panics
    /// If there is no such expert.
    pub fn shared(&self, expert: usize) -> SharedRecord {
        assert!(expert < self.count, "expert {expert} of {}", self.count);
        let start = expert * self.layout.size;
        SharedRecord { region: self.region.clone(), range: start..start + self.layout.size }
    }

    /// The matrices of one expert.
    ///
    /// # Panics
    /// If there is no such expert.
    pub fn expert(&self, expert: usize) -> GatedMlp<HostMatrix> {
        assert!(expert < self.count, "expert {expert} of {}", self.count);
        self.layout.parts.map(|part| {
            let (weight, scale) = part.moved(expert * self.layout.size);
            HostMatrix { region: self.region.clone(), layout: part.layout, weight, scale }
        })
    }
}
