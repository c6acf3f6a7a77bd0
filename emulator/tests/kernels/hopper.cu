// Hopper's own instructions, each in the smallest kernel that shows it (tests/hopper.rs).
#include <cuda.h>
#include <cstdint>

static __device__ inline uint32_t shared(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

static __device__ inline void wait_parity(uint32_t barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra END;\nbra AGAIN;\nEND:\n}"
      ::"r"(barrier), "r"(parity) : "memory");
}

static __device__ inline void init(uint32_t barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

static __device__ inline void expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

static __device__ inline uint64_t descriptor(uint32_t address) {  // K-major, 128-byte swizzle
  return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)64 << 32 | (uint64_t)1 << 62;
}

#define ACCUMULATORS(d)                                                                                           \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),       \
      "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),        \
      "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),       \
      "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define LIST "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"

static __device__ inline void store(float* c, const float* d) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < 32; ++j) {
    int row = warp * 16 + lane / 4 + (j / 2 % 2) * 8, column = j / 4 * 8 + lane % 4 * 2 + j % 2;
    c[row * 64 + column] = d[j];
  }
}

// C[64, 64] = A[64, K]·B[64, K]ᵀ in e4m3, 128 columns of K at a time; PROMOTE adds each to a sum in registers instead of
// leaving the whole sum to the tensor core.
template <bool PROMOTE>
static __device__ inline void fp8(const CUtensorMap* a_map, const CUtensorMap* b_map, float* c, int k) {
  __shared__ __align__(1024) uint8_t a[64 * 128], b[64 * 128];
  __shared__ __align__(8) uint64_t full;
  if (threadIdx.x == 0) init(shared(&full));
  __syncthreads();
  float d[32] = {}, sum[32] = {};
  for (int i = 0; i < k / 128; ++i) {
    if (threadIdx.x == 0) {
      expect(shared(&full), 2 * 64 * 128);
      for (int side = 0; side < 2; ++side)
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
            ::"r"(side ? shared(b) : shared(a)), "l"(side ? b_map : a_map), "r"(shared(&full)), "r"(i * 128), "r"(0) : "memory");
    }
    wait_parity(shared(&full), i & 1);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      int keep = PROMOTE ? step > 0 : 1;
      asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, %34, 0;\n"
                   "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 " LIST ", %32, %33, keep, 1, 1;\n}"
                   : ACCUMULATORS(d)
                   : "l"(descriptor(shared(a) + step * 32)), "l"(descriptor(shared(b) + step * 32)), "r"(keep));
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    if (PROMOTE)
      for (int j = 0; j < 32; ++j) sum[j] += d[j];
    __syncthreads();
  }
  store(c, PROMOTE ? sum : d);
}

extern "C" __global__ void __launch_bounds__(128) fp8_plain(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
                                                            float* c, int k) { fp8<false>(&a, &b, c, k); }
extern "C" __global__ void __launch_bounds__(128) fp8_promoted(const __grid_constant__ CUtensorMap a,
                                                               const __grid_constant__ CUtensorMap b, float* c, int k) { fp8<true>(&a, &b, c, k); }

// C[64, 64] = A[64, 16]·B[64, 16]ᵀ in bf16, A out of registers, negated, and B K-major without swizzle.
extern "C" __global__ void __launch_bounds__(128) registers(const uint32_t* a, const uint8_t* b, float* c) {
  __shared__ __align__(128) uint8_t tile[64 * 32];
  int t = threadIdx.x, warp = t / 32, lane = t % 32;
  // Core matrices of 8 rows × 16 bytes: [row / 8][half][row % 8].
  for (int i = t; i < 64 * 2; i += 128) {
    int row = i / 2, half = i % 2;
    *(uint4*)&tile[(row / 8 * 2 + half) * 128 + row % 8 * 16] = *(const uint4*)&b[row * 32 + half * 16];
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  uint32_t r[4];
  for (int i = 0; i < 4; ++i) r[i] = a[(warp * 16 + lane / 4 + i % 2 * 8) * 8 + lane % 4 + i / 2 * 4];
  uint64_t desc = (uint64_t)((shared(tile) & 0x3ffff) >> 4) | (uint64_t)(128 >> 4) << 16 | (uint64_t)(256 >> 4) << 32;
  float d[32] = {};
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " LIST ", {%32,%33,%34,%35}, %36, 1, -1, 1, 0;"
               : ACCUMULATORS(d) : "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]), "l"(desc));
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  store(c, d);
}

// C[64, 64] = (2·rounds + 1)·A[64, 16]·B[64, 16]ᵀ in bf16, with two sets of accumulators: one is added to the sum while the
// next group multiplies into the other. EARLY reads the set of the group that is still pending.
template <bool EARLY>
static __device__ inline void ping_pong(const uint8_t* a, const uint8_t* b, float* c, int rounds) {
  __shared__ __align__(128) uint8_t tiles[2][64 * 32];
  int t = threadIdx.x;
  for (int i = t; i < 64 * 2; i += 128) {
    int row = i / 2, half = i % 2, at = (row / 8 * 2 + half) * 128 + row % 8 * 16;
    *(uint4*)&tiles[0][at] = *(const uint4*)&a[row * 32 + half * 16];
    *(uint4*)&tiles[1][at] = *(const uint4*)&b[row * 32 + half * 16];
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  uint64_t strides = (uint64_t)(128 >> 4) << 16 | (uint64_t)(256 >> 4) << 32;
  uint64_t a_desc = (uint64_t)((shared(tiles[0]) & 0x3ffff) >> 4) | strides;
  uint64_t b_desc = (uint64_t)((shared(tiles[1]) & 0x3ffff) >> 4) | strides;
  float even[32], odd[32], sum[32] = {};
  auto issue = [&](float* d) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " LIST ", %32, %33, keep, 1, 1, 0, 0;\n}"
                 : ACCUMULATORS(d) : "l"(a_desc), "l"(b_desc));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  };
  // Sums may be moved over a wait, which does not name what it waits for; not over asm that names their operands.
  auto add = [&](float* d) {
    asm volatile("" : ACCUMULATORS(d)::"memory");
    for (int j = 0; j < 32; ++j) sum[j] += d[j];
  };
#pragma unroll
  for (int j = 0; j < 32; ++j) even[j] = odd[j] = 0;
  issue(even);
  for (int i = 0; i < rounds; ++i) {
    issue(odd);
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
    add(EARLY ? odd : even);
    issue(even);
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
    add(EARLY ? even : odd);
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  add(even);
  store(c, sum);
}

extern "C" __global__ void __launch_bounds__(128) ping_pong_waited(const uint8_t* a, const uint8_t* b, float* c, int rounds) {
  ping_pong<false>(a, b, c, rounds);
}
extern "C" __global__ void __launch_bounds__(128) ping_pong_early(const uint8_t* a, const uint8_t* b, float* c, int rounds) {
  ping_pong<true>(a, b, c, rounds);
}

// A 3-D box at (x, y, z) of a tensor to out, and the same box stored to another tensor. 16 × 4 × 2 words.
extern "C" __global__ void boxes(const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to, uint32_t* out, int x, int y, int z) {
  __shared__ __align__(128) uint32_t box[2 * 4 * 16];
  __shared__ __align__(8) uint64_t full;
  uint32_t leader;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(leader));
  if (leader) {
    init(shared(&full));
    expect(shared(&full), sizeof box);
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
        ::"r"(shared(box)), "l"(&from), "r"(shared(&full)), "r"(x), "r"(y), "r"(z) : "memory");
  }
  __syncwarp();
  wait_parity(shared(&full), 0);
  for (int i = threadIdx.x; i < 128; i += 32) out[i] = box[i];
  __syncwarp();
  if (leader) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];"
                 ::"l"(&to), "r"(shared(box)), "r"(x), "r"(y), "r"(z) : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  }
}

// Bulk copies in and out, by a warp that gives registers up; the transposed matrices go through stmatrix and ldmatrix.
extern "C" __global__ void __launch_bounds__(128, 1) matrices(const uint32_t* in, uint32_t* out) {
  __shared__ __align__(128) uint32_t first[128], second[128];
  __shared__ __align__(8) uint64_t full;
  asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
  int t = threadIdx.x;
  if (t == 0) {
    init(shared(&full));
    expect(shared(&full), 512);
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 512, [%2];"
                 ::"r"(shared(first)), "l"(in), "r"(shared(&full)) : "memory");
  }
  __syncthreads();
  wait_parity(shared(&full), 0);
  if (t < 32) {
    // Four 8×8 matrices of halves, rows of 16 bytes.
    uint32_t r[4];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared(first) + t * 16));
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};"
                 ::"r"(shared(second) + t * 16), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
    if (t == 0) {
      asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 512;" ::"l"(out), "r"(shared(second)) : "memory");
      asm volatile("cp.async.bulk.commit_group;" ::: "memory");
      asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
  }
  asm volatile("griddepcontrol.launch_dependents;");
}

// C[16, 8] = A[16, 16]·B[8, 16]ᵀ + C by mma.sync: bf16 with f32 sums, and (in half) f16 with f16 sums.
extern "C" __global__ void products(const uint32_t* a, const uint32_t* b, float* c, uint32_t* half) {
  int lane = threadIdx.x, row = lane / 4, pair = lane % 4;
  uint32_t r[4], s[2];
  for (int i = 0; i < 4; ++i) r[i] = a[(row + i % 2 * 8) * 8 + pair + i / 2 * 4];
  for (int i = 0; i < 2; ++i) s[i] = b[row * 8 + pair + i * 4];
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = c[(row + i / 2 * 8) * 8 + pair * 2 + i % 2];
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]), "r"(s[0]), "r"(s[1]));
  for (int i = 0; i < 4; ++i) c[(row + i / 2 * 8) * 8 + pair * 2 + i % 2] = d[i];
  // The same bits read as f16: small bf16 integers are ordinary f16 numbers, too.
  uint32_t h[2] = {0, 0};
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1}, {%2,%3,%4,%5}, {%6,%7}, {%0,%1};"
               : "+r"(h[0]), "+r"(h[1]) : "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]), "r"(s[0]), "r"(s[1]));
  for (int i = 0; i < 2; ++i) half[(row + i * 8) * 4 + pair] = h[i];
}
