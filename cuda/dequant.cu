// Between number formats, bound by memory: activations to FP8 for the FP8 products, weights to 16-bit elements where many
// tokens share them.
//
// quantise_fp8: for each token row and group of 128 columns, scale = max|x| / 448 and code = e4m3(x · (448 / max|x|)), so
// x ≈ code · scale (DeepSeek-V3, arXiv 2412.19437, 3.3). The maximum counts as at least 448 · 2^-126: below, 448 / max would
// overflow (from 1.3e-36 on), and this way every scale is a normal number, also that of a group of zeros. NaN stays NaN; ±∞,
// which e4m3 lacks, becomes NaN too. Neither takes part in the maximum.
//   Contract: QuantiseParams; grid = (row quads, groups of 128 / 8), block = 256. Output row i is input row rows_map[i], which
//   must exist. Columns from `cols` to the next multiple of 16 get code 0, rows up to the next multiple of 4 some finite scale:
//   scales are [groups, rows], so that the rows of one product tile and one group stand together.
//   Plan: a warp has four rows of one group, eight lanes a row; a lane reads 16 bytes twice, so that every request is whole
//   128-byte lines, and after an exchange with its neighbour writes 16 codes at once. Four scales are one 16-byte store.
//   64 KB are in flight on a full multiprocessor. Bytes: x once, codes once, 1/32 of the codes for scales.
//
// fp8_to_bf16, fp8_to_f16: w[r, c] = e4m3(code[r, c]) · scale[r / 128, c / 128] in f32, then rounded; codes 0x7F and 0xFF are
// NaN. What rounds beyond ±65504 becomes ±65504 in fp16 and is counted; NaN is neither.
//   Contract: DequantParams; grid = (units / 512, matrices), block = 256. A unit is 16 columns, or one element if rows are not
//   whole vectors of 16 (no matrix of K2); rows · cols < 2^32.
//   Plan: two units a thread, both read before either is used. 16 codes make 32 bytes: neighbours swap halves, so that every
//   request writes whole sectors. Bytes: codes once, elements once, scales from the first-level cache.
//
//   A matrix that is listed as SLOT_NONE or SLOT_STALE is left alone: its blocks end at once. So the experts of a batch that
//   nobody chose cost no bytes, without the host's knowing them.
//
// int4_to_bf16: w[r, c] = (nibble c % 8 of word c / 8 − 8) · scale[r, c / 32] in f32, then rounded.
//   Contract: as above, a unit is 32 columns: one scale.
//   Plan: as above; 32 columns make 64 bytes, four lanes transpose theirs, so that a quad writes 64 bytes side by side.
#include "exchange.cuh"
#include "numeric.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// ---- Activations to FP8 ------------------------------------------------------------------------------------------

/// Elements of a 16-byte access of bf16.
constexpr int kVector = 8;
/// Rows of a warp, and the lanes of each.
constexpr int kQuad = 4;
constexpr int kRowLanes = 32 / kQuad;

struct Vector {
  float v[kVector];
};

/// Eight columns from `col` on, zero beyond `cols`; infinities become NaN.
__device__ __forceinline__ Vector load_finite(const uint16_t* row, int col, int cols) {
  Vector out{};
  if (col + kVector <= cols) {
    uint4 a = ptx::load_streaming(row + col);
    float2 f0 = unpack_bf16x2(a.x), f1 = unpack_bf16x2(a.y), f2 = unpack_bf16x2(a.z), f3 = unpack_bf16x2(a.w);
    out = {f0.x, f0.y, f1.x, f1.y, f2.x, f2.y, f3.x, f3.y};
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      if (col + i < cols) out.v[i] = bf16_to_float(row[col + i]);
  }
#pragma unroll
  for (float& v : out.v) v = is_finite(v) ? v : __int_as_float(0x7fffffff);
  return out;
}

__device__ __forceinline__ uint2 encode(const Vector& x, float inverse) {
  uint16_t pairs[kVector / 2];
#pragma unroll
  for (int i = 0; i < kVector / 2; ++i) pairs[i] = ptx::floats_to_fp8x2(x.v[2 * i] * inverse, x.v[2 * i + 1] * inverse);
  return {pairs[0] | uint32_t{pairs[1]} << 16, pairs[2] | uint32_t{pairs[3]} << 16};
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads) quantise_fp8(const __grid_constant__ QuantiseParams p) {
  const int lane = threadIdx.x % 32, part = lane % kRowLanes;
  const int group = blockIdx.y * kWarps + threadIdx.x / 32;
  const int cols = p.cols, rows = p.rows;
  const int first_row = blockIdx.x * kQuad, row = first_row + lane / kRowLanes;
  const int col = group * kScaleBlock + part * kVector;
  if (group * kScaleBlock >= cols) return;  // A whole warp: nobody waits for it.

  // Read: two vectors, half a group apart.
  Vector low{}, high{};
  if (row < rows) {
    size_t from = p.rows_map ? reinterpret_cast<const uint32_t*>(p.rows_map)[row] : row;
    const uint16_t* x = reinterpret_cast<const uint16_t*>(p.x) + from * p.x_stride;
    low = load_finite(x, col, cols);
    high = load_finite(x, col + kScaleBlock / 2, cols);
  }

  // Scale: fmaxf passes over NaN.
  float largest = kLeastMax;
#pragma unroll
  for (int i = 0; i < kVector; ++i) largest = fmaxf(largest, fmaxf(fabsf(low.v[i]), fabsf(high.v[i])));
#pragma unroll
  for (int offset = (ABRUZZI_MUTANT == 1 ? 2 : kRowLanes / 2); offset > 0; offset /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, offset));
  const float scale = largest / kFp8Max;
  uint2 low_codes = encode(low, kFp8Max / largest), high_codes = encode(high, kFp8Max / largest);

  // The even lane of a pair writes both low vectors, the odd lane both high ones.
  swap_halves(low_codes, high_codes);
  const uint4 codes = {low_codes.x, low_codes.y, high_codes.x, high_codes.y};
  const int out_col = group * kScaleBlock + part / 2 * 16 + part % 2 * (kScaleBlock / 2);
  if (row < rows && out_col < cols)
    *reinterpret_cast<uint4*>(p.codes + size_t(row) * p.row_stride + out_col) = codes;

  // Four rows' scales in one store.
  const float4 scales = {__shfl_sync(kAllLanes, scale, 0), __shfl_sync(kAllLanes, scale, kRowLanes),
                         __shfl_sync(kAllLanes, scale, 2 * kRowLanes), __shfl_sync(kAllLanes, scale, 3 * kRowLanes)};
  if (lane == 0)
    *reinterpret_cast<float4*>(p.scales + (size_t(group) * p.scale_stride + first_row) * sizeof(float)) = scales;
}

namespace {

// ---- Weights to 16-bit elements ----------------------------------------------------------------------------------

/// Units of a thread.
constexpr int kUnits = 2;
/// Columns of a unit.
constexpr int kFp8Unit = 16;
/// In place of a vector's index: beyond the end.
constexpr uint32_t kNowhere = 0xffffffffu;
/// From here on fp16 rounds to infinity.
constexpr float kHalfOverflow = 65520.0f;

/// The block's matrix; no weights if there is nothing to decode.
struct Source {
  const uint8_t* weight;
  const uint8_t* scale;
  uint16_t* out;
  /// The thread's first unit; the next is kThreads further.
  uint32_t unit;
};

__device__ __forceinline__ Source source(const DequantParams& p) {
  size_t slot = p.slots ? reinterpret_cast<const uint32_t*>(p.slots)[blockIdx.y] : blockIdx.y;
#if ABRUZZI_MUTANT != 5
  if (p.slots && (slot == SLOT_NONE || slot == SLOT_STALE)) return {};
#endif
  return {reinterpret_cast<const uint8_t*>(p.weight + slot * p.slot_pitch),
          reinterpret_cast<const uint8_t*>(p.scale + slot * p.slot_pitch),
          reinterpret_cast<uint16_t*>(p.out) + blockIdx.y * p.out_pitch, blockIdx.x * kThreads * kUnits + threadIdx.x};
}

struct ToBf16 {
  __device__ uint32_t pack(float low, float high) { return ptx::floats_to_bf16x2(low, high); }
};
struct ToHalf {
  uint32_t saturated = 0;
  __device__ float limit(float v) {
#if ABRUZZI_MUTANT == 2
    saturated += !(fabsf(v) < kHalfOverflow);
#else
    saturated += fabsf(v) >= kHalfOverflow;
#endif
    return v != v ? v : fminf(fmaxf(v, -65504.0f), 65504.0f);
  }
  __device__ uint32_t pack(float low, float high) {
    __half2 halves = __floats2half2_rn(limit(low), limit(high));
    return *reinterpret_cast<uint32_t*>(&halves);
  }
};

__device__ __forceinline__ float2 decode_pair(uint32_t codes, float scale) {
  float2 v = __half22float2(ptx::fp8x2_to_half2(static_cast<uint16_t>(codes)));
  return {v.x * scale, v.y * scale};
}

/// Eight codes to vector `at` of the output.
template <typename To>
__device__ __forceinline__ void store_decoded(uint16_t* out, uint32_t at, uint2 codes, float scale, To& to) {
  float2 a = decode_pair(codes.x, scale), b = decode_pair(codes.x >> 16, scale);
  float2 c = decode_pair(codes.y, scale), d = decode_pair(codes.y >> 16, scale);
  // Past the end codes and scale are zero.
  uint4 packed = {to.pack(a.x, a.y), to.pack(b.x, b.y), to.pack(c.x, c.y), to.pack(d.x, d.y)};
  if (at != kNowhere) reinterpret_cast<uint4*>(out)[at] = packed;
}

template <typename To>
__device__ __forceinline__ void from_fp8(const DequantParams& p, To& to) {
  const Source from = source(p);
  if (!from.weight) return;
  const float* scales = reinterpret_cast<const float*>(from.scale);
  const uint32_t scale_cols = (p.cols + kScaleBlock - 1) / kScaleBlock;
  auto scale_at = [&](uint32_t row, uint32_t col) {
#if ABRUZZI_MUTANT == 3
    row += kScaleBlock - 1;
#endif
    return scales[size_t(row / kScaleBlock) * scale_cols + col / kScaleBlock];
  };
  if (p.cols % kFp8Unit != 0) {  // Rows begin anywhere.
    for (int u = 0; u < kUnits; ++u) {
      const uint32_t i = from.unit + u * kThreads, row = i / p.cols, col = i % p.cols;
      if (row >= p.rows) break;
      const uint32_t one = to.pack(decode_pair(from.weight[i], scale_at(row, col)).x, 0.0f);
      from.out[size_t(row) * p.out_stride + col] = static_cast<uint16_t>(one);
    }
    return;
  }
  // Read.
  const uint32_t row_units = p.cols / kFp8Unit;
  uint4 codes[kUnits];
  float scale[kUnits];
  uint32_t at[kUnits];
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const uint32_t i = from.unit + u * kThreads, row = i / row_units, col = i % row_units * kFp8Unit;
    codes[u] = {}, scale[u] = 0.0f, at[u] = kNowhere;
    if (row < p.rows) {
      codes[u] = ptx::load_streaming(from.weight + size_t{i} * kFp8Unit);
      scale[u] = scale_at(row, col);
      at[u] = (row * size_t{p.out_stride} + col) / kVector;
    }
  }
  // Decode and write: the even lane the first eight of both, the odd lane the last.
  const int even = threadIdx.x % 32 & ~1, odd = even + 1;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    uint2 first = {codes[u].x, codes[u].y}, second = {codes[u].z, codes[u].w};
    // The pair's first halves are in the even lane's hands, which writes them to both places.
    swap_halves(first, second);
    const uint32_t shift = threadIdx.x % 2;
    const uint32_t at_even = __shfl_sync(kAllLanes, at[u], even), at_odd = __shfl_sync(kAllLanes, at[u], odd);
    const float scale_even = __shfl_sync(kAllLanes, scale[u], even), scale_odd = __shfl_sync(kAllLanes, scale[u], odd);
    store_decoded(from.out, at_even == kNowhere ? kNowhere : at_even + shift, first, scale_even, to);
    store_decoded(from.out, at_odd == kNowhere ? kNowhere : at_odd + shift, second, scale_odd, to);
  }
}

/// Nibble i of a word as a float, without a conversion: 128 + n is bf16 0x4300 + n.
__device__ __forceinline__ float decode_nibble(uint32_t word, int i, float scale) {
  const uint32_t n = i < 4 ? word << (16 - 4 * i) : word >> (4 * i - 16);
  return (__uint_as_float(0x43000000u | (n & 0xf0000u)) - 136.0f) * scale;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads) fp8_to_bf16(const __grid_constant__ DequantParams p) {
  ToBf16 to;
  from_fp8(p, to);
}

extern "C" __global__ void __launch_bounds__(kThreads) fp8_to_f16(const __grid_constant__ DequantParams p) {
  ToHalf to;
  from_fp8(p, to);
  const uint32_t saturated = __reduce_add_sync(kAllLanes, to.saturated);
  if (threadIdx.x % 32 == 0 && saturated != 0) atomicAdd(reinterpret_cast<uint32_t*>(p.saturated), saturated);
}

extern "C" __global__ void __launch_bounds__(kThreads) int4_to_bf16(const __grid_constant__ DequantParams p) {
  const Source from = source(p);
  if (!from.weight) return;
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(from.scale);
  const uint32_t groups = (p.cols + kInt4Group - 1) / kInt4Group;
  if (p.cols % kInt4Group != 0) {  // Rows begin on words, not on vectors.
    const uint32_t row_words = (p.cols + 7) / 8;
    for (int u = 0; u < kUnits; ++u) {
      const uint32_t i = from.unit + u * kThreads, row = i / p.cols, col = i % p.cols;
      if (row >= p.rows) break;
      const uint32_t word = reinterpret_cast<const uint32_t*>(from.weight)[size_t{row} * row_words + col / 8];
      const float scale = bf16_to_float(scales[size_t{row} * groups + col / kInt4Group]);
      from.out[size_t{row} * p.out_stride + col] = float_to_bf16(decode_nibble(word >> (col % 8 * 4), 0, scale));
    }
    return;
  }
  // Read: unit i is group i of the matrix.
  uint32_t words[kUnits][4];
  float scale[kUnits];
  uint32_t at[kUnits];
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const uint32_t i = from.unit + u * kThreads, row = i / groups, col = i % groups * kInt4Group;
    uint4 packed{};
    scale[u] = 0.0f, at[u] = kNowhere;
    if (row < p.rows) {
      packed = ptx::load_streaming(from.weight + size_t{i} * 16);
      scale[u] = bf16_to_float(scales[i]);
      at[u] = (row * size_t{p.out_stride} + col) / kVector;
    }
    words[u][0] = packed.x, words[u][1] = packed.y, words[u][2] = packed.z, words[u][3] = packed.w;
  }
  // Decode and write: lane q of a quad word q of all four.
  const int quad = threadIdx.x % 32 & ~3, q = threadIdx.x % 4;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    transpose_quad(words[u]);
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const uint32_t word = words[u][s], to = __shfl_sync(kAllLanes, at[u], quad + s);
#if ABRUZZI_MUTANT == 4
      const float by = scale[u];
#else
      const float by = __shfl_sync(kAllLanes, scale[u], quad + s);
#endif
      uint32_t packed[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        packed[i] = ptx::floats_to_bf16x2(decode_nibble(word, 2 * i, by), decode_nibble(word, 2 * i + 1, by));
      if (to != kNowhere)
        reinterpret_cast<uint4*>(from.out)[to + q] = {packed[0], packed[1], packed[2], packed[3]};
    }
  }
}
