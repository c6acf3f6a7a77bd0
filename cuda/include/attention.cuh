// What the MLA kernels share: tiles in shared memory, the products of wgmma on them, softmax over keys that arrive in tiles,
// weights as the checkpoint stores them.
//
// A tile is 64 rows of 64 bf16, 128 bytes each, whose 16-byte chunk c stands at chunk c ^ (row % 8): wgmma's 128-byte
// swizzle. Wider rows are several tiles, kTileBytes apart. The same tile of cached rows is read K-major for scores
// (rows = keys = columns of the product) and MN-major for values (rows = keys = what is summed over), so it is loaded once.
#pragma once

#include "numeric.cuh"
#include "wgmma.cuh"

namespace attention {

/// Tokens a page; keys a tile.
constexpr int kKeys = 64;
/// Query rows of a warpgroup.
constexpr int kRows = 64;
/// Columns of a tile.
constexpr int kColumns = 64;
constexpr int kTileBytes = kRows * kColumns * 2;
/// Threads of a warpgroup.
constexpr int kGroup = 128;

// ---- Tiles -------------------------------------------------------------------------------------------------------

/// Where 16-byte chunk `chunk` of a row stands. Eight lanes with consecutive chunks of a row, or with the same chunk of
/// eight rows, touch all banks once.
__device__ __forceinline__ uint32_t chunk_address(uint32_t tiles, int row, int chunk) {
  return tiles + chunk / 8 * kTileBytes + row * 128 + ((chunk ^ row) & 7) * 16;
}

/// Issues copies of 64 rows, `pitch` bytes apart, into tiles; run by a whole warpgroup. Beyond `rows` rows and `chunks`
/// chunks of a row, up to `padded` chunks, zeros are written and nothing is read.
__device__ __forceinline__ void copy_rows(uint32_t tiles, const uint8_t* from, size_t pitch, int rows, int chunks, int padded) {
  const int lane = threadIdx.x % 8, first = threadIdx.x % kGroup / 8;
  // Rows 16 apart stand in the same order, so the swizzle is worked out once.
  const uint32_t to = chunk_address(tiles, first, lane);
  const uint8_t* lane_from = from + first * pitch + lane * 16;
  for (int tile = 0; tile * 8 < padded; ++tile) {
    const int chunk = tile * 8 + lane;
    if (chunk >= padded) break;
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) {
      const bool there = first + i * 16 < rows && chunk < chunks;
      ptx::copy16_async(to + tile * kTileBytes + i * 16 * 128, there ? lane_from + i * 16 * pitch + tile * 128 : from,
                        there ? 16 : 0);
    }
  }
}

/// First byte of a layer's rows in page `page`.
__device__ __forceinline__ const uint8_t* page_rows(const LatentPages& pages, int page) {
  return reinterpret_cast<const uint8_t*>(reinterpret_cast<const uint64_t*>(pages.table)[page] + pages.layer_offset);
}

// ---- Products ------------------------------------------------------------------------------------------------------

/// The 16 columns from 16 · k on, K-major.
__device__ __forceinline__ uint64_t columns16(uint32_t tiles, int k) {
  return wgmma::descriptor(tiles + k / 4 * kTileBytes + k % 4 * 32);
}
/// The 16 rows from 16 · k on of tiles side by side, MN-major: 8-row groups stand 1024 bytes apart, the next 64 columns
/// kTileBytes.
__device__ __forceinline__ uint64_t rows16(uint32_t tiles, int k) {
  const uint32_t address = tiles + k * 2048;
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(kTileBytes >> 4) << 16 | 64ull << 32 |
         1ull << 62;
}

/// d[64, N] += a[64, 16]·b[16, N], a in registers as mma.sync m16n8k16 has it, b MN-major.
template <int N>
struct Weighted;
#define ATTENTION_WEIGHTED(N, LIST, REGISTERS, A0, A1, A2, A3, B, KEEP)                                                 \
  template <>                                                                                                        \
  struct Weighted<N> {                                                                                                \
    static __device__ __forceinline__ void add(float (&d)[N / 2], const uint32_t* a, uint64_t b) {                     \
      asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, %" #KEEP ", 0;\n"                                           \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" LIST "}, {%" #A0 ", %" #A1 ", %" #A2    \
                   ", %" #A3 "}, %" #B ", keep, 1, 1, 1;\n}"                                                            \
                   : REGISTERS                                                                                        \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));                                     \
    }                                                                                                                 \
  };
ATTENTION_WEIGHTED(64, WGMMA_LIST_0 ", " WGMMA_LIST_16, WGMMA_R64, 32, 33, 34, 35, 36, 37)
ATTENTION_WEIGHTED(128, WGMMA_LIST_0 ", " WGMMA_LIST_16 ", " WGMMA_LIST_32 ", " WGMMA_LIST_48, WGMMA_R128, 64, 65, 66, 67, 68, 69)
ATTENTION_WEIGHTED(256,
                   WGMMA_LIST_0 ", " WGMMA_LIST_16 ", " WGMMA_LIST_32 ", " WGMMA_LIST_48 ", " WGMMA_LIST_64 ", " WGMMA_LIST_80
                                ", " WGMMA_LIST_96 ", " WGMMA_LIST_112,
                   WGMMA_R256, 128, 129, 130, 131, 132, 133)
#undef ATTENTION_WEIGHTED

/// Scores of 64 query rows and 64 keys; registers as in wgmma.cuh.
using Scores = float[kKeys / 2];

/// sums += p·values over a tile's 64 keys, p = e^(score − largest) in bf16 pairs.
template <int N>
__device__ __forceinline__ void add_values(float (&sums)[N / 2], const uint32_t (&p)[kKeys / 4], uint32_t values) {
  wgmma::pin(sums);
  wgmma::fence();
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) Weighted<N>::add(sums, &p[4 * k], rows16(values, k));
  wgmma::commit();
  wgmma::wait<0>();
  wgmma::pin(sums);
}

/// Pairs of columns 8·j + 2·q, j = 0 .. 3, of lane q of four become columns 8·q .. 8·q + 7: 16 bytes to be stored at once.
__device__ __forceinline__ uint4 gather_row(uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
  auto exchange = [](uint32_t& low, uint32_t& high, int mask) {
    // The even partner keeps `low` and takes the other's `low` for its `high`; the odd one the other way round.
    const bool odd = threadIdx.x & mask;
    const uint32_t received = __shfl_xor_sync(0xffffffffu, odd ? low : high, mask);
    (odd ? low : high) = received;
  };
  exchange(r0, r1, 1);
  exchange(r2, r3, 1);
  exchange(r0, r2, 2);
  exchange(r1, r3, 2);
  return {r0, r1, r2, r3};
}

// ---- Softmax -------------------------------------------------------------------------------------------------------

/// Row of the warpgroup's 64 that a thread's accumulators belong to, first half; the second is 8 below.
__device__ __forceinline__ int accumulator_row() { return threadIdx.x % kGroup / 32 * 16 + threadIdx.x % 32 / 4; }
/// First of a thread's two neighbouring columns in every eight.
__device__ __forceinline__ int accumulator_column() { return threadIdx.x % 4 * 2; }

/// Over the four lanes that share a row.
__device__ __forceinline__ float row_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
  return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}
__device__ __forceinline__ float row_sum(float v) {
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

/// Softmax of a thread's two rows over keys that arrive in tiles. A NaN score makes its row NaN.
struct Softmax {
  /// Largest score so far, times `scale`: the same in all lanes of a row.
  float largest[2] = {-INFINITY, -INFINITY};
  /// Σ 2^(score · scale − largest) of this lane's columns.
  float sum[2] = {0.0f, 0.0f};

  /// Takes a tile's scores, gives the weights of its values and rescales the sums of earlier values.
  template <int Count>
  __device__ __forceinline__ void take(Scores& scores, float scale, uint32_t (&p)[kKeys / 4], float (&sums)[Count]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = -INFINITY;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) most = fmaxf(most, fmaxf(scores[4 * j + 2 * half], scores[4 * j + 2 * half + 1]));
      const float now = fmaxf(largest[half], row_max(most) * scale);
      const float shrink = exp2f(largest[half] - now);
      largest[half] = now;
      sum[half] *= shrink;
#pragma unroll
      for (int j = 0; j < Count / 4; ++j) {
        sums[4 * j + 2 * half] *= shrink;
        sums[4 * j + 2 * half + 1] *= shrink;
      }
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
        const float low = exp2f(fmaf(scores[4 * j + 2 * half], scale, -now));
        const float high = exp2f(fmaf(scores[4 * j + 2 * half + 1], scale, -now));
        sum[half] += low + high;
        // Scores' accumulators 8k .. 8k + 7 become the four registers of step k: rows and 8 columns alternate.
        p[2 * j + half] = ptx::floats_to_bf16x2(low, high);
      }
    }
  }
};

// ---- Weights ---------------------------------------------------------------------------------------------------------

/// Bytes of a weight.
template <uint32_t Format>
constexpr int kStoredBytes = Format == WEIGHT_FP8_BLOCK ? 1 : Format == WEIGHT_F32 ? 4 : 2;

/// `Count` neighbouring weights of a row as they are stored: 4 to 32 bytes.
template <uint32_t Format, int Count>
struct Stored {
  static constexpr int kWords = Count * kStoredBytes<Format> / 4;
  uint32_t words[kWords];

  /// From the n-th weight on; n is a multiple of Count.
  __device__ __forceinline__ void load(uint64_t weights, size_t n) {
    const uint8_t* from = reinterpret_cast<const uint8_t*>(weights) + n * kStoredBytes<Format>;
    if constexpr (kWords >= 4) {
#pragma unroll
      for (int i = 0; i < kWords / 4; ++i) {
        const uint4 v = ptx::load_streaming(from + 16 * i);
        words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
      }
    } else if constexpr (kWords == 2) {
      const uint2 v = __ldg(reinterpret_cast<const uint2*>(from));
      words[0] = v.x, words[1] = v.y;
    } else {
      words[0] = __ldg(reinterpret_cast<const uint32_t*>(from));
    }
  }

  /// The weights before their block's scale: exact.
  __device__ __forceinline__ void decode(float (&out)[Count]) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (Format == WEIGHT_FP8_BLOCK) {
        const float2 a = __half22float2(ptx::fp8x2_to_half2(static_cast<uint16_t>(words[i])));
        const float2 b = __half22float2(ptx::fp8x2_to_half2(static_cast<uint16_t>(words[i] >> 16)));
        out[4 * i] = a.x, out[4 * i + 1] = a.y, out[4 * i + 2] = b.x, out[4 * i + 3] = b.y;
      } else if constexpr (Format == WEIGHT_BF16) {
        const float2 a = unpack_bf16x2(words[i]);
        out[2 * i] = a.x, out[2 * i + 1] = a.y;
      } else if constexpr (Format == WEIGHT_F16) {
        const float2 a = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
        out[2 * i] = a.x, out[2 * i + 1] = a.y;
      } else {
        out[i] = __uint_as_float(words[i]);
      }
    }
  }
};

/// Scale of the weight at (row, column); 1 for formats without.
template <uint32_t Format>
__device__ __forceinline__ float block_scale(const WeightMatrix& w, int row, int column) {
  if constexpr (Format != WEIGHT_FP8_BLOCK) return 1.0f;
  const int across = (static_cast<int>(w.cols) + kScaleBlock - 1) / kScaleBlock;
  return __ldg(reinterpret_cast<const float*>(w.scale) + row / kScaleBlock * across + column / kScaleBlock);
}

}  // namespace attention
