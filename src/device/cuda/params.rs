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
