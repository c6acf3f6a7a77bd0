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

/// sum += x, then out = rms_norm(sum) as above. One block a row.
struct AddRmsNormParams {
  /// [rows, cols], f32 or bf16 by the kernel's name.
  uint64_t x;
  /// [rows, cols], f32 or bf16 by the kernel's name.
  uint64_t sum;
  /// f32 [cols], aligned to 16 bytes.
  uint64_t weight;
  /// bf16 [rows, cols].
  uint64_t out;
  uint32_t x_stride;
  uint32_t sum_stride;
  uint32_t out_stride;
  uint32_t rows;
  uint32_t cols;
  float eps;
};
static_assert(sizeof(AddRmsNormParams) == 56, "no implicit padding");

/// Rotates the rotary part of every head of q in place; row i stands at position start + i.
struct RopeQueryParams {
  /// bf16 [tokens, heads · (nope + rope)].
  uint64_t q;
  /// f32 [rope / 2].
  uint64_t inv_freq;
  uint32_t stride;
  uint32_t tokens;
  uint32_t heads;
  uint32_t nope;
  uint32_t rope;
  uint32_t start;
  float amplitude;
  uint32_t reserved;
};
static_assert(sizeof(RopeQueryParams) == 48, "no implicit padding");

/// Appends rows to a paged cache from position `start` on: latent part normalised, key part rotated.
struct KvAppendParams {
  /// bf16 [tokens, latent + rope].
  uint64_t kv_a;
  /// f32 [latent], aligned to 16 bytes.
  uint64_t norm;
  /// f32 [rope / 2].
  uint64_t inv_freq;
  /// uint64_t [pages]: where each page begins; a page is 64 positions.
  uint64_t pages;
  /// Bytes from a page's begin to this layer's part of it, a multiple of 16.
  uint64_t layer_offset;
  /// Elements from row to row of kv_a.
  uint32_t kv_stride;
  /// Elements from position to position in a page, a multiple of 8.
  uint32_t page_stride;
  uint32_t tokens;
  uint32_t latent;
  uint32_t rope;
  uint32_t start;
  float eps;
  float amplitude;
};
static_assert(sizeof(KvAppendParams) == 72, "no implicit padding");

// ---- Experts in slots (src/device/cuda/slots.rs) ------------------------------------------------------------------

/// Where an expert is: a slot, and what its generation must be for the slot to hold that expert; or SLOT_NONE, and the expert is
/// left out.
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
/// expert << 32 | slot in `stale` (atomicMin) and writes NaN for that expert's rows. Rows of an expert that the table has in
/// SLOT_NONE stay as they are.
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

/// What stands in tables, and in lists of slots by expert or by group, instead of a slot.
enum NoSlot : uint32_t {
  /// No slot: it is neither decoded nor multiplied with, and rows stay as they are.
  SLOT_NONE = 0xffffffff,
  /// In lists only: a slot that holds something else. It is not decoded, products are NaN.
  SLOT_STALE = 0xfffffffe,
};

// ---- elementwise.cu ----------------------------------------------------------------------------------------------

/// out[i] = table[ids[i]].
struct EmbedParams {
  /// F32, F16 or BF16.
  WeightMatrix table;
  /// uint32_t [tokens].
  uint64_t ids;
  /// [tokens, table.cols], f32 or bf16 by the kernel's name.
  uint64_t out;
  uint32_t out_stride;
  uint32_t tokens;
};
static_assert(sizeof(EmbedParams) == 56, "no implicit padding");

/// sum += x.
struct AddParams {
  /// [rows, cols], f32 or bf16 by the kernel's name.
  uint64_t x;
  /// [rows, cols], f32 or bf16 by the kernel's name.
  uint64_t sum;
  uint32_t x_stride;
  uint32_t sum_stride;
  uint32_t rows;
  uint32_t cols;
};
static_assert(sizeof(AddParams) == 32, "no implicit padding");

/// out = x, bit by bit.
struct CopyRowsParams {
  /// The first row to copy; [rows, cols], f32 or bf16 by the kernel's name.
  uint64_t x;
  /// [rows, cols] of the same type.
  uint64_t out;
  uint32_t x_stride;
  uint32_t out_stride;
  uint32_t rows;
  uint32_t cols;
};
static_assert(sizeof(CopyRowsParams) == 32, "no implicit padding");

/// out = silu(gate) ⊙ up, all bf16 [rows, cols].
struct SwigluParams {
  uint64_t gate;
  uint64_t up;
  uint64_t out;
  uint32_t gate_stride;
  uint32_t up_stride;
  uint32_t out_stride;
  uint32_t rows;
  uint32_t cols;
  uint32_t reserved;
};
static_assert(sizeof(SwigluParams) == 48, "no implicit padding");

/// sum[t] += Σⱼ weights[t, j] · pairs[positions[t, j]], j in rank order.
struct CombineParams {
  /// [pairs_rows, cols], f32 or bf16 by the kernel's name.
  uint64_t pairs;
  /// f32 [tokens, top_k].
  uint64_t weights;
  /// uint32_t [tokens, top_k].
  uint64_t positions;
  /// f32 [tokens, cols].
  uint64_t sum;
  uint32_t pairs_stride;
  uint32_t sum_stride;
  uint32_t pairs_rows;
  uint32_t tokens;
  uint32_t cols;
  uint32_t top_k;
};
static_assert(sizeof(CombineParams) == 56, "no implicit padding");

// ---- watch.cu ----------------------------------------------------------------------------------------------------

/// Notes the first NaN or infinity of x.
struct WatchParams {
  /// [rows, cols], f32 or bf16 by the kernel's name.
  uint64_t x;
  /// One uint64_t, all ones until something is found: site << 48 | row << 24 | column of the least.
  uint64_t guard;
  uint32_t stride;
  uint32_t rows;
  uint32_t cols;
  uint32_t site;
};
static_assert(sizeof(WatchParams) == 32, "no implicit padding");

// ---- sample.cu ---------------------------------------------------------------------------------------------------

/// Draws one id a row of logits.
struct SampleParams {
  /// f32 [rows, vocab].
  uint64_t logits;
  /// uint64_t [rows]: random words, of which the upper 53 bits are used.
  uint64_t words;
  /// uint32_t [rows].
  uint64_t ids;
  /// One uint32_t, all ones until a row can't be drawn from: the least such row.
  uint64_t fault;
  uint32_t stride;
  uint32_t rows;
  /// 1 to 2²⁴.
  uint32_t vocab;
  /// 0 keeps all.
  uint32_t top_k;
  /// 0 takes the largest logit.
  float temperature;
  float top_p;
  float min_p;
  uint32_t reserved;
};
static_assert(sizeof(SampleParams) == 64, "no implicit padding");

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

/// Weights of one size to 16-bit elements. Matrix i of the output is the one in slot slots[i], or slot i without a list; for
/// SLOT_NONE and SLOT_STALE it stays as it is.
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

/// y[r] = w·x[r] in bf16; grouped: with w the matrix in slot slots[g] for rows offsets[g] to offsets[g + 1] of x, NaN for
/// SLOT_STALE and as it was for SLOT_NONE.
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

/// Where the experts that have rows are: slots[e] in the pool, places[e] = e % batch among matrices decoded `batch` experts at
/// a time. Both SLOT_NONE for experts without rows or slot, and SLOT_STALE for those that aren't in their slot.
struct GroupSlotsParams {
  ExpertSlots experts;
  /// u32 [experts + 1].
  uint64_t offsets;
  /// u32 [experts].
  uint64_t slots;
  /// u32 [experts].
  uint64_t places;
  uint32_t batch;
  uint32_t reserved;
};
static_assert(sizeof(GroupSlotsParams) == 160, "no implicit padding");

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
