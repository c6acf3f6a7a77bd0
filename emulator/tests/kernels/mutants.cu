// Kernels with a fault each, and their healthy originals (FAULT 0): what the checks must and must not report.
//
// One template a kernel; FAULT picks what is wrong. Entries are named <kernel>_<fault>, and tests/mutants.rs runs each
// in every schedule. The faults are those that people ship: a barrier left out, a parity flipped, a byte count off.
#include <cuda.h>
#include <cuda_bf16.h>
#include <cstdint>

static __device__ inline uint32_t shared(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

// ---------------------------------------------------------------------------------------------- sum of a block's slice
// out[block] = sum of x[block * 256 .. + 256), 256 threads.
template <int FAULT>
static __device__ inline void reduce(const int* x, int* out, int n) {
  __shared__ int part[256];
  __shared__ int unset[32];
  int t = threadIdx.x, i = blockIdx.x * 256 + t;
  if (FAULT == 1) i += 1;                                         // reads one element too far
  int value = 0;
  if (FAULT == 1 || i < n) value = x[i];
  if (FAULT == 2) value = ((const int*)((const char*)x + 2))[i];  // misaligned
  if (FAULT == 3) value += unset[t & 31];                         // shared memory nobody wrote
  part[t] = value;
  if (FAULT != 4) __syncthreads();                                // 4: no barrier between writing and reading
  for (int step = 128; step >= 32; step /= 2) {
    if (t < step) part[t] += part[t + step];
    if (FAULT != 5) __syncthreads();                              // 5: no barrier between the steps
  }
  if (t < 32) {
    int v = part[t];
    if (FAULT == 6) {
      if (t < 16) v += __shfl_down_sync(0xffffffffu, v, 16);      // half a warp, full mask
    } else {
      v += __shfl_down_sync(0xffffffffu, v, 16);
    }
    for (int d = 8; d > 0; d /= 2) v += __shfl_down_sync(0xffffffffu, v, d);
    if (t == 0) out[blockIdx.x + (FAULT == 7 ? 1000000 : 0)] = v; // 7: writes far away
    if (FAULT == 8 && t == 0) out[gridDim.x] = v;                 // 8: writes just behind the end
    if (FAULT == 9 && t == 3) __trap();
  }
  if (FAULT == 10 && t < 64) asm volatile("bar.sync 1, 96;" ::: "memory");  // 10: 96 awaited, 64 come
  if (FAULT == 11) while (((volatile const int*)x)[0] != 0x7fffffff) {}     // 11: waits for what never comes
  if (FAULT == 12 && t < 32) __syncwarp(0x0000fffeu);             // 12: lanes that are not in their own mask
}

// ------------------------------------------------------------------------------------------- cp.async double buffering
// y = 2 x, a block a row of 1024 floats in tiles of 128, 128 threads reading what a neighbour's copy brought.
template <int FAULT>
static __device__ inline void pipeline(const float* x, float* y, int) {
  __shared__ __align__(16) float tile[2][128];
  int t = threadIdx.x;
  const float* row = x + blockIdx.x * 1024;
  auto load = [&](int k) {
    if (t < 32) {
      const float* from = row + k * 128 + t * 4;
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared(&tile[k & 1][t * 4])), "l"(from) : "memory");
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  load(0);
  for (int k = 0; k < 8; ++k) {
    if (k < 7) {
      load(k + 1);
      if (FAULT == 1) {                                           // 1: no wait
      } else if (FAULT == 2) asm volatile("cp.async.wait_group 2;" ::: "memory");  // 2: waits for too little
      else asm volatile("cp.async.wait_group 1;" ::: "memory");
    } else if (FAULT != 1) {
      asm volatile("cp.async.wait_group 0;" ::: "memory");
    }
    if (FAULT != 3) __syncthreads();                              // 3: the copies of other warps are not waited for
    y[blockIdx.x * 1024 + k * 128 + t] = 2 * tile[k & 1][127 - t];
    if (FAULT != 4) __syncthreads();                              // 4: the next copy overwrites what is being read
  }
}

// --------------------------------------------------------------------------------------- TMA + mbarrier + wgmma, by role
constexpr int STAGES = 3, TILE = 64 * 64 * 2;

static __device__ inline void wait_parity(uint32_t barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra END;\nbra AGAIN;\nEND:\n}"
      ::"r"(barrier), "r"(parity) : "memory");
}

static __device__ inline void tma_load(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
      ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y) : "memory");
}

static __device__ inline uint64_t descriptor(uint32_t address) {
  return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

// C[64, 64] = A[64, K] · B[64, K]ᵀ in bf16; warps 0–3 multiply, warp 4 copies. C goes out through shared memory and TMA.
template <int FAULT>
static __device__ inline void gemm(const CUtensorMap* a_map, const CUtensorMap* b_map, const CUtensorMap* c_map, int k) {
  extern __shared__ __align__(1024) uint8_t memory[];
  __shared__ __align__(8) uint64_t full[STAGES], empty[STAGES];
  int t = threadIdx.x, warp = t / 32, lane = t % 32, steps = k / 64;
  uint32_t tiles = shared(memory);
  uint32_t out = tiles + STAGES * 2 * TILE;
  if (t == 0) {
    for (int s = 0; s < STAGES; ++s) {
      if (FAULT != 1) asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared(&full[s])), "r"(1) : "memory");
      int arrivals = FAULT == 2 ? 3 : 4;                          // 2: more arrivals than the barrier counts
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared(&empty[s])), "r"(arrivals) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  if (warp == 4) {
    if (lane == 0) {
      for (int i = 0; i < steps; ++i) {
        int s = i % STAGES;
        if (i >= STAGES && FAULT != 3) wait_parity(shared(&empty[s]), (i / STAGES - 1) & 1);  // 3: stages are reused at once
        uint32_t bytes = 2 * TILE;
        if (FAULT == 4) bytes -= 16;                              // 4: too few bytes expected
        if (FAULT == 5) bytes += 16;                              // 5: too many
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared(&full[s])), "r"(bytes) : "memory");
        uint32_t to = tiles + s * 2 * TILE + (FAULT == 6 ? 16 : 0);  // 6: misplaced box
        const CUtensorMap* map = FAULT == 7 ? (const CUtensorMap*)((const char*)a_map + 16) : a_map;  // 7: no map there
        tma_load(to, map, shared(&full[s]), i * 64, 0);
        tma_load(tiles + s * 2 * TILE + TILE, b_map, shared(&full[s]), i * 64, 0);
      }
      if (FAULT == 8) {                                           // 8: a copy nobody waits for
        int s = steps % STAGES;
        wait_parity(shared(&empty[s]), (steps / STAGES - 1) & 1);
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared(&full[s])), "r"(TILE) : "memory");
        tma_load(tiles + s * 2 * TILE, b_map, shared(&full[s]), 0, 0);
      }
    }
    return;
  }
  float d[32] = {};
  for (int i = 0; i < steps; ++i) {
    int s = i % STAGES, parity = (i / STAGES) & 1;
    if (FAULT == 9) parity ^= 1;                                  // 9: flipped parity
    if (FAULT != 10) wait_parity(shared(&full[s]), parity);       // 10: nobody waits for the copy
    uint32_t a = tiles + s * 2 * TILE, b = a + TILE;
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int kk = 0; kk < 4; ++kk) {
      uint64_t a_desc = descriptor(a + kk * 32), b_desc = descriptor(b + kk * 32);
      if (FAULT == 11) a_desc |= (uint64_t)1 << 15;               // 11: a bit that means nothing
      if (FAULT == 12) b_desc ^= (uint64_t)3 << 62;               // 12: another swizzle than the copy used
      asm volatile(
          "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
          "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, 1, 1, 1, 0, 0;"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
            "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
            "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
            "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
          : "l"(a_desc), "l"(b_desc));
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    // 18: the stage is given back right before the wait, with nothing between the two
    if (FAULT == 18 && lane == 0) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared(&empty[s])) : "memory");
    if (FAULT == 13) asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");  // 13: the last group is not waited for
    else if (FAULT != 14) asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");  // 14: none is
    if (lane == 0 && FAULT != 15 && FAULT != 18)                                 // 15: stages are never given back
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared(&empty[s])) : "memory");
  }
  // Epilogue: f32 tile of 64 × 64, row-major.
#pragma unroll
  for (int j = 0; j < 32; ++j) {
    int row = warp * 16 + lane / 4 + (j / 2 % 2) * 8, column = j / 4 * 8 + lane % 4 * 2 + j % 2;
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(out + (row * 64 + column) * 4), "f"(d[j]) : "memory");
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  if (FAULT != 16) asm volatile("bar.sync 2, 128;" ::: "memory"); // 16: the tile is stored before the others wrote it
  if (t == 0) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];"
                 ::"l"(c_map), "r"(out), "r"(0), "r"(0) : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    if (FAULT != 17) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");  // 17: the block ends before its store has
  }
}

#define REDUCE(f) \
  extern "C" __global__ void __launch_bounds__(256) reduce_##f(const int* x, int* out, int n) { reduce<f>(x, out, n); }
#define PIPELINE(f) \
  extern "C" __global__ void __launch_bounds__(128) pipeline_##f(const float* x, float* y, int n) { pipeline<f>(x, y, n); }
#define GEMM(f)                                                                                             \
  extern "C" __global__ void __launch_bounds__(160) gemm_##f(const __grid_constant__ CUtensorMap a,         \
                                                             const __grid_constant__ CUtensorMap b,         \
                                                             const __grid_constant__ CUtensorMap c, int k) { \
    gemm<f>(&a, &b, &c, k);                                                                                 \
  }

REDUCE(0) REDUCE(1) REDUCE(2) REDUCE(3) REDUCE(4) REDUCE(5) REDUCE(6)
REDUCE(7) REDUCE(8) REDUCE(9) REDUCE(10) REDUCE(11) REDUCE(12)
PIPELINE(0) PIPELINE(1) PIPELINE(2) PIPELINE(3) PIPELINE(4)
GEMM(0) GEMM(1) GEMM(2) GEMM(3) GEMM(4) GEMM(5) GEMM(6) GEMM(7) GEMM(8)
GEMM(9) GEMM(10) GEMM(11) GEMM(12) GEMM(13) GEMM(14) GEMM(15) GEMM(16) GEMM(17) GEMM(18)
