// One sigmoid for every device, specified to the bit: the operations of src/device/sigmoid.rs in the same order, which see
// for their reasons and their error (below 2 units in the last place). Written with the _rn functions throughout, since the
// compiler would fuse `a * b + c`.
#pragma once

#include <stdint.h>

/// 1 / (1 + e^−x); NaN stays NaN.
__device__ __forceinline__ float sigmoid(float x) {
  constexpr float kRound = 12582912.0f;
  float t = -fabsf(x);
  t = t < -104.0f ? -104.0f : t;
  const float shifted = __fadd_rn(__fmul_rn(t, 1.44269504f), kRound);
  const float n = __fsub_rn(shifted, kRound);
  const float r = __fsub_rn(__fsub_rn(t, __fmul_rn(n, 355.0f / 512.0f)), __fmul_rn(n, -2.12194440e-4f));
  // Coefficients: S. L. Moshier, Cephes 2.2, single/expf.c.
  float tail = 1.9875691500e-4f;
  tail = __fadd_rn(__fmul_rn(tail, r), 1.3981999507e-3f);
  tail = __fadd_rn(__fmul_rn(tail, r), 8.3334519073e-3f);
  tail = __fadd_rn(__fmul_rn(tail, r), 4.1665795894e-2f);
  tail = __fadd_rn(__fmul_rn(tail, r), 1.6666665459e-1f);
  tail = __fadd_rn(__fmul_rn(tail, r), 5.0000001201e-1f);
  const float power = __fadd_rn(__fadd_rn(__fmul_rn(tail, __fmul_rn(r, r)), r), 1.0f);
  const float scale = __uint_as_float((__float_as_uint(shifted) + 127 + 64) << 23);
  const float e = __fmul_rn(__fmul_rn(power, scale), __uint_as_float((127 - 64) << 23));

  const float d = __fadd_rn(1.0f, e);
  const float lost = __fsub_rn(e, __fsub_rn(d, 1.0f));
  const float q = __fdiv_rn(x < 0.0f ? e : 1.0f, d);
  const float inverse = x < 0.0f ? __fsub_rn(1.0f, q) : q;
  return __fsub_rn(q, __fmul_rn(__fmul_rn(q, lost), inverse));
}
