// Kernels without sums over columns: rows in, rows out, each element by itself.
//
// All are bound by memory and share one plan: grid = (rows, ⌈cols / 2048⌉), block = 256; a thread handles 8 neighbouring
// columns of one row in 16-byte accesses, all loads before the first use. Every byte is read or written once; eight resident
// blocks have at least 32 KB in flight on a multiprocessor.
#include <math_constants.h>

#include "vector.cuh"

namespace {

constexpr int kThreads = 256;

/// First of this thread's columns.
__device__ __forceinline__ int own_column() { return (blockIdx.y * kThreads + threadIdx.x) * kVector; }

__device__ __forceinline__ Vector all_nan() {
  Vector v;
#pragma unroll
  for (float& e : v.v) e = CUDART_NAN_F;
  return v;
}

/// Columns of a row that stands in a matrix without padding: rows begin on 16 bytes only if `cols` is whole vectors.
template <typename T>
__device__ __forceinline__ Vector load_packed(uint64_t matrix, uint32_t row, int col, int cols) {
  const T* from = reinterpret_cast<const T*>(matrix) + size_t{row} * cols;
  return cols % kVector == 0 ? load(from + col) : load_singly(from, col, cols);
}

// Embedding: out[i] = table[ids[i]]; a row the table does not have is NaN.
//   Contract: EmbedParams.
template <typename Out>
__device__ __forceinline__ void embed(const EmbedParams& p) {
  const int col = own_column(), cols = p.table.cols;
  if (col >= cols) return;
  const uint32_t id = reinterpret_cast<const uint32_t*>(p.ids)[blockIdx.x];
  Vector v = all_nan();
#if ABRUZZI_MUTANT == 1  // Ids are believed.
  const bool there = true;
#else
  const bool there = id < p.table.rows;
#endif
  if (there) {
    switch (p.table.format) {
      case WEIGHT_F32: v = load_packed<float>(p.table.weight, id, col, cols); break;
      case WEIGHT_F16: v = load_packed<__half>(p.table.weight, id, col, cols); break;
      case WEIGHT_BF16: v = load_packed<uint16_t>(p.table.weight, id, col, cols); break;
    }
  }
  store_upto(reinterpret_cast<Out*>(p.out) + size_t{blockIdx.x} * p.out_stride, col, cols, v);
}

// Sum: sum += x.
//   Contract: AddParams.
template <typename X, typename S>
__device__ __forceinline__ void add(const AddParams& p) {
  const int col = own_column(), cols = p.cols;
  if (col >= cols) return;
  S* sum = reinterpret_cast<S*>(p.sum) + size_t{blockIdx.x} * p.sum_stride;
  Vector x = load_upto(reinterpret_cast<const X*>(p.x) + size_t{blockIdx.x} * p.x_stride, col, cols);
  Vector v = load_upto(sum, col, cols);
#pragma unroll
  for (int i = 0; i < kVector; ++i) v.v[i] += x.v[i];
  store_upto(sum, col, cols, v);
}

// Copy: out = x, bit by bit, so that a NaN stays the NaN it is.
//   Contract: CopyRowsParams.
template <typename T>
__device__ __forceinline__ void copy_rows(const CopyRowsParams& p) {
  const int col = own_column(), cols = p.cols;
  if (col >= cols) return;
  const T* x = reinterpret_cast<const T*>(p.x) + size_t{blockIdx.x} * p.x_stride + col;
  T* out = reinterpret_cast<T*>(p.out) + size_t{blockIdx.x} * p.out_stride + col;
  if (col + kVector <= cols) {
    constexpr int kParts = kVector * sizeof(T) / sizeof(uint4);
#pragma unroll
    for (int i = 0; i < kParts; ++i) reinterpret_cast<uint4*>(out)[i] = reinterpret_cast<const uint4*>(x)[i];
    return;
  }
  for (int i = 0; i < cols - col; ++i) out[i] = x[i];
}

// Expert sum: sum[t] += Σⱼ weights[t, j] · pairs[positions[t, j]], j in rank order whatever the order of the pairs, so
// that a result does not depend on how tokens were sorted. A position beyond the pairs counts as NaN.
//   Contract: CombineParams; x of the grid is the token.
template <typename T>
__device__ __forceinline__ void combine(const CombineParams& p) {
  const int col = own_column(), cols = p.cols, top_k = p.top_k;
  if (col >= cols) return;
  const float* weights = reinterpret_cast<const float*>(p.weights) + size_t{blockIdx.x} * top_k;
  const uint32_t* positions = reinterpret_cast<const uint32_t*>(p.positions) + size_t{blockIdx.x} * top_k;
  float* sum = reinterpret_cast<float*>(p.sum) + size_t{blockIdx.x} * p.sum_stride;
  Vector total = load_upto(sum, col, cols);
#if ABRUZZI_MUTANT == 2  // The last rank is forgotten.
  for (int j = 0; j < top_k - 1; ++j) {
#else
#pragma unroll 4
  for (int j = 0; j < top_k; ++j) {
#endif
    const uint32_t row = positions[j];
    const float weight = weights[j];
    const Vector v =
        row < p.pairs_rows ? load_upto(reinterpret_cast<const T*>(p.pairs) + size_t{row} * p.pairs_stride, col, cols) : all_nan();
#pragma unroll
    for (int i = 0; i < kVector; ++i) total.v[i] += weight * v.v[i];
  }
  store_upto(sum, col, cols, total);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads) embed_f32(const __grid_constant__ EmbedParams p) { embed<float>(p); }
extern "C" __global__ void __launch_bounds__(kThreads) embed_bf16(const __grid_constant__ EmbedParams p) { embed<uint16_t>(p); }

// Types in the order x, sum.
extern "C" __global__ void __launch_bounds__(kThreads) add_f32_f32(const __grid_constant__ AddParams p) {
  add<float, float>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads) add_bf16_f32(const __grid_constant__ AddParams p) {
  add<uint16_t, float>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads) add_f32_bf16(const __grid_constant__ AddParams p) {
  add<float, uint16_t>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads) add_bf16_bf16(const __grid_constant__ AddParams p) {
  add<uint16_t, uint16_t>(p);
}

extern "C" __global__ void __launch_bounds__(kThreads) copy_rows_f32(const __grid_constant__ CopyRowsParams p) {
  copy_rows<uint32_t>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads) copy_rows_bf16(const __grid_constant__ CopyRowsParams p) {
  copy_rows<uint16_t>(p);
}

extern "C" __global__ void __launch_bounds__(kThreads) combine_f32(const __grid_constant__ CombineParams p) { combine<float>(p); }
extern "C" __global__ void __launch_bounds__(kThreads) combine_bf16(const __grid_constant__ CombineParams p) {
  combine<uint16_t>(p);
}

// Gated activation: out = silu(gate) ⊙ up, silu(z) = z / (1 + e^-z), in f32, rounded once.
//   Contract: SwigluParams.
extern "C" __global__ void __launch_bounds__(kThreads) swiglu(const __grid_constant__ SwigluParams p) {
  const int col = own_column(), cols = p.cols;
  if (col >= cols) return;
  Vector gate = load_upto(reinterpret_cast<const uint16_t*>(p.gate) + size_t{blockIdx.x} * p.gate_stride, col, cols);
  Vector up = load_upto(reinterpret_cast<const uint16_t*>(p.up) + size_t{blockIdx.x} * p.up_stride, col, cols);
#pragma unroll
  for (int i = 0; i < kVector; ++i) up.v[i] *= silu(gate.v[i]);
  store_upto(reinterpret_cast<uint16_t*>(p.out) + size_t{blockIdx.x} * p.out_stride, col, cols, up);
}
