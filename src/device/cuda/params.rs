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
/// What blocks of a launch tell each other. Between launches: no fault, no block.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct RouteProgress {
    /// The smallest token << 32 | candidates so far, all ones if none.
    pub fault: u64,
    pub blocks_done: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of RouteProgress"][::core::mem::size_of::<RouteProgress>() - 16usize];
    ["Alignment of RouteProgress"][::core::mem::align_of::<RouteProgress>() - 8usize];
    [
        "Offset of field: RouteProgress::fault",
    ][::core::mem::offset_of!(RouteProgress, fault) - 0usize];
    [
        "Offset of field: RouteProgress::blocks_done",
    ][::core::mem::offset_of!(RouteProgress, blocks_done) - 8usize];
    [
        "Offset of field: RouteProgress::reserved",
    ][::core::mem::offset_of!(RouteProgress, reserved) - 12usize];
};
/// Chooses experts and sorts the pairs token · top_k + rank by expert; the rules are in src/device/routing.rs.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct RouteParams {
    /// f32 [tokens, experts].
    pub logits: u64,
    /// f32 [experts].
    pub bias: u64,
    /// u32 [tokens, top_k], best first.
    pub ids: u64,
    /// f32 [tokens, top_k].
    pub weights: u64,
    /// u32 [tokens · top_k]: pairs by expert, in order within an expert.
    pub sorted: u64,
    /// u32 [tokens · top_k]: the token of each sorted pair.
    pub sorted_tokens: u64,
    /// u32 [tokens, top_k]: where each pair stands in `sorted`.
    pub positions: u64,
    /// u32 [experts + 1]: the first sorted pair of each expert, and their number last.
    pub offsets: u64,
    /// One u64: token << 32 | candidates of the first token that had fewer than top_k, all ones if none.
    pub fault: u64,
    /// RouteProgress.
    pub progress: u64,
    pub logits_stride: u32,
    pub tokens: u32,
    pub experts: u32,
    pub top_k: u32,
    pub groups: u32,
    /// Groups a token may choose from.
    pub groups_kept: u32,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// 1: divide the weights by their sum.
    pub normalise: u32,
    pub scaling: f32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of RouteParams"][::core::mem::size_of::<RouteParams>() - 120usize];
    ["Alignment of RouteParams"][::core::mem::align_of::<RouteParams>() - 8usize];
    [
        "Offset of field: RouteParams::logits",
    ][::core::mem::offset_of!(RouteParams, logits) - 0usize];
    [
        "Offset of field: RouteParams::bias",
    ][::core::mem::offset_of!(RouteParams, bias) - 8usize];
    [
        "Offset of field: RouteParams::ids",
    ][::core::mem::offset_of!(RouteParams, ids) - 16usize];
    [
        "Offset of field: RouteParams::weights",
    ][::core::mem::offset_of!(RouteParams, weights) - 24usize];
    [
        "Offset of field: RouteParams::sorted",
    ][::core::mem::offset_of!(RouteParams, sorted) - 32usize];
    [
        "Offset of field: RouteParams::sorted_tokens",
    ][::core::mem::offset_of!(RouteParams, sorted_tokens) - 40usize];
    [
        "Offset of field: RouteParams::positions",
    ][::core::mem::offset_of!(RouteParams, positions) - 48usize];
    [
        "Offset of field: RouteParams::offsets",
    ][::core::mem::offset_of!(RouteParams, offsets) - 56usize];
    [
        "Offset of field: RouteParams::fault",
    ][::core::mem::offset_of!(RouteParams, fault) - 64usize];
    [
        "Offset of field: RouteParams::progress",
    ][::core::mem::offset_of!(RouteParams, progress) - 72usize];
    [
        "Offset of field: RouteParams::logits_stride",
    ][::core::mem::offset_of!(RouteParams, logits_stride) - 80usize];
    [
        "Offset of field: RouteParams::tokens",
    ][::core::mem::offset_of!(RouteParams, tokens) - 84usize];
    [
        "Offset of field: RouteParams::experts",
    ][::core::mem::offset_of!(RouteParams, experts) - 88usize];
    [
        "Offset of field: RouteParams::top_k",
    ][::core::mem::offset_of!(RouteParams, top_k) - 92usize];
    [
        "Offset of field: RouteParams::groups",
    ][::core::mem::offset_of!(RouteParams, groups) - 96usize];
    [
        "Offset of field: RouteParams::groups_kept",
    ][::core::mem::offset_of!(RouteParams, groups_kept) - 100usize];
    [
        "Offset of field: RouteParams::block_tokens",
    ][::core::mem::offset_of!(RouteParams, block_tokens) - 104usize];
    [
        "Offset of field: RouteParams::normalise",
    ][::core::mem::offset_of!(RouteParams, normalise) - 108usize];
    [
        "Offset of field: RouteParams::scaling",
    ][::core::mem::offset_of!(RouteParams, scaling) - 112usize];
    [
        "Offset of field: RouteParams::reserved",
    ][::core::mem::offset_of!(RouteParams, reserved) - 116usize];
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
