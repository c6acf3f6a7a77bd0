//! Expert records in device memory, addressed through slots.
//!
//! A slot has the layout of a host record, so filling it is one copy or a few in order, and all slots are one allocation, so that
//! one tensor map a matrix reaches every slot. Slots are as large as the largest record; each layer reads a slot by its own layout.
//! Kernels find an expert through a table of (slot, generation) pairs and compare the generation with what the slot holds: an
//! expert that is not there is reported, never computed with other weights. A slot holds two generations, that of its gate
//! and up and that of its down, since the former can be computed with before the latter has arrived.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use cudarc::driver::{result, sys};

use super::copies::{CudaFence, locked};
use super::failed;
use super::gpu::Gpu;
use super::memory::{Buffer, Slice};
use super::params::{ExpertMatrix, ExpertSlots, NoSlot, SlotRef};
use super::routing::CudaRouting;
use super::tensor::weight_format;
use crate::checkpoint::{Placed, RecordLayout};
use crate::device::{HostBytes, Pass, SlotAt};
use crate::error::Result;
use crate::quant::Format;

/// Slots of all layers and each layer's table of which expert is where.
pub struct CudaSlots {
    gpu: Gpu,
    /// Shared with caches that have taken slots.
    memory: Arc<Buffer<u8>>,
    slot_bytes: usize,
    count: usize,
    experts: usize,
    /// By layer; none in dense ones.
    layouts: Vec<Option<RecordLayout>>,
    /// Generation by slot of gate and up, then generation by slot of down; 0 while a slot holds nothing.
    generations: Buffer<u32>,
    /// (slot, generation) by layer and expert.
    tables: Mutex<Buffer<u32>>,
    /// By layer what a kernel that met a stale slot leaves: expert << 32 | slot, the smallest; all ones if none did.
    stale: Mutex<Buffer<u64>>,
}

/// No stale slot was met.
const NONE_STALE: u64 = u64::MAX;

/// The parts of a record that have a generation of their own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    GateUp,
    Down,
}

/// Words of an entry of a table.
const REF_WORDS: usize = size_of::<SlotRef>() / size_of::<u32>();

impl CudaSlots {
    /// `count` empty slots, and tables of `experts` experts that are nowhere for each layer that has a layout.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`], [`crate::Error::Cuda`].
    pub fn new(
        gpu: &Gpu,
        layouts: &[Option<RecordLayout>],
        experts: usize,
        count: usize,
    ) -> Result<CudaSlots> {
        let slot_bytes = layouts.iter().flatten().map(RecordLayout::size).max().unwrap_or(0);
        let words = layouts.len() * experts * REF_WORDS;
        let mut tables = gpu.alloc(words, "the slot tables")?;
        tables.all_mut().fill_bytes(gpu, 0xff)?;
        let slots = CudaSlots {
            gpu: gpu.clone(),
            memory: Arc::new(gpu.alloc(count * slot_bytes, &format!("slots for {count} experts"))?),
            slot_bytes,
            count,
            experts,
            layouts: layouts.to_vec(),
            generations: gpu.alloc_zeroed(2 * count, "slot generations")?,
            tables: Mutex::new(tables),
            stale: Mutex::new(gpu.upload(&vec![NONE_STALE; layouts.len()], "the stale-slot words")?),
        };
        // Slots are filled on another stream, which must find the generations cleared.
        gpu.synchronize()?;
        Ok(slots)
    }

    /// The slots of one layer, with every record, in order of expert, in a slot of its own.
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
    ) -> Result<CudaSlots> {
        let count = records.len();
        let mut slots = CudaSlots::new(gpu, &[Some(layout.clone())], count, count)?;
        let Some(memory) = Arc::get_mut(&mut slots.memory) else { unreachable!("nobody else has it yet") };
        for (expert, record) in records.enumerate() {
            let at = expert * layout.size();
            memory.slice_mut(at..at + layout.size()).write(gpu, record)?;
        }
        slots.generations.all_mut().write(gpu, &vec![FIRST_GENERATION; 2 * count])?;
        slots.set_table(&(0..count as u32).collect::<Vec<_>>())?;
        Ok(slots)
    }

    /// Slots there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Copies a record into a slot on the stream of copies; see [`crate::device::Device::fill`].
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    ///
    /// # Panics
    /// If there is no such slot, the record is larger than a slot, or the generation is 0.
    pub fn fill(&self, at: SlotAt, record: HostBytes) -> Result<CudaFence> {
        let all = (*record).as_ref().len();
        self.copy(at, record, 0..all, all)
    }

    /// Copies a part of a layer's record into a slot on the stream of copies; see [`crate::device::Device::fill_part`].
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    ///
    /// # Panics
    /// If there is no such slot, the record is larger than a slot or has no such part, the generation is 0 or the layer has no
    /// experts.
    pub fn fill_part(
        &self,
        layer: usize,
        at: SlotAt,
        record: HostBytes,
        part: Range<usize>,
    ) -> Result<CudaFence> {
        let Some(layout) = &self.layouts[layer] else { panic!("layer {layer} has no experts") };
        self.copy(at, record, part, layout.down_start())
    }

    /// Copies a part of a record whose gate and up end at byte `cut`.
    fn copy(&self, at: SlotAt, record: HostBytes, part: Range<usize>, cut: usize) -> Result<CudaFence> {
        let bytes = (*record).as_ref();
        let slot = at.slot as usize;
        assert!(slot < self.count, "slot {slot} of {}", self.count);
        assert!(bytes.len() <= self.slot_bytes, "{} bytes for a slot of {}", bytes.len(), self.slot_bytes);
        assert_ne!(at.generation, 0, "the generation of nothing");
        let issued = self.issue(slot, at.generation, bytes, part, cut);
        // Whatever was issued reads the bytes: the fence stands behind it, also when something was refused.
        let fence = CudaFence::of_copies(&self.gpu, Some(record.clone())).inspect_err(|_| {
            // SAFETY: the stream is alive. If this fails the context has, and copies nothing any more.
            let _ = unsafe { result::stream::synchronize(self.gpu.copies().stream()) };
        });
        issued.and(fence)
    }

    /// Empties a slot before its first byte, fills it, marks gate and up behind byte `cut` and down behind the last one.
    fn issue(
        &self,
        slot: usize,
        generation: u32,
        record: &[u8],
        part: Range<usize>,
        cut: usize,
    ) -> Result<()> {
        self.gpu.bind()?;
        let (copies, stream) = (self.gpu.copies(), self.gpu.copies().stream());
        let to = self.memory.all().address() + (slot * self.slot_bytes + part.start) as u64;
        // A part that ends where gate and up do has brought them; a later one finds them marked.
        let gate_up = part.start < cut && part.end >= cut;
        let (first, last) = (part.start == 0, part.end == record.len());
        let bytes = &record[part];
        if first {
            self.mark_both(slot, 0)?;
        }
        let pinned = locked(&copies.pinned);
        let (start, end) = (bytes.as_ptr() as usize, bytes.as_ptr() as usize + bytes.len());
        if pinned.range(..=start).next_back().is_some_and(|(first, len)| end <= first + len) {
            // SAFETY: the slot is that large, and by the caller's word nobody reads it. The fence keeps the bytes until the
            // copy is done; they are not unlocked before either.
            unsafe { result::memcpy_htod_async(to, bytes, stream) }.map_err(failed("cuMemcpyHtoDAsync"))?;
            drop(pinned);
        } else {
            drop(pinned);
            // SAFETY: the slot is that large, and by the caller's word nobody reads it.
            unsafe { locked(&copies.ring).copy(&self.gpu, to, bytes)? };
        }
        match (gate_up, last) {
            (true, true) => self.mark_both(slot, generation),
            (true, false) => self.mark(slot, Half::GateUp, generation),
            (false, true) => self.mark(slot, Half::Down, generation),
            (false, false) => Ok(()),
        }
    }

    /// Has the stream of copies set one of a slot's generations. The context is current.
    fn mark(&self, slot: usize, half: Half, generation: u32) -> Result<()> {
        let at = self.generations_of(half) + (slot * size_of::<u32>()) as u64;
        // SAFETY: one word of the generations, which only this stream writes.
        unsafe { sys::cuMemsetD32Async(at, generation, 1, self.gpu.copies().stream()) }
            .result()
            .map_err(failed("cuMemsetD32Async"))
    }

    /// Has the stream of copies set both, in one operation. The context is current.
    fn mark_both(&self, slot: usize, generation: u32) -> Result<()> {
        let words = self.generations.slice(slot..);
        let pitch = self.count * size_of::<u32>();
        // SAFETY: a word of the slot in each half of the generations, which only this stream writes.
        unsafe {
            sys::cuMemsetD2D32Async(words.address(), pitch, generation, 1, 2, self.gpu.copies().stream())
        }
        .result()
        .map_err(failed("cuMemsetD2D32Async"))
    }

    /// Where the generations of one half begin, by slot.
    fn generations_of(&self, half: Half) -> u64 {
        let first = if half == Half::GateUp { 0 } else { self.count };
        self.generations.slice(first..first + self.count).address()
    }

    /// Marks slots as holding nothing; see [`crate::device::Device::empty`].
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn empty(&self, which: &[u32]) -> Result<()> {
        self.gpu.bind()?;
        which.iter().try_for_each(|&slot| self.mark_both(slot as usize, 0))?;
        CudaFence::of_copies(&self.gpu, None)?.before_computing()
    }

    /// A slot's memory, for another use: all slots' memory, and the part of it.
    ///
    /// # Panics
    /// If there is no such slot.
    pub(super) fn lend(&self, slot: u32) -> (&Arc<Buffer<u8>>, Range<usize>) {
        let slot = slot as usize;
        assert!(slot < self.count, "slot {slot} of {}", self.count);
        (&self.memory, slot * self.slot_bytes..(slot + 1) * self.slot_bytes)
    }

    /// Replaces a layer's table, in the order of the computing.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    ///
    /// # Panics
    /// If there is no such layer, or it has other experts.
    pub fn place(&self, layer: usize, places: &[Option<SlotAt>]) -> Result<()> {
        assert!(self.layouts[layer].is_some(), "layer {layer} has no experts");
        assert_eq!(places.len(), self.experts, "experts of layer {layer}");
        let words: Vec<u32> = places.iter().flat_map(|&place| entry(place)).collect();
        let mut tables = locked(&self.tables);
        tables.slice_mut(layer * words.len()..(layer + 1) * words.len()).write(&self.gpu, &words)
    }

    /// A layer's experts as its table names them.
    ///
    /// # Panics
    /// If there is no such layer, or it has no experts.
    pub fn layer(&self, layer: usize) -> LayerSlots<'_> {
        let Some(layout) = &self.layouts[layer] else { panic!("layer {layer} has no experts") };
        let size = size_of::<SlotRef>() * self.experts;
        let table = locked(&self.tables).all().address() + (layer * size) as u64;
        let stale = locked(&self.stale).slice(layer..=layer).address();
        LayerSlots { slots: self, layout, table, stale, listed: None, down: None }
    }

    /// A layer's experts of a pass, down matrices from behind a fence on if one is given; the table of a pass that lists its
    /// experts lies in `table`, and does so for work issued before it is used again.
    pub(super) fn pass<'a>(
        &'a self,
        layer: usize,
        pass: Pass<'a>,
        down: Option<&'a CudaFence>,
        table: &'a mut Option<Buffer<u32>>,
    ) -> Result<LayerSlots<'a>> {
        let residents = LayerSlots { down, ..self.layer(layer) };
        let Pass::Only(listed) = pass else { return Ok(residents) };
        let mut words: Vec<u32> = (0..self.experts).flat_map(|_| entry(None)).collect();
        for &(expert, at) in listed {
            words[expert as usize * REF_WORDS..][..REF_WORDS].copy_from_slice(&entry(Some(at)));
        }
        let table = super::scratch::fit(
            table,
            |t| t.len() >= words.len(),
            || self.gpu.alloc(words.len(), "the slot table of a pass"),
        )?;
        table.slice_mut(..words.len()).write(&self.gpu, &words)?;
        Ok(LayerSlots { table: table.all().address(), listed: Some(listed), ..residents })
    }

    /// The first layer and expert that a kernel did not find in its slot since the last call, and that slot.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`], also for what failed before.
    pub fn stale(&self) -> Result<Option<(usize, usize, u32)>> {
        let mut stale = locked(&self.stale);
        let words = stale.download()?;
        let Some(layer) = words.iter().position(|&word| word != NONE_STALE) else { return Ok(None) };
        stale.all_mut().fill_bytes(&self.gpu, 0xff)?;
        Ok(Some((layer, (words[layer] >> 32) as usize, words[layer] as u32)))
    }

    /// The first bytes of what a slot holds, after all copies and computing issued so far.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`], also for what failed before.
    ///
    /// # Panics
    /// If there is no such slot, or it is smaller.
    pub fn record(&self, slot: u32, bytes: usize) -> Result<Vec<u8>> {
        CudaFence::of_copies(&self.gpu, None)?.wait()?;
        let start = slot as usize * self.slot_bytes;
        self.memory.slice(start..start + bytes).download(&self.gpu)
    }

    /// Declares a slot to hold something else, without changing it; for tests of what kernels then do.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    #[doc(hidden)]
    pub fn set_generation(&mut self, slot: usize, generation: u32) -> Result<()> {
        for word in [slot, self.count + slot] {
            self.generations.slice_mut(word..=word).write(&self.gpu, &[generation])?;
        }
        Ok(())
    }

    /// Of the only layer: expert e is from now on what slot `slot_of[e]` holds, as [`CudaSlots::resident`] filled it. For
    /// tests that kernels follow the table.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    #[doc(hidden)]
    pub fn set_table(&self, slot_of: &[u32]) -> Result<()> {
        let at = |&slot: &u32| Some(SlotAt { slot, generation: FIRST_GENERATION });
        self.place(0, &slot_of.iter().map(at).collect::<Vec<_>>())
    }
}

impl Drop for CudaSlots {
    fn drop(&mut self) {
        // Buffers wait for the computing only.
        if self.gpu.bind().is_ok() {
            // SAFETY: the stream is alive.
            let _ = unsafe { result::stream::synchronize(self.gpu.copies().stream()) };
        }
    }
}

/// An entry of a table.
fn entry(place: Option<SlotAt>) -> [u32; REF_WORDS] {
    place.map_or([NoSlot::SLOT_NONE, 0], |at| [at.slot, at.generation])
}

/// Of a slot's first content.
const FIRST_GENERATION: u32 = 1;

const _: () = assert!(size_of::<SlotRef>() == 2 * size_of::<u32>());

/// Slots as the kernels of one layer see them: its layout, and a table of its experts.
#[derive(Clone, Copy)]
pub struct LayerSlots<'a> {
    slots: &'a CudaSlots,
    layout: &'a RecordLayout,
    table: u64,
    stale: u64,
    /// What the table names, if the host knows.
    listed: Option<&'a [(u32, SlotAt)]>,
    /// What is to be waited for before a down matrix is read.
    down: Option<&'a CudaFence>,
}

impl<'a> LayerSlots<'a> {
    /// Experts of the layer.
    pub fn experts(&self) -> usize {
        self.slots.experts
    }

    /// How many of them the table names at most.
    pub(super) fn named(&self) -> usize {
        self.listed.map_or(self.experts(), <[_]>::len)
    }

    /// Whether the table may name one of these.
    pub(super) fn names_any(&self, experts: &Range<usize>) -> bool {
        self.listed
            .is_none_or(|listed| listed.iter().any(|&(expert, _)| experts.contains(&(expert as usize))))
    }

    /// Mean rows of an expert that the table names: exactly, where routing and table are known to the host.
    pub(super) fn mean_rows(&self, routing: &CudaRouting) -> usize {
        let rows = self
            .listed
            .and_then(|listed| routing.known_rows(listed.iter().map(|&(expert, _)| expert as usize)));
        match rows {
            Some(rows) => rows.div_ceil(self.named().max(1)),
            None => routing.pairs().div_ceil(self.experts().max(1)),
        }
    }

    /// Layout of a record.
    pub fn layout(&self) -> &'a RecordLayout {
        self.layout
    }

    /// Format of the weights; the three matrices of an expert share it.
    pub fn format(&self) -> Format {
        self.layout.parts().gate.layout.format
    }

    /// Bytes from slot to slot.
    pub(super) fn pitch(&self) -> usize {
        self.slots.slot_bytes
    }

    /// The memory of all slots.
    pub(super) fn memory(&self) -> Slice<'a, u8> {
        self.slots.memory.all()
    }

    /// Slots there are.
    pub(super) fn count(&self) -> usize {
        self.slots.count
    }

    /// Whether the down matrices come later than gate and up.
    pub(super) fn awaits_down(&self) -> bool {
        self.down.is_some()
    }

    /// Makes the computing issued from here on wait for the down matrices, if they come later.
    pub(super) fn await_down(&self) -> Result<()> {
        self.down.map_or(Ok(()), CudaFence::before_computing)
    }

    /// The slots as kernels take them that read gate and up: those are there.
    pub(super) fn gate_up_params(&self) -> ExpertSlots {
        self.params(Half::GateUp)
    }

    /// The slots as kernels take them that read down, and those that read everything: all of a record is there.
    pub(super) fn down_params(&self) -> ExpertSlots {
        self.params(Half::Down)
    }

    fn params(&self, half: Half) -> ExpertSlots {
        let parts = self.layout.parts();
        ExpertSlots {
            pool: self.memory().address(),
            slot_bytes: self.pitch() as u64,
            table: self.table,
            generations: self.slots.generations_of(half),
            stale: self.stale,
            gate: matrix(&parts.gate),
            up: matrix(&parts.up),
            down: matrix(&parts.down),
            experts: self.experts() as u32,
            slots: self.count() as u32,
            format: weight_format(self.format()),
            reserved: 0,
        }
    }
}

fn matrix(placed: &Placed) -> ExpertMatrix {
    ExpertMatrix {
        weight: placed.weight.start as u64,
        scale: placed.scale.start as u64,
        rows: placed.layout.rows as u32,
        cols: placed.layout.cols as u32,
    }
}
