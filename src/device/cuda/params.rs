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
