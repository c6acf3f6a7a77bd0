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

// ---- route.cu ------------------------------------------------------------------------------------------------------

/// What blocks of a launch tell each other. Between launches: no fault, no block.
struct RouteProgress {
  /// The smallest token << 32 | candidates so far, all ones if none.
  uint64_t fault;
  uint32_t blocks_done;
  uint32_t reserved;
};
static_assert(sizeof(RouteProgress) == 16, "no implicit padding");

/// Chooses experts and sorts the pairs token · top_k + rank by expert; the rules are in src/device/routing.rs.
struct RouteParams {
  /// f32 [tokens, experts].
  uint64_t logits;
  /// f32 [experts].
  uint64_t bias;
  /// u32 [tokens, top_k], best first.
  uint64_t ids;
  /// f32 [tokens, top_k].
  uint64_t weights;
  /// u32 [tokens · top_k]: pairs by expert, in order within an expert.
  uint64_t sorted;
  /// u32 [tokens · top_k]: the token of each sorted pair.
  uint64_t sorted_tokens;
  /// u32 [tokens, top_k]: where each pair stands in `sorted`.
  uint64_t positions;
  /// u32 [experts + 1]: the first sorted pair of each expert, and their number last.
  uint64_t offsets;
  /// One u64: token << 32 | candidates of the first token that had fewer than top_k, all ones if none.
  uint64_t fault;
  /// RouteProgress.
  uint64_t progress;
  uint32_t logits_stride;
  uint32_t tokens;
  uint32_t experts;
  uint32_t top_k;
  uint32_t groups;
  /// Groups a token may choose from.
  uint32_t groups_kept;
  /// Tokens of a block.
  uint32_t block_tokens;
  /// 1: divide the weights by their sum.
  uint32_t normalise;
  float scaling;
  uint32_t reserved;
};
static_assert(sizeof(RouteParams) == 120, "no implicit padding");

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
