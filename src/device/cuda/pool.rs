//! Expert records in device memory, addressed through slots.
//!
//! A slot has the layout of a host record, so filling it is one copy, and the pool is one allocation, so that one tensor
//! map a matrix reaches every slot. Kernels find an expert through a table of (slot, generation) pairs and compare the
//! generation with what the slot holds: an expert that is not there is reported, never computed with other weights.

use super::gpu::Gpu;
use super::memory::{Buffer, Slice};
use super::params::{ExpertMatrix, ExpertSlots, SlotRef};
use super::tensor::weight_format;
use crate::checkpoint::{Placed, RecordLayout};
use crate::error::Result;
use crate::quant::Format;

/// Slots and the table that says which expert is where.
pub struct ExpertPool {
    memory: Buffer<u8>,
    layout: RecordLayout,
    slots: usize,
    experts: usize,
    /// (slot, generation) by expert.
    table: Buffer<u32>,
    /// Generation by slot.
    generations: Buffer<u32>,
    /// What a kernel that met a stale slot leaves: expert << 32 | slot, the smallest; all ones if none did.
    stale: Buffer<u64>,
}

/// No stale slot was met.
const NONE_STALE: u64 = u64::MAX;

impl ExpertPool {
    /// A pool with every record of a layer, in order of expert, in a slot of its own.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`], [`crate::Error::Cuda`].
    ///
    /// # Panics
    /// If a record is not of the layout's size.
    pub fn resident<'a>(
        gpu: &Gpu,
        layout: &RecordLayout,
        records: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<ExpertPool> {
        let (layout, slots) = (layout.clone(), records.len());
        let what = format!("{slots} experts");
        let mut memory = gpu.alloc(slots * layout.size(), &what)?;
        let mut table = Vec::with_capacity(2 * slots);
        for (expert, record) in records.enumerate() {
            let at = expert * layout.size();
            memory.slice_mut(at..at + layout.size()).write(gpu, record)?;
            table.extend([expert as u32, FIRST_GENERATION]);
        }
        Ok(ExpertPool {
            memory,
            layout,
            slots,
            experts: slots,
            table: gpu.upload(&table, "the slot table")?,
            generations: gpu.upload(&vec![FIRST_GENERATION; slots], "slot generations")?,
            stale: gpu.upload(&[NONE_STALE], "the stale-slot word")?,
        })
    }

    /// Experts the table names.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Layout of a slot.
    pub fn layout(&self) -> &RecordLayout {
        &self.layout
    }

    /// Format of the weights; the three matrices of an expert share it.
    pub fn format(&self) -> Format {
        self.layout.parts().gate.layout.format
    }

    /// Address of the first slot.
    pub(super) fn address(&self) -> u64 {
        self.memory.all().address()
    }

    /// The memory of all slots.
    pub(super) fn memory(&self) -> Slice<'_, u8> {
        self.memory.all()
    }

    /// Slots there are.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// The pool as kernels take it.
    pub(super) fn params(&self) -> ExpertSlots {
        let parts = self.layout.parts();
        ExpertSlots {
            pool: self.address(),
            slot_bytes: self.layout.size() as u64,
            table: self.table.all().address(),
            generations: self.generations.all().address(),
            stale: self.stale.all().address(),
            gate: matrix(&parts.gate),
            up: matrix(&parts.up),
            down: matrix(&parts.down),
            experts: self.experts as u32,
            slots: self.slots as u32,
            format: weight_format(self.format()),
            reserved: 0,
        }
    }

    /// The first expert that a kernel did not find in its slot, and that slot.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`], also for what failed before.
    pub fn stale(&self) -> Result<Option<(usize, usize)>> {
        let word = self.stale.download()?[0];
        Ok((word != NONE_STALE).then_some(((word >> 32) as usize, word as u32 as usize)))
    }

    /// Declares a slot to hold something else, without changing it; for tests of what kernels then do.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    #[doc(hidden)]
    pub fn set_generation(&mut self, gpu: &Gpu, slot: usize, generation: u32) -> Result<()> {
        self.generations.slice_mut(slot..=slot).write(gpu, &[generation])
    }

    /// Renames experts: expert e is from now on what slot `slot_of[e]` holds. For tests that kernels follow the table.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    #[doc(hidden)]
    pub fn set_table(&mut self, gpu: &Gpu, slot_of: &[u32]) -> Result<()> {
        let table: Vec<u32> = slot_of.iter().flat_map(|&slot| [slot, FIRST_GENERATION]).collect();
        self.table.all_mut().write(gpu, &table)
    }
}

/// Of a slot's first content; 0 is a slot that never held anything.
const FIRST_GENERATION: u32 = 1;

const _: () = assert!(size_of::<SlotRef>() == 2 * size_of::<u32>());

fn matrix(placed: &Placed) -> ExpertMatrix {
    ExpertMatrix {
        weight: placed.weight.start as u64,
        scale: placed.scale.start as u64,
        rows: placed.layout.rows as u32,
        cols: placed.layout.cols as u32,
    }
}
