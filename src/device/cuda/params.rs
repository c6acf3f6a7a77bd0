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
/// Weights of one size to 16-bit elements. Matrix i of the output is the one in slot slots[i], or slot i without a list.
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
/// y[r] = w·x[r] in bf16; grouped: with w the matrix in slot slots[g] for rows offsets[g] to offsets[g + 1] of x.
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
