// Kernels whose emulation speed is measured (benches/speed.rs): arithmetic, memory with conversions, matrix products.
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cstdint>

// Mixed integer and float arithmetic in registers, 256 rounds.
extern "C" __global__ void __launch_bounds__(256) arithmetic(const float* x, float* y, int n) {
  int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  float a = x[i], b = 1.0f;
  unsigned h = i;
#pragma unroll 8
  for (int k = 0; k < 256; ++k) {
    h = h * 1664525u + 1013904223u;
    a = fmaf(a, 0.999f, b);
    b = b + (float)(h >> 24) * 1e-3f;
  }
  y[i] = a + b;
}

// FP8 to bf16 with a scale per 128 columns, 16 bytes a thread.
extern "C" __global__ void __launch_bounds__(256) dequant(const uint4* w, const float* scale, uint4* out, int n) {
  int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  uint4 v = w[i];
  float s = scale[i / 8];
  uint32_t in[4] = {v.x, v.y, v.z, v.w}, o[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    __half2 h = __half2(__nv_cvt_fp8x2_to_halfraw2((in[j / 2] >> (j % 2 * 16)) & 0xffff, __NV_E4M3));
    float2 f = __half22float2(h);
    __nv_bfloat162 b = __floats2bfloat162_rn(f.x * s, f.y * s);
    o[j] = *(uint32_t*)&b;
  }
  out[2 * i] = make_uint4(o[0], o[1], o[2], o[3]);
  out[2 * i + 1] = make_uint4(o[4], o[5], o[6], o[7]);
}

static __device__ inline uint32_t shared(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

// D[64, 256] += A[64, 128 bytes]·B[256, 128 bytes]ᵀ, `rounds` times over the same tiles, which bulk copies bring.
template <bool FP8>
static __device__ inline void multiply(const uint8_t* a, const uint8_t* b, float* c, int rounds) {
  extern __shared__ __align__(1024) uint8_t tiles[];
  __shared__ __align__(8) uint64_t full;
  uint32_t barrier = shared(&full), at = shared(tiles), bt = at + 8192;
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(8192 + 32768) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 8192, [%2];"
                 ::"r"(at), "l"(a), "r"(barrier) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 32768, [%2];"
                 ::"r"(bt), "l"(b), "r"(barrier) : "memory");
  }
  __syncthreads();
  asm volatile("{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0;\n@done bra END;\nbra AGAIN;\nEND:\n}"
               ::"r"(barrier) : "memory");
  float d[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) d[i] = 0;
  for (int r = 0; r < rounds; ++r) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      uint64_t a_desc = (uint64_t)(((at + k * 32) & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)64 << 32 | (uint64_t)1 << 62;
      uint64_t b_desc = (uint64_t)(((bt + k * 32) & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)64 << 32 | (uint64_t)1 << 62;
#define LIST                                                                                                    \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,"   \
  "%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,"  \
  "%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,"  \
  "%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,"  \
  "%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}"
#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
#define D D16(0), D16(16), D16(32), D16(48), D16(64), D16(80), D16(96), D16(112)
      if (FP8)
        asm volatile("wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3 " LIST ", %128, %129, 1, 1, 1;"
                     : D : "l"(a_desc), "l"(b_desc));
      else
        asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 " LIST ", %128, %129, 1, 1, 1, 0, 0;"
                     : D : "l"(a_desc), "l"(b_desc));
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  }
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < 128; ++j) {
    int row = warp * 16 + lane / 4 + (j / 2 % 2) * 8, column = j / 4 * 8 + lane % 4 * 2 + j % 2;
    c[(blockIdx.x * 64 + row) * 256 + column] = d[j];
  }
}

extern "C" __global__ void __launch_bounds__(128) product(const uint8_t* a, const uint8_t* b, float* c, int rounds) {
  multiply<false>(a, b, c, rounds);
}
extern "C" __global__ void __launch_bounds__(128) product_fp8(const uint8_t* a, const uint8_t* b, float* c, int rounds) {
  multiply<true>(a, b, c, rounds);
}
