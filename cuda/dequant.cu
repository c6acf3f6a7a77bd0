// Between number formats, bound by memory: activations to FP8 for the FP8 products.
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
#include "numeric.cuh"

#ifndef ABRUZZI_MUTANT
#define ABRUZZI_MUTANT 0
#endif

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
/// The least maximum: its scale is the smallest normal number.
constexpr float kLeastMax = 448.0f * 1.17549435e-38f;

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
  const uint2 low_codes = encode(low, kFp8Max / largest), high_codes = encode(high, kFp8Max / largest);

  // Neighbours swap: the even lane ends with both low vectors of the pair, the odd lane with both high ones.
  const bool odd = part % 2 != 0;
  const uint2 kept = odd ? high_codes : low_codes, given = odd ? low_codes : high_codes;
  const uint2 got = {__shfl_xor_sync(kAllLanes, given.x, 1), __shfl_xor_sync(kAllLanes, given.y, 1)};
  const uint4 codes = odd ? uint4{got.x, got.y, kept.x, kept.y} : uint4{kept.x, kept.y, got.x, got.y};
  const int out_col = group * kScaleBlock + part / 2 * 16 + (odd ? kScaleBlock / 2 : 0);
  if (row < rows && out_col < cols)
    *reinterpret_cast<uint4*>(p.codes + size_t(row) * p.row_stride + out_col) = codes;

  // Four rows' scales in one store.
  const float4 scales = {__shfl_sync(kAllLanes, scale, 0), __shfl_sync(kAllLanes, scale, kRowLanes),
                         __shfl_sync(kAllLanes, scale, 2 * kRowLanes), __shfl_sync(kAllLanes, scale, 3 * kRowLanes)};
  if (lane == 0)
    *reinterpret_cast<float4*>(p.scales + (size_t(group) * p.scale_stride + first_row) * sizeof(float)) = scales;
}
