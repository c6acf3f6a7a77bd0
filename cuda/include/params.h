// The contract between host and device: what each kernel is given, once. Rust reads it through bindgen
// (src/device/cuda/params.rs), device code includes it.
//
// Rules: fixed-width fields, addresses as uint64_t, widest first, no implicit padding; every kernel takes one struct as
// `const __grid_constant__`; sizes are asserted here and again in Rust; cuda/echo.cu returns every field of every struct.
// Rows of an activation tensor are `*_stride` elements apart; a stride is a multiple of 8 elements, so rows start on 16
// bytes. Elements between `cols` and the stride are never read into a result.
#pragma once

#include <stdint.h>

/// A CUtensorMap, opaque; TMA wants it on 64 bytes.
struct alignas(64) TensorMap {
  uint64_t words[16];
};
static_assert(sizeof(TensorMap) == 128, "as the driver defines it");

/// How weights are stored; the numbers of the Rust enum `quant::Format`.
enum WeightFormat : uint32_t {
  WEIGHT_F32 = 0,
  WEIGHT_F16 = 1,
  WEIGHT_BF16 = 2,
  /// e4m3 with an f32 scale per 128×128 block.
  WEIGHT_FP8_BLOCK = 3,
  /// Four bits, q + 8, eight to a word, with a bf16 scale per 32 columns of a row.
  WEIGHT_INT4_GROUP32 = 4,
};

/// Element type of activations.
enum ActivationType : uint32_t { ACTIVATION_BF16 = 0, ACTIVATION_F32 = 1 };

/// A weight matrix [rows, cols], row-major, exactly as in the checkpoint.
struct WeightMatrix {
  /// Weights; aligned to 128 bytes.
  uint64_t weight;
  /// Scales, 0 for formats without; aligned to 128 bytes.
  uint64_t scale;
  uint32_t rows;
  uint32_t cols;
  /// A WeightFormat.
  uint32_t format;
  uint32_t reserved;
};
static_assert(sizeof(WeightMatrix) == 32, "no implicit padding");

// ---- norm_rope.cu ------------------------------------------------------------------------------------------------

/// out[r] = x[r] / √(mean(x[r]²) + eps) ⊙ weight. One block a row.
struct RmsNormParams {
  /// [rows, cols], f32 or bf16 by the kernel's name.
  uint64_t x;
  /// f32 [cols].
  uint64_t weight;
  /// bf16 [rows, cols].
  uint64_t out;
  uint32_t x_stride;
  uint32_t out_stride;
  uint32_t rows;
  uint32_t cols;
  float eps;
  uint32_t reserved;
};
static_assert(sizeof(RmsNormParams) == 48, "no implicit padding");

// ---- dequant.cu --------------------------------------------------------------------------------------------------

/// Activations to FP8 with a scale per token and 128 columns. Output row i is input row rows_map[i], or i without a map.
struct QuantiseParams {
  /// bf16 [.., cols].
  uint64_t x;
  /// u32 [rows], or 0.
  uint64_t rows_map;
  /// e4m3 [rows, cols], rows `row_stride` bytes apart.
  uint64_t codes;
  /// f32 [ceil(cols / 128), rows], groups `scale_stride` elements apart.
  uint64_t scales;
  uint32_t x_stride;
  /// A multiple of 16, at least cols.
  uint32_t row_stride;
  /// A multiple of 4, at least rows.
  uint32_t scale_stride;
  uint32_t rows;
  uint32_t cols;
  uint32_t reserved;
};
static_assert(sizeof(QuantiseParams) == 56, "no implicit padding");

/// Weights of one size to 16-bit elements. Matrix i of the output is the one in slot slots[i], or slot i without a list.
struct DequantParams {
  /// FP8 or INT4 by the kernel's name, [rows, cols] of slot 0; aligned to 16 bytes.
  uint64_t weight;
  /// The scales of slot 0.
  uint64_t scale;
  /// Bytes from slot to slot, of weights and of scales; a multiple of 16.
  uint64_t slot_pitch;
  /// u32, or 0.
  uint64_t slots;
  /// bf16 or fp16 [rows, cols].
  uint64_t out;
  /// Elements from matrix to matrix of `out`; a multiple of 8.
  uint64_t out_pitch;
  /// u32 that the number of saturated elements is added to (fp16 only).
  uint64_t saturated;
  uint32_t rows;
  uint32_t cols;
  uint32_t out_stride;
  uint32_t reserved;
};
static_assert(sizeof(DequantParams) == 72, "no implicit padding");

// ---- gemm.cu -----------------------------------------------------------------------------------------------------

/// What host and kernels must agree on.
enum GemmConstant : uint32_t {
  /// Groups that a product takes at most.
  GEMM_MAX_GROUPS = 1024,
  GEMM_THREADS = 384,
  GEMM_TILE_ROWS = 128,
  /// Rows of a box of x.
  GEMM_BOX_ROWS = 64,
  /// Columns of k of every box.
  GEMM_BLOCK_K = 64,
  /// Dynamic shared memory of a block: 192 KB of stages, and room to align them to 1024.
  GEMM_SHARED_BYTES = 197632,
};

/// y[r] = w·x[r] in bf16; grouped: with w the matrix in slot slots[g] for rows offsets[g] to offsets[g + 1] of x.
struct GemmParams {
  /// bf16 [1, rows, k] in boxes of 64 rows and 64 columns.
  TensorMap x;
  /// bf16 [slots, cols, k] in boxes of the kernel's tile width and 64 columns.
  TensorMap w;
  /// [rows, cols], an ActivationType.
  uint64_t out;
  /// u32 [groups + 1]; grouped only.
  uint64_t offsets;
  /// u32 [groups]; grouped only.
  uint64_t slots;
  uint64_t reserved;
  uint32_t rows;
  uint32_t cols;
  uint32_t k;
  uint32_t groups;
  uint32_t out_stride;
  uint32_t out_type;
  uint64_t reserved2;
};
static_assert(sizeof(GemmParams) == 320, "no implicit padding");

/// out[i] = x[rows_map[i]], bf16.
struct GatherParams {
  uint64_t x;
  /// u32 [rows].
  uint64_t rows_map;
  uint64_t out;
  uint32_t x_stride;
  uint32_t out_stride;
  uint32_t rows;
  /// A multiple of 8.
  uint32_t cols;
};
static_assert(sizeof(GatherParams) == 40, "no implicit padding");
