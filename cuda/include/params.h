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

// ---- Experts in slots (src/device/cuda/pool.rs) -------------------------------------------------------------------

/// Where an expert is: a slot, and what its generation must be for the slot to hold that expert.
struct SlotRef {
  uint32_t slot;
  uint32_t generation;
};
static_assert(sizeof(SlotRef) == 8, "no implicit padding");

/// A matrix [rows, cols] of an expert: offsets in bytes from the start of its slot, each a multiple of 128.
struct ExpertMatrix {
  uint64_t weight;
  uint64_t scale;
  uint32_t rows;
  uint32_t cols;
};
static_assert(sizeof(ExpertMatrix) == 24, "no implicit padding");

/// The slots of a layer's experts. A kernel that finds generations[slot] != table[expert].generation leaves the smallest
/// expert << 32 | slot in `stale` (atomicMin) and writes NaN for that expert's rows.
struct ExpertSlots {
  /// The first slot; slot s begins at pool + s · slot_bytes.
  uint64_t pool;
  /// A multiple of 4096.
  uint64_t slot_bytes;
  /// SlotRef [experts].
  uint64_t table;
  /// u32 [slots]: the generation each slot holds.
  uint64_t generations;
  /// One u64, all ones if no slot was stale.
  uint64_t stale;
  ExpertMatrix gate;
  ExpertMatrix up;
  ExpertMatrix down;
  /// Entries of the table.
  uint32_t experts;
  uint32_t slots;
  /// A WeightFormat, of all three matrices.
  uint32_t format;
  uint32_t reserved;
};
static_assert(sizeof(ExpertSlots) == 128, "no implicit padding");

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

// ---- expert_gemm.cu ----------------------------------------------------------------------------------------------

/// Sizes that the launcher shares with the kernels of expert_gemm.cu.
enum ExpertGemm : uint32_t {
  EXPERT_GEMM_THREADS = 384,
  /// Rows of a tile of products.
  EXPERT_GEMM_TILE = 128,
  /// Rows of weights in a box, and codes of a row in a box: a scale block.
  EXPERT_GEMM_BLOCK = 128,
  /// Row tiles that blocks take side by side before they go on to the next columns.
  EXPERT_GEMM_BAND = 16,
  /// Dynamic shared memory in bytes, with one and with two boxes of weights a stage.
  EXPERT_GEMM_SHARED_1 = 216160,
  EXPERT_GEMM_SHARED_2 = 215104,
};

/// FP8 activations times FP8 weights, group by group: rows offsets[g] .. offsets[g + 1] times the weights of expert g.
struct ExpertGemmParams {
  /// e4m3 [rows, cols]; boxes of TILE rows by BLOCK codes, 128-byte swizzle.
  TensorMap x;
  /// f32 [⌈cols / 128⌉, rows]; boxes of 1 by TILE.
  TensorMap x_scale;
  /// e4m3 [slots, rows, cols] of the matrix (down, or gate); boxes of 1 by BLOCK by BLOCK, 128-byte swizzle.
  TensorMap weight;
  /// The same of the up matrix, for the gated kernel.
  TensorMap up;
  /// Where scales are, and which slot an expert is in. Without a table (0): one group, in slot 0.
  ExpertSlots slots;
  /// u32 [experts + 1], or 0: one group of all rows.
  uint64_t offsets;
  /// [rows, weight rows]: bf16 or f32, or e4m3 of the gated kernel.
  uint64_t out;
  /// f32 [⌈intermediate / 128⌉, rows] of the gated kernel.
  uint64_t out_scale;
  /// Elements from row to row of `out`: a multiple of 8, of 16 for e4m3.
  uint32_t out_stride;
  /// Elements from group to group of `out_scale`.
  uint32_t out_scale_stride;
  /// Rows of x.
  uint32_t rows;
  /// Of the weight matrix: columns of the product. A multiple of 16 for the gated kernel.
  uint32_t weight_rows;
  /// Of x and the weights: what is summed over. A multiple of 16.
  uint32_t cols;
  /// Tiles side by side that cover the columns of the product.
  uint32_t column_tiles;
  /// ⌈cols / 128⌉.
  uint32_t depth_blocks;
  /// An ActivationType: of `out`, but for the gated kernel.
  uint32_t out_type;
  uint64_t reserved;
};
static_assert(sizeof(ExpertGemmParams) == 704, "no implicit padding");
