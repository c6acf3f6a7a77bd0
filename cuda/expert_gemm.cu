// Products of many tokens with FP8 weights, W8A8: the experts of a layer at prefill, and the trunk's matrices.
//
// For every group g (an expert, or the one matrix) and its rows r:
//   linear: out[r, n] = Σ_b sx[r, b] · sw[n / 128, b] · Σ_{k in block b} x[r, k] · w[n, k]
//   gated:  h = silu(gate·x) ⊙ (up·x), quantised again per row and 128 columns: the next product's x
// x and w are e4m3, b counts blocks of 128 columns; sx is per row and block, sw per 128×128 block, also at ragged edges. The
// tensor core sums one block only, since its FP8 sums keep few bits; blocks are added up in f32 (DeepSeek-V3, arXiv
// 2412.19437, 3.3.2). The shape of the kernel (one producer warpgroup, two of mathematics, scales applied while the other
// warpgroup multiplies) follows DeepGEMM's description of its sm90_fp8_gemm_1d2d.
//   Contract: ExpertGemmParams; block = 384, one on a multiprocessor, any grid up to the number of tiles; dynamic shared
//   memory EXPERT_GEMM_SHARED_1 or _2. cols % 16 = 0 (TMA). Groups may be empty; counts stay on the device. Rows that are not
//   of the group, and rows from `rows` on, are computed with at most and never written.
//   An expert that is not in its slot: reported (see ExpertSlots), its rows become NaN, nothing of the slot is read. One without
//   a slot (SLOT_NONE): no tiles, so its rows stay as they are.
//   Plan: tile 128 rows × 128·Boxes columns, persistent blocks, 128 of k a stage. A stage is one box of x (16 KB), `Boxes` boxes
//   of weights (16 KB each; gate and up in the gated kernel) and the 128 scales of x: 4 stages of 48.5 KB, or 6 of 32.5 KB, all
//   in flight. Warpgroup 2 keeps 40 registers: its first warp walks the tiles and one lane issues TMA. Warpgroups 0 and 1 have
//   64 rows each and 232 registers: 64·Boxes sums, 64 of the product in progress. While one adds a product to its sums the
//   other's runs on the tensor cores. Output leaves through 2 KB of shared memory a warp, in 16-byte stores of whole lines.
//   Limit: tensor cores, 1979 TFLOP/s; with two boxes a tile takes 48 bytes a cycle from the second-level cache. Below about 295
//   rows an expert the weights' HBM time is the limit, 13 µs an expert of K2.
#include "numeric.cuh"
#include "pipeline.cuh"
#include "wgmma.cuh"

namespace {

constexpr int kThreads = EXPERT_GEMM_THREADS;
constexpr int kTile = EXPERT_GEMM_TILE;
constexpr int kBlock = EXPERT_GEMM_BLOCK;
constexpr int kMathGroups = 2;
constexpr int kMathWarps = kMathGroups * 4;
/// Rows of a math warpgroup: the M of wgmma.
constexpr int kGroupRows = 64;
constexpr int kWarpRows = 16;
/// k of one wgmma, in bytes.
constexpr int kStep = 32;
/// Sums a thread has for one box of weights.
constexpr int kSums = kGroupRows * kBlock / 128;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr uint32_t kNan = 0x7fffffffu;

static_assert(kBlock == kScaleBlock, "one scale a box");
static_assert(kTile == kMathGroups * kGroupRows, "rows of a tile");

/// Shared memory of a block, offsets in bytes from its start.
template <int Boxes>
struct Shared {
  static constexpr int kStages = Boxes == 2 ? 4 : 6;
  static constexpr uint32_t kBox = kBlock * kBlock;
  /// Of a stage: x, then the weights.
  static constexpr uint32_t kStage = (1 + Boxes) * kBox;
  static constexpr uint32_t kScales = kStages * kStage;
  static constexpr uint32_t kScaleBytes = kTile * sizeof(float);
  static constexpr uint32_t kStaging = kScales + kStages * kScaleBytes;
  /// A warp's: 16 rows of 128 bytes.
  static constexpr uint32_t kWarpStaging = kWarpRows * 128;
  static constexpr uint32_t kBarriers = kStaging + kMathWarps * kWarpStaging;
  static constexpr uint32_t kBytes = kBarriers + Ring<kStages>::kBytes;
};
static_assert(Shared<1>::kBytes == EXPERT_GEMM_SHARED_1 && Shared<2>::kBytes == EXPERT_GEMM_SHARED_2, "as the launcher has it");
static_assert(Shared<1>::kBytes <= 232448 && Shared<2>::kBytes <= 232448, "what a block can have");

// ---- Which tile --------------------------------------------------------------------------------------------------

/// A tile of one group's product.
struct Tile {
  /// First row of x and out.
  uint32_t row;
  /// Rows from there to the group's end; more than a tile has if others follow.
  uint32_t rows;
  /// Place among the tiles side by side.
  uint32_t column;
  uint32_t expert;
  uint32_t slot;
  /// The slot holds something else.
  bool stale;
};

/// The order of tiles, found by one warp: groups in order; in a group bands of EXPERT_GEMM_BAND row tiles, in a band the row
/// tiles of one column first, so that blocks that run together share weights and a band of x. A lane knows one group of 32 at
/// a time. The n-th call must not ask for a tile before the (n − 1)-th's.
struct TileWalk {
  const ExpertGemmParams& p;
  uint32_t lane;
  /// First group of the 32, and tiles before it.
  uint32_t first = 0, before = 0;
  /// This lane's group: its rows, its tiles and those of lanes below.
  uint32_t begin = 0, end = 0, through = 0;
  uint32_t slot = 0, stale = 0;

  __device__ __forceinline__ explicit TileWalk(const ExpertGemmParams& params) : p(params), lane(threadIdx.x % 32) { load(); }

  __device__ __forceinline__ static uint32_t row_tiles(uint32_t rows) { return (rows + kTile - 1) / kTile; }

  __device__ __forceinline__ void load() {
    const uint32_t group = first + lane;
    begin = end = slot = stale = 0;
    if (group < p.slots.experts) {
      const uint32_t* offsets = reinterpret_cast<const uint32_t*>(p.offsets);
      begin = offsets ? offsets[group] : 0;
      end = offsets ? offsets[group + 1] : p.rows;
      // Only experts with rows and a slot must be there.
      if (p.slots.table && begin != end) {
        const SlotRef ref = reinterpret_cast<const SlotRef*>(p.slots.table)[group];
        slot = ref.slot;
#if ABRUZZI_MUTANT != 8
        if (slot == SLOT_NONE) end = begin;
#endif
        stale = slot >= p.slots.slots || reinterpret_cast<const uint32_t*>(p.slots.generations)[slot] != ref.generation;
#if ABRUZZI_MUTANT == 5
        stale = 0;
#endif
      }
    }
    through = row_tiles(end - begin) * p.column_tiles;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      uint32_t below = __shfl_up_sync(kAllLanes, through, offset);
      if (lane >= offset) through += below;
    }
  }

  /// Finds tile `index` of all; false if there is none.
  __device__ __forceinline__ bool find(uint32_t index, Tile& tile) {
    while (true) {
      const uint32_t tiles = __shfl_sync(kAllLanes, through, 31);
      if (index - before < tiles) break;
      before += tiles;
      first += 32;
      if (first >= p.slots.experts) return false;
      load();
    }
    index -= before;
    const int found = __ffs(__ballot_sync(kAllLanes, through > index)) - 1;
    const uint32_t group_begin = __shfl_sync(kAllLanes, begin, found);
    const uint32_t rows = __shfl_sync(kAllLanes, end, found) - group_begin;
    tile.slot = __shfl_sync(kAllLanes, slot, found);
    tile.stale = __shfl_sync(kAllLanes, stale, found) != 0;
    tile.expert = first + found;
    const uint32_t tiles_down = row_tiles(rows);
    index -= __shfl_sync(kAllLanes, through, found) - tiles_down * p.column_tiles;

    const uint32_t first_down = index / (EXPERT_GEMM_BAND * p.column_tiles) * EXPERT_GEMM_BAND;
    const uint32_t band = min(uint32_t{EXPERT_GEMM_BAND}, tiles_down - first_down);
    index -= first_down * p.column_tiles;
    const uint32_t down = first_down + index % band;
    tile.column = index / band;
    tile.row = group_begin + down * kTile;
    tile.rows = rows - down * kTile;
    return true;
  }
};

/// Boxes of weights that tile `column` needs: the last of a linear product may need one only.
template <int Boxes, bool Gated>
__device__ __forceinline__ int boxes_of(const ExpertGemmParams& p, uint32_t column) {
  return Gated || Boxes == 1 || column * (Boxes * kBlock) + kBlock < p.weight_rows ? Boxes : 1;
}

// ---- Producer ----------------------------------------------------------------------------------------------------

template <int Boxes, bool Gated>
__device__ __forceinline__ void produce(const ExpertGemmParams& p, uint32_t shared, Ring<Shared<Boxes>::kStages> ring) {
  using S = Shared<Boxes>;
  const bool leader = ptx::elect_one();
  if (leader) {
    for (const TensorMap* map : {&p.x, &p.x_scale, &p.weight}) ptx::prefetch_map(map);
    if (Gated) ptx::prefetch_map(&p.up);
  }
  TileWalk walk(p);
  Tile tile;
  for (uint32_t index = blockIdx.x; walk.find(index, tile); index += gridDim.x) {
    if (!leader) continue;
    if (tile.stale) {
      using Word = unsigned long long;
      atomicMin(reinterpret_cast<Word*>(p.slots.stale), Word{tile.expert} << 32 | tile.slot);
      continue;
    }
    const int boxes = boxes_of<Boxes, Gated>(p, tile.column);
    const uint32_t weight_row = tile.column * (Gated ? kBlock : Boxes * kBlock);
    for (uint32_t block = 0; block < p.depth_blocks; ++block) {
#if ABRUZZI_MUTANT != 1
      ring.acquire();
#endif
      const uint32_t full = ring.announce((1 + boxes) * S::kBox + S::kScaleBytes);
      const uint32_t stage = shared + ring.stage * S::kStage;
      const int k = block * kBlock;
      ptx::tensor_load(stage, &p.x, k, tile.row, 0, full);
      ptx::tensor_load(shared + S::kScales + ring.stage * S::kScaleBytes, &p.x_scale, tile.row, block, 0, full);
      ptx::tensor_load(stage + S::kBox, &p.weight, k, weight_row, tile.slot, full);
      const TensorMap* second = Gated ? &p.up : &p.weight;
      if (boxes == 2) ptx::tensor_load(stage + 2 * S::kBox, second, k, weight_row + (Gated ? 0 : kBlock), tile.slot, full);
      ring.advance();
    }
  }
}

// ---- Mathematics -------------------------------------------------------------------------------------------------

/// Adds up a tile's blocks. sums[i] belongs to box i of weights; wgmma.cuh says which element is where.
template <int Boxes, bool Gated>
__device__ __forceinline__ void multiply(const ExpertGemmParams& p, const Tile& tile, uint32_t shared,
                                         Ring<Shared<Boxes>::kStages>& ring, float (&sums)[Boxes][kSums]) {
  using S = Shared<Boxes>;
  const int group = threadIdx.x / 128, lane = threadIdx.x % 32;
  const int row = threadIdx.x / 32 * kWarpRows + lane / 4;
  const int boxes = boxes_of<Boxes, Gated>(p, tile.column);

  // Where the scales of the tile's boxes stand: a row of blocks each.
  const uint64_t slot = p.slots.pool + tile.slot * p.slots.slot_bytes;
  const float* weight_scale[Boxes];
#pragma unroll
  for (int i = 0; i < Boxes; ++i) {
    const uint64_t matrix = Gated ? (i == 0 ? p.slots.gate.scale : p.slots.up.scale) : p.slots.down.scale;
    const uint32_t scale_row = Gated ? tile.column : tile.column * Boxes + (ABRUZZI_MUTANT == 6 ? 0 : i);
#if ABRUZZI_MUTANT == 2
    weight_scale[i] = reinterpret_cast<const float*>(slot + matrix) + scale_row * (p.cols / kBlock);
#else
    weight_scale[i] = reinterpret_cast<const float*>(slot + matrix) + scale_row * p.depth_blocks;
#endif
  }

#pragma unroll
  for (int i = 0; i < Boxes; ++i)
#pragma unroll
    for (float& sum : sums[i]) sum = 0.0f;
  float next_scale[Boxes];
#pragma unroll
  for (int i = 0; i < Boxes; ++i) next_scale[i] = i < boxes ? __ldg(weight_scale[i]) : 0.0f;

  float product[kSums];
#if ABRUZZI_MUTANT == 3
  for (float& v : product) v = 0.0f;
#endif
  for (uint32_t block = 0; block < p.depth_blocks; ++block) {
    // The weights' scales come from global memory, one block ahead.
    float scale[Boxes];
#pragma unroll
    for (int i = 0; i < Boxes; ++i) {
      scale[i] = next_scale[i];
      if (i < boxes && block + 1 < p.depth_blocks) next_scale[i] = __ldg(weight_scale[i] + block + 1);
    }
    ring.wait();
    float low, high;
    const uint32_t scales = shared + S::kScales + ring.stage * S::kScaleBytes + row * sizeof(float);
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(low) : "r"(scales) : "memory");
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(high) : "r"(scales + 8 * uint32_t{sizeof(float)}) : "memory");

    const uint32_t stage = shared + ring.stage * S::kStage;
    const uint64_t x = wgmma::descriptor(stage + group * kGroupRows * kBlock);
#pragma unroll
    for (int i = 0; i < Boxes; ++i) {
      if (i >= boxes) break;
      const uint64_t weight = wgmma::descriptor(stage + (1 + i) * S::kBox);
      wgmma::fence();
#pragma unroll
      for (int step = 0; step < kBlock / kStep; ++step)
        wgmma::Fp8<kBlock>::multiply(product, x + step * (kStep / 16), weight + step * (kStep / 16),
                                     ABRUZZI_MUTANT == 3 || step > 0);
      wgmma::commit();
#if ABRUZZI_MUTANT == 4
      if (i + 1 == boxes && lane == 0) ring.release();
#endif
      wgmma::wait<ABRUZZI_MUTANT == 7 ? 1 : 0>();
      wgmma::pin(product);
#if ABRUZZI_MUTANT != 4
      // The stage is read: scales are in registers, products done. One arrival a warp.
      if (i + 1 == boxes && lane == 0) ring.release();
#endif
      const float low_scale = low * scale[i], high_scale = high * scale[i];
#pragma unroll
      for (int j = 0; j < kSums; j += 4) {
#if ABRUZZI_MUTANT == 3
        sums[i][j] = low_scale * product[j], sums[i][j + 1] = low_scale * product[j + 1];
        sums[i][j + 2] = high_scale * product[j + 2], sums[i][j + 3] = high_scale * product[j + 3];
#else
        sums[i][j] += low_scale * product[j], sums[i][j + 1] += low_scale * product[j + 1];
        sums[i][j + 2] += high_scale * product[j + 2], sums[i][j + 3] += high_scale * product[j + 3];
#endif
      }
    }
    ring.advance();
  }
}

// ---- Output ------------------------------------------------------------------------------------------------------

/// A warp's staging memory: 16 rows of 128 bytes; the 16-byte pieces of a row are exchanged by its number, so that neither
/// the writes (a piece of eight rows at once) nor the reads (whole rows) meet in a bank.
struct Staging {
  uint32_t at;
  int lane;

  __device__ __forceinline__ uint32_t place(uint32_t row, uint32_t byte) const {
    return at + row * 128 + ((byte / 16 ^ row % 8) * 16) + byte % 16;
  }
  __device__ __forceinline__ void put(uint32_t row, uint32_t byte, uint32_t value) const {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(place(row, byte)), "r"(value) : "memory");
  }
  __device__ __forceinline__ void put(uint32_t row, uint32_t byte, uint16_t value) const {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(place(row, byte)), "h"(value) : "memory");
  }
  /// Copies `rows` rows of `bytes` bytes to `to`, which is on 16 bytes, as are the rows from there; what a last piece has too
  /// much falls between the row's end and the next.
  __device__ __forceinline__ void copy(uint8_t* to, size_t pitch, int rows, int bytes) const {
    const int byte = lane % 8 * 16;
#pragma unroll
    for (int first = 0; first < kWarpRows; first += 4) {
      const int row = first + lane / 8;
      uint4 v;
      asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                   : "r"(place(row, byte))
                   : "memory");
      if (row < rows && byte < bytes) *reinterpret_cast<uint4*>(to + row * pitch + byte) = v;
    }
  }
};

/// Writes the warp's 16 rows of a linear product, `rows` of which are of the group; `row` is the first.
template <int Boxes>
__device__ __forceinline__ void write_linear(const ExpertGemmParams& p, uint32_t column, size_t row, int rows, Staging staging,
                                             const float (&sums)[Boxes][kSums]) {
  const int lane = staging.lane, quad = lane / 4, pair = lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < Boxes; ++i) {
    const int first = (column * Boxes + i) * kBlock, cols = p.weight_rows;
    if (p.out_type == ACTIVATION_F32) {
      // Four lanes write a 32-byte sector; the pair's second column may be the first of the padding.
      float* out = reinterpret_cast<float*>(p.out) + row * p.out_stride + first + pair;
#pragma unroll
      for (int j = 0; j < kSums / 4; ++j) {
        if (first + 8 * j + pair >= cols) continue;
        const float* s = &sums[i][4 * j];
        if (quad < rows) *reinterpret_cast<float2*>(out + quad * size_t{p.out_stride} + 8 * j) = {s[0], s[1]};
        if (quad + 8 < rows) *reinterpret_cast<float2*>(out + (quad + 8) * size_t{p.out_stride} + 8 * j) = {s[2], s[3]};
      }
      continue;
    }
    uint8_t* out = reinterpret_cast<uint8_t*>(p.out) + (row * p.out_stride + first) * 2;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      __syncwarp();  // The copy before is done reading.
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float* s = &sums[i][part * 32 + 4 * j];
        staging.put(quad, j * 16 + pair * 2, ptx::floats_to_bf16x2(s[0], s[1]));
        staging.put(quad + 8, j * 16 + pair * 2, ptx::floats_to_bf16x2(s[2], s[3]));
      }
      __syncwarp();  // All of the warp's rows are there.
      staging.copy(out + part * 128, size_t{p.out_stride} * 2, rows, (cols - first) * 2 - part * 128);
    }
  }
}

/// silu with a division of two instructions: within 2 ulp, 0 where the true value is below 2^-119.
__device__ __forceinline__ float quick_silu(float z) { return __fdividef(z, 1.0f + __expf(-z)); }

/// Writes the warp's 16 rows of silu(gate) ⊙ up in FP8, with a scale a row: all 128 columns of the scale are here.
__device__ __forceinline__ void write_gated(const ExpertGemmParams& p, uint32_t column, size_t row, int rows, Staging staging,
                                            float (&sums)[2][kSums]) {
  const int lane = staging.lane, quad = lane / 4, pair = lane % 4 * 2;
  // The maximum of each of the thread's two rows; fmaxf passes over NaN, and infinities become NaN.
  float largest[2] = {kLeastMax, kLeastMax};
  float(&h)[kSums] = sums[0];
#pragma unroll
  for (int j = 0; j < kSums; ++j) {
    const float v = quick_silu(sums[0][j]) * sums[1][j];
    h[j] = is_finite(v) ? v : __uint_as_float(kNan);
    largest[j / 2 % 2] = fmaxf(largest[j / 2 % 2], fabsf(h[j]));
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    // Four lanes have a row's columns.
    largest[i] = fmaxf(largest[i], __shfl_xor_sync(kAllLanes, largest[i], 1));
    largest[i] = fmaxf(largest[i], __shfl_xor_sync(kAllLanes, largest[i], 2));
    float* scale = reinterpret_cast<float*>(p.out_scale) + size_t{column} * p.out_scale_stride + row + quad + 8 * i;
    if (pair == 0 && quad + 8 * i < rows) *scale = largest[i] / kFp8Max;
  }
  const float low = kFp8Max / largest[0], high = kFp8Max / largest[1];
  __syncwarp();  // The copy before is done reading.
#pragma unroll
  for (int j = 0; j < kSums / 4; ++j) {
    staging.put(quad, j * 8 + pair, ptx::floats_to_fp8x2(h[4 * j] * low, h[4 * j + 1] * low));
    staging.put(quad + 8, j * 8 + pair, ptx::floats_to_fp8x2(h[4 * j + 2] * high, h[4 * j + 3] * high));
  }
  __syncwarp();  // All of the warp's rows are there.
  uint8_t* out = reinterpret_cast<uint8_t*>(p.out) + row * p.out_stride + column * kBlock;
  staging.copy(out, p.out_stride, rows, static_cast<int>(p.weight_rows) - static_cast<int>(column) * kBlock);
}

template <int Boxes, bool Gated>
__device__ __forceinline__ void compute(const ExpertGemmParams& p, uint32_t shared, Ring<Shared<Boxes>::kStages> ring) {
  using S = Shared<Boxes>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Staging staging{shared + S::kStaging + warp * S::kWarpStaging, lane};
  TileWalk walk(p);
  Tile tile;
  for (uint32_t index = blockIdx.x; walk.find(index, tile); index += gridDim.x) {
    // A warpgroup whose rows are all beyond the group's end lets the stages pass.
    if (tile.rows <= warp / 4 * kGroupRows) {
      for (uint32_t block = tile.stale ? p.depth_blocks : 0; block < p.depth_blocks; ++block) {
        ring.wait();
        if (lane == 0) ring.release();
        ring.advance();
      }
      continue;
    }
    float sums[Boxes][kSums];
    if (tile.stale) {
#pragma unroll
      for (int i = 0; i < Boxes; ++i)
#pragma unroll
        for (float& sum : sums[i]) sum = __uint_as_float(kNan);
    } else {
      multiply<Boxes, Gated>(p, tile, shared, ring, sums);
    }
    const int rows = static_cast<int>(min(tile.rows, uint32_t{kTile})) - warp * kWarpRows;
    const size_t row = size_t{tile.row} + warp * kWarpRows;
    if constexpr (Gated)
      write_gated(p, tile.column, row, rows, staging, sums);
    else
      write_linear<Boxes>(p, tile.column, row, rows, staging, sums);
  }
}

template <int Boxes, bool Gated>
__device__ __forceinline__ void product(const ExpertGemmParams& p) {
  extern __shared__ __align__(1024) uint8_t memory[];
  using S = Shared<Boxes>;
  const uint32_t shared = ptx::shared_address(memory);
  Ring<S::kStages> ring(shared + S::kBarriers);
  if (threadIdx.x == 0) ring.init(kMathWarps);
  __syncthreads();  // Both sides may use the ring.
  if (threadIdx.x >= kMathGroups * 128) {
    ptx::registers_down<40>();
    if (threadIdx.x / 32 == kMathWarps) produce<Boxes, Gated>(p, shared, ring);
  } else {
    ptx::registers_up<232>();
    compute<Boxes, Gated>(p, shared, ring);
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 1) expert_linear_fp8_narrow(const __grid_constant__ ExpertGemmParams p) {
  product<1, false>(p);
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) expert_linear_fp8(const __grid_constant__ ExpertGemmParams p) {
  product<2, false>(p);
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) expert_gated_fp8(const __grid_constant__ ExpertGemmParams p) {
  product<2, true>(p);
}
