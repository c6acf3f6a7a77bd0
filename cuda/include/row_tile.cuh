// 64 rows of weights times up to 16 tokens, every weight byte read once: the loop that gemv.cu and expert_gemv.cu share.
//
//   sums[token, row] = Σ_k W[row, k] · x[token, k], accumulated in f32, W in any WeightFormat, x bf16.
//
// Plan. A block is 4 warps of 16 rows. A stage is 128 bytes of each of the 64 rows (8 KiB), the x of those columns for every
// token, and the scales of those columns; stages lie in a ring that cp.async fills in 16-byte pieces, 3 stages ahead of the
// arithmetic: 24 KiB of weights in flight a block, 72 KiB an SM with three blocks (32 KiB would hide DRAM's latency). One
// barrier of its threads a stage. The limit it aims for is DRAM: at 3.35 TB/s an SM has 35 clocks for 512 bytes, which is 140
// issue slots. Counted in the machine code, copies included, 8 and 16 tokens take: BF16 25 and 25 of them, FP8 65 and 75,
// INT4 105 and 135, F16 35 and 45, F32 90 and 165, of which only the last is beyond the limit.
//
// Weights lie in the ring as they lie in memory, 16-byte chunk c of row r at chunk c ^ r % 8, so that neither the copies nor
// ldmatrix meet a bank conflict. ldmatrix gives lane (g, t) = (lane / 4, lane % 4) the t-th word of a chunk of row g. The
// order of columns within an mma is free as long as both operands agree, so each format feeds the mma what a word holds:
//
//   BF16  2 columns a word, the mma's own order; x by ldmatrix too.
//   FP8   4 columns 4t… of 16: cvt to f16x2 (NaN codes stay NaN), to f32, to bf16x2, all exact; the block scale multiplies
//         the f32 sum of the stage's 128 columns.
//   INT4  8 columns 8t… of a group of 32: (w >> 4i & 0x000f000f) | 0x43004300 is bf16 128 + (q + 8) for columns i and i + 4;
//         minus 136 is q, exactly. The group's scale multiplies the f32 sum of its 32 columns.
//   F16   exact in tf32 as bf16 is: mma m16n8k8 on the widened elements.
//   F32   FMA: no tensor core type holds it. A lane has one row and every other chunk.
//
// Rows, columns and tokens that do not exist are zero in the ring (cp.async fills what it does not read), on both sides, so
// whatever stands beyond an edge in memory never reaches a sum. Rows that are no whole 16-byte pieces (of weights, of x, of INT4
// scales) come by single elements and ordinary stores into the same ring: slow, for odd sizes only.
#pragma once

#include <type_traits>

#include "numeric.cuh"

namespace row_tile {

/// Threads that share a ring: a block, or one of a block's groups, each of which calls `tile` for spans of its own.
constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

/// This thread among those of its ring.
template <int Groups>
__device__ __forceinline__ int thread_of_ring() {
  return Groups == 1 ? threadIdx.x : threadIdx.x % kThreads;
}

/// Rows of a tile; a warp has 16, the M of the mma.
constexpr int kRows = GEMV_ROWS;
/// Bytes of a row in a stage, and their 16-byte chunks.
constexpr int kSpan = GEMV_SPAN;
constexpr int kChunks = kSpan / 16;
constexpr int kStages = 4;
static_assert(kRows == 16 * kWarps && kChunks == 8, "a warp takes 16 rows; the swizzle permutes 8 chunks");
/// Floats from token to token of the finished tile: 4 more than rows, so that the 8 rows × 4 tokens a warp writes at once fall
/// into 32 banks.
constexpr int kTilePitch = kRows + 4;

/// Columns of a 16-byte chunk.
template <uint32_t Format>
constexpr int kChunkColumns =
    Format == WEIGHT_F32 ? 4 : Format == WEIGHT_FP8_BLOCK ? 16 : Format == WEIGHT_INT4_GROUP32 ? 32 : 8;

/// Where things lie in a stage.
template <uint32_t Format, int Tokens>
struct Stage {
  static constexpr int kColumns = kChunks * kChunkColumns<Format>;
  static constexpr int kXChunks = kColumns / 8;
  /// Padding of a token's x: with it, the tokens a quarter or half warp reads at once fall into different banks.
  static constexpr int kXPad =
      Format == WEIGHT_F32 ? 0 : Format == WEIGHT_FP8_BLOCK ? 32 : Format == WEIGHT_INT4_GROUP32 ? 64 : 16;
  static constexpr int kXPitch = kColumns * 2 + kXPad;
  static constexpr int kX = kRows * kSpan;
  static constexpr int kScale = kX + Tokens * kXPitch;
  static constexpr int kScaleBytes = Format == WEIGHT_INT4_GROUP32 ? kRows * 16 : 16;
  static constexpr int kBytes = kScale + kScaleBytes;
};
static_assert(Stage<WEIGHT_FP8_BLOCK, 16>::kColumns == kScaleBlock, "a stage has one FP8 scale");
static_assert(Stage<WEIGHT_INT4_GROUP32, 16>::kColumns == 8 * kInt4Group, "a stage has 16 bytes of INT4 scales a row");

/// Blocks an SM holds at least: told to the compiler, which else saves registers for more blocks than the rings leave room for.
constexpr int kResident = 3;
static_assert(kResident * (kStages * Stage<WEIGHT_INT4_GROUP32, 16>::kBytes + 1024) <= 232448, "the largest rings fit");

template <uint32_t Format>
__device__ __forceinline__ int row_bytes(int cols) {
  if constexpr (Format == WEIGHT_F32) return cols * 4;
  if constexpr (Format == WEIGHT_FP8_BLOCK) return cols;
  if constexpr (Format == WEIGHT_INT4_GROUP32) return (cols + 7) / 8 * 4;
  return cols * 2;
}

/// Bytes from one row (INT4) or one block row (FP8) of scales to the next.
template <uint32_t Format>
__device__ __forceinline__ int scale_pitch(int cols) {
  return Format == WEIGHT_FP8_BLOCK ? (cols + kScaleBlock - 1) / kScaleBlock * 4 : (cols + kInt4Group - 1) / kInt4Group * 2;
}

/// Consecutive rows of a matrix: what one segment of a tile multiplies.
struct Segment {
  const uint8_t* weight;
  const uint8_t* scale;
  /// How many of the segment's rows exist.
  int rows;
};

template <uint32_t Format>
__device__ __forceinline__ Segment segment(uint64_t weight, uint64_t scale, int row, int rows, int cols) {
  Segment s{reinterpret_cast<const uint8_t*>(weight) + size_t(row) * row_bytes<Format>(cols), nullptr, rows - row};
  if constexpr (Format == WEIGHT_FP8_BLOCK)
#if ABRUZZI_MUTANT == 2
    s.scale = reinterpret_cast<const uint8_t*>(scale) + size_t((row + kRows) / kScaleBlock) * scale_pitch<Format>(cols);
#else
    s.scale = reinterpret_cast<const uint8_t*>(scale) + size_t(row / kScaleBlock) * scale_pitch<Format>(cols);
#endif
  if constexpr (Format == WEIGHT_INT4_GROUP32)
    s.scale = reinterpret_cast<const uint8_t*>(scale) + size_t(row) * scale_pitch<Format>(cols);
  return s;
}

// ---- Filling a stage ----------------------------------------------------------------------------------------------

/// Up to 16 bytes by elements of type T; zero from `bytes` on.
template <typename T>
__device__ __forceinline__ uint4 load_elements(const uint8_t* from, int bytes) {
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < 16 / int(sizeof(T)); ++i) {
    const int at = i * sizeof(T);
    if (at < bytes) words[at / 4] |= uint32_t{*reinterpret_cast<const T*>(from + at)} << at % 4 * 8;
  }
  return {words[0], words[1], words[2], words[3]};
}

/// What a thread copies into every stage: the same pieces, `kSpan` bytes of a row further each time. Whole: rows of weights
/// and of x are whole 16-byte pieces.
template <uint32_t Format, int Tokens, int Segments, bool Whole, int Groups>
struct Filler {
  using S = Stage<Format, Tokens>;
  static constexpr int kRowStep = kThreads / kChunks;
  static constexpr int kRowsEach = kRows / kRowStep;
  static constexpr int kTokenStep = kThreads / S::kXChunks;
  static constexpr int kTokensEach = (Tokens + kTokenStep - 1) / kTokenStep;
  static constexpr int kSegmentRows = kRows / Segments;
  using Element = std::conditional_t<Format == WEIGHT_FP8_BLOCK, uint8_t,
                                     std::conditional_t<Format == WEIGHT_F16 || Format == WEIGHT_BF16, uint16_t, uint32_t>>;

  int cols;
  int bytes;  // of a row
  bool whole_scales;  // INT4: rows of scales are whole 16-byte pieces
  // Rows and tokens that do not exist have another's address and no bytes to read.
  const uint8_t* weight[kRowsEach];
  const uint16_t* x[kTokensEach];
  const uint8_t* scale;
  // Bit i: row or token i exists.
  uint32_t has_row = 0;
  uint32_t has_token = 0;
  int scale_bytes;  // INT4: of a row; 0 if the row does not exist

  /// `x_row(token)` is the row of a token; called for tokens below `tokens` only. There is at least one row and one token.
  template <typename XRow>
  __device__ __forceinline__ Filler(const Segment (&segments)[Segments], int cols_, int tokens, XRow x_row)
      : cols(cols_), bytes(row_bytes<Format>(cols_)), scale(segments[0].scale), scale_bytes(scale_pitch<Format>(cols_)) {
    whole_scales = scale_bytes % 16 == 0;
    const int tid = thread_of_ring<Groups>();
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i) {
      const Segment& s = segments[i * Segments / kRowsEach];
      const int row = (tid / kChunks + i * kRowStep) % kSegmentRows;
      has_row |= uint32_t{row < s.rows} << i;
      weight[i] = s.weight + size_t(row < s.rows ? row : 0) * bytes + tid % kChunks * 16;
    }
#pragma unroll
    for (int i = 0; i < kTokensEach; ++i) {
      const int token = tid / S::kXChunks + i * kTokenStep;
      has_token |= uint32_t{token < tokens} << i;
      x[i] = x_row(token < tokens ? token : 0) + tid % S::kXChunks * 8;
    }
    if constexpr (Format == WEIGHT_FP8_BLOCK) {
      if (tid == 1) scale = segments[Segments - 1].scale;
    }
    if constexpr (Format == WEIGHT_INT4_GROUP32) {
      // Chosen by a condition: an index would put the segments into local memory.
      const bool is_last = tid / kSegmentRows == Segments - 1;
      if (tid < kRows && tid % kSegmentRows < (is_last ? segments[Segments - 1].rows : segments[0].rows)) {
        scale = (is_last ? segments[Segments - 1].scale : segments[0].scale) + size_t(tid % kSegmentRows) * scale_bytes;
      } else {
        scale_bytes = 0;
      }
    }
  }

  /// Issues the copies of span `span` of the rows into the stage at `stage`.
  __device__ __forceinline__ void fill(uint8_t* stage, int span) const {
    const int tid = thread_of_ring<Groups>();
    // Weights: a quarter warp copies 128 contiguous bytes of a row.
    const int left = bytes - span * kSpan - tid % kChunks * 16;
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i) {
      const int row = tid / kChunks + i * kRowStep;
      uint8_t* to = stage + row * kSpan + (tid % kChunks ^ row % 8) * 16;
      const uint8_t* from = weight[i] + size_t(span) * kSpan;
      const bool exists = (has_row >> i & 1) && left > 0;
      if constexpr (Whole) {
        ptx::copy16_async(ptx::shared_address(to), from, exists ? 16 : 0);
      } else {
        *reinterpret_cast<uint4*>(to) = load_elements<Element>(from, exists ? left : 0);
      }
    }
    // x.
    const int x_left = (cols - span * S::kColumns - tid % S::kXChunks * 8) * 2;
#pragma unroll
    for (int i = 0; i < kTokensEach; ++i) {
      const int token = tid / S::kXChunks + i * kTokenStep;
      if (token < Tokens) {
        uint8_t* to = stage + S::kX + token * S::kXPitch + tid % S::kXChunks * 16;
        const uint16_t* from = x[i] + span * S::kColumns;
        const bool exists = (has_token >> i & 1) && x_left > 0;
        if constexpr (Whole) {
          ptx::copy16_async(ptx::shared_address(to), from, exists ? 16 : 0);
        } else {
          *reinterpret_cast<uint4*>(to) = load_elements<uint16_t>(reinterpret_cast<const uint8_t*>(from), exists ? x_left : 0);
        }
      }
    }
    // Scales.
    if constexpr (Format == WEIGHT_FP8_BLOCK) {
      if (tid < Segments) ptx::copy4_async(ptx::shared_address(stage + S::kScale + tid * 4), scale + span * 4);
    }
    if constexpr (Format == WEIGHT_INT4_GROUP32) {
      if (tid < kRows) {
        uint8_t* to = stage + S::kScale + tid * 16;
        const int scale_left = scale_bytes - span * 16;
        if (whole_scales) {
          ptx::copy16_async(ptx::shared_address(to), scale + span * 16, scale_left > 0 ? 16 : 0);
        } else {
          *reinterpret_cast<uint4*>(to) = load_elements<uint16_t>(scale + span * 16, scale_left);
        }
      }
    }
  }
};

// ---- Decoding -----------------------------------------------------------------------------------------------------

/// Four e4m3 codes to four bf16 in order, exactly.
__device__ __forceinline__ void decode_fp8(uint32_t codes, uint32_t& low, uint32_t& high) {
  const float2 a = __half22float2(ptx::fp8x2_to_half2(static_cast<uint16_t>(codes)));
  const float2 b = __half22float2(ptx::fp8x2_to_half2(static_cast<uint16_t>(codes >> 16)));
  low = ptx::floats_to_bf16x2(a.x, a.y);
  high = ptx::floats_to_bf16x2(b.x, b.y);
}

/// Columns i and i + 4 of a word of INT4, as bf16, exactly; i = Shift / 4.
template <int Shift>
__device__ __forceinline__ uint32_t decode_int4(uint32_t word) {
  return ptx::fma_bf16x2(ptx::and_or(word >> Shift, 0x000f000fu, 0x43004300u), 0x3f803f80u, 0xc308c308u);
}

// ---- Multiplying a stage ------------------------------------------------------------------------------------------

/// What a thread accumulates. mma: 4 floats for every 8 tokens. F32: one float a token, of half of the columns.
template <uint32_t Format, int Tokens>
constexpr int kSums = Format == WEIGHT_F32 ? Tokens : Tokens / 2;

/// Adds a stage. `segment` is the one this warp's rows belong to.
template <uint32_t Format, int Tokens, int Groups>
__device__ __forceinline__ void multiply(const uint8_t* stage, int segment, float (&sums)[kSums<Format, Tokens>]) {
  using S = Stage<Format, Tokens>;
  constexpr int kTiles = Tokens / 8;
  const int lane = threadIdx.x % 32, warp = thread_of_ring<Groups>() / 32;
  const int g = lane / 4, t = lane % 4;

  if constexpr (Format == WEIGHT_F32) {
    const int row = warp * 16 + lane % 16;
#pragma unroll
    for (int step = 0; step < kChunks / 2; ++step) {
      const int chunk = step * 2 + lane / 16;
      const float4 w = *reinterpret_cast<const float4*>(stage + row * kSpan + (chunk ^ row % 8) * 16);
#pragma unroll
      for (int token = 0; token < Tokens; ++token) {
        const uint2 packed = *reinterpret_cast<const uint2*>(stage + S::kX + token * S::kXPitch + chunk * 8);
        const float2 a = unpack_bf16x2(packed.x), b = unpack_bf16x2(packed.y);
        sums[token] = fmaf(w.x, a.x, fmaf(w.y, a.y, fmaf(w.z, b.x, fmaf(w.w, b.y, sums[token]))));
      }
    }
    return;
  } else {
    // Chunks come in pairs: r[0], r[1] are rows g and g + 8 of the even chunk, r[2], r[3] of the odd one.
    const int row = warp * 16 + lane % 16;
    const uint32_t weights = ptx::shared_address(stage) + row * kSpan;
    auto load_pair = [&](int pair, uint32_t(&r)[4]) {
      ptx::load_matrix_x4(r, weights + ((pair * 2 + lane / 16) ^ row % 8) * 16);
    };
    auto tile_sums = [&](int n) -> float(&)[4] { return *reinterpret_cast<float(*)[4]>(&sums[n * 4]); };
    const uint8_t* x = stage + S::kX;

    if constexpr (Format == WEIGHT_BF16 || Format == WEIGHT_F16) {
#pragma unroll
      for (int pair = 0; pair < kChunks / 2; ++pair) {
        uint32_t r[4];
        load_pair(pair, r);
        // b[n] are the even and the odd chunk of tokens 8n + g.
        uint32_t b[kTiles][2];
        if constexpr (kTiles == 2) {
          uint32_t both[4];
          const uint8_t* from = x + (lane / 16 * 8 + lane % 8) * S::kXPitch + (pair * 2 + lane / 8 % 2) * 16;
          ptx::load_matrix_x4(both, ptx::shared_address(from));
          b[0][0] = both[0], b[0][1] = both[1], b[1][0] = both[2], b[1][1] = both[3];
        } else {
          const uint8_t* from = x + lane % 8 * S::kXPitch + (pair * 2 + lane / 8 % 2) * 16;
          ptx::load_matrix_x2(b[0], ptx::shared_address(from));
        }
        if constexpr (Format == WEIGHT_BF16) {
#pragma unroll
          for (int n = 0; n < kTiles; ++n) ptx::mma_bf16(tile_sums(n), r, b[n][0], b[n][1]);
        } else {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float2 w0 = __half22float2(*reinterpret_cast<__half2*>(&r[half * 2]));
            const float2 w1 = __half22float2(*reinterpret_cast<__half2*>(&r[half * 2 + 1]));
            const uint32_t a[4] = {__float_as_uint(w0.x), __float_as_uint(w1.x), __float_as_uint(w0.y), __float_as_uint(w1.y)};
#pragma unroll
            for (int n = 0; n < kTiles; ++n) ptx::mma_tf32(tile_sums(n), a, b[n][half] << 16, b[n][half] & 0xffff0000u);
          }
        }
      }
    }

    if constexpr (Format == WEIGHT_FP8_BLOCK) {
      float part[kTiles][4] = {};
#pragma unroll
      for (int pair = 0; pair < kChunks / 2; ++pair) {
        uint32_t r[4];
        load_pair(pair, r);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t a[4];
          decode_fp8(r[half * 2], a[0], a[2]);
          decode_fp8(r[half * 2 + 1], a[1], a[3]);
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
            const uint2 b = *reinterpret_cast<const uint2*>(x + (n * 8 + g) * S::kXPitch + (pair * 2 + half) * 32 + t * 8);
            ptx::mma_bf16(part[n], a, b.x, b.y);
          }
        }
      }
      const float scale = *reinterpret_cast<const float*>(stage + S::kScale + segment * 4);
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[n * 4 + i] = fmaf(part[n][i], scale, sums[n * 4 + i]);
    }

    if constexpr (Format == WEIGHT_INT4_GROUP32) {
      // Two scales a word: those of a pair of chunks. Of rows g and g + 8.
      const uint32_t* scales = reinterpret_cast<const uint32_t*>(stage + S::kScale + (warp * 16 + g) * 16);
      // Half unrolled: all four pairs at once want more registers than three blocks an SM leave.
#pragma unroll 2
      for (int pair = 0; pair < kChunks / 2; ++pair) {
        uint32_t r[4];
        load_pair(pair, r);
        const float2 s0 = unpack_bf16x2(scales[pair]), s1 = unpack_bf16x2(scales[8 * 4 + pair]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t w0 = r[half * 2], w1 = r[half * 2 + 1];
          const uint32_t first[4] = {decode_int4<0>(w0), decode_int4<0>(w1), decode_int4<4>(w0), decode_int4<4>(w1)};
          const uint32_t second[4] = {decode_int4<8>(w0), decode_int4<8>(w1), decode_int4<12>(w0), decode_int4<12>(w1)};
          const float low = half == 0 ? s0.x : s0.y, high = half == 0 ? s1.x : s1.y;
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
            const uint4 b = *reinterpret_cast<const uint4*>(x + (n * 8 + g) * S::kXPitch + (pair * 2 + half) * 64 + t * 16);
            float part[4] = {};
            // Columns (0, 4), (1, 5), then (2, 6), (3, 7), as the words give them.
            ptx::mma_bf16(part, first, __byte_perm(b.x, b.z, 0x5410), __byte_perm(b.x, b.z, 0x7632));
            ptx::mma_bf16(part, second, __byte_perm(b.y, b.w, 0x5410), __byte_perm(b.y, b.w, 0x7632));
            sums[n * 4 + 0] = fmaf(part[0], low, sums[n * 4 + 0]);
            sums[n * 4 + 1] = fmaf(part[1], low, sums[n * 4 + 1]);
            sums[n * 4 + 2] = fmaf(part[2], high, sums[n * 4 + 2]);
            sums[n * 4 + 3] = fmaf(part[3], high, sums[n * 4 + 3]);
          }
        }
      }
    }
  }
}

// ---- A whole tile -------------------------------------------------------------------------------------------------

/// Synchronises the threads of a ring.
template <int Groups>
__device__ __forceinline__ void ring_barrier() {
  if constexpr (Groups == 1) {
    __syncthreads();
  } else {
    // Barrier 0 is __syncthreads.
    ptx::named_barrier(1 + threadIdx.x / kThreads, kThreads);
  }
}

/// Adds spans [begin, end) of the segments' rows to the sums.
template <uint32_t Format, int Tokens, bool Whole, int Groups, int Segments, typename XRow>
__device__ __forceinline__ void stream(uint8_t* ring, const Segment (&segments)[Segments], int cols, int begin, int end,
                                       int tokens, XRow x_row, float (&sums)[kSums<Format, Tokens>]) {
  constexpr int kBytes = Stage<Format, Tokens>::kBytes;
  const int segment = thread_of_ring<Groups>() / 32 * Segments / kWarps;
  const Filler<Format, Tokens, Segments, Whole, Groups> filler(segments, cols, tokens, x_row);

  // Prologue. Every iteration commits one group, an empty one past the end, so that the count of groups tells the stage.
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (begin + i < end) filler.fill(ring + i * kBytes, begin + i);
    ptx::copy_async_commit();
  }

  int now = 0, next = kStages - 1;
#pragma unroll 1
  for (int span = begin; span < end; ++span) {
#if ABRUZZI_MUTANT == 1
    ptx::copy_async_wait<kStages - 1>();
#else
    ptx::copy_async_wait<kStages - 2>();
#endif
    // Makes every thread's part of this stage visible to all, and ends everybody's reading of the stage filled next.
    ring_barrier<Groups>();
    if (span + kStages - 1 < end) filler.fill(ring + next * kBytes, span + kStages - 1);
    ptx::copy_async_commit();
    multiply<Format, Tokens, Groups>(ring + now * kBytes, segment, sums);
    now = now + 1 == kStages ? 0 : now + 1;
    next = next + 1 == kStages ? 0 : next + 1;
  }
}

/// Multiplies spans [begin, end) of the segments' rows and leaves the sums in shared memory, [Tokens][kTilePitch] floats
/// over the ring, visible to its threads. The caller synchronises before it calls this again. Groups: of the block, each with
/// a ring.
template <uint32_t Format, int Tokens, int Groups = 1, int Segments, typename XRow>
__device__ __forceinline__ const float* tile(uint8_t* ring, const Segment (&segments)[Segments], int cols, int begin, int end,
                                             int tokens, XRow x_row) {
  using S = Stage<Format, Tokens>;
  static_assert(S::kBytes % 16 == 0 && S::kBytes * kStages >= Tokens * kTilePitch * 4, "the tile fits over the ring");
  const int lane = threadIdx.x % 32, warp = thread_of_ring<Groups>() / 32;
  float sums[kSums<Format, Tokens>] = {};
  if (row_bytes<Format>(cols) % 16 == 0 && cols % 8 == 0) {
    stream<Format, Tokens, true, Groups>(ring, segments, cols, begin, end, tokens, x_row, sums);
  } else {
    stream<Format, Tokens, false, Groups>(ring, segments, cols, begin, end, tokens, x_row, sums);
  }

  // Every stage is multiplied by every warp: the ring becomes the tile.
#if ABRUZZI_MUTANT != 5
  ring_barrier<Groups>();
#endif
  float* out = reinterpret_cast<float*>(ring);
  if constexpr (Format == WEIGHT_F32) {
#pragma unroll
    for (int token = 0; token < Tokens; ++token) {
      const float sum = sums[token] + __shfl_xor_sync(0xffffffffu, sums[token], 16);
      if (lane < 16) out[token * kTilePitch + warp * 16 + lane] = sum;
    }
  } else {
#pragma unroll
    for (int i = 0; i < Tokens / 2; ++i) {
      const int token = i / 4 * 8 + lane % 4 * 2 + i % 2, row = warp * 16 + lane / 4 + i % 4 / 2 * 8;
      out[token * kTilePitch + row] = sums[i];
    }
  }
  // The tile is read across warps.
  ring_barrier<Groups>();
  return out;
}

}  // namespace row_tile
