// Rows of elements, eight at a time: 16 bytes of bf16 or f16, 32 of f32. Arithmetic is in f32.
#pragma once

#include "numeric.cuh"

/// Elements a thread handles at a time.
constexpr int kVector = 8;

struct Vector {
  float v[kVector];
};

/// bf16 in memory is uint16_t, f16 is __half.
__device__ __forceinline__ float load_one(const float* p) { return *p; }
__device__ __forceinline__ float load_one(const uint16_t* p) { return bf16_to_float(*p); }
__device__ __forceinline__ float load_one(const __half* p) { return __half2float(*p); }

/// From 16 bytes on.
__device__ __forceinline__ Vector load(const float* p) {
  float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
  return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
}
__device__ __forceinline__ Vector load(const uint16_t* p) {
  uint4 a = *reinterpret_cast<const uint4*>(p);
  float2 f0 = unpack_bf16x2(a.x), f1 = unpack_bf16x2(a.y), f2 = unpack_bf16x2(a.z), f3 = unpack_bf16x2(a.w);
  return {f0.x, f0.y, f1.x, f1.y, f2.x, f2.y, f3.x, f3.y};
}
__device__ __forceinline__ Vector load(const __half* p) {
  uint4 a = *reinterpret_cast<const uint4*>(p);
  const __half2* pair = reinterpret_cast<const __half2*>(&a);
  float2 f0 = __half22float2(pair[0]), f1 = __half22float2(pair[1]), f2 = __half22float2(pair[2]), f3 = __half22float2(pair[3]);
  return {f0.x, f0.y, f1.x, f1.y, f2.x, f2.y, f3.x, f3.y};
}

/// Up to kVector elements from column `col` on, one by one; zero beyond `cols`. For rows that begin anywhere.
template <typename T>
__device__ __forceinline__ Vector load_singly(const T* row, int col, int cols) {
  Vector out{};
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    if (col + i < cols) out.v[i] = load_one(row + col + i);
  return out;
}

/// Up to kVector elements from column `col` (a multiple of kVector) on; zero beyond `cols`.
template <typename T>
__device__ __forceinline__ Vector load_upto(const T* row, int col, int cols) {
  return col + kVector <= cols ? load(row + col) : load_singly(row, col, cols);
}

__device__ __forceinline__ void store_one(float* p, float v) { *p = v; }
__device__ __forceinline__ void store_one(uint16_t* p, float v) { *p = float_to_bf16(v); }

__device__ __forceinline__ void store(float* p, const Vector& x) {
  reinterpret_cast<float4*>(p)[0] = {x.v[0], x.v[1], x.v[2], x.v[3]};
  reinterpret_cast<float4*>(p)[1] = {x.v[4], x.v[5], x.v[6], x.v[7]};
}
__device__ __forceinline__ void store(uint16_t* p, const Vector& x) {
  uint4 packed = {ptx::floats_to_bf16x2(x.v[0], x.v[1]), ptx::floats_to_bf16x2(x.v[2], x.v[3]),
                  ptx::floats_to_bf16x2(x.v[4], x.v[5]), ptx::floats_to_bf16x2(x.v[6], x.v[7])};
  *reinterpret_cast<uint4*>(p) = packed;
}

/// Writes what of x lies below `cols`.
template <typename T>
__device__ __forceinline__ void store_upto(T* row, int col, int cols, const Vector& x) {
  if (col + kVector <= cols) return store(row + col, x);
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    if (col + i < cols) store_one(row + col + i, x.v[i]);
}

/// x as it reads back from memory of type T.
template <typename T>
__device__ __forceinline__ float rounded(float x);
template <>
__device__ __forceinline__ float rounded<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ float rounded<uint16_t>(float x) {
  return bf16_to_float(float_to_bf16(x));
}
