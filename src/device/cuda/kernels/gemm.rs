//! bf16 products on tensor cores: `cuda/gemm.cu`.

use crate::device::cuda::memory::Slice;
use crate::quant::MatrixLayout;

/// Matrices of one size in slots of equal pitch: matrix s is `slot_pitch` bytes behind matrix s − 1.
#[derive(Clone, Copy)]
pub struct GroupedWeights<'a> {
    memory: Slice<'a, u8>,
    layout: MatrixLayout,
    weight: usize,
    scale: usize,
    slots: usize,
    slot_pitch: usize,
}

impl<'a> GroupedWeights<'a> {
    /// `slots` matrices in `memory`, with the weights of slot 0 at byte `weight` and its scales, if any, at byte `scale`.
    ///
    /// # Panics
    /// If they leave the memory, or weights or pitch are not multiples of 16 bytes.
    pub fn new(
        memory: Slice<'a, u8>,
        layout: MatrixLayout,
        weight: usize,
        scale: usize,
        slots: usize,
        slot_pitch: usize,
    ) -> GroupedWeights<'a> {
        let end = (weight + layout.weight_bytes()).max(scale + layout.scale_bytes());
        assert!(
            slots == 0 || (slots - 1) * slot_pitch + end <= memory.len(),
            "{slots} slots leave the memory"
        );
        let align = |n: usize| n.is_multiple_of(16);
        assert!(align(memory.address() as usize + weight) && align(slot_pitch), "aligned to 16 bytes");
        assert!((memory.address() as usize + scale).is_multiple_of(4), "scales aligned to 4 bytes");
        GroupedWeights { memory, layout, weight, scale, slots, slot_pitch }
    }

    /// Format and size of each matrix.
    pub fn layout(&self) -> MatrixLayout {
        self.layout
    }

    /// How many there are.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Bytes from one to the next.
    pub fn slot_pitch(&self) -> usize {
        self.slot_pitch
    }

    /// First byte of slot 0's weights.
    pub(super) fn weight_address(&self) -> u64 {
        self.memory.address() + self.weight as u64
    }

    /// First byte of slot 0's scales.
    pub(super) fn scale_address(&self) -> u64 {
        self.memory.address() + self.scale as u64
    }
}
