// bf16 products on tensor cores.
//
// gemm_bf16_n{64,128,256}: y[r, n] = Σₖ x[r, k]·w[n, k], x and w bf16, sums f32, y bf16 or f32.
// grouped_bf16_n{64,128,256}: the same with a matrix of its own for each group of rows: rows offsets[g] to offsets[g + 1] of x
// and y belong to group g, whose matrix is in slot slots[g]. Groups may be empty and of any size; rows in none stay untouched,
// as do those of a group with SLOT_NONE for a slot. A group with SLOT_STALE has NaN for products.
//   Contract: GemmParams; k a multiple of 8, groups at most GEMM_MAX_GROUPS; grid = any number of blocks, best one a
//   multiprocessor; block = 384; dynamic shared memory: GEMM_SHARED_BYTES.
//   Plan: tiles of 128 rows by TileN columns, walked by a persistent grid in panels of 16 row tiles, so that blocks at work at
//   the same time share rows and columns in the second-level cache. Warpgroup 0 is the producer: one thread brings 64 columns
//   of k of both operands by TMA (128-byte rows, 128-byte swizzle) into a ring of 4, 6 or 8 stages of 48, 32 or 24 KB: 192 KB in
//   flight. Warpgroups 1 and 2 multiply, 64 rows each, wgmma m64n{TileN}k16, one stage's products in flight behind the next;
//   sums go from registers to memory in 16-byte stores after an exchange among neighbours. TMA fills ragged edges with zeros;
//   stores are predicated. A tile of at most 64 rows loads as many and leaves the second warpgroup idle: it is bound by the
//   bytes of w. Wide tiles for many rows (limit: tensor cores), narrow ones where wide would leave multiprocessors without work
//   (limit: memory); the launcher chooses.
//
// gather_rows: out[i] = x[rows_map[i]], bf16.
//   Contract: GatherParams; grid = rows, block = 256.
//   Plan: 16-byte accesses, four in flight a thread. Bytes: each row once in, once out.
//
// group_slots: slots[e] = the slot that the table says expert e is in, places[e] = e % batch; both SLOT_NONE if e has no rows or
// the table no slot for it, both SLOT_STALE if its slot holds something else, which is then reported in `stale`.
//   Contract: GroupSlotsParams; grid = experts / 128, block = 128.
//   Plan: a thread an expert; a few KB, bound by the launch.
#include "exchange.cuh"
#include "numeric.cuh"
#include "wgmma.cuh"

namespace {

constexpr int kThreads = GEMM_THREADS;
constexpr int kMathWarps = 8;
constexpr uint32_t kTileRows = GEMM_TILE_ROWS;
/// Rows of a warpgroup, and of a box of x.
constexpr uint32_t kGroupRows = GEMM_BOX_ROWS;
/// Columns of k in a stage: 128 bytes.
constexpr uint32_t kBlockK = GEMM_BLOCK_K;
/// Columns of k in a wgmma.
constexpr uint32_t kStepK = 16;
/// Row tiles of a panel.
constexpr uint32_t kPanel = 16;
constexpr uint32_t kNan = 0x7fffffffu;

/// The ring's stages in dynamic shared memory, each x then w.
template <int TileN>
struct Ring {
  static constexpr int kStages = TileN == 256 ? 4 : TileN == 128 ? 6 : 8;
  static constexpr uint32_t kBoxBytes = kGroupRows * kBlockK * 2;
  static constexpr uint32_t kWBytes = TileN * kBlockK * 2;
  static constexpr uint32_t kStageBytes = 2 * kBoxBytes + kWBytes;
  static_assert(kStages * kStageBytes + 1024 == GEMM_SHARED_BYTES, "1024 more to align stages for the swizzle");
};

/// A place in the ring and the phase its barriers are in there.
template <int Stages>
struct Cursor {
  uint32_t stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == Stages) stage = 0, phase ^= 1;
  }
};

// ---- Tiles -------------------------------------------------------------------------------------------------------

/// Where groups begin, as rows and as row tiles, and the slots of their matrices.
struct GroupTable {
  uint32_t row[GEMM_MAX_GROUPS + 1];
  uint32_t tile[GEMM_MAX_GROUPS + 1];
  uint32_t slot[GEMM_MAX_GROUPS];
};

struct Tile {
  /// First row and column.
  uint32_t row;
  uint32_t col;
  /// Rows that exist, at most kTileRows.
  uint32_t rows;
  /// Where w is; 0 if there is but one.
  uint32_t slot;
};

/// Another matrix: products are NaN.
template <bool Grouped>
__device__ __forceinline__ bool missing(const Tile& tile) {
  return Grouped && tile.slot == SLOT_STALE;
}

/// Fills the table; the whole block takes part and meets at a barrier behind it.
__device__ __forceinline__ void fill(GroupTable& table, const GemmParams& p) {
  const uint32_t* offsets = reinterpret_cast<const uint32_t*>(p.offsets);
  const uint32_t* slots = reinterpret_cast<const uint32_t*>(p.slots);
  for (uint32_t g = threadIdx.x; g <= p.groups; g += kThreads) {
    table.row[g] = offsets[g];
    if (g < p.groups) table.slot[g] = slots[g];
  }
  __syncthreads();  // Rows and slots are there before warp 0 counts tiles.
  if (threadIdx.x < 32) {
    // Each lane counts a run of groups, then writes where each begins.
    const uint32_t run = (p.groups + 31) / 32;
    const uint32_t first = min(threadIdx.x * run, p.groups), last = min(first + run, p.groups);
    auto tiles = [&](uint32_t g) {
#if ABRUZZI_MUTANT != 7
      if (table.slot[g] == SLOT_NONE) return 0u;
#endif
      return (table.row[g + 1] - table.row[g] + kTileRows - 1) / kTileRows;
    };
    uint32_t own = 0;
    for (uint32_t g = first; g < last; ++g) own += tiles(g);
    uint32_t upto = own;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const uint32_t before = __shfl_up_sync(0xffffffffu, upto, offset);
      if (threadIdx.x >= offset) upto += before;
    }
    uint32_t at = upto - own;
    for (uint32_t g = first; g < last; ++g) {
      table.tile[g] = at;
      at += tiles(g);
    }
    if (threadIdx.x == 31) table.tile[p.groups] = upto;
  }
  __syncthreads();  // The table is complete before anybody looks for tiles.
}

/// Walks the tiles of this block.
template <int TileN, bool Grouped>
struct Walk {
  const GroupTable& table;
  uint32_t rows;
  uint32_t groups;
  uint32_t col_tiles;
  uint32_t tiles;

  __device__ __forceinline__ Walk(const GroupTable& table, const GemmParams& p)
      : table(table), rows(p.rows), groups(p.groups), col_tiles((p.cols + TileN - 1) / TileN) {
    tiles = col_tiles * (Grouped ? table.tile[groups] : (rows + kTileRows - 1) / kTileRows);
  }

  __device__ __forceinline__ Tile tile(uint32_t t) const {
    uint32_t first = 0, end = rows, slot = 0, row_tiles = tiles / col_tiles;
    if constexpr (Grouped) {
      // The last group that begins at or before this row tile; groups before it that begin there too are empty.
      const uint32_t row_tile = t / col_tiles;
      uint32_t group = 0, above = groups;
      while (above - group > 1) {
        const uint32_t middle = (group + above) / 2;
        (table.tile[middle] <= row_tile ? group : above) = middle;
      }
      first = table.row[group], end = table.row[group + 1], slot = table.slot[group];
      row_tiles = table.tile[group + 1] - table.tile[group];
      t -= table.tile[group] * col_tiles;
    }
    // Panels of kPanel row tiles, the last lower; within one, columns of tiles.
    const uint32_t panel = t / (kPanel * col_tiles), within = t - panel * kPanel * col_tiles;
    const uint32_t height = min(kPanel, row_tiles - panel * kPanel);
    const uint32_t row = first + (panel * kPanel + within % height) * kTileRows;
#if ABRUZZI_MUTANT == 3
    return {row, within / height * TileN, min(kTileRows, rows - row), slot};
#endif
    return {row, within / height * TileN, min(kTileRows, end - row), slot};
  }
};

// ---- Roles -------------------------------------------------------------------------------------------------------

/// One thread: keeps the ring full.
template <int TileN, bool Grouped>
__device__ __forceinline__ void produce(const GemmParams& p, const GroupTable& table, uint32_t ring, uint32_t full,
                                        uint32_t empty) {
  using R = Ring<TileN>;
  const Walk<TileN, Grouped> walk(table, p);
  Cursor<R::kStages> at;
  for (uint32_t t = blockIdx.x; t < walk.tiles; t += gridDim.x) {
    const Tile tile = walk.tile(t);
    if (missing<Grouped>(tile)) continue;
    const bool both = tile.rows > kGroupRows;
    for (uint32_t k = 0; k < p.k; k += kBlockK, at.advance()) {
      // The math warps are done with what the stage held before; a fresh barrier counts as one phase behind.
#if ABRUZZI_MUTANT != 1
      ptx::barrier_wait(empty + at.stage * 8, at.phase ^ 1);
#endif
      const uint32_t barrier = full + at.stage * 8, x = ring + at.stage * R::kStageBytes;
      ptx::barrier_arrive_expect(barrier, R::kWBytes + (both ? 2 : 1) * R::kBoxBytes);
      ptx::tensor_load(x, &p.x, k, tile.row, 0, barrier);
      if (both) ptx::tensor_load(x + R::kBoxBytes, &p.x, k, tile.row + kGroupRows, 0, barrier);
      ptx::tensor_load(x + 2 * R::kBoxBytes, &p.w, k, tile.col, tile.slot, barrier);
    }
  }
}

/// Writes a warpgroup's sums: 64 rows from `row` on, of which `rows` exist. Chunks of 16 bytes reach into the padding behind
/// the last column, never beyond the stride.
template <int TileN>
__device__ __forceinline__ void write(const float (&d)[TileN / 2], const GemmParams& p, uint32_t row, uint32_t rows,
                                      uint32_t col) {
  const uint32_t lane = threadIdx.x % 32, q = lane % 4;
  const uint32_t within = threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool exists = within + 8 * half < rows;
    const size_t line = size_t{row + within + 8 * half} * p.out_stride;
    if (p.out_type == ACTIVATION_BF16) {
      // Four blocks of 8 columns: lane q of a quad has two columns of each, and ends with block q whole.
#pragma unroll
      for (int block = 0; block < TileN / 8; block += 4) {
        uint32_t w[4];
#pragma unroll
        for (int b = 0; b < 4; ++b)
          w[b] = ptx::floats_to_bf16x2(d[4 * (block + b) + 2 * half], d[4 * (block + b) + 2 * half + 1]);
        transpose_quad(w);
        const uint32_t c = col + (block + q) * 8;
        if (exists && c < p.cols)
          *reinterpret_cast<uint4*>(reinterpret_cast<uint16_t*>(p.out) + line + c) = {w[0], w[1], w[2], w[3]};
      }
    } else {
      // Two blocks: even lanes end with four columns of the first, odd lanes of the second.
#pragma unroll
      for (int block = 0; block < TileN / 8; block += 2) {
        const float* v = d + 4 * block + 2 * half;
        uint2 first = {__float_as_uint(v[0]), __float_as_uint(v[1])};
        uint2 second = {__float_as_uint(v[4]), __float_as_uint(v[5])};
        swap_halves(first, second);
        const uint32_t c = col + (block + q % 2) * 8 + q / 2 * 4;
        if (exists && c < p.cols)
          *reinterpret_cast<uint4*>(reinterpret_cast<float*>(p.out) + line + c) = {first.x, first.y, second.x, second.y};
      }
    }
  }
}

/// A math warpgroup: `half` of the rows of every tile.
template <int TileN, bool Grouped>
__device__ __forceinline__ void multiply(const GemmParams& p, const GroupTable& table, uint32_t ring, uint32_t full,
                                         uint32_t empty, uint32_t half) {
  using R = Ring<TileN>;
  const Walk<TileN, Grouped> walk(table, p);
  Cursor<R::kStages> at;
  // One lane a warp: its warp's products, which the hardware finishes on its own, are done.
  auto release = [&](uint32_t stage) {
    if (threadIdx.x % 32 == 0) ptx::barrier_arrive(empty + stage * 8);
  };
  for (uint32_t t = blockIdx.x; t < walk.tiles; t += gridDim.x) {
    const Tile tile = walk.tile(t);
    // Nothing is loaded for a missing matrix.
    const uint32_t depth = missing<Grouped>(tile) ? 0 : p.k;
    if (tile.rows <= half * kGroupRows) {
      // Nothing to multiply: only keeps step.
      for (uint32_t k = 0; k < depth; k += kBlockK, at.advance()) {
        ptx::barrier_wait(full + at.stage * 8, at.phase);
        release(at.stage);
      }
      continue;
    }
    float d[TileN / 2];
#pragma unroll
    for (float& sum : d) sum = depth == 0 ? __uint_as_float(kNan) : 0.0f;
    uint32_t before = 0;
    for (uint32_t k = 0; k < depth; k += kBlockK, at.advance()) {
      ptx::barrier_wait(full + at.stage * 8, at.phase);  // TMA has filled the stage.
      const uint32_t x = ring + at.stage * R::kStageBytes;
      const uint64_t a = wgmma::descriptor(x + half * R::kBoxBytes), b = wgmma::descriptor(x + 2 * R::kBoxBytes);
      wgmma::fence();
#pragma unroll
      for (uint32_t step = 0; step < kBlockK / kStepK; ++step)
        wgmma::Bf16<TileN>::multiply(d, a + step * 2, b + step * 2, true);
      wgmma::commit();
#if ABRUZZI_MUTANT == 2
      release(at.stage);
      wgmma::wait<1>();
#else
      wgmma::wait<1>();  // The stage before has been read.
      if (k != 0) release(before);
#endif
      before = at.stage;
    }
    wgmma::wait<ABRUZZI_MUTANT == 4 ? 1 : 0>();
    wgmma::pin(d);
#if ABRUZZI_MUTANT != 2
    if (depth != 0) release(before);
#endif
    write<TileN>(d, p, tile.row + half * kGroupRows, tile.rows - half * kGroupRows, tile.col);
  }
}

template <int TileN, bool Grouped>
__device__ __forceinline__ void gemm(const GemmParams& p) {
  using R = Ring<TileN>;
  extern __shared__ uint8_t dynamic[];
  __shared__ uint64_t barriers[2 * R::kStages];
  __shared__ GroupTable table;
  const uint32_t ring = (ptx::shared_address(dynamic) + 1023) & ~1023u;
  const uint32_t full = ptx::shared_address(barriers), empty = full + R::kStages * 8;
  if (threadIdx.x == 0) {
    ptx::prefetch_map(&p.x);
    ptx::prefetch_map(&p.w);
    for (int s = 0; s < R::kStages; ++s) {
      ptx::barrier_init(full + s * 8, 1);            // The producer's announcement; TMA brings the bytes.
      ptx::barrier_init(empty + s * 8, kMathWarps);  // Every math warp.
    }
    ptx::barrier_init_fence();
  }
  if constexpr (Grouped) fill(table, p);
  __syncthreads();  // Barriers are initialised before anybody waits or arrives.

  if (threadIdx.x < 128) {
    ptx::registers_down<40>();
    if (threadIdx.x < 32 && ptx::elect_one()) produce<TileN, Grouped>(p, table, ring, full, empty);
  } else {
    ptx::registers_up<232>();
    // The same in every lane, which the compiler can't see.
    const uint32_t half = __shfl_sync(0xffffffffu, threadIdx.x / 128 - 1, 0);
    multiply<TileN, Grouped>(p, table, ring, full, empty, half);
  }
}

}  // namespace

#define GEMM(N)                                                                                                        \
  extern "C" __global__ void __launch_bounds__(kThreads, 1) gemm_bf16_n##N(const __grid_constant__ GemmParams p) {      \
    gemm<N, false>(p);                                                                                                 \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(kThreads, 1) grouped_bf16_n##N(const __grid_constant__ GemmParams p) {   \
    gemm<N, true>(p);                                                                                                  \
  }

GEMM(64)
GEMM(128)
GEMM(256)

// ---- Rows --------------------------------------------------------------------------------------------------------

namespace {

constexpr int kGatherThreads = 256;
/// 16-byte accesses in flight a thread.
constexpr int kGathered = 4;

}  // namespace

extern "C" __global__ void __launch_bounds__(kGatherThreads) gather_rows(const __grid_constant__ GatherParams p) {
  const uint32_t row = reinterpret_cast<const uint32_t*>(p.rows_map)[blockIdx.x];
  const uint4* from = reinterpret_cast<const uint4*>(p.x + size_t{row} * p.x_stride * 2);
  uint4* to = reinterpret_cast<uint4*>(p.out + size_t{blockIdx.x} * p.out_stride * 2);
  const uint32_t vectors = p.cols / 8;
  for (uint32_t i = threadIdx.x; i < vectors; i += kGatherThreads * kGathered) {
    uint4 v[kGathered];
#pragma unroll
    for (int j = 0; j < kGathered; ++j)
      if (i + j * kGatherThreads < vectors) v[j] = ptx::load_streaming(from + i + j * kGatherThreads);
#pragma unroll
    for (int j = 0; j < kGathered; ++j)
      if (i + j * kGatherThreads < vectors) to[i + j * kGatherThreads] = v[j];
  }
}

// ---- Slots -------------------------------------------------------------------------------------------------------

namespace {

constexpr int kSlotThreads = 128;

}  // namespace

extern "C" __global__ void __launch_bounds__(kSlotThreads) group_slots(const __grid_constant__ GroupSlotsParams p) {
  const uint32_t expert = blockIdx.x * kSlotThreads + threadIdx.x;
  const ExpertSlots& experts = p.experts;
  if (expert >= experts.experts) return;
  const uint32_t* offsets = reinterpret_cast<const uint32_t*>(p.offsets);
  uint32_t slot = SLOT_NONE, place = SLOT_NONE;
  // Only experts with rows and a slot must be there.
  const SlotRef ref = reinterpret_cast<const SlotRef*>(experts.table)[expert];
  if (offsets[expert] != offsets[expert + 1] && ref.slot != SLOT_NONE) {
    bool there = ref.slot < experts.slots;
#if ABRUZZI_MUTANT != 5
    there = there && reinterpret_cast<const uint32_t*>(experts.generations)[ref.slot] == ref.generation;
#endif
    if (there) {
      slot = ref.slot, place = ABRUZZI_MUTANT == 6 ? expert : expert % p.batch;
    } else {
      slot = place = SLOT_STALE;
      using Word = unsigned long long;
      atomicMin(reinterpret_cast<Word*>(experts.stale), Word{expert} << 32 | ref.slot);
    }
  }
  reinterpret_cast<uint32_t*>(p.slots)[expert] = slot;
  reinterpret_cast<uint32_t*>(p.places)[expert] = place;
}
