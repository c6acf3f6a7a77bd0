// Non-finite detector: notes the first NaN or infinity of x, reading x once and writing nothing while all is well.
//
//   Contract: WatchParams; grid = (rows, ⌈cols / 2048⌉), block = 256. rows and cols below 2²⁴, site below 2¹⁶.
//   Plan: 8 columns a thread in 16-byte loads. A finding is one word, site << 48 | row << 24 | column, and the guard keeps
//   the least: sites are numbered in the order their kernels are issued, so the least word is the first finding, whatever
//   order blocks run in. A thread that finds something looks before it competes, so a tensor full of NaN is cheap too.
//   Bound by memory.
#include "vector.cuh"

namespace {

constexpr int kThreads = 256;

template <typename T>
__device__ __forceinline__ void watch(const WatchParams& p) {
  const int col = (blockIdx.y * kThreads + threadIdx.x) * kVector, cols = p.cols;
  if (col >= cols) return;
  const Vector v = load_upto(reinterpret_cast<const T*>(p.x) + size_t{blockIdx.x} * p.stride, col, cols);

  int found = kVector;
#pragma unroll
  for (int i = kVector - 1; i >= 0; --i)
    if (!is_finite(v.v[i])) found = i;
  if (found == kVector) return;

#if ABRUZZI_MUTANT == 1  // Names the vector, not the element.
  found = 0;
#endif
  const unsigned long long word = uint64_t{p.site} << 48 | uint64_t{blockIdx.x} << 24 | static_cast<uint64_t>(col + found);
  unsigned long long* guard = reinterpret_cast<unsigned long long*>(p.guard);
#if ABRUZZI_MUTANT == 2  // Who looks last wins.
  *guard = word;
#else
  if (word < *static_cast<volatile unsigned long long*>(guard)) atomicMin(guard, word);
#endif
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads) watch_f32(const __grid_constant__ WatchParams p) { watch<float>(p); }
extern "C" __global__ void __launch_bounds__(kThreads) watch_bf16(const __grid_constant__ WatchParams p) { watch<uint16_t>(p); }
