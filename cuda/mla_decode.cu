// Multi-head latent attention for few query tokens, absorbed: scores are taken on the cached latent itself, so a cached row
// is read once for all heads (DeepSeek-V2, arXiv 2405.04434, section 2.1; the split over positions is FlashDecoding's).
//
// With K_h and V_h the key and value rows of head h in kv_b, and (c_j, r_j) the cached rows:
//   absorb   query[t, h] = (q_nope[t, h]·K_h, q_rope[t, h])
//   attend   per split: softmax over its positions of scale · query[t, h]·(c_j, r_j), weighted mean of c_j, log of the sum
//   combine  mixed[t, h] = the splits' means, weighted by their sums
//   project  out[t, h] = V_h·mixed[t, h]
#include "attention.cuh"

namespace {

using namespace attention;

/// Tokens whose sums a thread keeps while a weight passes by.
constexpr int kTokens = 4;

// ---- absorb ------------------------------------------------------------------------------------------------------------
//
// Contract: MlaAbsorbParams; grid = (heads, latent / 128), block = 256, nope ≤ 256.
// Plan: a block takes 128 columns of its head's key rows. A lane holds 16 bytes of a row (all of them with FP8), a warp as many
// rows as fit, four loads in flight a lane: 16 KB a block, several blocks an SM. Sums of four tokens stay in registers, so each
// weight is read from memory once for up to four tokens and from the second-level cache beyond. Bound by memory.

constexpr int kAbsorbThreads = 256;
constexpr int kAbsorbWarps = kAbsorbThreads / 32;
constexpr int kAbsorbColumns = 128;
constexpr int kMaxNope = 256;

template <uint32_t Format>
__device__ __forceinline__ void absorb(const MlaAbsorbParams& p) {
  constexpr int kVector = 16 / kStoredBytes<Format>;
  /// Lanes across the columns, rows a warp reads at a time, rows a block does.
  constexpr int kAcross = kAbsorbColumns / kVector;
  constexpr int kDown = 32 / kAcross;
  constexpr int kRowsAtATime = kDown * kAbsorbWarps;
  constexpr int kLoads = 4;
  __shared__ float q_nope[kTokens][kMaxNope];
  __shared__ float sums[kAbsorbWarps][kTokens][kAbsorbColumns];

  const int head = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int nope = p.nope, rope = p.rope, latent = p.kv_b.cols, width = latent + rope;
  const int first_row = head * (nope + p.v), first_column = blockIdx.y * kAbsorbColumns;
  const int column = first_column + lane % kAcross * kVector;
  const uint16_t* q = reinterpret_cast<const uint16_t*>(p.q) + head * (nope + rope);
  uint16_t* query = reinterpret_cast<uint16_t*>(p.query);

  for (int token = 0; token < p.tokens; token += kTokens) {
    const int tokens = min(kTokens, static_cast<int>(p.tokens) - token);
    // The last group's sums are read, and so are its queries.
    if (token > 0) __syncthreads();
    for (int i = threadIdx.x; i < kTokens * nope; i += kAbsorbThreads) {
      const int t = i / nope, n = i % nope;
      q_nope[t][n] = t < tokens ? bf16_to_float(q[size_t{static_cast<uint32_t>(token + t)} * p.q_stride + n]) : 0.0f;
    }
    // q_nope is written by all and read by all.
    __syncthreads();

    float acc[kTokens][kVector] = {};
    for (int base = warp * kDown + lane / kAcross; base < nope; base += kRowsAtATime * kLoads) {
      Stored<Format, kVector> stored[kLoads];
      float scale[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int n = base + i * kRowsAtATime;
        if (n < nope) {
          stored[i].load(p.kv_b.weight, size_t{static_cast<uint32_t>(first_row + n)} * latent + column);
#if ABRUZZI_MUTANT == 1
          scale[i] = block_scale<Format>(p.kv_b, first_row, column);
#else
          scale[i] = block_scale<Format>(p.kv_b, first_row + n, column);
#endif
        }
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int n = base + i * kRowsAtATime;
        if (n < nope) {
          float w[kVector];
          stored[i].decode(w);
#pragma unroll
          for (int t = 0; t < kTokens; ++t) {
            const float x = q_nope[t][n] * scale[i];
#pragma unroll
            for (int j = 0; j < kVector; ++j) acc[t][j] = fmaf(x, w[j], acc[t][j]);
          }
        }
      }
    }

    // Rows of a warp by shuffles, warps through shared memory, in an order that is always the same. Element j of a lane is put
    // at j · kAcross + lane, so that neighbouring lanes write neighbouring words.
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        float v = acc[t][j];
#pragma unroll
        for (int offset = kAcross; offset < 32; offset *= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
        if (lane < kAcross) sums[warp][t][j * kAcross + lane] = v;
      }
    }
    // All warps' sums are there.
    __syncthreads();
    for (int i = threadIdx.x; i < tokens * kAbsorbColumns; i += kAbsorbThreads) {
      const int t = i / kAbsorbColumns, at = i % kAbsorbColumns;
      float v = 0.0f;
#pragma unroll
      for (int w = 0; w < kAbsorbWarps; ++w) v += sums[w][t][at];
      const size_t row = size_t{static_cast<uint32_t>(token + t)} * p.heads + head;
      query[row * width + first_column + at % kAcross * kVector + at / kAcross] = float_to_bf16(v);
    }
    if (blockIdx.y == 0) {
      for (int i = threadIdx.x; i < tokens * rope; i += kAbsorbThreads) {
        const size_t t = token + i / rope;
        query[(t * p.heads + head) * width + latent + i % rope] = q[t * p.q_stride + nope + i % rope];
      }
    }
  }
}

// ---- attend ------------------------------------------------------------------------------------------------------------
//
// Contract: MlaAttendParams; grid = (heads / 64 rounded up, tokens, splits), block = 384, dynamic shared memory for
// the queries, the stages and two barriers a stage. Rows of query and pages are aligned to 16 bytes; splits ≤ pages of the
// first token.
// Plan: a block has 64 heads of one token and a run of pages. A warpgroup copies pages (cp.async, 16 bytes a thread and step,
// swizzled), two others multiply: each has the whole 64×64 scores, which costs the tensor cores half as much again and saves
// every exchange between the two, and half of the latent's columns as its sums: 64 × 256 f32, 128 registers. The weights of
// values go from accumulator to operand in registers. With 64 heads a page is 73.7 KB of memory time (2.9 µs an SM at 3.35 TB/s)
// and 13.7 MFLOP (1.8 µs), so memory is the limit; one or two pages, 74 to 147 KB an SM, are in flight.
// All keys a block multiplies are visible to all of its rows; rows of the last page beyond the token's position are zeros in
// shared memory, never memory's own content, and their scores are −∞.

template <int Latent, int Rope>
struct Attend {
  static constexpr int kStages = Latent > 256 ? 2 : 4;
  static constexpr int kTiles = (Latent + Rope + kColumns - 1) / kColumns;
  /// Columns of the latent a warpgroup sums.
  static constexpr int kHalf = Latent / 2;
  static constexpr int kStageBytes = kTiles * kTileBytes;
  static constexpr int kBarriers = (1 + kStages) * kStageBytes;
};
constexpr int kAttendThreads = 3 * kGroup;

template <int Latent, int Rope>
__device__ __forceinline__ void attend(const MlaAttendParams& p) {
  using Shape = Attend<Latent, Rope>;
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t query = ptx::shared_address(shared), stages = query + Shape::kStageBytes;
  const uint32_t full = query + Shape::kBarriers, empty = full + 8 * Shape::kStages;

  const int first_head = blockIdx.x * kRows, token = blockIdx.y;
  const int heads = min(kRows, static_cast<int>(p.heads) - first_head);
  const int keys = p.start + token + 1, pages = (keys + kKeys - 1) / kKeys;
  const int first_page = static_cast<int>(size_t{blockIdx.z} * pages / p.splits);
  const int end_page = static_cast<int>((size_t{blockIdx.z} + 1) * pages / p.splits);
  const size_t first_row = size_t{blockIdx.y} * p.heads + first_head;

  if (threadIdx.x == 0) {
    for (int s = 0; s < Shape::kStages; ++s) {
      ptx::barrier_init(full + 8 * s, kGroup);
      ptx::barrier_init(empty + 8 * s, 2 * kGroup / 32);
    }
    ptx::barrier_init_fence();
  }
  // Barriers exist before anybody uses them.
  __syncthreads();

  if (threadIdx.x >= 2 * kGroup) {
    // ---- Copies: the queries, then page after page.
    ptx::registers_down<56>();
    constexpr int kChunks = (Latent + Rope) / 8;
    copy_rows(query, reinterpret_cast<const uint8_t*>(p.query) + first_row * (Latent + Rope) * 2, (Latent + Rope) * 2, heads,
              kChunks, kChunks);
    int stage = 0, round = 0;
    for (int page = first_page; page < end_page; ++page) {
#if ABRUZZI_MUTANT != 4
      // Both warpgroups have done with what the stage held.
      if (round > 0) ptx::barrier_wait(empty + 8 * stage, (round - 1) & 1);
#endif
      copy_rows(stages + stage * Shape::kStageBytes, page_rows(p.pages, page), p.pages.stride * 2,
#if ABRUZZI_MUTANT == 2
                kKeys,
#else
                keys - page * kKeys,
#endif
                kChunks, kChunks);
      // With the first page this also announces the queries.
      ptx::copy_async_arrive(full + 8 * stage);
      if (++stage == Shape::kStages) stage = 0, ++round;
    }
    ptx::copy_async_commit();
    ptx::copy_async_wait<0>();
  } else {
    // ---- Products: scores, softmax, sums.
    ptx::registers_up<224>();
    const int half = threadIdx.x / kGroup;
    float sums[Shape::kHalf / 2] = {};
    Softmax softmax;
    int stage = 0, round = 0;
    for (int page = first_page; page < end_page; ++page) {
      const uint32_t tiles = stages + stage * Shape::kStageBytes;
#if ABRUZZI_MUTANT != 3
      ptx::barrier_wait(full + 8 * stage, round & 1);
#endif
      // cp.async wrote through the generic proxy, wgmma reads through the asynchronous one.
      ptx::fence_for_async_proxy();

      Scores scores;
      wgmma::pin(scores);
      wgmma::fence();
#pragma unroll
      for (int k = 0; k < (Latent + Rope) / 16; ++k)
        wgmma::Bf16<kKeys>::multiply(scores, columns16(query, k), columns16(tiles, k), k > 0);
      wgmma::commit();
      wgmma::wait<0>();
      wgmma::pin(scores);

      const int visible = keys - page * kKeys;
      if (visible < kKeys) {
#pragma unroll
        for (int i = 0; i < kKeys / 2; ++i)
          if (i / 4 * 8 + accumulator_column() + i % 2 >= visible) scores[i] = -INFINITY;
      }
      uint32_t weights[kKeys / 4];
      softmax.take(scores, p.scale, weights, sums);
      add_values<Shape::kHalf>(sums, weights, tiles + half * (Shape::kHalf / kColumns) * kTileBytes);

      // This warp's products have read the stage.
      if (ptx::elect_one()) ptx::barrier_arrive(empty + 8 * stage);
      if (++stage == Shape::kStages) stage = 0, ++round;
    }

    // ---- The split's mean and the log of its sum.
    const size_t rows = size_t{p.tokens} * p.heads;
    float* log_sum = reinterpret_cast<float*>(p.log_sum) + blockIdx.z * rows + first_row;
    float* partial = reinterpret_cast<float*>(p.partial) + (blockIdx.z * rows + first_row) * Latent + half * Shape::kHalf;
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int row = accumulator_row() + 8 * lower;
      const float sum = row_sum(softmax.sum[lower]), inverse = 1.0f / sum;
      if (row < heads) {
        if (half == 0 && threadIdx.x % 4 == 0) log_sum[row] = softmax.largest[lower] + log2f(sum);
#pragma unroll
        for (int j = 0; j < Shape::kHalf / 8; ++j) {
          float2 mean = {sums[4 * j + 2 * lower] * inverse, sums[4 * j + 2 * lower + 1] * inverse};
          *reinterpret_cast<float2*>(partial + size_t{static_cast<uint32_t>(row)} * Latent + 8 * j + accumulator_column()) = mean;
        }
      }
    }
  }
}

// ---- combine --------------------------------------------------------------------------------------------------------------
//
// Contract: MlaCombineParams; grid = (rows, latent / 128), block = 128. Plan: a warp takes every fourth split, a lane four
// columns; warps are added in order. Bound by the second-level cache, where the splits' means still are.

constexpr int kCombineThreads = 128;
constexpr int kCombineWarps = kCombineThreads / 32;
constexpr int kCombineColumns = 128;

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

__device__ __forceinline__ void combine(const MlaCombineParams& p) {
  __shared__ float4 sums[kCombineWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, splits = p.splits;
  const size_t row = blockIdx.x, latent = size_t{gridDim.y} * kCombineColumns;
  const size_t column = blockIdx.y * kCombineColumns + lane * 4;
  const float* log_sum = reinterpret_cast<const float*>(p.log_sum) + row;
  const float* partial = reinterpret_cast<const float*>(p.partial) + row * latent + column;

  // Every warp finds the same total: the splits are few and in the cache.
  float most = -INFINITY;
  for (int s = lane; s < splits; s += 32) most = fmaxf(most, log_sum[size_t{p.rows} * s]);
  most = warp_max(most);
  float total = 0.0f;
  for (int s = lane; s < splits; s += 32) total += exp2f(log_sum[size_t{p.rows} * s] - most);
  total = warp_sum(total);

  float4 acc = {};
#pragma unroll 4
  for (int s = warp; s < splits; s += kCombineWarps) {
    const float weight = exp2f(log_sum[size_t{p.rows} * s] - most);
    const float4 mean = *reinterpret_cast<const float4*>(partial + size_t{p.rows} * latent * s);
    acc = {fmaf(weight, mean.x, acc.x), fmaf(weight, mean.y, acc.y), fmaf(weight, mean.z, acc.z), fmaf(weight, mean.w, acc.w)};
  }
  sums[warp][lane] = acc;
  // All warps' sums are there.
  __syncthreads();
  if (warp == 0) {
    for (int w = 1; w < kCombineWarps; ++w) {
      const float4 other = sums[w][lane];
      acc = {acc.x + other.x, acc.y + other.y, acc.z + other.z, acc.w + other.w};
    }
    const float norm = 1.0f / total;
    *reinterpret_cast<float4*>(reinterpret_cast<float*>(p.mixed) + row * latent + column) =
        float4{acc.x * norm, acc.y * norm, acc.z * norm, acc.w * norm};
  }
}

// ---- project ---------------------------------------------------------------------------------------------------------------
//
// Contract: MlaProjectParams; grid = (heads, v / 32 rounded up), block = 256. Plan: a warp has four value rows, a lane the same
// columns of all of them, so the mixed latents of four tokens stay in registers; all four rows' loads are in flight at once. Each
// weight is read from memory once. Bound by memory.

constexpr int kProjectThreads = 256;
constexpr int kProjectRows = 4;
constexpr int kProjectBlockRows = kProjectThreads / 32 * kProjectRows;

template <uint32_t Format, int Latent>
__device__ __forceinline__ void project(const MlaProjectParams& p) {
  /// Neighbouring weights a lane reads at a time, and how often for a row.
  constexpr int kVector = 16 / kStoredBytes<Format> < Latent / 32 ? 16 / kStoredBytes<Format> : Latent / 32;
  constexpr int kLoads = Latent / 32 / kVector;
  const int head = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int nope = p.nope, v = p.v;
  const int first = blockIdx.y * kProjectBlockRows + warp * kProjectRows;
  const int first_row = head * (nope + v) + nope;
  uint16_t* out = reinterpret_cast<uint16_t*>(p.out) + head * v;

  for (int token = 0; token < p.tokens; token += kTokens) {
    const int tokens = min(kTokens, static_cast<int>(p.tokens) - token);
    Stored<Format, kVector> stored[kProjectRows][kLoads];
#pragma unroll
    for (int r = 0; r < kProjectRows; ++r)
#pragma unroll
      for (int i = 0; i < kLoads; ++i)
        if (first + r < v)
          stored[r][i].load(p.kv_b.weight,
                            size_t{static_cast<uint32_t>(first_row + first + r)} * Latent + (i * 32 + lane) * kVector);

    float acc[kProjectRows][kTokens] = {};
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int column = (i * 32 + lane) * kVector;
      float mixed[kTokens][kVector];
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const float4* from =
            reinterpret_cast<const float4*>(reinterpret_cast<const float*>(p.mixed) +
                                            (size_t{static_cast<uint32_t>(token + t)} * p.heads + head) * Latent + column);
#pragma unroll
        for (int j = 0; j < kVector / 4; ++j) {
          const float4 m = t < tokens ? from[j] : float4{};
          mixed[t][4 * j] = m.x, mixed[t][4 * j + 1] = m.y, mixed[t][4 * j + 2] = m.z, mixed[t][4 * j + 3] = m.w;
        }
      }
#pragma unroll
      for (int r = 0; r < kProjectRows; ++r) {
        if (first + r >= v) continue;
        float w[kVector];
        stored[r][i].decode(w);
        const float scale = block_scale<Format>(p.kv_b, first_row + first + r, column);
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
          float dot = 0.0f;
#pragma unroll
          for (int j = 0; j < kVector; ++j) dot = fmaf(w[j], mixed[t][j], dot);
          acc[r][t] = fmaf(dot, scale, acc[r][t]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kProjectRows; ++r)
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const float sum = warp_sum(acc[r][t]);
        if (lane == 0 && t < tokens && first + r < v)
          out[size_t{static_cast<uint32_t>(token + t)} * p.out_stride + first + r] = float_to_bf16(sum);
      }
  }
}

}  // namespace

#define MLA_ABSORB(NAME, FORMAT)                                                                                   \
  extern "C" __global__ void __launch_bounds__(kAbsorbThreads) NAME(const __grid_constant__ MlaAbsorbParams p) {   \
    absorb<FORMAT>(p);                                                                                            \
  }
MLA_ABSORB(mla_absorb_f32, WEIGHT_F32)
MLA_ABSORB(mla_absorb_f16, WEIGHT_F16)
MLA_ABSORB(mla_absorb_bf16, WEIGHT_BF16)
MLA_ABSORB(mla_absorb_fp8, WEIGHT_FP8_BLOCK)

// One block an SM, so that warpgroups may exchange registers.
extern "C" __global__ void __launch_bounds__(kAttendThreads, 1) mla_attend_512_64(const __grid_constant__ MlaAttendParams p) {
  attend<512, 64>(p);
}
extern "C" __global__ void __launch_bounds__(kAttendThreads, 1) mla_attend_128_32(const __grid_constant__ MlaAttendParams p) {
  attend<128, 32>(p);
}

extern "C" __global__ void __launch_bounds__(kCombineThreads) mla_combine(const __grid_constant__ MlaCombineParams p) {
  combine(p);
}

#define MLA_PROJECT(NAME, FORMAT, LATENT)                                                                          \
  extern "C" __global__ void __launch_bounds__(kProjectThreads) NAME(const __grid_constant__ MlaProjectParams p) { \
    project<FORMAT, LATENT>(p);                                                                                   \
  }
MLA_PROJECT(mla_project_f32_512, WEIGHT_F32, 512)
MLA_PROJECT(mla_project_f16_512, WEIGHT_F16, 512)
MLA_PROJECT(mla_project_bf16_512, WEIGHT_BF16, 512)
MLA_PROJECT(mla_project_fp8_512, WEIGHT_FP8_BLOCK, 512)
MLA_PROJECT(mla_project_f32_128, WEIGHT_F32, 128)
MLA_PROJECT(mla_project_f16_128, WEIGHT_F16, 128)
MLA_PROJECT(mla_project_bf16_128, WEIGHT_BF16, 128)
MLA_PROJECT(mla_project_fp8_128, WEIGHT_FP8_BLOCK, 128)
