// Routed experts for few tokens: decode, and the experts of a prefill that few tokens chose.
//
// pairs[p] = down·(silu(gate·x[t]) ⊙ (up·x[t])) for every sorted pair p, with t its token and the weights of its expert, in
// two launches: gate_up leaves h = silu(gate·x) ⊙ (up·x) in `hidden` (bf16), down multiplies it. Not weighted.
//   Contract: ExpertGemvParams; block = 128; dynamic shared memory of kStages stages (row_tile.cuh); grid = (row tiles, at
//   least the number of experts that have pairs and a slot); a row tile is 32 rows of gate with the same 32 of up, or 64 rows of down.
//   Kernels end in the tokens a block takes at a time, 8 or 16; an expert with more is passed over again for each 16.
//   Plan: row_tile.cuh, with the tile's 64 rows in two segments for gate and up, so that a block has both factors of a row
//   of h. Block (·, n) looks for the n-th expert that has pairs and a slot by scanning offsets and table (one load latency for
//   384 experts): the host knows neither how many there are nor which. One token of K2 (8 experts) is 512 blocks of gate and up, 896 of
//   down: three and more an SM, 72 KiB of weights in flight; bound by memory.
//   Experts are found through slots. A slot of another generation is reported in `stale`, and its rows become NaN; rows of an
//   expert without a slot (SLOT_NONE) stay as they are.
#include "row_tile.cuh"

namespace {

using namespace row_tile;

/// Rows of gate, and of up, in a tile.
constexpr int kGateRows = kRows / 2;

/// What a block has to do: pairs [begin, end) with the expert whose record is at `slot`; null if the slot is stale.
struct Work {
  const uint8_t* slot;
  int begin;
  int end;
};

/// The n-th expert with pairs and a slot, the same in all threads; −1 if there are fewer.
__device__ __forceinline__ int active_expert(const uint32_t* offsets, const SlotRef* table, int experts, int n) {
  constexpr int kEach = 4;
  __shared__ int found;
  __shared__ int of_warp[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int passed = 0;
  for (int base = 0; base < experts; base += kThreads * kEach) {
    // Each thread counts among four experts in a row.
    const int first = base + threadIdx.x * kEach;
    uint32_t active = 0, before = offsets[min(first, experts)];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const uint32_t after = offsets[min(first + i + 1, experts)];
#if ABRUZZI_MUTANT == 6
      const bool has_slot = true;
#else
      const bool has_slot = table[min(first + i, experts - 1)].slot != SLOT_NONE;
#endif
      active |= uint32_t{after > before && has_slot} << i;
      before = after;
    }
    int inclusive = __popc(active);
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, inclusive, offset);
      if (lane >= offset) inclusive += other;
    }
    if (lane == 31) of_warp[warp] = inclusive;
    // The warps' counts are needed by all.
    __syncthreads();
    int total = 0, rank = n - passed - (inclusive - __popc(active));
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) rank -= of_warp[w];
      total += of_warp[w];
    }
    if (rank >= 0 && rank < __popc(active)) {
      for (int i = 0; i < rank; ++i) active &= active - 1;
      found = first + __ffs(active) - 1;
    }
    // Publishes `found`, and ends the reading of the counts.
    __syncthreads();
    if (n < passed + total) return found;
    passed += total;
  }
  return -1;
}

/// Finds this block's work; false if there is none.
__device__ __forceinline__ bool find_work(const ExpertGemvParams& p, Work& work) {
  const ExpertSlots& slots = p.experts;
  const uint32_t* offsets = reinterpret_cast<const uint32_t*>(p.offsets);
  const SlotRef* table = reinterpret_cast<const SlotRef*>(slots.table);
  const int expert = active_expert(offsets, table, slots.experts, blockIdx.y);
  if (expert < 0) return false;
  work.begin = offsets[expert];
  work.end = offsets[expert + 1];
  const SlotRef ref = table[expert];
  bool ready = ref.slot < slots.slots;
#if ABRUZZI_MUTANT != 4
  ready = ready && reinterpret_cast<const uint32_t*>(slots.generations)[ref.slot] == ref.generation;
#endif
  work.slot = ready ? reinterpret_cast<const uint8_t*>(slots.pool) + ref.slot * slots.slot_bytes : nullptr;
  if (!ready && threadIdx.x == 0)
    atomicMin(reinterpret_cast<unsigned long long*>(slots.stale), (unsigned long long){uint32_t(expert)} << 32 | ref.slot);
  return true;
}

template <uint32_t Format>
__device__ __forceinline__ Segment segment_of(const uint8_t* slot, const ExpertMatrix& matrix, int row) {
  const uint64_t base = reinterpret_cast<uint64_t>(slot);
  return segment<Format>(base + matrix.weight, base + matrix.scale, row, matrix.rows, matrix.cols);
}

/// Writes value(token, row) for the pairs from `first` on: `Rows` rows of a token by as many neighbouring threads.
template <int Rows, typename Value>
__device__ __forceinline__ void write_pairs(uint64_t out, uint32_t stride, int first, int tokens, int row0, int rows,
                                            Value value) {
  const int row = threadIdx.x % Rows;
  if (row0 + row >= rows) return;
  for (int token = threadIdx.x / Rows; token < tokens; token += kThreads / Rows)
    reinterpret_cast<uint16_t*>(out)[size_t(first + token) * stride + row0 + row] = float_to_bf16(value(token, row));
}

template <uint32_t Format, int Tokens>
__device__ __forceinline__ void gate_up(const ExpertGemvParams& p) {
  extern __shared__ __align__(128) uint8_t ring[];
  Work work;
  if (!find_work(p, work)) return;
  const ExpertMatrix &gate = p.experts.gate, &up = p.experts.up;
  const int row0 = blockIdx.x * kGateRows;
  if (work.slot == nullptr) {
    write_pairs<kGateRows>(p.hidden, p.hidden_stride, work.begin, work.end - work.begin, row0, gate.rows,
                           [](int, int) { return __int_as_float(0x7fffffff); });
    return;
  }
  const Segment segments[2] = {segment_of<Format>(work.slot, gate, row0), segment_of<Format>(work.slot, up, row0)};
  const int spans = (row_bytes<Format>(gate.cols) + kSpan - 1) / kSpan;
  const uint16_t* x = reinterpret_cast<const uint16_t*>(p.x);
  const uint32_t* sorted_tokens = reinterpret_cast<const uint32_t*>(p.sorted_tokens);

#if ABRUZZI_MUTANT == 3
  for (int first = work.begin; first == work.begin; first += Tokens) {
#else
  for (int first = work.begin; first < work.end; first += Tokens) {
#endif
    const int tokens = min(work.end - first, Tokens);
    const float* sums = tile<Format, Tokens>(ring, segments, gate.cols, 0, spans, tokens, [&](int token) {
      return x + size_t(sorted_tokens[first + token]) * p.x_stride;
    });
    write_pairs<kGateRows>(p.hidden, p.hidden_stride, first, tokens, row0, gate.rows, [&](int token, int row) {
      const float* of_token = sums + token * kTilePitch;
      return silu(of_token[row]) * of_token[kGateRows + row];
    });
    // The next pass fills the ring that the tile stands in.
    __syncthreads();
  }
}

template <uint32_t Format, int Tokens>
__device__ __forceinline__ void down(const ExpertGemvParams& p) {
  extern __shared__ __align__(128) uint8_t ring[];
  Work work;
  if (!find_work(p, work)) return;
  const ExpertMatrix& matrix = p.experts.down;
  const int row0 = blockIdx.x * kRows;
  if (work.slot == nullptr) {
    write_pairs<kRows>(p.pairs, p.pairs_stride, work.begin, work.end - work.begin, row0, matrix.rows,
                       [](int, int) { return __int_as_float(0x7fffffff); });
    return;
  }
  const Segment segments[1] = {segment_of<Format>(work.slot, matrix, row0)};
  const int spans = (row_bytes<Format>(matrix.cols) + kSpan - 1) / kSpan;
  const uint16_t* hidden = reinterpret_cast<const uint16_t*>(p.hidden);

  for (int first = work.begin; first < work.end; first += Tokens) {
    const int tokens = min(work.end - first, Tokens);
    const float* sums = tile<Format, Tokens>(ring, segments, matrix.cols, 0, spans, tokens,
                                             [&](int token) { return hidden + size_t(first + token) * p.hidden_stride; });
    write_pairs<kRows>(p.pairs, p.pairs_stride, first, tokens, row0, matrix.rows,
                       [&](int token, int row) { return sums[token * kTilePitch + row]; });
    // The next pass fills the ring that the tile stands in.
    __syncthreads();
  }
}

}  // namespace

#define EXPERTS(SUFFIX, FORMAT, TOKENS)                                                                                   \
  extern "C" __global__ void __launch_bounds__(kThreads, kResident)                                                       \
      gate_up_##SUFFIX##_##TOKENS(const __grid_constant__ ExpertGemvParams p) {                                           \
    gate_up<FORMAT, TOKENS>(p);                                                                                           \
  }                                                                                                                       \
  extern "C" __global__ void __launch_bounds__(kThreads, kResident)                                                       \
      down_##SUFFIX##_##TOKENS(const __grid_constant__ ExpertGemvParams p) {                                              \
    down<FORMAT, TOKENS>(p);                                                                                              \
  }

EXPERTS(f32, WEIGHT_F32, 8)
EXPERTS(f32, WEIGHT_F32, 16)
EXPERTS(f16, WEIGHT_F16, 8)
EXPERTS(f16, WEIGHT_F16, 16)
EXPERTS(bf16, WEIGHT_BF16, 8)
EXPERTS(bf16, WEIGHT_BF16, 16)
EXPERTS(fp8, WEIGHT_FP8_BLOCK, 8)
EXPERTS(fp8, WEIGHT_FP8_BLOCK, 16)
EXPERTS(int4, WEIGHT_INT4_GROUP32, 8)
EXPERTS(int4, WEIGHT_INT4_GROUP32, 16)
