// Linear layers for few tokens: trunk, router and head.
//
// out[m, n] = Σ_k x[m, k] · W[n, k]: x bf16 [tokens, cols], W [rows, cols] in any WeightFormat, out bf16 or f32, f32 sums.
//   Contract: GemvParams; grid = (rows / 64, splits of the columns, tokens / Tokens), each rounded up; block = 128, 384 for
//   `_wide`; dynamic shared memory of kStages stages (row_tile.cuh) for every 128 threads. Kernels are named by the tokens a
//   block takes, 8 or 16. With more than one split the grid is at most GEMV_SPLIT_BLOCKS blocks. Launches of one module run
//   one after the other.
//   Plan: row_tile.cuh: weights once for every Tokens tokens, 24 KiB in flight a block; bound by memory. Matrices of few rows
//   are split by columns until about three blocks an SM are busy (router 384 × 7168: 6 tiles × 28 splits). A block then
//   leaves its sums in `partial_sums`, and the last of a tile's blocks to arrive adds them in the order of the splits: the
//   result does not depend on who is last.
//   Partial sums are read back from the second-level cache, but each is written, and that may be a 24th of the weights. Where
//   more tokens would make it more, `_wide` blocks are one to an SM, and what three blocks did is done by three groups of
//   threads, each with its own ring and its own spans; their sums meet in shared memory (router, 16 tokens: 9 splits).
#include "row_tile.cuh"

namespace {

using namespace row_tile;

constexpr int kMaxTokens = 16;

/// [tile, split][token][row]; in the module rather than a parameter, because it is small and launches are ordered.
__device__ float partial_sums[GEMV_SPLIT_BLOCKS][kMaxTokens][kRows];
/// Blocks of a tile that have arrived. Wraps to 0 with the last one, ready for the next launch.
__device__ uint32_t arrivals[GEMV_SPLIT_BLOCKS];

/// Groups of a wide block. It has an SM's registers and shared memory to itself, as kResident blocks have them together.
constexpr int kWide = kResident;

template <uint32_t Format, int Tokens, int Groups>
__device__ __forceinline__ void linear(const GemvParams& p) {
  constexpr int kBlock = Groups * kThreads;
  extern __shared__ __align__(128) uint8_t ring[];
  __shared__ bool is_last;
  const int tid = threadIdx.x;
  const int row0 = blockIdx.x * kRows, token0 = blockIdx.z * Tokens;
  const int rows = min(int(p.weight.rows) - row0, kRows), tokens = min(int(p.tokens) - token0, Tokens);
  const int cols = p.weight.cols;
  const uint16_t* x = reinterpret_cast<const uint16_t*>(p.x) + size_t(token0) * p.x_stride;

  // Phase 1: the sums of this block's columns, a part of them by each group.
  const int all_spans = (row_bytes<Format>(cols) + kSpan - 1) / kSpan;
  const int begin = blockIdx.y * p.spans, end = min(begin + int(p.spans), all_spans);
  const Segment segments[1] = {segment<Format>(p.weight.weight, p.weight.scale, row0, p.weight.rows, cols)};
  constexpr int kRing = kStages * Stage<Format, Tokens>::kBytes;
  const int group = tid / kThreads, part = (end - begin + Groups - 1) / Groups;
  const int group_begin = min(begin + group * part, end), group_end = min(group_begin + part, end);
  tile<Format, Tokens, Groups>(ring + group * kRing, segments, cols, group_begin, group_end, tokens,
                               [&](int token) { return x + size_t(token) * p.x_stride; });
#if ABRUZZI_MUTANT != 4
  // The sums of every group are there.
  if constexpr (Groups > 1) __syncthreads();
#endif

  // A thread has one row of some tokens: 64 threads write a token's 64 rows.
  const int row = tid % kRows;
  auto sum_of = [&](int token) {
    float sum = 0.0f;
#pragma unroll
    for (int g = 0; g < Groups; ++g) {
      const float s = reinterpret_cast<const float*>(ring + g * kRing)[token * kTilePitch + row];
      sum = g == 0 ? s : sum + s;
    }
    return sum;
  };
  auto write = [&](int token, float sum) {
    if (row >= rows) return;
    const size_t at = size_t(token0 + token) * p.out_stride + row0 + row;
    if (p.out_type == ACTIVATION_F32) {
      reinterpret_cast<float*>(p.out)[at] = sum;
    } else {
      reinterpret_cast<uint16_t*>(p.out)[at] = float_to_bf16(sum);
    }
  };
  const int splits = gridDim.y;
  if (splits == 1) {
    for (int token = tid / kRows; token < tokens; token += kBlock / kRows) write(token, sum_of(token));
    return;
  }

  // Phase 2: the last block of the tile adds what all of them left.
  const int tile_index = blockIdx.z * gridDim.x + blockIdx.x;
  float(*left)[kMaxTokens][kRows] = partial_sums + tile_index * splits;
  for (int token = tid / kRows; token < tokens; token += kBlock / kRows)
    left[blockIdx.y][token][row] = sum_of(token);
  // The sums of every thread of the block are visible to the GPU before the block counts as arrived.
  __threadfence();
  __syncthreads();
#if ABRUZZI_MUTANT == 3
  if (tid == 0) is_last = atomicAdd(&arrivals[tile_index], 1) == splits - 1;
#else
  if (tid == 0) is_last = atomicInc(&arrivals[tile_index], splits - 1) == splits - 1;
#endif
  // Shares thread 0's finding.
  __syncthreads();
  if (!is_last) return;
  // What others left is read after their arrival was seen.
  __threadfence();
  for (int token = tid / kRows; token < tokens; token += kBlock / kRows) {
    float sum = 0.0f;
#pragma unroll 4
    for (int split = 0; split < splits; ++split) sum += __ldcg(&left[split][token][row]);
    write(token, sum);
  }
}

}  // namespace

#define LINEAR(NAME, FORMAT, TOKENS)                                                                           \
  extern "C" __global__ void __launch_bounds__(kThreads, kResident) NAME(const __grid_constant__ GemvParams p) { \
    linear<FORMAT, TOKENS, 1>(p);                                                                              \
  }                                                                                                            \
  extern "C" __global__ void __launch_bounds__(kWide* kThreads, 1) NAME##_wide(const __grid_constant__ GemvParams p) { \
    linear<FORMAT, TOKENS, kWide>(p);                                                                          \
  }

LINEAR(linear_f32_8, WEIGHT_F32, 8)
LINEAR(linear_f32_16, WEIGHT_F32, 16)
LINEAR(linear_f16_8, WEIGHT_F16, 8)
LINEAR(linear_f16_16, WEIGHT_F16, 16)
LINEAR(linear_bf16_8, WEIGHT_BF16, 8)
LINEAR(linear_bf16_16, WEIGHT_BF16, 16)
LINEAR(linear_fp8_8, WEIGHT_FP8_BLOCK, 8)
LINEAR(linear_fp8_16, WEIGHT_FP8_BLOCK, 16)
LINEAR(linear_int4_8, WEIGHT_INT4_GROUP32, 8)
LINEAR(linear_int4_16, WEIGHT_INT4_GROUP32, 16)
