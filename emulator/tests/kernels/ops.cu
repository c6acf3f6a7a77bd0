// The instruction forms that nvcc makes of C++, each in a kernel whose results the host computes too.
//
// Kernels over arrays take n and run any grid: thread i of all threads handles element i.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#define KERNEL extern "C" __global__ void

__device__ int index() { return blockIdx.x * blockDim.x + threadIdx.x; }

// ---- integers ------------------------------------------------------------------------------------------------------

// out[16 i + …]: every operator of one type, with divisors that are variables. Narrow types go through int.
template <class S, class U>
__device__ void integers(const S* a, const S* b, S* out, int n) {
    const int i = index();
    if (i >= n) return;
    const S x = a[i], y = b[i];
    const U ux = static_cast<U>(x), uy = static_cast<U>(y);
    const int shift = static_cast<int>(uy % (8 * sizeof(S)));
    S* o = out + 16 * i;
    o[0] = static_cast<S>(ux + uy);
    o[1] = static_cast<S>(ux - uy);
    o[2] = static_cast<S>(ux * uy);
    // The one quotient that does not fit is left out.
    const bool fits = y != 0 && !(y == -1 && ux == static_cast<U>(U(1) << (8 * sizeof(S) - 1)));
    o[3] = fits ? static_cast<S>(x / y) : S(0);
    o[4] = fits ? static_cast<S>(x % y) : S(0);
    o[5] = uy ? static_cast<S>(ux / uy) : S(0);
    o[6] = uy ? static_cast<S>(ux % uy) : S(0);
    o[7] = static_cast<S>(x & y);
    o[8] = static_cast<S>(x | y);
    o[9] = static_cast<S>(x ^ y);
    o[10] = static_cast<S>(~x);
    o[11] = static_cast<S>(ux << shift);
    o[12] = static_cast<S>(x >> shift);
    o[13] = static_cast<S>(ux >> shift);
    o[14] = x < y ? x : y;
    o[15] = static_cast<S>(ux < uy ? uy : ux);
}

KERNEL integers8(const int8_t* a, const int8_t* b, int8_t* out, int n) { integers<int8_t, uint8_t>(a, b, out, n); }
KERNEL integers16(const int16_t* a, const int16_t* b, int16_t* out, int n) { integers<int16_t, uint16_t>(a, b, out, n); }
KERNEL integers32(const int* a, const int* b, int* out, int n) { integers<int, unsigned>(a, b, out, n); }
KERNEL integers64(const int64_t* a, const int64_t* b, int64_t* out, int n) { integers<int64_t, uint64_t>(a, b, out, n); }

// out[24 i + …]: intrinsics of 32-bit integers.
KERNEL bits32(const uint32_t* a, const uint32_t* b, uint32_t* out, int n) {
    const int i = index();
    if (i >= n) return;
    const uint32_t x = a[i], y = b[i];
    const int sx = static_cast<int>(x), sy = static_cast<int>(y);
    uint32_t* o = out + 24 * i;
    o[0] = __popc(x);
    o[1] = __brev(x);
    o[2] = __clz(sx);
    o[3] = __ffs(sx);
    o[4] = __byte_perm(x, y, 0x5140);
    o[5] = __byte_perm(x, y, y);
    o[6] = __funnelshift_l(x, y, x);
    o[7] = __funnelshift_r(x, y, y);
    o[8] = __funnelshift_lc(x, y, x & 63);
    o[9] = __funnelshift_rc(x, y, y & 63);
    o[10] = __mulhi(sx, sy);
    o[11] = __umulhi(x, y);
    o[12] = __mul24(sx, sy);
    o[13] = __umul24(x, y);
    o[14] = __sad(sx, sy, 7u);
    o[15] = __usad(x, y, 7u);
    o[16] = __hadd(sx, sy);
    o[17] = __urhadd(x, y);
    o[18] = __vadd4(x, y);
    o[19] = __vmaxu4(x, y);
    o[20] = __dp4a(sx, sy, 5);
    o[21] = __dp4a(x, y, 5u);
    o[22] = abs(sx);
    o[23] = (x & y) | (~x & (y >> 3)) ^ (x << 5);
}

// out[10 i + …]: instructions that C++ has no name for.
KERNEL bits_ptx(const uint32_t* a, const uint32_t* b, uint32_t* out, int n) {
    const int i = index();
    if (i >= n) return;
    const uint32_t x = a[i], y = b[i];
    uint32_t* o = out + 10 * i;
    asm("bmsk.clamp.b32 %0, %1, %2;" : "=r"(o[0]) : "r"(x), "r"(y));
    asm("bmsk.wrap.b32 %0, %1, %2;" : "=r"(o[1]) : "r"(x), "r"(y));
    asm("szext.clamp.u32 %0, %1, %2;" : "=r"(o[2]) : "r"(x), "r"(y));
    asm("szext.wrap.s32 %0, %1, %2;" : "=r"(o[3]) : "r"(x), "r"(y));
    asm("prmt.b32 %0, %1, %2, %1;" : "=r"(o[4]) : "r"(x), "r"(y));
    asm("bfind.u32 %0, %1;" : "=r"(o[5]) : "r"(x));
    asm("bfe.s32 %0, %1, %2, 7;" : "=r"(o[6]) : "r"(x), "r"(y));
    asm("bfi.b32 %0, %1, %2, 9, 12;" : "=r"(o[7]) : "r"(x), "r"(y));
    asm("set.lt.u32.s32 %0, %1, %2;" : "=r"(o[8]) : "r"(x), "r"(y));
    asm("set.hi.f32.u32 %0, %1, %2;" : "=r"(o[9]) : "r"(x), "r"(y));
}

// out[10 i + …]: intrinsics of 64-bit integers.
KERNEL bits64(const uint64_t* a, const uint64_t* b, uint64_t* out, int n) {
    const int i = index();
    if (i >= n) return;
    const uint64_t x = a[i], y = b[i];
    uint64_t* o = out + 10 * i;
    o[0] = __popcll(x);
    o[1] = __brevll(x);
    o[2] = __clzll(x);
    o[3] = __ffsll(x);
    o[4] = __umul64hi(x, y);
    o[5] = __mul64hi(x, y);
    // 128-bit sums: chains of carries.
    const unsigned __int128 sum = (static_cast<unsigned __int128>(x) << 64 | y) + (static_cast<unsigned __int128>(y) << 64 | ~x);
    o[6] = static_cast<uint64_t>(sum);
    o[7] = static_cast<uint64_t>(sum >> 64);
    const unsigned __int128 product = static_cast<unsigned __int128>(x) * y - sum;
    o[8] = static_cast<uint64_t>(product);
    o[9] = static_cast<uint64_t>(product >> 64);
}

// ---- floating point ------------------------------------------------------------------------------------------------

// out[16 i + …]: what IEEE 754 fixes to the bit.
template <class F>
__device__ void exact(const F* a, const F* b, const F* c, F* out, int n) {
    const int i = index();
    if (i >= n) return;
    const F x = a[i], y = b[i], z = c[i];
    F* o = out + 16 * i;
    o[0] = x + y;
    o[1] = x - y;
    o[2] = x * y;
    o[3] = x / y;
    o[4] = fma(x, y, z);
    o[5] = sqrt(fabs(x));
    o[6] = fmin(x, y);
    o[7] = fmax(x, y);
    o[8] = floor(x);
    o[9] = ceil(x);
    o[10] = trunc(x);
    o[11] = rint(x);
    o[12] = copysign(x, y);
    o[13] = x < y ? x : z;
    o[14] = static_cast<F>(static_cast<long long>(x));
    o[15] = static_cast<F>(static_cast<unsigned>(fabs(y)));
}

KERNEL exact32(const float* a, const float* b, const float* c, float* out, int n) { exact(a, b, c, out, n); }
KERNEL exact64(const double* a, const double* b, const double* c, double* out, int n) { exact(a, b, c, out, n); }

// out[8 i + …]: directed roundings.
KERNEL roundings(const float* a, const float* b, float* out, int n) {
    const int i = index();
    if (i >= n) return;
    const float x = a[i], y = b[i];
    float* o = out + 8 * i;
    o[0] = __fadd_rz(x, y);
    o[1] = __fadd_ru(x, y);
    o[2] = __fmul_rd(x, y);
    o[3] = __fdiv_rn(x, y);
    o[4] = static_cast<float>(__float2int_rn(x));
    o[5] = static_cast<float>(__float2int_ru(x));
    o[6] = __double2float_rz(static_cast<double>(x) * y);
    o[7] = __int2float_rz(__float_as_int(x));
}

// out[20 i + …]: libdevice in f32; x is moderate, y positive.
KERNEL math32(const float* a, const float* b, float* out, int n) {
    const int i = index();
    if (i >= n) return;
    const float x = a[i], y = b[i];
    float* o = out + 20 * i;
    o[0] = expf(x);
    o[1] = logf(y);
    o[2] = sinf(x);
    o[3] = cosf(x);
    o[4] = powf(y, x);
    o[5] = erff(x);
    o[6] = tanhf(x);
    o[7] = exp2f(x);
    o[8] = log2f(y);
    o[9] = log1pf(y);
    o[10] = expm1f(x);
    o[11] = rsqrtf(y);
    o[12] = cbrtf(x);
    o[13] = atan2f(x, y);
    o[14] = sinf(x * 100000.0f);
    o[15] = fmodf(x, y);
    o[16] = __expf(x);
    o[17] = __logf(y);
    o[18] = __fdividef(x, y);
    o[19] = hypotf(x, y);
}

// out[12 i + …]: libdevice in f64.
KERNEL math64(const double* a, const double* b, double* out, int n) {
    const int i = index();
    if (i >= n) return;
    const double x = a[i], y = b[i];
    double* o = out + 12 * i;
    o[0] = exp(x);
    o[1] = log(y);
    o[2] = sin(x);
    o[3] = cos(x);
    o[4] = pow(y, x);
    o[5] = erf(x);
    o[6] = tanh(x);
    o[7] = rsqrt(y);
    o[8] = cbrt(x);
    o[9] = atan2(x, y);
    o[10] = fmod(x, y);
    o[11] = sin(x * 1e6);
}

// ---- small floats --------------------------------------------------------------------------------------------------

// out[12 i + …] = bits of pairs.
KERNEL halves(const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* out, int n) {
    const int i = index();
    if (i >= n) return;
    const auto half = [](uint32_t bits) { return *reinterpret_cast<const __half2*>(&bits); };
    const auto bits = [](__half2 pair) { return *reinterpret_cast<const uint32_t*>(&pair); };
    const __half2 x = half(a[i]), y = half(b[i]), z = half(c[i]);
    uint32_t* o = out + 12 * i;
    o[0] = bits(__hadd2(x, y));
    o[1] = bits(__hsub2(x, y));
    o[2] = bits(__hmul2(x, y));
    o[3] = bits(__hfma2(x, y, z));
    o[4] = bits(__hmax2(x, y));
    o[5] = bits(__hmin2(x, y));
    o[6] = bits(__hneg2(x));
    o[7] = bits(__habs2(x));
    o[8] = __hlt2_mask(x, y);
    o[9] = __heq2_mask(x, y);
    o[10] = __float_as_uint(__low2float(x) + __high2float(x));
    o[11] = bits(__floats2half2_rn(__low2float(x) * 3.0f, __high2float(y) * 3.0f));
}

KERNEL bfloats(const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* out, int n) {
    const int i = index();
    if (i >= n) return;
    const auto pair = [](uint32_t bits) { return *reinterpret_cast<const __nv_bfloat162*>(&bits); };
    const auto bits = [](__nv_bfloat162 pair) { return *reinterpret_cast<const uint32_t*>(&pair); };
    const __nv_bfloat162 x = pair(a[i]), y = pair(b[i]), z = pair(c[i]);
    uint32_t* o = out + 12 * i;
    o[0] = bits(__hadd2(x, y));
    o[1] = bits(__hsub2(x, y));
    o[2] = bits(__hmul2(x, y));
    o[3] = bits(__hfma2(x, y, z));
    o[4] = bits(__hmax2(x, y));
    o[5] = bits(__hmin2(x, y));
    o[6] = bits(__hneg2(x));
    o[7] = bits(__habs2(x));
    o[8] = __hlt2_mask(x, y);
    o[9] = __heq2_mask(x, y);
    o[10] = __float_as_uint(__low2float(x) + __high2float(x));
    o[11] = bits(__floats2bfloat162_rn(__low2float(x) * 3.0f, __high2float(y) * 3.0f));
}

// Every fp8 code to f32: out[512] = e4m3 then e5m2; and floats to codes: codes[2 i + …].
KERNEL fp8(float* out, const float* in, uint8_t* codes, int n) {
    const int i = index();
    if (i < 256) {
        __nv_fp8_e4m3 a;
        __nv_fp8_e5m2 b;
        a.__x = b.__x = static_cast<unsigned char>(i);
        out[i] = static_cast<float>(a);
        out[256 + i] = static_cast<float>(b);
    }
    if (i < n) {
        codes[2 * i] = __nv_fp8_e4m3(in[i]).__x;
        codes[2 * i + 1] = __nv_fp8_e5m2(in[i]).__x;
    }
}
