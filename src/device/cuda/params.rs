// Made from cuda/include/params.h by `cargo xtask bindings`; not to be edited. One file, as the header is one.

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
/// sum += x, then out = rms_norm(sum) as above. One block a row.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct AddRmsNormParams {
    /// [rows, cols], f32 or bf16 by the kernel's name.
    pub x: u64,
    /// [rows, cols], f32 or bf16 by the kernel's name.
    pub sum: u64,
    /// f32 [cols], aligned to 16 bytes.
    pub weight: u64,
    /// bf16 [rows, cols].
    pub out: u64,
    pub x_stride: u32,
    pub sum_stride: u32,
    pub out_stride: u32,
    pub rows: u32,
    pub cols: u32,
    pub eps: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AddRmsNormParams"][::core::mem::size_of::<AddRmsNormParams>() - 56usize];
    [
        "Alignment of AddRmsNormParams",
    ][::core::mem::align_of::<AddRmsNormParams>() - 8usize];
    [
        "Offset of field: AddRmsNormParams::x",
    ][::core::mem::offset_of!(AddRmsNormParams, x) - 0usize];
    [
        "Offset of field: AddRmsNormParams::sum",
    ][::core::mem::offset_of!(AddRmsNormParams, sum) - 8usize];
    [
        "Offset of field: AddRmsNormParams::weight",
    ][::core::mem::offset_of!(AddRmsNormParams, weight) - 16usize];
    [
        "Offset of field: AddRmsNormParams::out",
    ][::core::mem::offset_of!(AddRmsNormParams, out) - 24usize];
    [
        "Offset of field: AddRmsNormParams::x_stride",
    ][::core::mem::offset_of!(AddRmsNormParams, x_stride) - 32usize];
    [
        "Offset of field: AddRmsNormParams::sum_stride",
    ][::core::mem::offset_of!(AddRmsNormParams, sum_stride) - 36usize];
    [
        "Offset of field: AddRmsNormParams::out_stride",
    ][::core::mem::offset_of!(AddRmsNormParams, out_stride) - 40usize];
    [
        "Offset of field: AddRmsNormParams::rows",
    ][::core::mem::offset_of!(AddRmsNormParams, rows) - 44usize];
    [
        "Offset of field: AddRmsNormParams::cols",
    ][::core::mem::offset_of!(AddRmsNormParams, cols) - 48usize];
    [
        "Offset of field: AddRmsNormParams::eps",
    ][::core::mem::offset_of!(AddRmsNormParams, eps) - 52usize];
};
/// Rotates the rotary part of every head of q in place; row i stands at position start + i.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct RopeQueryParams {
    /// bf16 [tokens, heads · (nope + rope)].
    pub q: u64,
    /// f32 [rope / 2].
    pub inv_freq: u64,
    pub stride: u32,
    pub tokens: u32,
    pub heads: u32,
    pub nope: u32,
    pub rope: u32,
    pub start: u32,
    pub amplitude: f32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of RopeQueryParams"][::core::mem::size_of::<RopeQueryParams>() - 48usize];
    [
        "Alignment of RopeQueryParams",
    ][::core::mem::align_of::<RopeQueryParams>() - 8usize];
    [
        "Offset of field: RopeQueryParams::q",
    ][::core::mem::offset_of!(RopeQueryParams, q) - 0usize];
    [
        "Offset of field: RopeQueryParams::inv_freq",
    ][::core::mem::offset_of!(RopeQueryParams, inv_freq) - 8usize];
    [
        "Offset of field: RopeQueryParams::stride",
    ][::core::mem::offset_of!(RopeQueryParams, stride) - 16usize];
    [
        "Offset of field: RopeQueryParams::tokens",
    ][::core::mem::offset_of!(RopeQueryParams, tokens) - 20usize];
    [
        "Offset of field: RopeQueryParams::heads",
    ][::core::mem::offset_of!(RopeQueryParams, heads) - 24usize];
    [
        "Offset of field: RopeQueryParams::nope",
    ][::core::mem::offset_of!(RopeQueryParams, nope) - 28usize];
    [
        "Offset of field: RopeQueryParams::rope",
    ][::core::mem::offset_of!(RopeQueryParams, rope) - 32usize];
    [
        "Offset of field: RopeQueryParams::start",
    ][::core::mem::offset_of!(RopeQueryParams, start) - 36usize];
    [
        "Offset of field: RopeQueryParams::amplitude",
    ][::core::mem::offset_of!(RopeQueryParams, amplitude) - 40usize];
    [
        "Offset of field: RopeQueryParams::reserved",
    ][::core::mem::offset_of!(RopeQueryParams, reserved) - 44usize];
};
/// Appends rows to a paged cache from position `start` on: latent part normalised, key part rotated.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct KvAppendParams {
    /// bf16 [tokens, latent + rope].
    pub kv_a: u64,
    /// f32 [latent], aligned to 16 bytes.
    pub norm: u64,
    /// f32 [rope / 2].
    pub inv_freq: u64,
    /// uint64_t [pages]: where each page begins; a page is 64 positions.
    pub pages: u64,
    /// Bytes from a page's begin to this layer's part of it, a multiple of 16.
    pub layer_offset: u64,
    /// Elements from row to row of kv_a.
    pub kv_stride: u32,
    /// Elements from position to position in a page, a multiple of 8.
    pub page_stride: u32,
    pub tokens: u32,
    pub latent: u32,
    pub rope: u32,
    pub start: u32,
    pub eps: f32,
    pub amplitude: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of KvAppendParams"][::core::mem::size_of::<KvAppendParams>() - 72usize];
    ["Alignment of KvAppendParams"][::core::mem::align_of::<KvAppendParams>() - 8usize];
    [
        "Offset of field: KvAppendParams::kv_a",
    ][::core::mem::offset_of!(KvAppendParams, kv_a) - 0usize];
    [
        "Offset of field: KvAppendParams::norm",
    ][::core::mem::offset_of!(KvAppendParams, norm) - 8usize];
    [
        "Offset of field: KvAppendParams::inv_freq",
    ][::core::mem::offset_of!(KvAppendParams, inv_freq) - 16usize];
    [
        "Offset of field: KvAppendParams::pages",
    ][::core::mem::offset_of!(KvAppendParams, pages) - 24usize];
    [
        "Offset of field: KvAppendParams::layer_offset",
    ][::core::mem::offset_of!(KvAppendParams, layer_offset) - 32usize];
    [
        "Offset of field: KvAppendParams::kv_stride",
    ][::core::mem::offset_of!(KvAppendParams, kv_stride) - 40usize];
    [
        "Offset of field: KvAppendParams::page_stride",
    ][::core::mem::offset_of!(KvAppendParams, page_stride) - 44usize];
    [
        "Offset of field: KvAppendParams::tokens",
    ][::core::mem::offset_of!(KvAppendParams, tokens) - 48usize];
    [
        "Offset of field: KvAppendParams::latent",
    ][::core::mem::offset_of!(KvAppendParams, latent) - 52usize];
    [
        "Offset of field: KvAppendParams::rope",
    ][::core::mem::offset_of!(KvAppendParams, rope) - 56usize];
    [
        "Offset of field: KvAppendParams::start",
    ][::core::mem::offset_of!(KvAppendParams, start) - 60usize];
    [
        "Offset of field: KvAppendParams::eps",
    ][::core::mem::offset_of!(KvAppendParams, eps) - 64usize];
    [
        "Offset of field: KvAppendParams::amplitude",
    ][::core::mem::offset_of!(KvAppendParams, amplitude) - 68usize];
};
/** Where an expert is: a slot, and what its generation must be for the slot to hold that expert; or SLOT_NONE, and the expert is
 left out.*/
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
 expert << 32 | slot in `stale` (atomicMin) and writes NaN for that expert's rows. Rows of an expert that the table has in
 SLOT_NONE stay as they are.*/
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
pub mod NoSlot {
    #[allow(unused_imports)]
    use super::*;
    /// What stands in tables, and in lists of slots by expert or by group, instead of a slot.
    pub type Type = u32;
    /// No slot: it is neither decoded nor multiplied with, and rows stay as they are.
    pub const SLOT_NONE: Type = 4294967295;
    /// In lists only: a slot that holds something else. It is not decoded, products are NaN.
    pub const SLOT_STALE: Type = 4294967294;
}
/// out[i] = table[ids[i]].
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct EmbedParams {
    /// F32, F16 or BF16.
    pub table: WeightMatrix,
    /// uint32_t [tokens].
    pub ids: u64,
    /// [tokens, table.cols], f32 or bf16 by the kernel's name.
    pub out: u64,
    pub out_stride: u32,
    pub tokens: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of EmbedParams"][::core::mem::size_of::<EmbedParams>() - 56usize];
    ["Alignment of EmbedParams"][::core::mem::align_of::<EmbedParams>() - 8usize];
    [
        "Offset of field: EmbedParams::table",
    ][::core::mem::offset_of!(EmbedParams, table) - 0usize];
    [
        "Offset of field: EmbedParams::ids",
    ][::core::mem::offset_of!(EmbedParams, ids) - 32usize];
    [
        "Offset of field: EmbedParams::out",
    ][::core::mem::offset_of!(EmbedParams, out) - 40usize];
    [
        "Offset of field: EmbedParams::out_stride",
    ][::core::mem::offset_of!(EmbedParams, out_stride) - 48usize];
    [
        "Offset of field: EmbedParams::tokens",
    ][::core::mem::offset_of!(EmbedParams, tokens) - 52usize];
};
/// sum += x.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct AddParams {
    /// [rows, cols], f32 or bf16 by the kernel's name.
    pub x: u64,
    /// [rows, cols], f32 or bf16 by the kernel's name.
    pub sum: u64,
    pub x_stride: u32,
    pub sum_stride: u32,
    pub rows: u32,
    pub cols: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AddParams"][::core::mem::size_of::<AddParams>() - 32usize];
    ["Alignment of AddParams"][::core::mem::align_of::<AddParams>() - 8usize];
    ["Offset of field: AddParams::x"][::core::mem::offset_of!(AddParams, x) - 0usize];
    [
        "Offset of field: AddParams::sum",
    ][::core::mem::offset_of!(AddParams, sum) - 8usize];
    [
        "Offset of field: AddParams::x_stride",
    ][::core::mem::offset_of!(AddParams, x_stride) - 16usize];
    [
        "Offset of field: AddParams::sum_stride",
    ][::core::mem::offset_of!(AddParams, sum_stride) - 20usize];
    [
        "Offset of field: AddParams::rows",
    ][::core::mem::offset_of!(AddParams, rows) - 24usize];
    [
        "Offset of field: AddParams::cols",
    ][::core::mem::offset_of!(AddParams, cols) - 28usize];
};
/// out = x, bit by bit.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct CopyRowsParams {
    /// The first row to copy; [rows, cols], f32 or bf16 by the kernel's name.
    pub x: u64,
    /// [rows, cols] of the same type.
    pub out: u64,
    pub x_stride: u32,
    pub out_stride: u32,
    pub rows: u32,
    pub cols: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CopyRowsParams"][::core::mem::size_of::<CopyRowsParams>() - 32usize];
    ["Alignment of CopyRowsParams"][::core::mem::align_of::<CopyRowsParams>() - 8usize];
    [
        "Offset of field: CopyRowsParams::x",
    ][::core::mem::offset_of!(CopyRowsParams, x) - 0usize];
    [
        "Offset of field: CopyRowsParams::out",
    ][::core::mem::offset_of!(CopyRowsParams, out) - 8usize];
    [
        "Offset of field: CopyRowsParams::x_stride",
    ][::core::mem::offset_of!(CopyRowsParams, x_stride) - 16usize];
    [
        "Offset of field: CopyRowsParams::out_stride",
    ][::core::mem::offset_of!(CopyRowsParams, out_stride) - 20usize];
    [
        "Offset of field: CopyRowsParams::rows",
    ][::core::mem::offset_of!(CopyRowsParams, rows) - 24usize];
    [
        "Offset of field: CopyRowsParams::cols",
    ][::core::mem::offset_of!(CopyRowsParams, cols) - 28usize];
};
/// out = silu(gate) ⊙ up, all bf16 [rows, cols].
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct SwigluParams {
    pub gate: u64,
    pub up: u64,
    pub out: u64,
    pub gate_stride: u32,
    pub up_stride: u32,
    pub out_stride: u32,
    pub rows: u32,
    pub cols: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SwigluParams"][::core::mem::size_of::<SwigluParams>() - 48usize];
    ["Alignment of SwigluParams"][::core::mem::align_of::<SwigluParams>() - 8usize];
    [
        "Offset of field: SwigluParams::gate",
    ][::core::mem::offset_of!(SwigluParams, gate) - 0usize];
    [
        "Offset of field: SwigluParams::up",
    ][::core::mem::offset_of!(SwigluParams, up) - 8usize];
    [
        "Offset of field: SwigluParams::out",
    ][::core::mem::offset_of!(SwigluParams, out) - 16usize];
    [
        "Offset of field: SwigluParams::gate_stride",
    ][::core::mem::offset_of!(SwigluParams, gate_stride) - 24usize];
    [
        "Offset of field: SwigluParams::up_stride",
    ][::core::mem::offset_of!(SwigluParams, up_stride) - 28usize];
    [
        "Offset of field: SwigluParams::out_stride",
    ][::core::mem::offset_of!(SwigluParams, out_stride) - 32usize];
    [
        "Offset of field: SwigluParams::rows",
    ][::core::mem::offset_of!(SwigluParams, rows) - 36usize];
    [
        "Offset of field: SwigluParams::cols",
    ][::core::mem::offset_of!(SwigluParams, cols) - 40usize];
    [
        "Offset of field: SwigluParams::reserved",
    ][::core::mem::offset_of!(SwigluParams, reserved) - 44usize];
};
/// sum[t] += Σⱼ weights[t, j] · pairs[positions[t, j]], j in rank order.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct CombineParams {
    /// [pairs_rows, cols], f32 or bf16 by the kernel's name.
    pub pairs: u64,
    /// f32 [tokens, top_k].
    pub weights: u64,
    /// uint32_t [tokens, top_k].
    pub positions: u64,
    /// f32 [tokens, cols].
    pub sum: u64,
    pub pairs_stride: u32,
    pub sum_stride: u32,
    pub pairs_rows: u32,
    pub tokens: u32,
    pub cols: u32,
    pub top_k: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CombineParams"][::core::mem::size_of::<CombineParams>() - 56usize];
    ["Alignment of CombineParams"][::core::mem::align_of::<CombineParams>() - 8usize];
    [
        "Offset of field: CombineParams::pairs",
    ][::core::mem::offset_of!(CombineParams, pairs) - 0usize];
    [
        "Offset of field: CombineParams::weights",
    ][::core::mem::offset_of!(CombineParams, weights) - 8usize];
    [
        "Offset of field: CombineParams::positions",
    ][::core::mem::offset_of!(CombineParams, positions) - 16usize];
    [
        "Offset of field: CombineParams::sum",
    ][::core::mem::offset_of!(CombineParams, sum) - 24usize];
    [
        "Offset of field: CombineParams::pairs_stride",
    ][::core::mem::offset_of!(CombineParams, pairs_stride) - 32usize];
    [
        "Offset of field: CombineParams::sum_stride",
    ][::core::mem::offset_of!(CombineParams, sum_stride) - 36usize];
    [
        "Offset of field: CombineParams::pairs_rows",
    ][::core::mem::offset_of!(CombineParams, pairs_rows) - 40usize];
    [
        "Offset of field: CombineParams::tokens",
    ][::core::mem::offset_of!(CombineParams, tokens) - 44usize];
    [
        "Offset of field: CombineParams::cols",
    ][::core::mem::offset_of!(CombineParams, cols) - 48usize];
    [
        "Offset of field: CombineParams::top_k",
    ][::core::mem::offset_of!(CombineParams, top_k) - 52usize];
};
/// Notes the first NaN or infinity of x.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct WatchParams {
    /// [rows, cols], f32 or bf16 by the kernel's name.
    pub x: u64,
    /// One uint64_t, all ones until something is found: site << 48 | row << 24 | column of the least.
    pub guard: u64,
    pub stride: u32,
    pub rows: u32,
    pub cols: u32,
    pub site: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of WatchParams"][::core::mem::size_of::<WatchParams>() - 32usize];
    ["Alignment of WatchParams"][::core::mem::align_of::<WatchParams>() - 8usize];
    [
        "Offset of field: WatchParams::x",
    ][::core::mem::offset_of!(WatchParams, x) - 0usize];
    [
        "Offset of field: WatchParams::guard",
    ][::core::mem::offset_of!(WatchParams, guard) - 8usize];
    [
        "Offset of field: WatchParams::stride",
    ][::core::mem::offset_of!(WatchParams, stride) - 16usize];
    [
        "Offset of field: WatchParams::rows",
    ][::core::mem::offset_of!(WatchParams, rows) - 20usize];
    [
        "Offset of field: WatchParams::cols",
    ][::core::mem::offset_of!(WatchParams, cols) - 24usize];
    [
        "Offset of field: WatchParams::site",
    ][::core::mem::offset_of!(WatchParams, site) - 28usize];
};
/// Draws one id a row of logits.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct SampleParams {
    /// f32 [rows, vocab].
    pub logits: u64,
    /// uint64_t [rows]: random words, of which the upper 53 bits are used.
    pub words: u64,
    /// uint32_t [rows].
    pub ids: u64,
    /// One uint32_t, all ones until a row can't be drawn from: the least such row.
    pub fault: u64,
    pub stride: u32,
    pub rows: u32,
    /// 1 to 2²⁴.
    pub vocab: u32,
    /// 0 keeps all.
    pub top_k: u32,
    /// 0 takes the largest logit.
    pub temperature: f32,
    pub top_p: f32,
    pub min_p: f32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SampleParams"][::core::mem::size_of::<SampleParams>() - 64usize];
    ["Alignment of SampleParams"][::core::mem::align_of::<SampleParams>() - 8usize];
    [
        "Offset of field: SampleParams::logits",
    ][::core::mem::offset_of!(SampleParams, logits) - 0usize];
    [
        "Offset of field: SampleParams::words",
    ][::core::mem::offset_of!(SampleParams, words) - 8usize];
    [
        "Offset of field: SampleParams::ids",
    ][::core::mem::offset_of!(SampleParams, ids) - 16usize];
    [
        "Offset of field: SampleParams::fault",
    ][::core::mem::offset_of!(SampleParams, fault) - 24usize];
    [
        "Offset of field: SampleParams::stride",
    ][::core::mem::offset_of!(SampleParams, stride) - 32usize];
    [
        "Offset of field: SampleParams::rows",
    ][::core::mem::offset_of!(SampleParams, rows) - 36usize];
    [
        "Offset of field: SampleParams::vocab",
    ][::core::mem::offset_of!(SampleParams, vocab) - 40usize];
    [
        "Offset of field: SampleParams::top_k",
    ][::core::mem::offset_of!(SampleParams, top_k) - 44usize];
    [
        "Offset of field: SampleParams::temperature",
    ][::core::mem::offset_of!(SampleParams, temperature) - 48usize];
    [
        "Offset of field: SampleParams::top_p",
    ][::core::mem::offset_of!(SampleParams, top_p) - 52usize];
    [
        "Offset of field: SampleParams::min_p",
    ][::core::mem::offset_of!(SampleParams, min_p) - 56usize];
    [
        "Offset of field: SampleParams::reserved",
    ][::core::mem::offset_of!(SampleParams, reserved) - 60usize];
};
/// Activations to FP8 with a scale per token and 128 columns. Output row i is input row rows_map[i], or i without a map.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct QuantiseParams {
    /// bf16 [.., cols].
    pub x: u64,
    /// u32 [rows], or 0.
    pub rows_map: u64,
    /// e4m3 [rows, cols], rows `row_stride` bytes apart.
    pub codes: u64,
    /// f32 [ceil(cols / 128), rows], groups `scale_stride` elements apart.
    pub scales: u64,
    pub x_stride: u32,
    /// A multiple of 16, at least cols.
    pub row_stride: u32,
    /// A multiple of 4, at least rows.
    pub scale_stride: u32,
    pub rows: u32,
    pub cols: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of QuantiseParams"][::core::mem::size_of::<QuantiseParams>() - 56usize];
    ["Alignment of QuantiseParams"][::core::mem::align_of::<QuantiseParams>() - 8usize];
    [
        "Offset of field: QuantiseParams::x",
    ][::core::mem::offset_of!(QuantiseParams, x) - 0usize];
    [
        "Offset of field: QuantiseParams::rows_map",
    ][::core::mem::offset_of!(QuantiseParams, rows_map) - 8usize];
    [
        "Offset of field: QuantiseParams::codes",
    ][::core::mem::offset_of!(QuantiseParams, codes) - 16usize];
    [
        "Offset of field: QuantiseParams::scales",
    ][::core::mem::offset_of!(QuantiseParams, scales) - 24usize];
    [
        "Offset of field: QuantiseParams::x_stride",
    ][::core::mem::offset_of!(QuantiseParams, x_stride) - 32usize];
    [
        "Offset of field: QuantiseParams::row_stride",
    ][::core::mem::offset_of!(QuantiseParams, row_stride) - 36usize];
    [
        "Offset of field: QuantiseParams::scale_stride",
    ][::core::mem::offset_of!(QuantiseParams, scale_stride) - 40usize];
    [
        "Offset of field: QuantiseParams::rows",
    ][::core::mem::offset_of!(QuantiseParams, rows) - 44usize];
    [
        "Offset of field: QuantiseParams::cols",
    ][::core::mem::offset_of!(QuantiseParams, cols) - 48usize];
    [
        "Offset of field: QuantiseParams::reserved",
    ][::core::mem::offset_of!(QuantiseParams, reserved) - 52usize];
};
/** Weights of one size to 16-bit elements. Matrix i of the output is the one in slot slots[i], or slot i without a list; for
 SLOT_NONE and SLOT_STALE it stays as it is.*/
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct DequantParams {
    /// FP8 or INT4 by the kernel's name, [rows, cols] of slot 0; aligned to 16 bytes.
    pub weight: u64,
    /// The scales of slot 0.
    pub scale: u64,
    /// Bytes from slot to slot, of weights and of scales; a multiple of 16.
    pub slot_pitch: u64,
    /// u32, or 0.
    pub slots: u64,
    /// bf16 or fp16 [rows, cols].
    pub out: u64,
    /// Elements from matrix to matrix of `out`; a multiple of 8.
    pub out_pitch: u64,
    /// u32 that the number of saturated elements is added to (fp16 only).
    pub saturated: u64,
    pub rows: u32,
    pub cols: u32,
    pub out_stride: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of DequantParams"][::core::mem::size_of::<DequantParams>() - 72usize];
    ["Alignment of DequantParams"][::core::mem::align_of::<DequantParams>() - 8usize];
    [
        "Offset of field: DequantParams::weight",
    ][::core::mem::offset_of!(DequantParams, weight) - 0usize];
    [
        "Offset of field: DequantParams::scale",
    ][::core::mem::offset_of!(DequantParams, scale) - 8usize];
    [
        "Offset of field: DequantParams::slot_pitch",
    ][::core::mem::offset_of!(DequantParams, slot_pitch) - 16usize];
    [
        "Offset of field: DequantParams::slots",
    ][::core::mem::offset_of!(DequantParams, slots) - 24usize];
    [
        "Offset of field: DequantParams::out",
    ][::core::mem::offset_of!(DequantParams, out) - 32usize];
    [
        "Offset of field: DequantParams::out_pitch",
    ][::core::mem::offset_of!(DequantParams, out_pitch) - 40usize];
    [
        "Offset of field: DequantParams::saturated",
    ][::core::mem::offset_of!(DequantParams, saturated) - 48usize];
    [
        "Offset of field: DequantParams::rows",
    ][::core::mem::offset_of!(DequantParams, rows) - 56usize];
    [
        "Offset of field: DequantParams::cols",
    ][::core::mem::offset_of!(DequantParams, cols) - 60usize];
    [
        "Offset of field: DequantParams::out_stride",
    ][::core::mem::offset_of!(DequantParams, out_stride) - 64usize];
    [
        "Offset of field: DequantParams::reserved",
    ][::core::mem::offset_of!(DequantParams, reserved) - 68usize];
};
pub mod GemmConstant {
    #[allow(unused_imports)]
    use super::*;
    /// What host and kernels must agree on.
    pub type Type = u32;
    /// Groups that a product takes at most.
    pub const GEMM_MAX_GROUPS: Type = 1024;
    /// Groups that a product takes at most.
    pub const GEMM_THREADS: Type = 384;
    /// Groups that a product takes at most.
    pub const GEMM_TILE_ROWS: Type = 128;
    /// Rows of a box of x.
    pub const GEMM_BOX_ROWS: Type = 64;
    /// Columns of k of every box.
    pub const GEMM_BLOCK_K: Type = 64;
    /// Dynamic shared memory of a block: 192 KB of stages, and room to align them to 1024.
    pub const GEMM_SHARED_BYTES: Type = 197632;
}
/** y[r] = w·x[r] in bf16; grouped: with w the matrix in slot slots[g] for rows offsets[g] to offsets[g + 1] of x, NaN for
 SLOT_STALE and as it was for SLOT_NONE.*/
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone)]
pub struct GemmParams {
    /// bf16 [1, rows, k] in boxes of 64 rows and 64 columns.
    pub x: TensorMap,
    /// bf16 [slots, cols, k] in boxes of the kernel's tile width and 64 columns.
    pub w: TensorMap,
    /// [rows, cols], an ActivationType.
    pub out: u64,
    /// u32 [groups + 1]; grouped only.
    pub offsets: u64,
    /// u32 [groups]; grouped only.
    pub slots: u64,
    pub reserved: u64,
    pub rows: u32,
    pub cols: u32,
    pub k: u32,
    pub groups: u32,
    pub out_stride: u32,
    pub out_type: u32,
    pub reserved2: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GemmParams"][::core::mem::size_of::<GemmParams>() - 320usize];
    ["Alignment of GemmParams"][::core::mem::align_of::<GemmParams>() - 64usize];
    ["Offset of field: GemmParams::x"][::core::mem::offset_of!(GemmParams, x) - 0usize];
    [
        "Offset of field: GemmParams::w",
    ][::core::mem::offset_of!(GemmParams, w) - 128usize];
    [
        "Offset of field: GemmParams::out",
    ][::core::mem::offset_of!(GemmParams, out) - 256usize];
    [
        "Offset of field: GemmParams::offsets",
    ][::core::mem::offset_of!(GemmParams, offsets) - 264usize];
    [
        "Offset of field: GemmParams::slots",
    ][::core::mem::offset_of!(GemmParams, slots) - 272usize];
    [
        "Offset of field: GemmParams::reserved",
    ][::core::mem::offset_of!(GemmParams, reserved) - 280usize];
    [
        "Offset of field: GemmParams::rows",
    ][::core::mem::offset_of!(GemmParams, rows) - 288usize];
    [
        "Offset of field: GemmParams::cols",
    ][::core::mem::offset_of!(GemmParams, cols) - 292usize];
    [
        "Offset of field: GemmParams::k",
    ][::core::mem::offset_of!(GemmParams, k) - 296usize];
    [
        "Offset of field: GemmParams::groups",
    ][::core::mem::offset_of!(GemmParams, groups) - 300usize];
    [
        "Offset of field: GemmParams::out_stride",
    ][::core::mem::offset_of!(GemmParams, out_stride) - 304usize];
    [
        "Offset of field: GemmParams::out_type",
    ][::core::mem::offset_of!(GemmParams, out_type) - 308usize];
    [
        "Offset of field: GemmParams::reserved2",
    ][::core::mem::offset_of!(GemmParams, reserved2) - 312usize];
};
impl Default for GemmParams {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/// out[i] = x[rows_map[i]], bf16.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct GatherParams {
    pub x: u64,
    /// u32 [rows].
    pub rows_map: u64,
    pub out: u64,
    pub x_stride: u32,
    pub out_stride: u32,
    pub rows: u32,
    /// A multiple of 8.
    pub cols: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GatherParams"][::core::mem::size_of::<GatherParams>() - 40usize];
    ["Alignment of GatherParams"][::core::mem::align_of::<GatherParams>() - 8usize];
    [
        "Offset of field: GatherParams::x",
    ][::core::mem::offset_of!(GatherParams, x) - 0usize];
    [
        "Offset of field: GatherParams::rows_map",
    ][::core::mem::offset_of!(GatherParams, rows_map) - 8usize];
    [
        "Offset of field: GatherParams::out",
    ][::core::mem::offset_of!(GatherParams, out) - 16usize];
    [
        "Offset of field: GatherParams::x_stride",
    ][::core::mem::offset_of!(GatherParams, x_stride) - 24usize];
    [
        "Offset of field: GatherParams::out_stride",
    ][::core::mem::offset_of!(GatherParams, out_stride) - 28usize];
    [
        "Offset of field: GatherParams::rows",
    ][::core::mem::offset_of!(GatherParams, rows) - 32usize];
    [
        "Offset of field: GatherParams::cols",
    ][::core::mem::offset_of!(GatherParams, cols) - 36usize];
};
/** Where the experts that have rows are: slots[e] in the pool, places[e] = e % batch among matrices decoded `batch` experts at
 a time. Both SLOT_NONE for experts without rows or slot, and SLOT_STALE for those that aren't in their slot.*/
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct GroupSlotsParams {
    pub experts: ExpertSlots,
    /// u32 [experts + 1].
    pub offsets: u64,
    /// u32 [experts].
    pub slots: u64,
    /// u32 [experts].
    pub places: u64,
    pub batch: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GroupSlotsParams"][::core::mem::size_of::<GroupSlotsParams>() - 160usize];
    [
        "Alignment of GroupSlotsParams",
    ][::core::mem::align_of::<GroupSlotsParams>() - 8usize];
    [
        "Offset of field: GroupSlotsParams::experts",
    ][::core::mem::offset_of!(GroupSlotsParams, experts) - 0usize];
    [
        "Offset of field: GroupSlotsParams::offsets",
    ][::core::mem::offset_of!(GroupSlotsParams, offsets) - 128usize];
    [
        "Offset of field: GroupSlotsParams::slots",
    ][::core::mem::offset_of!(GroupSlotsParams, slots) - 136usize];
    [
        "Offset of field: GroupSlotsParams::places",
    ][::core::mem::offset_of!(GroupSlotsParams, places) - 144usize];
    [
        "Offset of field: GroupSlotsParams::batch",
    ][::core::mem::offset_of!(GroupSlotsParams, batch) - 152usize];
    [
        "Offset of field: GroupSlotsParams::reserved",
    ][::core::mem::offset_of!(GroupSlotsParams, reserved) - 156usize];
};
pub mod ExpertGemm {
    #[allow(unused_imports)]
    use super::*;
    /// Sizes that the launcher shares with the kernels of expert_gemm.cu.
    pub type Type = u32;
    pub const EXPERT_GEMM_THREADS: Type = 384;
    /// Rows of a tile of products.
    pub const EXPERT_GEMM_TILE: Type = 128;
    /// Rows of weights in a box, and codes of a row in a box: a scale block.
    pub const EXPERT_GEMM_BLOCK: Type = 128;
    /// Row tiles that blocks take side by side before they go on to the next columns.
    pub const EXPERT_GEMM_BAND: Type = 16;
    /// Dynamic shared memory in bytes, with one and with two boxes of weights a stage.
    pub const EXPERT_GEMM_SHARED_1: Type = 216160;
    /// Dynamic shared memory in bytes, with one and with two boxes of weights a stage.
    pub const EXPERT_GEMM_SHARED_2: Type = 215104;
}
/// FP8 activations times FP8 weights, group by group: rows offsets[g] .. offsets[g + 1] times the weights of expert g.
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone)]
pub struct ExpertGemmParams {
    /// e4m3 [rows, cols]; boxes of TILE rows by BLOCK codes, 128-byte swizzle.
    pub x: TensorMap,
    /// f32 [⌈cols / 128⌉, rows]; boxes of 1 by TILE.
    pub x_scale: TensorMap,
    /// e4m3 [slots, rows, cols] of the matrix (down, or gate); boxes of 1 by BLOCK by BLOCK, 128-byte swizzle.
    pub weight: TensorMap,
    /// The same of the up matrix, for the gated kernel.
    pub up: TensorMap,
    /// Where scales are, and which slot an expert is in. Without a table (0): one group, in slot 0.
    pub slots: ExpertSlots,
    /// u32 [experts + 1], or 0: one group of all rows.
    pub offsets: u64,
    /// [rows, weight rows]: bf16 or f32, or e4m3 of the gated kernel.
    pub out: u64,
    /// f32 [⌈intermediate / 128⌉, rows] of the gated kernel.
    pub out_scale: u64,
    /// Elements from row to row of `out`: a multiple of 8, of 16 for e4m3.
    pub out_stride: u32,
    /// Elements from group to group of `out_scale`.
    pub out_scale_stride: u32,
    /// Rows of x.
    pub rows: u32,
    /// Of the weight matrix: columns of the product. A multiple of 16 for the gated kernel.
    pub weight_rows: u32,
    /// Of x and the weights: what is summed over. A multiple of 16.
    pub cols: u32,
    /// Tiles side by side that cover the columns of the product.
    pub column_tiles: u32,
    /// ⌈cols / 128⌉.
    pub depth_blocks: u32,
    /// An ActivationType: of `out`, but for the gated kernel.
    pub out_type: u32,
    pub reserved: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ExpertGemmParams"][::core::mem::size_of::<ExpertGemmParams>() - 704usize];
    [
        "Alignment of ExpertGemmParams",
    ][::core::mem::align_of::<ExpertGemmParams>() - 64usize];
    [
        "Offset of field: ExpertGemmParams::x",
    ][::core::mem::offset_of!(ExpertGemmParams, x) - 0usize];
    [
        "Offset of field: ExpertGemmParams::x_scale",
    ][::core::mem::offset_of!(ExpertGemmParams, x_scale) - 128usize];
    [
        "Offset of field: ExpertGemmParams::weight",
    ][::core::mem::offset_of!(ExpertGemmParams, weight) - 256usize];
    [
        "Offset of field: ExpertGemmParams::up",
    ][::core::mem::offset_of!(ExpertGemmParams, up) - 384usize];
    [
        "Offset of field: ExpertGemmParams::slots",
    ][::core::mem::offset_of!(ExpertGemmParams, slots) - 512usize];
    [
        "Offset of field: ExpertGemmParams::offsets",
    ][::core::mem::offset_of!(ExpertGemmParams, offsets) - 640usize];
    [
        "Offset of field: ExpertGemmParams::out",
    ][::core::mem::offset_of!(ExpertGemmParams, out) - 648usize];
    [
        "Offset of field: ExpertGemmParams::out_scale",
    ][::core::mem::offset_of!(ExpertGemmParams, out_scale) - 656usize];
    [
        "Offset of field: ExpertGemmParams::out_stride",
    ][::core::mem::offset_of!(ExpertGemmParams, out_stride) - 664usize];
    [
        "Offset of field: ExpertGemmParams::out_scale_stride",
    ][::core::mem::offset_of!(ExpertGemmParams, out_scale_stride) - 668usize];
    [
        "Offset of field: ExpertGemmParams::rows",
    ][::core::mem::offset_of!(ExpertGemmParams, rows) - 672usize];
    [
        "Offset of field: ExpertGemmParams::weight_rows",
    ][::core::mem::offset_of!(ExpertGemmParams, weight_rows) - 676usize];
    [
        "Offset of field: ExpertGemmParams::cols",
    ][::core::mem::offset_of!(ExpertGemmParams, cols) - 680usize];
    [
        "Offset of field: ExpertGemmParams::column_tiles",
    ][::core::mem::offset_of!(ExpertGemmParams, column_tiles) - 684usize];
    [
        "Offset of field: ExpertGemmParams::depth_blocks",
    ][::core::mem::offset_of!(ExpertGemmParams, depth_blocks) - 688usize];
    [
        "Offset of field: ExpertGemmParams::out_type",
    ][::core::mem::offset_of!(ExpertGemmParams, out_type) - 692usize];
    [
        "Offset of field: ExpertGemmParams::reserved",
    ][::core::mem::offset_of!(ExpertGemmParams, reserved) - 696usize];
};
impl Default for ExpertGemmParams {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
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
/// One layer of a sequence's latent cache: pages of 64 tokens, a row a token, bf16, the latent and then the rotated key part.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct LatentPages {
    /// u64 [pages]: addresses. Entries beyond the last token's page are never followed.
    pub table: u64,
    /// Bytes from a page's start to this layer's rows.
    pub layer_offset: u64,
    /// Elements from row to row; a multiple of 8.
    pub stride: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LatentPages"][::core::mem::size_of::<LatentPages>() - 24usize];
    ["Alignment of LatentPages"][::core::mem::align_of::<LatentPages>() - 8usize];
    [
        "Offset of field: LatentPages::table",
    ][::core::mem::offset_of!(LatentPages, table) - 0usize];
    [
        "Offset of field: LatentPages::layer_offset",
    ][::core::mem::offset_of!(LatentPages, layer_offset) - 8usize];
    [
        "Offset of field: LatentPages::stride",
    ][::core::mem::offset_of!(LatentPages, stride) - 16usize];
    [
        "Offset of field: LatentPages::reserved",
    ][::core::mem::offset_of!(LatentPages, reserved) - 20usize];
};
/// query[t, h] = (q_nope[t, h]·K_h, q_rope[t, h]) with K_h the key rows of head h in kv_b.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct MlaAbsorbParams {
    /// [heads · (nope + v), latent].
    pub kv_b: WeightMatrix,
    /// bf16 [tokens, heads · (nope + rope)].
    pub q: u64,
    /// bf16 [tokens · heads, latent + rope].
    pub query: u64,
    pub q_stride: u32,
    pub tokens: u32,
    pub heads: u32,
    pub nope: u32,
    pub rope: u32,
    pub v: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MlaAbsorbParams"][::core::mem::size_of::<MlaAbsorbParams>() - 72usize];
    [
        "Alignment of MlaAbsorbParams",
    ][::core::mem::align_of::<MlaAbsorbParams>() - 8usize];
    [
        "Offset of field: MlaAbsorbParams::kv_b",
    ][::core::mem::offset_of!(MlaAbsorbParams, kv_b) - 0usize];
    [
        "Offset of field: MlaAbsorbParams::q",
    ][::core::mem::offset_of!(MlaAbsorbParams, q) - 32usize];
    [
        "Offset of field: MlaAbsorbParams::query",
    ][::core::mem::offset_of!(MlaAbsorbParams, query) - 40usize];
    [
        "Offset of field: MlaAbsorbParams::q_stride",
    ][::core::mem::offset_of!(MlaAbsorbParams, q_stride) - 48usize];
    [
        "Offset of field: MlaAbsorbParams::tokens",
    ][::core::mem::offset_of!(MlaAbsorbParams, tokens) - 52usize];
    [
        "Offset of field: MlaAbsorbParams::heads",
    ][::core::mem::offset_of!(MlaAbsorbParams, heads) - 56usize];
    [
        "Offset of field: MlaAbsorbParams::nope",
    ][::core::mem::offset_of!(MlaAbsorbParams, nope) - 60usize];
    [
        "Offset of field: MlaAbsorbParams::rope",
    ][::core::mem::offset_of!(MlaAbsorbParams, rope) - 64usize];
    [
        "Offset of field: MlaAbsorbParams::v",
    ][::core::mem::offset_of!(MlaAbsorbParams, v) - 68usize];
};
/// Attention of absorbed queries over the latent cache, a split of each token's pages at a time.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct MlaAttendParams {
    pub pages: LatentPages,
    /// bf16 [tokens · heads, latent + rope].
    pub query: u64,
    /// f32 [splits, tokens · heads, latent]: each split's weighted mean of latents.
    pub partial: u64,
    /// f32 [splits, tokens · heads]: log2 of each split's sum of weights.
    pub log_sum: u64,
    /// Token t sees positions 0 ..= start + t.
    pub start: u32,
    pub tokens: u32,
    pub heads: u32,
    /// At most the pages of the first token.
    pub splits: u32,
    /// What scores are multiplied with, times log2(e).
    pub scale: f32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MlaAttendParams"][::core::mem::size_of::<MlaAttendParams>() - 72usize];
    [
        "Alignment of MlaAttendParams",
    ][::core::mem::align_of::<MlaAttendParams>() - 8usize];
    [
        "Offset of field: MlaAttendParams::pages",
    ][::core::mem::offset_of!(MlaAttendParams, pages) - 0usize];
    [
        "Offset of field: MlaAttendParams::query",
    ][::core::mem::offset_of!(MlaAttendParams, query) - 24usize];
    [
        "Offset of field: MlaAttendParams::partial",
    ][::core::mem::offset_of!(MlaAttendParams, partial) - 32usize];
    [
        "Offset of field: MlaAttendParams::log_sum",
    ][::core::mem::offset_of!(MlaAttendParams, log_sum) - 40usize];
    [
        "Offset of field: MlaAttendParams::start",
    ][::core::mem::offset_of!(MlaAttendParams, start) - 48usize];
    [
        "Offset of field: MlaAttendParams::tokens",
    ][::core::mem::offset_of!(MlaAttendParams, tokens) - 52usize];
    [
        "Offset of field: MlaAttendParams::heads",
    ][::core::mem::offset_of!(MlaAttendParams, heads) - 56usize];
    [
        "Offset of field: MlaAttendParams::splits",
    ][::core::mem::offset_of!(MlaAttendParams, splits) - 60usize];
    [
        "Offset of field: MlaAttendParams::scale",
    ][::core::mem::offset_of!(MlaAttendParams, scale) - 64usize];
    [
        "Offset of field: MlaAttendParams::reserved",
    ][::core::mem::offset_of!(MlaAttendParams, reserved) - 68usize];
};
/// mixed[r] = the splits' means, weighted by their sums.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct MlaCombineParams {
    pub partial: u64,
    pub log_sum: u64,
    /// f32 [rows, latent].
    pub mixed: u64,
    pub rows: u32,
    pub splits: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MlaCombineParams"][::core::mem::size_of::<MlaCombineParams>() - 32usize];
    [
        "Alignment of MlaCombineParams",
    ][::core::mem::align_of::<MlaCombineParams>() - 8usize];
    [
        "Offset of field: MlaCombineParams::partial",
    ][::core::mem::offset_of!(MlaCombineParams, partial) - 0usize];
    [
        "Offset of field: MlaCombineParams::log_sum",
    ][::core::mem::offset_of!(MlaCombineParams, log_sum) - 8usize];
    [
        "Offset of field: MlaCombineParams::mixed",
    ][::core::mem::offset_of!(MlaCombineParams, mixed) - 16usize];
    [
        "Offset of field: MlaCombineParams::rows",
    ][::core::mem::offset_of!(MlaCombineParams, rows) - 24usize];
    [
        "Offset of field: MlaCombineParams::splits",
    ][::core::mem::offset_of!(MlaCombineParams, splits) - 28usize];
};
/// out[t, h] = V_h·mixed[t, h] with V_h the value rows of head h in kv_b.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct MlaProjectParams {
    pub kv_b: WeightMatrix,
    /// f32 [tokens · heads, latent].
    pub mixed: u64,
    /// bf16 [tokens, heads · v].
    pub out: u64,
    pub out_stride: u32,
    pub tokens: u32,
    pub heads: u32,
    pub nope: u32,
    pub v: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MlaProjectParams"][::core::mem::size_of::<MlaProjectParams>() - 72usize];
    [
        "Alignment of MlaProjectParams",
    ][::core::mem::align_of::<MlaProjectParams>() - 8usize];
    [
        "Offset of field: MlaProjectParams::kv_b",
    ][::core::mem::offset_of!(MlaProjectParams, kv_b) - 0usize];
    [
        "Offset of field: MlaProjectParams::mixed",
    ][::core::mem::offset_of!(MlaProjectParams, mixed) - 32usize];
    [
        "Offset of field: MlaProjectParams::out",
    ][::core::mem::offset_of!(MlaProjectParams, out) - 40usize];
    [
        "Offset of field: MlaProjectParams::out_stride",
    ][::core::mem::offset_of!(MlaProjectParams, out_stride) - 48usize];
    [
        "Offset of field: MlaProjectParams::tokens",
    ][::core::mem::offset_of!(MlaProjectParams, tokens) - 52usize];
    [
        "Offset of field: MlaProjectParams::heads",
    ][::core::mem::offset_of!(MlaProjectParams, heads) - 56usize];
    [
        "Offset of field: MlaProjectParams::nope",
    ][::core::mem::offset_of!(MlaProjectParams, nope) - 60usize];
    [
        "Offset of field: MlaProjectParams::v",
    ][::core::mem::offset_of!(MlaProjectParams, v) - 64usize];
    [
        "Offset of field: MlaProjectParams::reserved",
    ][::core::mem::offset_of!(MlaProjectParams, reserved) - 68usize];
};
/// expanded[j] = kv_b·c_j for the cached latents of positions first .. end.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct MlaExpandParams {
    pub kv_b: WeightMatrix,
    pub pages: LatentPages,
    /// bf16 [end − first rounded up to 64, kv_b.rows]; rows beyond `end` become zero.
    pub expanded: u64,
    /// A multiple of 64.
    pub first: u32,
    pub end: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MlaExpandParams"][::core::mem::size_of::<MlaExpandParams>() - 72usize];
    [
        "Alignment of MlaExpandParams",
    ][::core::mem::align_of::<MlaExpandParams>() - 8usize];
    [
        "Offset of field: MlaExpandParams::kv_b",
    ][::core::mem::offset_of!(MlaExpandParams, kv_b) - 0usize];
    [
        "Offset of field: MlaExpandParams::pages",
    ][::core::mem::offset_of!(MlaExpandParams, pages) - 32usize];
    [
        "Offset of field: MlaExpandParams::expanded",
    ][::core::mem::offset_of!(MlaExpandParams, expanded) - 56usize];
    [
        "Offset of field: MlaExpandParams::first",
    ][::core::mem::offset_of!(MlaExpandParams, first) - 64usize];
    [
        "Offset of field: MlaExpandParams::end",
    ][::core::mem::offset_of!(MlaExpandParams, end) - 68usize];
};
/// Causal attention of many queries over expanded keys and values of positions first .. end.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct MlaPrefillParams {
    pub pages: LatentPages,
    /// bf16 [tokens, heads · (nope + rope)].
    pub q: u64,
    /// bf16 [.., heads · (nope + v)], from position `first` on.
    pub expanded: u64,
    /// f32 [tokens, heads · v]: weighted sums of values so far.
    pub sums: u64,
    /// f32 pairs [tokens, heads]: the largest score so far and Σ e^(score − largest).
    pub norms: u64,
    /// bf16 [tokens, heads · v].
    pub out: u64,
    pub q_stride: u32,
    pub out_stride: u32,
    /// Query t sees positions 0 ..= start + t.
    pub start: u32,
    pub tokens: u32,
    pub heads: u32,
    pub latent: u32,
    pub nope: u32,
    pub rope: u32,
    pub v: u32,
    /// A multiple of 64.
    pub first: u32,
    pub end: u32,
    /// Whether `sums` and `norms` hold what earlier positions gave.
    pub resume: u32,
    /// Whether these are the last positions: `out` is written, else `sums` and `norms`.
    pub finish: u32,
    /// What scores are multiplied with, times log2(e).
    pub scale: f32,
    /// Tiles of keys and values there is shared memory for: 1 to 4.
    pub stages: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MlaPrefillParams"][::core::mem::size_of::<MlaPrefillParams>() - 128usize];
    [
        "Alignment of MlaPrefillParams",
    ][::core::mem::align_of::<MlaPrefillParams>() - 8usize];
    [
        "Offset of field: MlaPrefillParams::pages",
    ][::core::mem::offset_of!(MlaPrefillParams, pages) - 0usize];
    [
        "Offset of field: MlaPrefillParams::q",
    ][::core::mem::offset_of!(MlaPrefillParams, q) - 24usize];
    [
        "Offset of field: MlaPrefillParams::expanded",
    ][::core::mem::offset_of!(MlaPrefillParams, expanded) - 32usize];
    [
        "Offset of field: MlaPrefillParams::sums",
    ][::core::mem::offset_of!(MlaPrefillParams, sums) - 40usize];
    [
        "Offset of field: MlaPrefillParams::norms",
    ][::core::mem::offset_of!(MlaPrefillParams, norms) - 48usize];
    [
        "Offset of field: MlaPrefillParams::out",
    ][::core::mem::offset_of!(MlaPrefillParams, out) - 56usize];
    [
        "Offset of field: MlaPrefillParams::q_stride",
    ][::core::mem::offset_of!(MlaPrefillParams, q_stride) - 64usize];
    [
        "Offset of field: MlaPrefillParams::out_stride",
    ][::core::mem::offset_of!(MlaPrefillParams, out_stride) - 68usize];
    [
        "Offset of field: MlaPrefillParams::start",
    ][::core::mem::offset_of!(MlaPrefillParams, start) - 72usize];
    [
        "Offset of field: MlaPrefillParams::tokens",
    ][::core::mem::offset_of!(MlaPrefillParams, tokens) - 76usize];
    [
        "Offset of field: MlaPrefillParams::heads",
    ][::core::mem::offset_of!(MlaPrefillParams, heads) - 80usize];
    [
        "Offset of field: MlaPrefillParams::latent",
    ][::core::mem::offset_of!(MlaPrefillParams, latent) - 84usize];
    [
        "Offset of field: MlaPrefillParams::nope",
    ][::core::mem::offset_of!(MlaPrefillParams, nope) - 88usize];
    [
        "Offset of field: MlaPrefillParams::rope",
    ][::core::mem::offset_of!(MlaPrefillParams, rope) - 92usize];
    [
        "Offset of field: MlaPrefillParams::v",
    ][::core::mem::offset_of!(MlaPrefillParams, v) - 96usize];
    [
        "Offset of field: MlaPrefillParams::first",
    ][::core::mem::offset_of!(MlaPrefillParams, first) - 100usize];
    [
        "Offset of field: MlaPrefillParams::end",
    ][::core::mem::offset_of!(MlaPrefillParams, end) - 104usize];
    [
        "Offset of field: MlaPrefillParams::resume",
    ][::core::mem::offset_of!(MlaPrefillParams, resume) - 108usize];
    [
        "Offset of field: MlaPrefillParams::finish",
    ][::core::mem::offset_of!(MlaPrefillParams, finish) - 112usize];
    [
        "Offset of field: MlaPrefillParams::scale",
    ][::core::mem::offset_of!(MlaPrefillParams, scale) - 116usize];
    [
        "Offset of field: MlaPrefillParams::stages",
    ][::core::mem::offset_of!(MlaPrefillParams, stages) - 120usize];
    [
        "Offset of field: MlaPrefillParams::reserved",
    ][::core::mem::offset_of!(MlaPrefillParams, reserved) - 124usize];
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
