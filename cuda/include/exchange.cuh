// Exchanges between neighbouring lanes, so that what a lane holds becomes 16 bytes side by side in memory.
#pragma once

#include <stdint.h>

/// Transposes the 4×4 words of four neighbouring lanes (a quad begins at a multiple of 4): lane q ends with word q of lane s
/// in w[s]. Every lane of the warp takes part.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4]) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  const uint32_t a = __shfl_xor_sync(0xffffffffu, odd ? w[0] : w[1], 1);
  const uint32_t b = __shfl_xor_sync(0xffffffffu, odd ? w[2] : w[3], 1);
  w[0] = odd ? a : w[0], w[1] = odd ? w[1] : a;
  w[2] = odd ? b : w[2], w[3] = odd ? w[3] : b;
  const uint32_t c = __shfl_xor_sync(0xffffffffu, high ? w[0] : w[2], 2);
  const uint32_t d = __shfl_xor_sync(0xffffffffu, high ? w[1] : w[3], 2);
  w[0] = high ? c : w[0], w[2] = high ? w[2] : c;
  w[1] = high ? d : w[1], w[3] = high ? w[3] : d;
}

/// Two neighbouring lanes hold two halves each: the even lane ends with both first halves, its own first, the odd lane with
/// both second halves, its own last. Every lane of the warp takes part.
__device__ __forceinline__ void swap_halves(uint2& first, uint2& second) {
  const bool odd = threadIdx.x & 1;
  const uint2 given = odd ? first : second;
  const uint2 got = {__shfl_xor_sync(0xffffffffu, given.x, 1), __shfl_xor_sync(0xffffffffu, given.y, 1)};
  first = odd ? got : first;
  second = odd ? second : got;
}
