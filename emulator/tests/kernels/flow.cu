// Warps, atomics, memory and control flow: what nvcc makes of C++ beside arithmetic.
#include <cstdint>
#include <cstdio>

#define KERNEL extern "C" __global__ void

__device__ int index() { return blockIdx.x * blockDim.x + threadIdx.x; }

// ---- warps ---------------------------------------------------------------------------------------------------------

// out[16 i + …] over whole warps.
KERNEL warps(const int* in, int* out) {
    const int i = index(), lane = threadIdx.x % 32;
    const int x = in[i];
    const unsigned all = 0xffffffffu;
    int* o = out + 16 * i;
    o[0] = __shfl_sync(all, x, x & 31);
    o[1] = __shfl_up_sync(all, x, 3);
    o[2] = __shfl_down_sync(all, x, 5, 16);
    o[3] = __shfl_xor_sync(all, x, 9);
    o[4] = __shfl_sync(all, x, 2, 8);
    o[5] = static_cast<int>(__ballot_sync(all, x & 1));
    o[6] = __any_sync(all, x == 77) | __all_sync(all, x < 1000) << 1;
    o[7] = static_cast<int>(__match_any_sync(all, x & 3));
    int same;
    o[8] = static_cast<int>(__match_all_sync(all, x >> 20, &same)) ^ same;
    o[9] = __reduce_add_sync(all, x);
    o[10] = __reduce_min_sync(all, x);
    o[11] = static_cast<int>(__reduce_max_sync(all, static_cast<unsigned>(x)));
    o[12] = static_cast<int>(__reduce_xor_sync(all, static_cast<unsigned>(x)));
    const double d = __shfl_xor_sync(all, static_cast<double>(x), 1);
    o[13] = static_cast<int>(d);
    const long long wide = __shfl_sync(all, static_cast<long long>(x) << 20, 31 - lane);
    o[14] = static_cast<int>(wide >> 20);
    // Half of the warp talks among itself.
    if (lane & 1) {
        o[15] = __reduce_add_sync(0xaaaaaaaau, x) + static_cast<int>(__activemask() == 0xaaaaaaaau);
    } else {
        o[15] = __shfl_sync(0x55555555u, x, 30);
    }
}

// ---- atomics -------------------------------------------------------------------------------------------------------

// Generic on purpose: the caller passes shared or global memory, and a runtime choice keeps nvcc from telling.
__device__ __noinline__ void add_generic(unsigned* where, unsigned value) { atomicAdd(where, value); }

// totals: add, sub, min, max, and, or, xor, inc, dec, shared add, generic add to either; longs: add, max, min, cas sum;
// floats: add f32; doubles: add f64.
KERNEL atomics(const int* in, unsigned* totals, unsigned long long* longs, float* floats, double* doubles,
               unsigned* order, int n) {
    __shared__ unsigned shared[2];
    __shared__ unsigned long long wide;
    if (threadIdx.x == 0) {
        shared[0] = shared[1] = 0;
        wide = 0;
    }
    __syncthreads();
    const int i = index();
    if (i < n) {
        const int x = in[i];
        atomicAdd(totals, x);
        atomicSub(totals + 1, x);
        atomicMin(reinterpret_cast<int*>(totals + 2), x);
        atomicMax(totals + 3, static_cast<unsigned>(x));
        atomicAnd(totals + 4, x | 0xff);
        atomicOr(totals + 5, x & 0xff0);
        atomicXor(totals + 6, x);
        // The old value of a wrapping counter is a permutation of its range.
        const unsigned old = atomicInc(totals + 7, n - 1);
        order[old] = atomicDec(totals + 8, n - 1);
        atomicAdd(shared, x & 0xff);
        add_generic(i & 1 ? shared + 1 : totals + 9, 3);
        atomicAdd(longs, static_cast<unsigned long long>(x) * 1000003ull);
        atomicMax(reinterpret_cast<long long*>(longs + 1), static_cast<long long>(x) << 20);
        atomicMin(longs + 2, static_cast<unsigned long long>(static_cast<unsigned>(x)) << 10);
        unsigned long long seen = longs[3], expected;
        do {
            expected = seen;
            seen = atomicCAS(longs + 3, expected, expected + (x & 15));
        } while (seen != expected);
        atomicAdd(&wide, 1ull << (i & 31));
        atomicAdd(floats, static_cast<float>(x & 7));
        atomicAdd(doubles, static_cast<double>(x & 1023) * 0.5);
        atomicAdd_system(totals + 12, 1u);
        atomicAdd_block(totals + 13, 2u);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicAdd(totals + 10, shared[0]);
        atomicAdd(totals + 11, shared[1]);
        atomicAdd(longs + 4, wide);
        atomicExch(totals + 14, 0xabcdu);
    }
}

// ---- memory --------------------------------------------------------------------------------------------------------

__constant__ int primes[8] = {2, 3, 5, 7, 11, 13, 17, 19};
__device__ int64_t powers[5] = {1, 10, 100, 1000, 10000};
__device__ const char* words[3] = {"zero", "one", "three"};
struct Mixed {
    char tag;
    double value;
    short pair[2];
};
__device__ Mixed mixed[2] = {{'a', 0.5, {1, -2}}, {'b', -4.25, {300, 4}}};

// A local array with indices known at run time only; structures, tables, strings; vectors of every width.
KERNEL memory(const int* in, int4* vectors, int64_t* out, int n) {
    const int i = index();
    if (i >= n) return;
    int local[16];
    for (int j = 0; j < 16; ++j) local[j] = j * in[i];
    for (int j = 0; j < 16; ++j) local[(j * 5 + in[i]) & 15] += primes[j & 7];
    int64_t sum = 0;
    for (int j = 0; j < 16; ++j) sum = sum * 3 + local[(j ^ in[i]) & 15];
    int letters = 0;
    for (const char* c = words[in[i] % 3u]; *c; ++c) letters = letters * 7 + *c;
    const Mixed& m = mixed[i & 1];
    out[i] = sum + powers[in[i] % 5u] + letters + m.tag + static_cast<int>(m.value * 4) + m.pair[i >> 1 & 1];
    const int4 v = vectors[i];
    vectors[i] = make_int4(v.w, v.z, v.y + (in[i] & 3), v.x);
}

// ---- control flow --------------------------------------------------------------------------------------------------

__device__ __noinline__ int step(int x, int& count) {
    ++count;
    return x & 1 ? 3 * x + 1 : x / 2;
}

__device__ __noinline__ double polynomial(float x, short k, double* derivative) {
    *derivative = 2.0 * x + k;
    return static_cast<double>(x) * x + k * static_cast<double>(x);
}

// Loops of differing length, a switch, returns from the middle, calls by reference.
KERNEL flow(const int* in, int* out, double* reals, int n) {
    const int i = index();
    if (i >= n) return;
    int x = in[i], count = 0;
    if (x <= 0) {
        out[2 * i] = -1;
        out[2 * i + 1] = x;
        reals[i] = 0;
        return;
    }
    while (x != 1) x = step(x, count);
    out[2 * i] = count;
    int y = in[i];
    switch (y % 11) {
        case 0: y = y * 7 + 1; break;
        case 1: y ^= 0x1234; break;
        case 2: y = ~y; [[fallthrough]];
        case 3: y += 99; break;
        case 4: y = y / 3; break;
        case 5: for (int j = 0; j < (in[i] & 7); ++j) y += j * y; break;
        case 6: y = -y; break;
        case 7: y = __popc(y); break;
        case 8: y = y << 3 | 5; break;
        default: y = 42;
    }
    out[2 * i + 1] = y;
    double derivative;
    const double value = polynomial(in[i] * 0.5f, static_cast<short>(in[i]), &derivative);
    reals[i] = value + derivative;
}

// A 3-D grid of 3-D blocks: out[linear thread] = what it sees of itself.
KERNEL coordinates(uint32_t* out) {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    unsigned lane, warp;
    asm("mov.u32 %0, %%laneid;" : "=r"(lane));
    asm("mov.u32 %0, %%warpid;" : "=r"(warp));
    const unsigned at = block * (blockDim.x * blockDim.y * blockDim.z) + thread;
    out[2 * at] = threadIdx.x | threadIdx.y << 4 | threadIdx.z << 8 | blockIdx.x << 12 | blockIdx.y << 16 | blockIdx.z << 20;
    out[2 * at + 1] = lane | warp << 8;
}

// Clocks go forward; printf harms nothing; the early threads of a block leave before the barrier.
KERNEL clocks(long long* out) {
    if (threadIdx.x >= 96) return;
    const long long start = clock64();
    const clock_t narrow = clock();
    if (threadIdx.x == 3) printf("thread %d of block %d: %f %s\n", threadIdx.x, blockIdx.x, 1.5, "text");
    __syncthreads();
    __nanosleep(20);
    out[blockIdx.x * 96 + threadIdx.x] = clock64() > start && clock() != narrow;
}

// Dynamic shared memory: each block reverses its tile, through a barrier that counts.
KERNEL reverse(const int* in, int* out) {
    extern __shared__ int tile[];
    const int i = index();
    tile[threadIdx.x] = in[i];
    const int odd = __syncthreads_count(in[i] & 1);
    const int any = __syncthreads_or(in[i] == 5), all = __syncthreads_and(in[i] > -50);
    out[i] = tile[blockDim.x - 1 - threadIdx.x] * 4096 + odd * 4 + (any != 0) * 2 + (all != 0);
}
