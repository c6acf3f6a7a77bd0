// Numbers: conversions and reductions that several kernels share. Everything accumulates in f32.
#pragma once

#include "ptx.cuh"

/// The largest e4m3 value.
constexpr float kFp8Max = 448.0f;
/// The least maximum of a group of FP8 activations: its scale is the smallest normal number, and 1 / scale finite.
constexpr float kLeastMax = kFp8Max * 1.17549435e-38f;
/// A scale block of FP8 weights is this many rows by this many columns; a token group of FP8 activations this many columns.
constexpr int kScaleBlock = 128;
/// Columns of a row that share a scale in INT4 weights.
constexpr int kInt4Group = 32;

__device__ __forceinline__ float2 unpack_bf16x2(uint32_t packed) {
  return {__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000u)};
}
__device__ __forceinline__ float bf16_to_float(uint16_t bits) { return __uint_as_float(uint32_t{bits} << 16); }
__device__ __forceinline__ uint16_t float_to_bf16(float v) { return __bfloat16_as_ushort(__float2bfloat16_rn(v)); }

/// silu(z) = z / (1 + e^-z); NaN stays NaN, −∞ gives NaN (−∞ / ∞).
__device__ __forceinline__ float silu(float z) { return z / (1.0f + __expf(-z)); }

__device__ __forceinline__ bool is_finite(float v) { return (__float_as_uint(v) & 0x7f800000u) != 0x7f800000u; }

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

/// Sum over a block of `Warps` warps, the same in every thread. `scratch` holds one float a warp; the caller
/// synchronises before it is used again.
template <int Warps>
__device__ __forceinline__ float block_sum(float v, float* scratch) {
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < Warps; ++w) sum += scratch[w];
  return sum;
}
