// Row-wise kernels of the trunk.
//
// RMSNorm: out = x / √(mean(x²) + eps) ⊙ weight (Zhang and Sennrich, arXiv 1910.07467), by row; x f32 (the residual
// stream) or bf16, weight f32, out bf16, sums in f32.
//   Contract: RmsNormParams; grid = rows, block = 256. cols up to 8192 stay in registers; beyond, x is read twice.
//   Plan: 8 elements a thread and step in 16-byte accesses; one block reduction. Bytes: x once, weight from the second-level
//   cache, out once. Bound by memory.
#include "numeric.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
/// Elements a thread handles at a time.
constexpr int kVector = 8;
/// Vectors of x a thread keeps in registers.
constexpr int kKept = 4;

struct Vector {
  float v[kVector];
};

__device__ __forceinline__ Vector load(const float* p) {
  float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
  return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
}
__device__ __forceinline__ Vector load(const uint16_t* p) {
  uint4 a = *reinterpret_cast<const uint4*>(p);
  float2 f0 = unpack_bf16x2(a.x), f1 = unpack_bf16x2(a.y), f2 = unpack_bf16x2(a.z), f3 = unpack_bf16x2(a.w);
  return {f0.x, f0.y, f1.x, f1.y, f2.x, f2.y, f3.x, f3.y};
}
__device__ __forceinline__ float load_one(const float* p) { return *p; }
__device__ __forceinline__ float load_one(const uint16_t* p) { return bf16_to_float(*p); }

/// Up to kVector elements from column `col` on; zero beyond `cols`.
template <typename T>
__device__ __forceinline__ Vector load_upto(const T* row, int col, int cols) {
  if (col + kVector <= cols) return load(row + col);
  Vector out{};
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    if (col + i < cols) out.v[i] = load_one(row + col + i);
  return out;
}

__device__ __forceinline__ void store_upto(uint16_t* row, int col, int cols, const Vector& x) {
  if (col + kVector <= cols) {
    uint4 packed = {ptx::floats_to_bf16x2(x.v[0], x.v[1]), ptx::floats_to_bf16x2(x.v[2], x.v[3]),
                    ptx::floats_to_bf16x2(x.v[4], x.v[5]), ptx::floats_to_bf16x2(x.v[6], x.v[7])};
    *reinterpret_cast<uint4*>(row + col) = packed;
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    if (col + i < cols) row[col + i] = float_to_bf16(x.v[i]);
}

template <typename T>
__device__ __forceinline__ void rms_norm(const RmsNormParams& p) {
  __shared__ float scratch[kWarps];
  const int cols = p.cols;
  const T* x = reinterpret_cast<const T*>(p.x) + size_t{blockIdx.x} * p.x_stride;
  uint16_t* out = reinterpret_cast<uint16_t*>(p.out) + size_t{blockIdx.x} * p.out_stride;
  const float* weight = reinterpret_cast<const float*>(p.weight);

  Vector kept[kKept];
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    int col = (k * kThreads + threadIdx.x) * kVector;
    if (col < cols) {
      kept[k] = load_upto(x, col, cols);
#pragma unroll
      for (float v : kept[k].v) squares += v * v;
    }
  }
  for (int col = (kKept * kThreads + threadIdx.x) * kVector; col < cols; col += kThreads * kVector) {
    Vector more = load_upto(x, col, cols);
#pragma unroll
    for (float v : more.v) squares += v * v;
  }
  const float scale = rsqrtf(block_sum<kWarps>(squares, scratch) / static_cast<float>(cols) + p.eps);

  auto write = [&](int col, Vector& v) {
    Vector w = load_upto(weight, col, cols);
#pragma unroll
    for (int i = 0; i < kVector; ++i) v.v[i] = v.v[i] * scale * w.v[i];
    store_upto(out, col, cols, v);
  };
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    int col = (k * kThreads + threadIdx.x) * kVector;
    if (col < cols) write(col, kept[k]);
  }
  for (int col = (kKept * kThreads + threadIdx.x) * kVector; col < cols; col += kThreads * kVector) {
    Vector more = load_upto(x, col, cols);
    write(col, more);
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads) rms_norm_f32(const __grid_constant__ RmsNormParams p) {
  rms_norm<float>(p);
}

extern "C" __global__ void __launch_bounds__(kThreads) rms_norm_bf16(const __grid_constant__ RmsNormParams p) {
  rms_norm<uint16_t>(p);
}
