// Made from cuda/include/params.h by `cargo xtask bindings`; not to be edited.

/// A CUtensorMap, opaque; TMA wants it on 64 bytes.
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone)]
pub struct TensorMap {
    pub words: [u64; 16usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of TensorMap"][::core::mem::size_of::<TensorMap>() - 128usize];
    ["Alignment of TensorMap"][::core::mem::align_of::<TensorMap>() - 64usize];
    [
        "Offset of field: TensorMap::words",
    ][::core::mem::offset_of!(TensorMap, words) - 0usize];
};
impl Default for TensorMap {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
pub mod WeightFormat {
    #[allow(unused_imports)]
    use super::*;
    /// How weights are stored; the numbers of the Rust enum `quant::Format`.
    pub type Type = u32;
    pub const WEIGHT_F32: Type = 0;
    pub const WEIGHT_F16: Type = 1;
    pub const WEIGHT_BF16: Type = 2;
    /// e4m3 with an f32 scale per 128×128 block.
    pub const WEIGHT_FP8_BLOCK: Type = 3;
    /// Four bits, q + 8, eight to a word, with a bf16 scale per 32 columns of a row.
    pub const WEIGHT_INT4_GROUP32: Type = 4;
}
pub mod ActivationType {
    #[allow(unused_imports)]
    use super::*;
    /// Element type of activations.
    pub type Type = u32;
    pub const ACTIVATION_BF16: Type = 0;
    pub const ACTIVATION_F32: Type = 1;
}
/// A weight matrix [rows, cols], row-major, exactly as in the checkpoint.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct WeightMatrix {
    /// Weights; aligned to 128 bytes.
    pub weight: u64,
    /// Scales, 0 for formats without; aligned to 128 bytes.
    pub scale: u64,
    pub rows: u32,
    pub cols: u32,
    /// A WeightFormat.
    pub format: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of WeightMatrix"][::core::mem::size_of::<WeightMatrix>() - 32usize];
    ["Alignment of WeightMatrix"][::core::mem::align_of::<WeightMatrix>() - 8usize];
    [
        "Offset of field: WeightMatrix::weight",
    ][::core::mem::offset_of!(WeightMatrix, weight) - 0usize];
    [
        "Offset of field: WeightMatrix::scale",
    ][::core::mem::offset_of!(WeightMatrix, scale) - 8usize];
    [
        "Offset of field: WeightMatrix::rows",
    ][::core::mem::offset_of!(WeightMatrix, rows) - 16usize];
    [
        "Offset of field: WeightMatrix::cols",
    ][::core::mem::offset_of!(WeightMatrix, cols) - 20usize];
    [
        "Offset of field: WeightMatrix::format",
    ][::core::mem::offset_of!(WeightMatrix, format) - 24usize];
    [
        "Offset of field: WeightMatrix::reserved",
    ][::core::mem::offset_of!(WeightMatrix, reserved) - 28usize];
};
/// out[r] = x[r] / √(mean(x[r]²) + eps) ⊙ weight. One block a row.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct RmsNormParams {
    /// [rows, cols], f32 or bf16 by the kernel's name.
    pub x: u64,
    /// f32 [cols].
    pub weight: u64,
    /// bf16 [rows, cols].
    pub out: u64,
    pub x_stride: u32,
    pub out_stride: u32,
    pub rows: u32,
    pub cols: u32,
    pub eps: f32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of RmsNormParams"][::core::mem::size_of::<RmsNormParams>() - 48usize];
    ["Alignment of RmsNormParams"][::core::mem::align_of::<RmsNormParams>() - 8usize];
    [
        "Offset of field: RmsNormParams::x",
    ][::core::mem::offset_of!(RmsNormParams, x) - 0usize];
    [
        "Offset of field: RmsNormParams::weight",
    ][::core::mem::offset_of!(RmsNormParams, weight) - 8usize];
    [
        "Offset of field: RmsNormParams::out",
    ][::core::mem::offset_of!(RmsNormParams, out) - 16usize];
    [
        "Offset of field: RmsNormParams::x_stride",
    ][::core::mem::offset_of!(RmsNormParams, x_stride) - 24usize];
    [
        "Offset of field: RmsNormParams::out_stride",
    ][::core::mem::offset_of!(RmsNormParams, out_stride) - 28usize];
    [
        "Offset of field: RmsNormParams::rows",
    ][::core::mem::offset_of!(RmsNormParams, rows) - 32usize];
    [
        "Offset of field: RmsNormParams::cols",
    ][::core::mem::offset_of!(RmsNormParams, cols) - 36usize];
    [
        "Offset of field: RmsNormParams::eps",
    ][::core::mem::offset_of!(RmsNormParams, eps) - 40usize];
    [
        "Offset of field: RmsNormParams::reserved",
    ][::core::mem::offset_of!(RmsNormParams, reserved) - 44usize];
};
/// Where an expert is: a slot, and what its generation must be for the slot to hold that expert.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct SlotRef {
    pub slot: u32,
    pub generation: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SlotRef"][::core::mem::size_of::<SlotRef>() - 8usize];
    ["Alignment of SlotRef"][::core::mem::align_of::<SlotRef>() - 4usize];
    ["Offset of field: SlotRef::slot"][::core::mem::offset_of!(SlotRef, slot) - 0usize];
    [
        "Offset of field: SlotRef::generation",
    ][::core::mem::offset_of!(SlotRef, generation) - 4usize];
};
/// A matrix [rows, cols] of an expert: offsets in bytes from the start of its slot, each a multiple of 128.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct ExpertMatrix {
    pub weight: u64,
    pub scale: u64,
    pub rows: u32,
    pub cols: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ExpertMatrix"][::core::mem::size_of::<ExpertMatrix>() - 24usize];
    ["Alignment of ExpertMatrix"][::core::mem::align_of::<ExpertMatrix>() - 8usize];
    [
        "Offset of field: ExpertMatrix::weight",
    ][::core::mem::offset_of!(ExpertMatrix, weight) - 0usize];
    [
        "Offset of field: ExpertMatrix::scale",
    ][::core::mem::offset_of!(ExpertMatrix, scale) - 8usize];
    [
        "Offset of field: ExpertMatrix::rows",
    ][::core::mem::offset_of!(ExpertMatrix, rows) - 16usize];
    [
        "Offset of field: ExpertMatrix::cols",
    ][::core::mem::offset_of!(ExpertMatrix, cols) - 20usize];
};
/** The slots of a layer's experts. A kernel that finds generations[slot] != table[expert].generation leaves the smallest
 expert << 32 | slot in `stale` (atomicMin) and writes NaN for that expert's rows.*/
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct ExpertSlots {
    /// The first slot; slot s begins at pool + s · slot_bytes.
    pub pool: u64,
    /// A multiple of 4096.
    pub slot_bytes: u64,
    /// SlotRef [experts].
    pub table: u64,
    /// u32 [slots]: the generation each slot holds.
    pub generations: u64,
    /// One u64, all ones if no slot was stale.
    pub stale: u64,
    pub gate: ExpertMatrix,
    pub up: ExpertMatrix,
    pub down: ExpertMatrix,
    /// Entries of the table.
    pub experts: u32,
    pub slots: u32,
    /// A WeightFormat, of all three matrices.
    pub format: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ExpertSlots"][::core::mem::size_of::<ExpertSlots>() - 128usize];
    ["Alignment of ExpertSlots"][::core::mem::align_of::<ExpertSlots>() - 8usize];
    [
        "Offset of field: ExpertSlots::pool",
    ][::core::mem::offset_of!(ExpertSlots, pool) - 0usize];
    [
        "Offset of field: ExpertSlots::slot_bytes",
    ][::core::mem::offset_of!(ExpertSlots, slot_bytes) - 8usize];
    [
        "Offset of field: ExpertSlots::table",
    ][::core::mem::offset_of!(ExpertSlots, table) - 16usize];
    [
        "Offset of field: ExpertSlots::generations",
    ][::core::mem::offset_of!(ExpertSlots, generations) - 24usize];
    [
        "Offset of field: ExpertSlots::stale",
    ][::core::mem::offset_of!(ExpertSlots, stale) - 32usize];
    [
        "Offset of field: ExpertSlots::gate",
    ][::core::mem::offset_of!(ExpertSlots, gate) - 40usize];
    [
        "Offset of field: ExpertSlots::up",
    ][::core::mem::offset_of!(ExpertSlots, up) - 64usize];
    [
        "Offset of field: ExpertSlots::down",
    ][::core::mem::offset_of!(ExpertSlots, down) - 88usize];
    [
        "Offset of field: ExpertSlots::experts",
    ][::core::mem::offset_of!(ExpertSlots, experts) - 112usize];
    [
        "Offset of field: ExpertSlots::slots",
    ][::core::mem::offset_of!(ExpertSlots, slots) - 116usize];
    [
        "Offset of field: ExpertSlots::format",
    ][::core::mem::offset_of!(ExpertSlots, format) - 120usize];
    [
        "Offset of field: ExpertSlots::reserved",
    ][::core::mem::offset_of!(ExpertSlots, reserved) - 124usize];
};
pub mod GemvSize {
    #[allow(unused_imports)]
    use super::*;
    /// Sizes of the loop over weight rows that launchers share with kernels.
    pub type Type = u32;
    /// Rows of a block.
    pub const GEMV_ROWS: Type = 64;
    /// Bytes of a row that a block takes in at a time.
    pub const GEMV_SPAN: Type = 128;
    /// Blocks a launch may have if columns are split among them: their partial sums have this many places.
    pub const GEMV_SPLIT_BLOCKS: Type = 512;
}
/// out[tokens, rows] = x[tokens, cols] · weightᵀ.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct GemvParams {
    /// bf16 [tokens, cols].
    pub x: u64,
    /// [tokens, rows].
    pub out: u64,
    pub weight: WeightMatrix,
    pub x_stride: u32,
    pub out_stride: u32,
    pub tokens: u32,
    /// An ActivationType.
    pub out_type: u32,
    /// Spans of GEMV_SPAN bytes of a row that a block multiplies; blocks at (·, i, ·) take spans from i times this on.
    pub spans: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GemvParams"][::core::mem::size_of::<GemvParams>() - 72usize];
    ["Alignment of GemvParams"][::core::mem::align_of::<GemvParams>() - 8usize];
    ["Offset of field: GemvParams::x"][::core::mem::offset_of!(GemvParams, x) - 0usize];
    [
        "Offset of field: GemvParams::out",
    ][::core::mem::offset_of!(GemvParams, out) - 8usize];
    [
        "Offset of field: GemvParams::weight",
    ][::core::mem::offset_of!(GemvParams, weight) - 16usize];
    [
        "Offset of field: GemvParams::x_stride",
    ][::core::mem::offset_of!(GemvParams, x_stride) - 48usize];
    [
        "Offset of field: GemvParams::out_stride",
    ][::core::mem::offset_of!(GemvParams, out_stride) - 52usize];
    [
        "Offset of field: GemvParams::tokens",
    ][::core::mem::offset_of!(GemvParams, tokens) - 56usize];
    [
        "Offset of field: GemvParams::out_type",
    ][::core::mem::offset_of!(GemvParams, out_type) - 60usize];
    [
        "Offset of field: GemvParams::spans",
    ][::core::mem::offset_of!(GemvParams, spans) - 64usize];
    [
        "Offset of field: GemvParams::reserved",
    ][::core::mem::offset_of!(GemvParams, reserved) - 68usize];
};
/** pairs[p] = down·(silu(gate·x[t]) ⊙ (up·x[t])), t = sorted_tokens[p], with the weights of the expert whose range of
 `offsets` p is in.*/
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct ExpertGemvParams {
    pub experts: ExpertSlots,
    /// bf16 [tokens, cols of gate].
    pub x: u64,
    /// u32, the token of each sorted pair.
    pub sorted_tokens: u64,
    /// u32 [experts + 1].
    pub offsets: u64,
    /// bf16 [pairs, rows of gate]: silu(gate·x) ⊙ (up·x).
    pub hidden: u64,
    /// bf16 [pairs, rows of down].
    pub pairs: u64,
    pub x_stride: u32,
    pub hidden_stride: u32,
    pub pairs_stride: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ExpertGemvParams"][::core::mem::size_of::<ExpertGemvParams>() - 184usize];
    [
        "Alignment of ExpertGemvParams",
    ][::core::mem::align_of::<ExpertGemvParams>() - 8usize];
    [
        "Offset of field: ExpertGemvParams::experts",
    ][::core::mem::offset_of!(ExpertGemvParams, experts) - 0usize];
    [
        "Offset of field: ExpertGemvParams::x",
    ][::core::mem::offset_of!(ExpertGemvParams, x) - 128usize];
    [
        "Offset of field: ExpertGemvParams::sorted_tokens",
    ][::core::mem::offset_of!(ExpertGemvParams, sorted_tokens) - 136usize];
    [
        "Offset of field: ExpertGemvParams::offsets",
    ][::core::mem::offset_of!(ExpertGemvParams, offsets) - 144usize];
    [
        "Offset of field: ExpertGemvParams::hidden",
    ][::core::mem::offset_of!(ExpertGemvParams, hidden) - 152usize];
    [
        "Offset of field: ExpertGemvParams::pairs",
    ][::core::mem::offset_of!(ExpertGemvParams, pairs) - 160usize];
    [
        "Offset of field: ExpertGemvParams::x_stride",
    ][::core::mem::offset_of!(ExpertGemvParams, x_stride) - 168usize];
    [
        "Offset of field: ExpertGemvParams::hidden_stride",
    ][::core::mem::offset_of!(ExpertGemvParams, hidden_stride) - 172usize];
    [
        "Offset of field: ExpertGemvParams::pairs_stride",
    ][::core::mem::offset_of!(ExpertGemvParams, pairs_stride) - 176usize];
    [
        "Offset of field: ExpertGemvParams::reserved",
    ][::core::mem::offset_of!(ExpertGemvParams, reserved) - 180usize];
};
