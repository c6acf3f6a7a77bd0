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

// ---- row_tile.cuh, gemv.cu, expert_gemv.cu -------------------------------------------------------------------------

/// Sizes of the loop over weight rows that launchers share with kernels.
enum GemvSize : uint32_t {
  /// Rows of a block.
  GEMV_ROWS = 64,
  /// Bytes of a row that a block takes in at a time.
  GEMV_SPAN = 128,
  /// Blocks a launch may have if columns are split among them: their partial sums have this many places.
  GEMV_SPLIT_BLOCKS = 512,
};

/// out[tokens, rows] = x[tokens, cols] · weightᵀ.
struct GemvParams {
  /// bf16 [tokens, cols].
  uint64_t x;
  /// [tokens, rows].
  uint64_t out;
  WeightMatrix weight;
  uint32_t x_stride;
  uint32_t out_stride;
  uint32_t tokens;
  /// An ActivationType.
  uint32_t out_type;
  /// Spans of GEMV_SPAN bytes of a row that a block multiplies; blocks at (·, i, ·) take spans from i times this on.
  uint32_t spans;
  uint32_t reserved;
};
static_assert(sizeof(GemvParams) == 72, "no implicit padding");

/// pairs[p] = down·(silu(gate·x[t]) ⊙ (up·x[t])), t = sorted_tokens[p], with the weights of the expert whose range of
/// `offsets` p is in.
struct ExpertGemvParams {
  ExpertSlots experts;
  /// bf16 [tokens, cols of gate].
  uint64_t x;
  /// u32, the token of each sorted pair.
  uint64_t sorted_tokens;
  /// u32 [experts + 1].
  uint64_t offsets;
  /// bf16 [pairs, rows of gate]: silu(gate·x) ⊙ (up·x).
  uint64_t hidden;
  /// bf16 [pairs, rows of down].
  uint64_t pairs;
  uint32_t x_stride;
  uint32_t hidden_stride;
  uint32_t pairs_stride;
  uint32_t reserved;
};
static_assert(sizeof(ExpertGemvParams) == 184, "no implicit padding");
