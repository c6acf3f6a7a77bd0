// Multi-head latent attention for many query tokens, expanded: keys and values are made from the cached latents, a range of
// positions at a time, and attended to as ordinary heads (FlashAttention-2, arXiv 2307.08691). Per score it costs
// 2 · (nope + rope + v) operations, where the absorbed form costs 2 · (2 · latent + rope).
//
// With K_h and V_h the key and value rows of head h in kv_b, and (c_j, r_j) the cached rows, for each range of positions:
//   expand   expanded[j] = (K_h·c_j, V_h·c_j) of all heads
//   prefill  softmax over j of scale · (q_nope·K_h·c_j + q_rope·r_j), sums of V_h·c_j; after the last range the mean
#include <limits.h>

#include "attention.cuh"

namespace {

using namespace attention;

/// One warpgroup copies, two multiply.
constexpr int kThreads = 3 * kGroup;
constexpr int kMultiplying = 2 * kGroup;
/// The named barrier of the two that multiply.
constexpr int kMultiplyingBarrier = 1;

// ---- expand ------------------------------------------------------------------------------------------------------------
//
// Contract: MlaExpandParams; grid = (kv_b.rows / 128 rounded up, any), block = 384, dynamic shared memory for 128 rows of
// kv_b in bf16, three stages of 32 KB and two barriers a stage. kv_b.rows is a multiple of 8.
// Plan: a block decodes 128 rows of kv_b once (128 KB of bf16 with a latent of 512) and keeps them, then goes through the
// range two pages at a time, 128 columns a stage, copied by cp.async straight from the pages; each of two warpgroups
// multiplies its page as m64n128k16. FP8 codes are exact in bf16; 128 rows by 128 columns are one scale block, so the scale
// is applied to each stage's f32 sums and costs no precision. With 128 blocks for Kimi-K2 every weight is read once a range;
// pages come from the second-level cache. Bound by the tensor cores: 17 GFLOP per 1024 positions of Kimi-K2.

constexpr int kExpandRows = 128;
constexpr int kExpandStages = 3;
/// Columns of a stage: a scale block.
constexpr int kExpandColumns = kScaleBlock;
/// A page's part of a stage.
constexpr int kPageBytes = kExpandColumns / kColumns * kTileBytes;
constexpr int kExpandStageBytes = 2 * kPageBytes;
/// 64 columns of the block's rows of kv_b.
constexpr int kWeightTileBytes = kExpandRows * kColumns * 2;

template <uint32_t Format, int Latent>
__device__ __forceinline__ void expand(const MlaExpandParams& p) {
  constexpr int kSteps = Latent / kExpandColumns;
  constexpr bool kScaled = Format == WEIGHT_FP8_BLOCK;
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t weights = ptx::shared_address(shared), stages = weights + Latent / kColumns * kWeightTileBytes;
  const uint32_t full = stages + kExpandStages * kExpandStageBytes, empty = full + 8 * kExpandStages;

  if (threadIdx.x == 0) {
    for (int s = 0; s < kExpandStages; ++s) {
      ptx::barrier_init(full + 8 * s, kGroup);
      ptx::barrier_init(empty + 8 * s, kMultiplying / 32);
    }
    ptx::barrier_init_fence();
  }
  // Barriers exist before anybody uses them.
  __syncthreads();

  const int first_page = p.first / kKeys, end_page = (p.end + kKeys - 1) / kKeys;
  const int step = 2 * gridDim.y;
  int stage = 0, round = 0;
  if (threadIdx.x >= kMultiplying) {
    // ---- Copies: two pages, 128 columns at a time.
    ptx::registers_down<88>();
    for (int pair = first_page + 2 * blockIdx.y; pair < end_page; pair += step) {
#pragma unroll 1
      for (int k = 0; k < kSteps; ++k) {
        if (round > 0) ptx::barrier_wait(empty + 8 * stage, (round - 1) & 1);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          // The second of an odd number of pages is all zeros, and no table entry is read for it.
          const int page = pair + i;
          const uint8_t* rows = page_rows(p.pages, page < end_page ? page : pair) + k * kExpandColumns * 2;
          copy_rows(stages + stage * kExpandStageBytes + i * kPageBytes, rows, p.pages.stride * 2,
                    static_cast<int>(p.end) - page * kKeys, kExpandColumns / 8, kExpandColumns / 8);
        }
        ptx::copy_async_arrive(full + 8 * stage);
        if (++stage == kExpandStages) stage = 0, ++round;
      }
    }
    ptx::copy_async_commit();
    ptx::copy_async_wait<0>();
  } else {
    ptx::registers_up<208>();
    const int first_row = blockIdx.x * kExpandRows, rows = min(kExpandRows, static_cast<int>(p.kv_b.rows) - first_row);

    // ---- The block's rows of kv_b, decoded; zeros below the last.
#pragma unroll 4
    for (int i = threadIdx.x; i < kExpandRows * Latent / 8; i += kMultiplying) {
      const int row = i / (Latent / 8), chunk = i % (Latent / 8);
      uint4 packed = {};
      if (row < rows) {
        Stored<Format, 8> stored;
        float w[8];
        stored.load(p.kv_b.weight, size_t{static_cast<uint32_t>(first_row + row)} * Latent + chunk * 8);
        stored.decode(w);
        packed = {ptx::floats_to_bf16x2(w[0], w[1]), ptx::floats_to_bf16x2(w[2], w[3]), ptx::floats_to_bf16x2(w[4], w[5]),
                  ptx::floats_to_bf16x2(w[6], w[7])};
      }
      *reinterpret_cast<uint4*>(shared + chunk / 8 * kWeightTileBytes + row * 128 + ((chunk ^ row) & 7) * 16) = packed;
    }
    float scale[kSteps];
#pragma unroll
    for (int k = 0; k < kSteps; ++k) scale[k] = block_scale<Format>(p.kv_b, first_row, k * kExpandColumns);
    // wgmma will read what ordinary stores wrote …
    ptx::fence_for_async_proxy();
#if ABRUZZI_MUTANT != 4
    // … by all threads of both warpgroups.
    ptx::named_barrier(kMultiplyingBarrier, kMultiplying);
#endif

    // ---- Products: each warpgroup its page.
    const int group = threadIdx.x / kGroup;
    for (int pair = first_page + 2 * blockIdx.y; pair < end_page; pair += step) {
      float sums[kExpandRows / 2] = {}, part[kExpandRows / 2];
#pragma unroll 1
      for (int k = 0; k < kSteps; ++k) {
        const uint32_t page = stages + stage * kExpandStageBytes + group * kPageBytes;
        ptx::barrier_wait(full + 8 * stage, round & 1);
        // cp.async wrote through the generic proxy.
        ptx::fence_for_async_proxy();
        auto& acc = kScaled ? part : sums;
        wgmma::pin(acc);
        wgmma::fence();
#pragma unroll
        for (int i = 0; i < kExpandColumns / 16; ++i) {
          const uint32_t columns = weights + (k * 2 + i / 4) * kWeightTileBytes + i % 4 * 32;
          wgmma::Bf16<kExpandRows>::multiply(acc, columns16(page, i), wgmma::descriptor(columns), !kScaled || i > 0);
        }
        wgmma::commit();
        wgmma::wait<0>();
        wgmma::pin(acc);
        if (ptx::elect_one()) ptx::barrier_arrive(empty + 8 * stage);
        if (++stage == kExpandStages) stage = 0, ++round;
        if constexpr (kScaled) {
          float now = scale[0];
#pragma unroll
          for (int s = 1; s < kSteps; ++s) now = k == s ? scale[s] : now;
#if ABRUZZI_MUTANT == 1
          now = scale[0];
#endif
#pragma unroll
          for (int i = 0; i < kExpandRows / 2; ++i) sums[i] = fmaf(now, part[i], sums[i]);
        }
      }

      const int first_key = (pair + group) * kKeys;
      uint16_t* out = reinterpret_cast<uint16_t*>(p.expanded);
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        const size_t row = first_key - p.first + accumulator_row() + 8 * lower;
#pragma unroll
        for (int c = 0; c < kExpandRows / 32; ++c) {
          uint32_t pairs[4];
#pragma unroll
          for (int j = 0; j < 4; ++j)
            pairs[j] = ptx::floats_to_bf16x2(sums[16 * c + 4 * j + 2 * lower], sums[16 * c + 4 * j + 2 * lower + 1]);
          const uint4 columns = gather_row(pairs[0], pairs[1], pairs[2], pairs[3]);
          const int column = 32 * c + threadIdx.x % 4 * 8;
          if (pair + group < end_page && column < rows)
            *reinterpret_cast<uint4*>(out + row * p.kv_b.rows + first_row + column) = columns;
        }
      }
    }
  }
}

// ---- prefill -----------------------------------------------------------------------------------------------------------
//
// Contract: MlaPrefillParams; grid = (heads, tokens / 128 rounded up), block = 384, dynamic shared memory for the queries (two
// warpgroups' rows), the stages, two barriers a stage, and a word a value column. nope, rope and v are multiples of 16,
// rope ≤ 64, v ≤ Value; columns are filled up to 64 with zeros. Rows of pages, q, expanded and out are aligned to 16 bytes.
// Plan: a block has one head and 128 queries, 64 a warpgroup; the third copies keys and values, 64 positions a stage: K_h·c
// and V_h·c from `expanded`, r from the pages. Scores m64n64k16, weights from accumulator to operand in registers, sums
// m64 × Value. Blocks with the most positions start first. Stages of 40 KB with Kimi-K2, four of them; bound by the tensor
// cores.
//
// Masked scores weigh 0, but 0 · NaN is NaN: a value that is not finite, at a position that some query of the block must not
// see, is replaced by zero, and its position is kept per column; queries that do see it get NaN in that column at the end.

__device__ __forceinline__ bool is_finite_bf16(uint16_t bits) { return (bits & 0x7f80) != 0x7f80; }

/// Replaces what is not finite in a stage's values by zero and notes the first such position of each column; run by both
/// warpgroups that multiply.
template <int Value>
__device__ __forceinline__ void set_aside(uint8_t* shared, uint32_t offset, int first_key, int* first_bad) {
#pragma unroll
  for (int i = 0; i < Value * kKeys / 8 / kMultiplying; ++i) {
    const int at = i * kMultiplying + threadIdx.x, row = at / 8 % kKeys, chunk = at / (8 * kKeys) * 8 + at % 8;
    uint16_t* values = reinterpret_cast<uint16_t*>(shared + chunk_address(offset, row, chunk));
    const uint4 words = *reinterpret_cast<const uint4*>(values);
    bool finite = true;
    for (uint32_t word : {words.x, words.y, words.z, words.w})
      finite = finite && is_finite_bf16(word) && is_finite_bf16(word >> 16);
    if (finite) continue;
    for (int j = 0; j < 8; ++j) {
      if (!is_finite_bf16(values[j])) {
        values[j] = 0;
        atomicMin(first_bad + chunk * 8 + j, first_key + row);
      }
    }
  }
}

template <int Value>
__device__ __forceinline__ void prefill(const MlaPrefillParams& p) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const int nope = p.nope, rope = p.rope, v = p.v;
  const int nope_tiles = (nope + kColumns - 1) / kColumns, key_tiles = nope_tiles + 1;
  const int stage_bytes = (key_tiles + Value / kColumns) * kTileBytes, stage_count = p.stages;
  const int stages_offset = 2 * key_tiles * kTileBytes, barriers_offset = stages_offset + stage_count * stage_bytes;
  const uint32_t queries = ptx::shared_address(shared), stages = queries + stages_offset;
  const uint32_t full = queries + barriers_offset, empty = full + 8 * stage_count;
  int* first_bad = reinterpret_cast<int*>(shared + barriers_offset + 16 * stage_count);

  const int head = blockIdx.x, first_query = (gridDim.y - 1 - blockIdx.y) * 2 * kRows;
  const int tokens = p.tokens, start = p.start, first = p.first, end = p.end;
  // Positions that the block's last query sees, in this range.
  const int seen = min(end, start + min(first_query + 2 * kRows, tokens)) - first;
  const int tiles = seen > 0 ? (seen + kKeys - 1) / kKeys : 0;
  // Nothing to add and nothing to finish.
  if (tiles == 0 && p.finish == 0) return;

  if (threadIdx.x == 0) {
    for (int s = 0; s < stage_count; ++s) {
      ptx::barrier_init(full + 8 * s, kGroup);
      ptx::barrier_init(empty + 8 * s, kMultiplying / 32);
    }
    ptx::barrier_init_fence();
  }
  for (int i = threadIdx.x; i < Value; i += kThreads) first_bad[i] = INT_MAX;
  // Barriers exist before anybody uses them, and no column is bad yet.
  __syncthreads();

  int stage = 0, round = 0;
  if (threadIdx.x >= kMultiplying) {
    // ---- Copies: the queries, then keys and values.
    ptx::registers_down<56>();
#pragma unroll 1
    for (int group = 0; group < (tiles > 0 ? 2 : 0); ++group) {
      const int row = first_query + group * kRows;
      const uint8_t* from = reinterpret_cast<const uint8_t*>(p.q) +
                            (size_t{static_cast<uint32_t>(row)} * p.q_stride + head * (nope + rope)) * 2;
      const uint32_t to = queries + group * key_tiles * kTileBytes;
      copy_rows(to, from, p.q_stride * 2, tokens - row, nope / 8, nope_tiles * 8);
      copy_rows(to + nope_tiles * kTileBytes, from + nope * 2, p.q_stride * 2, tokens - row, rope / 8, 8);
    }
    const size_t pitch = size_t{p.heads} * (nope + v) * 2;
    const uint8_t* expanded = reinterpret_cast<const uint8_t*>(p.expanded) + head * (nope + v) * 2;
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
#if ABRUZZI_MUTANT != 5
      // Both warpgroups have done with what the stage held.
      if (round > 0) ptx::barrier_wait(empty + 8 * stage, (round - 1) & 1);
#endif
      const uint32_t keys = stages + stage * stage_bytes;
      const uint8_t* from = expanded + tile * kKeys * pitch;
      const int key = first + tile * kKeys;
      copy_rows(keys, from, pitch, kKeys, nope / 8, nope_tiles * 8);
      copy_rows(keys + nope_tiles * kTileBytes, page_rows(p.pages, key / kKeys) + p.latent * 2, p.pages.stride * 2, end - key,
                rope / 8, 8);
      copy_rows(keys + key_tiles * kTileBytes, from + nope * 2, pitch, kKeys, v / 8, Value / 8);
      // With the first tile this also announces the queries.
      ptx::copy_async_arrive(full + 8 * stage);
      if (++stage == stage_count) stage = 0, ++round;
    }
    ptx::copy_async_commit();
    ptx::copy_async_wait<0>();
  } else {
    ptx::registers_up<224>();
    const int group = threadIdx.x / kGroup, group_query = first_query + group * kRows;
    // Position of the warpgroup's last query; −1 if it has none.
    const int last = group_query < tokens ? start + min(group_query + kRows, tokens) - 1 : -1;
    float* state = reinterpret_cast<float*>(p.sums);
    float2* norms = reinterpret_cast<float2*>(p.norms);
    auto row_of = [&](int lower) { return group_query + accumulator_row() + 8 * lower; };

    // ---- What earlier ranges gave.
    float sums[Value / 2] = {};
    Softmax softmax;
    if (p.resume != 0) {
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        if (row_of(lower) >= tokens) continue;
        const size_t row = size_t{static_cast<uint32_t>(row_of(lower))} * p.heads + head;
        const float2 norm = norms[row];
        softmax.largest[lower] = norm.x;
        // One lane's sum counts for the row.
        softmax.sum[lower] = threadIdx.x % 4 == 0 ? norm.y : 0.0f;
#pragma unroll
        for (int j = 0; j < Value / 8; ++j) {
          const int column = 8 * j + accumulator_column();
          if (column >= v) continue;
          const float2 pair = *reinterpret_cast<const float2*>(state + row * v + column);
          sums[4 * j + 2 * lower] = pair.x, sums[4 * j + 2 * lower + 1] = pair.y;
        }
      }
    }

    const uint32_t group_queries = queries + group * key_tiles * kTileBytes;
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      const uint32_t keys = stages + stage * stage_bytes, values = keys + key_tiles * kTileBytes;
      const int key = first + tile * kKeys;
      ptx::barrier_wait(full + 8 * stage, round & 1);
      // Some query of the block must not see all of the tile: the same for both warpgroups.
      if (key + kKeys - 1 > start + first_query) {
#if ABRUZZI_MUTANT != 2
        set_aside<Value>(shared, values - queries, key, first_bad);
#endif
        ptx::fence_for_async_proxy();
        // Both warpgroups multiply what each has mended half of.
        ptx::named_barrier(kMultiplyingBarrier, kMultiplying);
      }
      // cp.async wrote through the generic proxy.
      ptx::fence_for_async_proxy();

      if (key <= last) {
        Scores scores;
        wgmma::pin(scores);
        wgmma::fence();
#pragma unroll 1
        for (int columns = 0; columns < key_tiles; ++columns)
#pragma unroll
          for (int k = 0; k < kColumns / 16; ++k)
            wgmma::Bf16<kKeys>::multiply(scores, columns16(group_queries + columns * kTileBytes, k),
                                         columns16(keys + columns * kTileBytes, k), columns + k > 0);
        wgmma::commit();
        wgmma::wait<0>();
        wgmma::pin(scores);

        if (key + kKeys - 1 > start + group_query) {
#pragma unroll
          for (int i = 0; i < kKeys / 2; ++i) {
#if ABRUZZI_MUTANT == 3
            const int position = start + row_of(i / 2 % 2) + 1;
#else
            const int position = start + row_of(i / 2 % 2);
#endif
            if (key + i / 4 * 8 + accumulator_column() + i % 2 > position) scores[i] = -INFINITY;
          }
        }
        uint32_t weights[kKeys / 4];
        softmax.take(scores, p.scale, weights, sums);
        add_values<Value>(sums, weights, values);
      }
      // This warp's products have read the stage.
      if (ptx::elect_one()) ptx::barrier_arrive(empty + 8 * stage);
      if (++stage == stage_count) stage = 0, ++round;
    }
    // Everybody's notes are there.
    ptx::named_barrier(kMultiplyingBarrier, kMultiplying);

    // ---- The mean, or what the next range goes on with.
    uint16_t* out = reinterpret_cast<uint16_t*>(p.out);
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int query = row_of(lower), position = start + query;
      const float sum = row_sum(softmax.sum[lower]);
      const bool there = query < tokens;
      const size_t row = size_t{static_cast<uint32_t>(query)} * p.heads + head;
#pragma unroll
      for (int j = 0; j < Value / 8; ++j) {
        const int2 bad = *reinterpret_cast<const int2*>(first_bad + 8 * j + accumulator_column());
        if (bad.x <= position) sums[4 * j + 2 * lower] = NAN;
        if (bad.y <= position) sums[4 * j + 2 * lower + 1] = NAN;
      }
      if (p.finish == 0) {
        if (!there) continue;
        if (threadIdx.x % 4 == 0) norms[row] = {softmax.largest[lower], sum};
#pragma unroll
        for (int j = 0; j < Value / 8; ++j) {
          const int column = 8 * j + accumulator_column();
          if (column < v)
            *reinterpret_cast<float2*>(state + row * v + column) = float2{sums[4 * j + 2 * lower], sums[4 * j + 2 * lower + 1]};
        }
        continue;
      }
      const float inverse = 1.0f / sum;
#pragma unroll
      for (int c = 0; c < Value / 32; ++c) {
        uint32_t pairs[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int i = 16 * c + 4 * j + 2 * lower;
          pairs[j] = ptx::floats_to_bf16x2(sums[i] * inverse, sums[i + 1] * inverse);
        }
        const uint4 columns = gather_row(pairs[0], pairs[1], pairs[2], pairs[3]);
        const int column = 32 * c + threadIdx.x % 4 * 8;
        if (there && column < v)
          *reinterpret_cast<uint4*>(out + size_t{static_cast<uint32_t>(query)} * p.out_stride + head * v + column) = columns;
      }
    }
  }
}

}  // namespace

// One block an SM, so that warpgroups may exchange registers.
#define MLA_EXPAND(NAME, FORMAT, LATENT)                                                                        \
  extern "C" __global__ void __launch_bounds__(kThreads, 1) NAME(const __grid_constant__ MlaExpandParams p) {   \
    expand<FORMAT, LATENT>(p);                                                                                  \
  }
MLA_EXPAND(mla_expand_f32_512, WEIGHT_F32, 512)
MLA_EXPAND(mla_expand_f16_512, WEIGHT_F16, 512)
MLA_EXPAND(mla_expand_bf16_512, WEIGHT_BF16, 512)
MLA_EXPAND(mla_expand_fp8_512, WEIGHT_FP8_BLOCK, 512)
MLA_EXPAND(mla_expand_f32_128, WEIGHT_F32, 128)
MLA_EXPAND(mla_expand_f16_128, WEIGHT_F16, 128)
MLA_EXPAND(mla_expand_bf16_128, WEIGHT_BF16, 128)
MLA_EXPAND(mla_expand_fp8_128, WEIGHT_FP8_BLOCK, 128)

#define MLA_PREFILL(NAME, VALUE)                                                                                 \
  extern "C" __global__ void __launch_bounds__(kThreads, 1) NAME(const __grid_constant__ MlaPrefillParams p) {   \
    prefill<VALUE>(p);                                                                                           \
  }
MLA_PREFILL(mla_prefill_64, 64)
MLA_PREFILL(mla_prefill_128, 128)
MLA_PREFILL(mla_prefill_256, 256)
