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

// ---- mla_decode.cu, mla_prefill.cu ---------------------------------------------------------------------------------

/// One layer of a sequence's latent cache: pages of 64 tokens, a row a token, bf16, the latent and then the rotated key part.
struct LatentPages {
  /// u64 [pages]: addresses. Entries beyond the last token's page are never followed.
  uint64_t table;
  /// Bytes from a page's start to this layer's rows.
  uint64_t layer_offset;
  /// Elements from row to row; a multiple of 8.
  uint32_t stride;
  uint32_t reserved;
};
static_assert(sizeof(LatentPages) == 24, "no implicit padding");

/// query[t, h] = (q_nope[t, h]·K_h, q_rope[t, h]) with K_h the key rows of head h in kv_b.
struct MlaAbsorbParams {
  /// [heads · (nope + v), latent].
  WeightMatrix kv_b;
  /// bf16 [tokens, heads · (nope + rope)].
  uint64_t q;
  /// bf16 [tokens · heads, latent + rope].
  uint64_t query;
  uint32_t q_stride;
  uint32_t tokens;
  uint32_t heads;
  uint32_t nope;
  uint32_t rope;
  uint32_t v;
};
static_assert(sizeof(MlaAbsorbParams) == 72, "no implicit padding");

/// Attention of absorbed queries over the latent cache, a split of each token's pages at a time.
struct MlaAttendParams {
  LatentPages pages;
  /// bf16 [tokens · heads, latent + rope].
  uint64_t query;
  /// f32 [splits, tokens · heads, latent]: each split's weighted mean of latents.
  uint64_t partial;
  /// f32 [splits, tokens · heads]: log2 of each split's sum of weights.
  uint64_t log_sum;
  /// Token t sees positions 0 ..= start + t.
  uint32_t start;
  uint32_t tokens;
  uint32_t heads;
  /// At most the pages of the first token.
  uint32_t splits;
  /// What scores are multiplied with, times log2(e).
  float scale;
  uint32_t reserved;
};
static_assert(sizeof(MlaAttendParams) == 72, "no implicit padding");

/// mixed[r] = the splits' means, weighted by their sums.
struct MlaCombineParams {
  uint64_t partial;
  uint64_t log_sum;
  /// f32 [rows, latent].
  uint64_t mixed;
  uint32_t rows;
  uint32_t splits;
};
static_assert(sizeof(MlaCombineParams) == 32, "no implicit padding");

/// out[t, h] = V_h·mixed[t, h] with V_h the value rows of head h in kv_b.
struct MlaProjectParams {
  WeightMatrix kv_b;
  /// f32 [tokens · heads, latent].
  uint64_t mixed;
  /// bf16 [tokens, heads · v].
  uint64_t out;
  uint32_t out_stride;
  uint32_t tokens;
  uint32_t heads;
  uint32_t nope;
  uint32_t v;
  uint32_t reserved;
};
static_assert(sizeof(MlaProjectParams) == 72, "no implicit padding");

/// expanded[j] = kv_b·c_j for the cached latents of positions first .. end.
struct MlaExpandParams {
  WeightMatrix kv_b;
  LatentPages pages;
  /// bf16 [end − first rounded up to 64, kv_b.rows]; rows beyond `end` become zero.
  uint64_t expanded;
  /// A multiple of 64.
  uint32_t first;
  uint32_t end;
};
static_assert(sizeof(MlaExpandParams) == 72, "no implicit padding");

/// Causal attention of many queries over expanded keys and values of positions first .. end.
struct MlaPrefillParams {
  LatentPages pages;
  /// bf16 [tokens, heads · (nope + rope)].
  uint64_t q;
  /// bf16 [.., heads · (nope + v)], from position `first` on.
  uint64_t expanded;
  /// f32 [tokens, heads · v]: weighted sums of values so far.
  uint64_t sums;
  /// f32 pairs [tokens, heads]: the largest score so far and Σ e^(score − largest).
  uint64_t norms;
  /// bf16 [tokens, heads · v].
  uint64_t out;
  uint32_t q_stride;
  uint32_t out_stride;
  /// Query t sees positions 0 ..= start + t.
  uint32_t start;
  uint32_t tokens;
  uint32_t heads;
  uint32_t latent;
  uint32_t nope;
  uint32_t rope;
  uint32_t v;
  /// A multiple of 64.
  uint32_t first;
  uint32_t end;
  /// Whether `sums` and `norms` hold what earlier positions gave.
  uint32_t resume;
  /// Whether these are the last positions: `out` is written, else `sums` and `norms`.
  uint32_t finish;
  /// What scores are multiplied with, times log2(e).
  float scale;
  /// Tiles of keys and values there is shared memory for: 1 to 4.
  uint32_t stages;
  uint32_t reserved;
};
static_assert(sizeof(MlaPrefillParams) == 128, "no implicit padding");

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
