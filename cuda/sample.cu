// From logits to a token: temperature, then top-k, top-p, min-p, then one draw, as device::SampleSettings defines it.
//
// Tokens rank by logit, the lower id first among equals; weight = e^((logit − max) / temperature). Every filter keeps a
// prefix of that order, and the draw takes the last token of one: the shortest prefix that outweighs u · total. So all
// four are one operation, "the shortest prefix whose count or weight reaches a target", which a radix select answers
// without sorting: a histogram over the leading digit of the rank, the bin in which the target falls, again inside that bin.
//   Contract: SampleParams; grid = rows, block = 1024. vocab up to 2²⁴. A row with a NaN, or without anything above −∞, gives
//   the id 2³² − 1 and its number to `fault`; +∞ outweighs every finite logit.
//   Exactness: weights are summed as integers, in units that let a whole vocabulary of the largest fit in 62 bits (2⁻⁴⁴ of
//   the largest for 163,840 tokens), so sums do not depend on the order of threads: same logits, same word, same token.
//   Plan: the row is read once for its maximum, then once a digit until at most 2048 tokens are left, which move to shared
//   memory. With top-k that is three passes in all for most rows, the later ones from the second-level cache. A thread loads
//   16 bytes ahead of those it works on. Bound by issue slots of one multiprocessor, about 75 instructions a token: some
//   55 µs for 163,840, beside a forward pass of milliseconds. At most six digits a select: no loop depends on values.
#include <math_constants.h>

#include "numeric.cuh"

namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr uint32_t kNoToken = 0xffffffffu;

// A rank is ordered logit << 24 | ~id: larger is better, no two are equal.
constexpr int kIdBits = 24;
constexpr int kRankBits = 32 + kIdBits;
constexpr uint32_t kIdMask = (1u << kIdBits) - 1;

constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
static_assert(kBins == 2 * kThreads, "a thread scans two bins");
/// Tokens that fit in shared memory.
constexpr uint32_t kListed = 2048;

// ---- Ranks and weights -------------------------------------------------------------------------------------------

/// A logit as an integer in the same order; −0 ties with +0.
__device__ __forceinline__ uint32_t ordered(float logit) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float unordered(uint32_t logit) {
  return __uint_as_float(logit >> 31 ? logit & 0x7fffffffu : ~logit);
}
__device__ __forceinline__ uint64_t rank_of(uint32_t ordered_logit, uint32_t id) {
  return uint64_t{ordered_logit} << kIdBits | (kIdMask - id);
}
__device__ __forceinline__ float logit_of(uint64_t rank) { return unordered(static_cast<uint32_t>(rank >> kIdBits)); }
__device__ __forceinline__ uint32_t id_of(uint64_t rank) { return kIdMask - (static_cast<uint32_t>(rank) & kIdMask); }

// ---- State of a block --------------------------------------------------------------------------------------------

/// How many tokens and how much weight.
struct Amount {
  uint64_t weight;
  uint32_t count;
};

/// The bin in which a target falls.
struct Crossing {
  uint64_t measure_above;
  uint32_t count_above;
  uint32_t count;
  uint32_t digit;
};

struct Shared {
  uint64_t list[kListed];
  uint64_t warp_measure[kWarps];
  uint32_t warp_count[kWarps];
  Crossing crossing;
  uint32_t listed;
  uint32_t count[kBins];
  /// Sums of 64 bits in two words: shared memory adds 32 bits at a time.
  uint32_t low[kBins];
  uint32_t high[kBins];
};
static_assert(sizeof(Shared) <= 48 << 10, "static shared memory");

/// A row, and the prefix of its ranking that is left: tokens of rank `bound` or better.
struct Row {
  const float* logits;
  int vocab;
  float max;
  float temperature;
  /// Units of weight in the largest.
  float unit;
  uint64_t bound;
  /// The prefix is in the list.
  bool listed;

  /// The largest weighs 1 whatever the temperature; of several infinities each.
  __device__ __forceinline__ float weight(float logit) const { return logit == max ? 1.0f : expf((logit - max) / temperature); }
  __device__ __forceinline__ uint64_t units(float weight) const { return __float2ull_rn(weight * unit); }
  __device__ __forceinline__ void raise(uint64_t rank) { bound = rank > bound ? rank : bound; }
};

/// Calls visit(logit, id) for each token of the row.
template <typename Visit>
__device__ __forceinline__ void for_each_logit(const float* logits, int vocab, Visit visit) {
  constexpr int kStep = 4 * kThreads;
  auto fetch = [&](int id) {
    float4 v{};
    if (id + 4 <= vocab) v = __ldg(reinterpret_cast<const float4*>(logits + id));
    return v;
  };
  float4 next = fetch(4 * threadIdx.x);
  for (int id = 4 * threadIdx.x; id < vocab; id += kStep) {
    const float4 v = next;
    next = fetch(id + kStep);
    if (id + 4 <= vocab) {
      visit(v.x, id), visit(v.y, id + 1), visit(v.z, id + 2), visit(v.w, id + 3);
    } else {
      for (int tail = id; tail < vocab; ++tail) visit(logits[tail], tail);
    }
  }
}

/// Calls visit(rank) for each token that is left.
template <typename Visit>
__device__ __forceinline__ void for_each_left(const Row& row, const Shared& shared, Visit visit) {
  if (row.listed) {
    for (uint32_t i = threadIdx.x; i < shared.listed; i += kThreads)
      if (shared.list[i] >= row.bound) visit(shared.list[i]);
    return;
  }
  // Most tokens are out by their logit alone.
  const uint32_t least = static_cast<uint32_t>(row.bound >> kIdBits);
  for_each_logit(row.logits, row.vocab, [&](float logit, int id) {
    const uint32_t key = ordered(logit);
    if (key < least) return;
    const uint64_t rank = rank_of(key, id);
    if (rank >= row.bound) visit(rank);
  });
}

// ---- Sums over the block -----------------------------------------------------------------------------------------

__device__ __forceinline__ uint64_t warp_scan(uint64_t v) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint64_t below = __shfl_up_sync(0xffffffffu, v, offset);
    if (threadIdx.x % 32 >= offset) v += below;
  }
  return v;
}
__device__ __forceinline__ uint32_t warp_scan(uint32_t v) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint32_t below = __shfl_up_sync(0xffffffffu, v, offset);
    if (threadIdx.x % 32 >= offset) v += below;
  }
  return v;
}

__device__ __forceinline__ uint64_t block_max(uint64_t v, Shared& shared) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const uint64_t other = __shfl_xor_sync(0xffffffffu, v, offset);
    v = other > v ? other : v;
  }
  if (threadIdx.x % 32 == 0) shared.warp_measure[threadIdx.x / 32] = v;
  // Maxima of all warps.
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) v = shared.warp_measure[w] > v ? shared.warp_measure[w] : v;
  // Whoever comes next may write the maxima.
  __syncthreads();
  return v;
}

/// Drops tokens that weigh less than `floor`, which is at most 1. Weights rise with logits, so there is a lowest ordered
/// logit that weighs enough; 1024 candidates are tried at a time.
__device__ __forceinline__ void drop_below(Row& row, float floor) {
  constexpr uint32_t kMinusInfinity = 0x007fffffu;  // Ordered; what is below are NaN.
  if (floor <= 0.0f) return;
  uint32_t lowest = 0;
  for (int shift : {22, 12, 2, 0}) {
    const uint32_t candidate = lowest + (threadIdx.x << shift);
    const bool light = candidate < kMinusInfinity || row.weight(unordered(candidate)) < floor;
    // Also a barrier: all threads count the same.
    const uint32_t lighter = __syncthreads_count(light);
    lowest += shift > 0 ? (lighter - 1) << shift : lighter;
  }
  row.raise(uint64_t{lowest} << kIdBits);
}

// ---- Select ------------------------------------------------------------------------------------------------------

/// Where a select ended: the last token of the prefix is the only one left with rank >> shift == digits.
struct Last {
  uint64_t digits;
  int shift;
};

/// Cuts what is left to the shortest prefix whose measure (tokens if Count, units of weight if not) reaches
/// target(all that is left), which is at least 1 and at most that.
template <bool Count, typename Target>
__device__ __forceinline__ Last cut(Row& row, Shared& shared, Target target_of) {
  const uint32_t best = kBins - 1 - 2 * threadIdx.x;
  uint64_t target = 0, digits = 0;
  int known = kRankBits;
  uint32_t above = 0;
  for (int shift = kRankBits - kDigitBits;; shift = max(shift - kDigitBits, 0)) {
    // Histogram of the next digit.
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) shared.count[bin] = shared.low[bin] = shared.high[bin] = 0;
    // Bins are clear before anybody counts.
    __syncthreads();
    for_each_left(row, shared, [&](uint64_t rank) {
      if (rank >> known != digits) return;
      const uint32_t bin = static_cast<uint32_t>(rank >> shift) % kBins;
      atomicAdd(&shared.count[bin], 1u);
      if (Count) return;
      const uint64_t units = row.units(row.weight(logit_of(rank)));
      const uint32_t low = static_cast<uint32_t>(units);
#if ABRUZZI_MUTANT == 1  // The carry is lost.
      const uint32_t carry = 0;
      atomicAdd(&shared.low[bin], low);
#else
      const uint32_t carry = atomicAdd(&shared.low[bin], low) + low < low;
#endif
      const uint32_t high = static_cast<uint32_t>(units >> 32) + carry;
      if (high) atomicAdd(&shared.high[bin], high);
    });
#if ABRUZZI_MUTANT != 2
    // Bins are complete before anybody scans them.
    __syncthreads();
#endif

    // Scan from the best bin down, two bins a thread.
    auto measure = [&](uint32_t bin) -> uint64_t {
      return Count ? shared.count[bin] : uint64_t{shared.high[bin]} << 32 | shared.low[bin];
    };
    const uint64_t first = measure(best), second = measure(best - 1);
    const uint32_t first_count = shared.count[best], second_count = shared.count[best - 1];
    uint64_t scanned = warp_scan(first + second);
    uint32_t counted = warp_scan(first_count + second_count);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 31) shared.warp_measure[warp] = scanned, shared.warp_count[warp] = counted;
    // Totals of all warps.
    __syncthreads();
    const uint64_t totals = warp_scan(shared.warp_measure[lane]);
    const uint32_t counts = warp_scan(shared.warp_count[lane]);
    const Amount all = {__shfl_sync(0xffffffffu, totals, 31), __shfl_sync(0xffffffffu, counts, 31)};
    const uint64_t before = __shfl_sync(0xffffffffu, totals, warp) - shared.warp_measure[warp] + scanned - first - second;
    const uint32_t before_count =
        __shfl_sync(0xffffffffu, counts, warp) - shared.warp_count[warp] + counted - first_count - second_count;
    if (known == kRankBits) target = target_of(all);

    // The bin in which the target falls; exactly one thread has it.
    if (before < target && target <= before + first) {
      shared.crossing = {before, before_count, first_count, best};
    } else if (before + first < target && target <= before + first + second) {
      shared.crossing = {before + first, before_count + first_count, second_count, best - 1};
    }
    // The bin is known to all, and nobody reads the histogram any more.
    __syncthreads();
    const Crossing crossing = shared.crossing;
    digits = digits << (known - shift) | (crossing.digit & ((1u << (known - shift)) - 1));
    target -= crossing.measure_above;
    above += crossing.count_above;
    known = shift;
    // Nothing below this bin is wanted again.
    row.raise(digits << shift);

    const uint32_t left = above + crossing.count;
    if (!row.listed && left <= kListed) {
      if (threadIdx.x == 0) shared.listed = 0;
      // The list is empty, and everybody has read the crossing.
      __syncthreads();
      for_each_left(row, shared, [&](uint64_t rank) { shared.list[atomicAdd(&shared.listed, 1u)] = rank; });
      // The list is complete. Its order is the threads', and nothing depends on it.
      __syncthreads();
      row.listed = true;
    }
    if (crossing.count == 1 || shift == 0) return {digits, shift};
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads) sample(const __grid_constant__ SampleParams p) {
  __shared__ Shared shared;
  Row row;
  row.logits = reinterpret_cast<const float*>(p.logits) + size_t{blockIdx.x} * p.stride;
  row.vocab = p.vocab;
  uint32_t* id = reinterpret_cast<uint32_t*>(p.ids) + blockIdx.x;

  // The best token, and whether the row can be drawn from. A thread sees its ids in order, so the first of equals stays.
  float largest = -CUDART_INF_F;
  uint32_t where = kIdMask;
  bool nan = false;
  for_each_logit(row.logits, row.vocab, [&](float logit, int token) {
    nan |= isnan(logit);
    if (logit > largest) largest = logit, where = token;
  });
  const uint64_t best = block_max(rank_of(ordered(largest), where), shared);
  row.max = logit_of(best);
  // All threads learn of a NaN that one has seen.
  if (__syncthreads_or(nan) || row.max == -CUDART_INF_F) {
    if (threadIdx.x == 0) {
      atomicMin(reinterpret_cast<uint32_t*>(p.fault), blockIdx.x);
      *id = kNoToken;
    }
    return;
  }
  if (p.temperature == 0.0f) {
    if (threadIdx.x == 0) *id = id_of(best);
    return;
  }

  // All tokens.
  row.temperature = p.temperature;
  row.unit = static_cast<float>(1ull << (30 + __clz(p.vocab - 1)));
  row.bound = 0;
  row.listed = false;

  // Filters.
  if (p.top_k > 0 && p.top_k < p.vocab) {
    cut<true>(row, shared, [&](const Amount& all) -> uint64_t { return min(p.top_k, all.count); });
  }
  if (p.top_p < 1.0f) {
    cut<false>(row, shared, [&](const Amount& all) {
      const uint64_t enough = static_cast<uint64_t>(ceil(static_cast<double>(all.weight) * static_cast<double>(p.top_p)));
      return min(max(enough, uint64_t{1}), all.weight);
    });
  }
  drop_below(row, p.min_p);

  // The draw: the first token with which the sum exceeds u · total, u of 53 bits.
  const uint64_t uniform = reinterpret_cast<const uint64_t*>(p.words)[blockIdx.x] >> 11 << 11;
  const Last last = cut<false>(row, shared, [&](const Amount& all) { return __umul64hi(uniform, all.weight) + 1; });
  for_each_left(row, shared, [&](uint64_t rank) {
    if (rank >> last.shift == last.digits) *id = id_of(rank);
  });
}
