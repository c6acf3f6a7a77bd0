// The router: logits to experts, weights and expert-sorted pairs, in one launch.
//
// Per token (DeepSeek-V3, arXiv 2412.19437, section 2.1.2; guards as in src/device/routing.rs, bit for bit): s =
// sigmoid(logit); the top_k experts by s + bias, ties to the lowest id, NaN and infinities no candidates, −0 = +0; with groups
// only experts of the `groups_kept` best (by the sum of their two best) are candidates; weight = s / (Σ s + 1e-20) · scaling,
// summed in rank order. With too few candidates the lowest unused ids follow with weight 0 and the first such token is noted.
// Over all tokens: offsets by expert, and a stable counting sort of the pairs token · top_k + rank.
//
//   Contract: RouteParams; experts ≤ the number in the kernel's name, top_k ≤ min(16, experts), groups divide experts and are
//   ≤ 16 if any is left out, block_tokens ≤ 12; grid = ⌈tokens / block_tokens⌉ > 0, block = 384; `progress` as the last
//   launch left it: no fault, no block.
//   Plan: a warp chooses for a token: lane l ranks experts l, l + 32, … by 32-bit keys in registers; each of top_k rounds is a
//   maximum over the lane, one over the warp (redux) and the lowest id that has it. The block that finishes last sorts: each
//   warp counts a run of pairs by expert, one scan over (expert, warp) turns counts into positions, and each warp places its
//   run in order. Bytes: logits once, all of a token's in flight at a time; five words a pair out; ids read back once from the
//   second-level cache. Bound by latency up to some 500 tokens (four warps an SM choose), by issue slots beyond: about 1,750
//   warp instructions a token with 384 experts. Choosing meets no bank conflict. The sort does, where ids of 32 pairs share a
//   bank: 75 to 90 replays for 64 tokens with 8 of 384 random ids each, about 600 for 512. No layout of the counts avoids
//   what ids bring, and it is no main loop: one block, once a launch, a third of a microsecond for 512 tokens.
#include "ptx.cuh"
#include "sigmoid.cuh"

namespace {

constexpr int kThreads = 384;
constexpr int kWarps = kThreads / 32;
/// Resident blocks an SM, which bounds registers to 40 a thread.
constexpr int kBlocks = 4;
constexpr int kMaxExperts = 512;
/// Threads that scan the counts, each those of two experts.
constexpr int kScanThreads = kMaxExperts / 2;
constexpr uint32_t kAll = 0xffffffffu;
/// No expert.
constexpr uint32_t kNone = 0xffffffffu;
/// Key of an expert that cannot be chosen (any more). No finite value maps to it.
constexpr uint32_t kTombstone = 0;

/// A word an expert for each warp: keys while a token's groups are compared, counts and then positions in the sort.
using Rows = uint32_t[kWarps][kMaxExperts];

/// Orders finite floats as unsigned integers; −0 counts as +0.
__device__ __forceinline__ uint32_t rank_key(float v) {
  uint32_t bits = __float_as_uint(v);
#if ABRUZZI_MUTANT == 1  // NaN and infinities are ranked like numbers.
  constexpr bool finite = true;
#else
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
#endif
  if (bits == 0x80000000u) bits = 0;
  const uint32_t key = bits >> 31 ? ~bits : bits | 0x80000000u;
  return finite ? key : kTombstone;
}
__device__ __forceinline__ float ranked_value(uint32_t key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

/// Tombstones the keys of every expert outside the best groups. `row` is this warp's.
__device__ __forceinline__ void keep_best_groups(const RouteParams& p, uint32_t* row, int lane) {
  // Two to sixteen lanes share a group: as many as there are lanes for, a power of two.
  const int size = p.experts / p.groups;
  int share = 16;
  while (share * p.groups > 32) share /= 2;
  const int group = lane / share, member = lane % share;
  const int begin = group < p.groups ? group * size : 0, end = group < p.groups ? begin + size : 0;
  // A lane's keys are `share` apart. It begins at one that depends on its group: groups are often whole rows of banks, and
  // lanes that all began at their group's first keys would meet in the same few.
  const int count = (max(end - begin - member, 0) + share - 1) / share;
  const int start = count > 0 ? begin + member + group % count * share : end;
  auto for_keys = [&](auto&& visit) {
    for (int n = 0, e = start; n < count; ++n) {
      visit(row[e]);
      e += share;
      if (e >= end) e = begin + member;
    }
  };
  uint32_t first = kTombstone, second = kTombstone;
  for_keys([&](uint32_t k) {
    second = max(second, min(first, k));
    first = max(first, k);
  });
  for (int offset = share / 2; offset > 0; offset /= 2) {
    const uint32_t k = __shfl_xor_sync(kAll, first, offset), l = __shfl_xor_sync(kAll, second, offset);
    second = max(min(first, k), max(second, l));
    first = max(first, k);
  }
  // A group that cannot name its best two has no score. A group of one has its best.
  const bool scored = first != kTombstone && (second != kTombstone || size == 1) && member == 0;
  const float sum = ranked_value(first) + (size == 1 ? 0.0f : ranked_value(second));
  uint32_t score = scored ? rank_key(sum) : kTombstone;

  bool kept = false;
  for (int n = 0; n < p.groups_kept; ++n) {
    const uint32_t largest = __reduce_max_sync(kAll, score);
    if (largest == kTombstone) break;
    // Groups stand in the order of lanes: the lowest lane is the lowest group.
    const int winner = __ffs(__ballot_sync(kAll, score == largest)) - 1;
    if (lane == winner) score = kTombstone;
    kept |= lane / share == winner / share;
  }
#if ABRUZZI_MUTANT == 2  // Masked experts score 0 and beat negative ones.
  constexpr uint32_t masked = 0x80000000u;
#else
  constexpr uint32_t masked = kTombstone;
#endif
  if (!kept) for_keys([&](uint32_t& k) { k = masked; });
  __syncwarp();  // As above.
}

/// One warp, one token: writes its ids and weights. `logit` holds those of experts lane, lane + 32, …
template <int Keys>
__device__ __forceinline__ void choose(const RouteParams& p, uint32_t token, const float (&logit)[Keys], const float* bias,
                                       uint32_t* row, int lane) {
  // ---- Keys, through shared memory: groups cut across lanes, and registers then hold logits or keys, not both
#pragma unroll
  for (int i = 0; i < Keys; ++i) {
    const uint32_t e = lane + 32 * i;
    row[e] = e < p.experts ? rank_key(sigmoid(logit[i]) + bias[e]) : kTombstone;
  }
  __syncwarp();  // Lanes read what others wrote.
  if (p.groups_kept < p.groups) keep_best_groups(p, row, lane);
  uint32_t key[Keys];
#pragma unroll
  for (int i = 0; i < Keys; ++i) key[i] = row[lane + 32 * i];

  // ---- Lane r takes the expert of rank r
  uint32_t mine = kNone;
  int found = 0;
  for (; found < p.top_k; ++found) {
    uint32_t best = kTombstone, at = 0;
#pragma unroll
    for (int i = 0; i < Keys; ++i) {
#if ABRUZZI_MUTANT == 3  // The last of equals.
      const bool better = key[i] >= best;
#else
      const bool better = key[i] > best;
#endif
      if (better) best = key[i], at = 32 * i;
    }
    const uint32_t largest = __reduce_max_sync(kAll, best);
    if (largest == kTombstone) break;
    const uint32_t winner = __reduce_min_sync(kAll, best == largest ? at + lane : kNone);
    const uint32_t taken = winner - lane;
#pragma unroll
    for (int i = 0; i < Keys; ++i)
      if (taken == 32 * i) key[i] = kTombstone;
    if (lane == found) mine = winner;
  }

  // ---- Weights: the score anew, which costs less than keeping all of them; never s + bias − bias
  const float* logits = reinterpret_cast<const float*>(p.logits) + size_t{token} * p.logits_stride;
  const float score = lane < found ? sigmoid(logits[mine]) : 0.0f;
  float sum = 0.0f;
  for (int r = 0; r < found; ++r) sum += __shfl_sync(kAll, score, r);
  const float norm = p.normalise ? sum + 1e-20f : 1.0f;
  const float weight = lane < found ? score / norm * p.scaling : 0.0f;

  // ---- Too few candidates: the lowest ids that are not among them
  if (found < p.top_k) {
    auto* fault = reinterpret_cast<unsigned long long*>(&reinterpret_cast<RouteProgress*>(p.progress)->fault);
    if (lane == 0) atomicMin(fault, static_cast<unsigned long long>(token) << 32 | found);
    uint32_t id = 0;
    for (int filled = found; filled < p.top_k; ++id) {
      if (__any_sync(kAll, mine == id)) continue;
      if (lane == filled) mine = id;
      ++filled;
    }
  }
  if (lane < p.top_k) {
    const size_t pair = size_t{token} * p.top_k + lane;
    reinterpret_cast<uint32_t*>(p.ids)[pair] = mine;
    reinterpret_cast<float*>(p.weights)[pair] = weight;
  }
}

/// The whole block: offsets, sorted pairs, their tokens, positions.
__device__ __forceinline__ void sort_by_expert(const RouteParams& p, Rows& rows, int warp, int lane) {
  const uint32_t* ids = reinterpret_cast<const uint32_t*>(p.ids);
  uint32_t* offsets = reinterpret_cast<uint32_t*>(p.offsets);
  const uint32_t pairs = p.tokens * p.top_k;
  // A run of whole warps' worth for each warp, in order.
  const uint32_t run = ((pairs + kWarps - 1) / kWarps + 31) / 32 * 32;
  const uint32_t begin = min(pairs, warp * run), end = min(pairs, begin + run);
  uint32_t* row = rows[warp];

  // ---- Count
#pragma unroll
  for (int e = 4 * lane; e < kMaxExperts; e += 128) *reinterpret_cast<uint4*>(row + e) = {};
  __syncwarp();  // Before other lanes count there.
  // Other blocks wrote the ids: not from this SM's first-level cache.
  for (uint32_t pair = begin + lane; pair < end; pair += 32) atomicAdd(row + __ldcg(ids + pair), 1u);
  __syncthreads();  // Before the scan reads every warp's counts.

  // ---- Scan: counts become the position of the next pair, by warp and expert
  __shared__ uint32_t warp_totals[kScanThreads / 32];
  const uint32_t e = 2 * threadIdx.x;
  uint2 total{};
  uint32_t through = 0;
  if (threadIdx.x < kScanThreads) {
    for (int w = 0; w < kWarps; ++w) {
      const uint2 count = *reinterpret_cast<const uint2*>(rows[w] + e);
      total.x += count.x, total.y += count.y;
    }
    through = total.x + total.y;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const uint32_t before = __shfl_up_sync(kAll, through, offset);
      if (lane >= offset) through += before;
    }
    if (lane == 31) warp_totals[warp] = through;
  }
  __syncthreads();  // Before totals of other warps are read.
  if (threadIdx.x < kScanThreads) {
    uint2 next;
    next.x = through - total.x - total.y;
    for (int w = 0; w < warp; ++w) next.x += warp_totals[w];
    next.y = next.x + total.x;
    if (e < p.experts) offsets[e] = next.x;
    if (e + 1 < p.experts) offsets[e + 1] = next.y;
    for (int w = 0; w < kWarps; ++w) {
      uint2* cell = reinterpret_cast<uint2*>(rows[w] + e);
      const uint2 count = *cell;
      *cell = next;
      next.x += count.x, next.y += count.y;
    }
  }
  if (threadIdx.x == 0) offsets[p.experts] = pairs;
#if ABRUZZI_MUTANT != 4  // Placed before all is scanned.
  __syncthreads();  // Before warps that did not scan place by what the scan left.
#endif

  // ---- Place, 32 pairs at a time in order
  for (uint32_t base = begin; base < end; base += 32) {
    const uint32_t pair = base + lane;
    const bool here = pair < end;
    const uint32_t id = here ? __ldcg(ids + pair) : kNone;
    const uint32_t equal = __match_any_sync(kAll, id);
    const uint32_t before = __popc(equal & ((1u << lane) - 1));
    const uint32_t at = here ? row[id] + before : 0;
    __syncwarp();  // All have read before the first of each expert moves it on.
    if (here && before == 0) row[id] = at + __popc(equal);
    __syncwarp();  // Before the next 32 read.
    if (here) {
      reinterpret_cast<uint32_t*>(p.positions)[pair] = at;
      reinterpret_cast<uint32_t*>(p.sorted)[at] = pair;
      reinterpret_cast<uint32_t*>(p.sorted_tokens)[at] = pair / p.top_k;
    }
  }
}

template <int Keys>
__device__ __forceinline__ void route(const RouteParams& p) {
  __shared__ alignas(16) Rows rows;
  __shared__ float bias[kMaxExperts];
  __shared__ bool last;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t token = blockIdx.x * p.block_tokens + warp;
  const bool chooses = warp < p.block_tokens && token < p.tokens;

  // ---- Logits to registers, the bias to shared memory: all of it in flight at once
  float logit[Keys];
  const float* logits = reinterpret_cast<const float*>(p.logits) + size_t{token} * p.logits_stride;
#pragma unroll
  for (int i = 0; i < Keys; ++i) {
    const uint32_t e = lane + 32 * i;
    logit[i] = chooses && e < p.experts ? logits[e] : 0.0f;
  }
  for (uint32_t e = threadIdx.x; e < p.experts; e += kThreads) bias[e] = reinterpret_cast<const float*>(p.bias)[e];
  __syncthreads();  // The bias is there for every warp.
  if (chooses) choose<Keys>(p, token, logit, bias, rows[warp], lane);

#if ABRUZZI_MUTANT != 5  // A block says it is done when its first warp is.
  __syncthreads();  // Every id and fault of this block is written before thread 0 says so.
#endif
  RouteProgress* progress = reinterpret_cast<RouteProgress*>(p.progress);
  if (threadIdx.x == 0) {
    __threadfence();  // With the barrier: this block's writes before its arrival, for every block.
    last = atomicAdd(&progress->blocks_done, 1u) == gridDim.x - 1;
    __threadfence();  // With the barrier below: the other blocks' writes after their arrivals.
  }
  __syncthreads();  // `last` is read by all.
  if (!last) return;
  if (threadIdx.x == 0) {
    // The fault of this launch goes out; progress is as the next launch expects it.
    *reinterpret_cast<uint64_t*>(p.fault) = __ldcg(reinterpret_cast<const unsigned long long*>(&progress->fault));
    progress->fault = ~uint64_t{0};
#if ABRUZZI_MUTANT != 6  // The next launch has no last block.
    progress->blocks_done = 0;
#endif
  }
  sort_by_expert(p, rows, warp, lane);
}

}  // namespace

#define ROUTE(NAME, KEYS)                                                                                           \
  extern "C" __global__ void __launch_bounds__(kThreads, kBlocks) NAME(const __grid_constant__ RouteParams p) { \
    route<KEYS>(p);                                                                                                 \
  }

ROUTE(route_64, 2)
ROUTE(route_256, 8)
ROUTE(route_384, 12)
ROUTE(route_512, 16)
