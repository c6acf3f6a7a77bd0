// wgmma: a warpgroup (128 threads) multiplies tiles in shared memory (PTX ISA 9.7.15).
//
// Order of use: `fence` before the first product that touches an accumulator, products, `commit`, `wait<n>`; accumulators
// are not touched between the first product and the wait. Operands are written by TMA, or by ordinary stores followed by
// ptx::fence_for_async_proxy in every writer and a barrier.
//
// Accumulators of m64nN: warp w of the warpgroup, lane l; d[4·j + i] is row 16·w + l / 4 + 8·(i / 2), column
// 8·j + 2·(l % 4) + i % 2.
#pragma once

#include <stdint.h>

namespace wgmma {

/// Descriptor of a K-major tile with 128-byte rows and 128-byte swizzle, aligned to 1024 bytes: 8-row groups stand 1024
/// bytes apart. The next step along K (32 bytes: 16 bf16 or 32 fp8) is the address + 32.
__device__ __forceinline__ uint64_t descriptor(uint32_t shared_address) {
  return static_cast<uint64_t>((shared_address & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

__device__ __forceinline__ void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most `Pending` groups are in flight.
template <int Pending>
__device__ __forceinline__ void wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
/// Keeps the compiler from moving accumulators across this point.
template <int Count>
__device__ __forceinline__ void pin(float (&d)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Operand lists, 16 registers at a time.
#define WGMMA_LIST_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_LIST_16 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_LIST_32 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_LIST_48 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_LIST_64 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_LIST_80 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_LIST_96 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define WGMMA_LIST_112 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_REGISTERS(d, i)                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]),     \
      "+f"(d[i + 7]), "+f"(d[i + 8]), "+f"(d[i + 9]), "+f"(d[i + 10]), "+f"(d[i + 11]), "+f"(d[i + 12]),            \
      "+f"(d[i + 13]), "+f"(d[i + 14]), "+f"(d[i + 15])

/// d[64, N] = a[64, k]·b[N, k]ᵀ (+ d if `accumulate`), k = 16 for bf16 and 32 for e4m3; a and b by descriptor.
template <int N>
struct Bf16;
template <int N>
struct Fp8;

// N: columns; then the register list, the registers, the numbers of the three operands behind them.
#define WGMMA_SHAPE(N, LIST, REGISTERS, A, B, KEEP)                                                                     \
  template <>                                                                                                          \
  struct Bf16<N> {                                                                                                     \
    static __device__ __forceinline__ void multiply(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {      \
      asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, %" #KEEP ", 0;\n"                                            \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" LIST "}, %" #A ", %" #B                  \
                   ", keep, 1, 1, 0, 0;\n}"                                                                            \
                   : REGISTERS                                                                                         \
                   : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                               \
    }                                                                                                                  \
  };                                                                                                                   \
  template <>                                                                                                          \
  struct Fp8<N> {                                                                                                      \
    static __device__ __forceinline__ void multiply(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {      \
      asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, %" #KEEP ", 0;\n"                                            \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" LIST "}, %" #A ", %" #B                  \
                   ", keep, 1, 1;\n}"                                                                                  \
                   : REGISTERS                                                                                         \
                   : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                               \
    }                                                                                                                  \
  };

#define WGMMA_R32 WGMMA_REGISTERS(d, 0)
WGMMA_SHAPE(32, WGMMA_LIST_0, WGMMA_R32, 16, 17, 18)
#define WGMMA_R64 WGMMA_REGISTERS(d, 0), WGMMA_REGISTERS(d, 16)
WGMMA_SHAPE(64, WGMMA_LIST_0 ", " WGMMA_LIST_16, WGMMA_R64, 32, 33, 34)
#define WGMMA_R96 WGMMA_REGISTERS(d, 0), WGMMA_REGISTERS(d, 16), WGMMA_REGISTERS(d, 32)
WGMMA_SHAPE(96, WGMMA_LIST_0 ", " WGMMA_LIST_16 ", " WGMMA_LIST_32, WGMMA_R96, 48, 49, 50)
#define WGMMA_R128 WGMMA_REGISTERS(d, 0), WGMMA_REGISTERS(d, 16), WGMMA_REGISTERS(d, 32), WGMMA_REGISTERS(d, 48)
WGMMA_SHAPE(128, WGMMA_LIST_0 ", " WGMMA_LIST_16 ", " WGMMA_LIST_32 ", " WGMMA_LIST_48, WGMMA_R128, 64, 65, 66)
#define WGMMA_R160 WGMMA_REGISTERS(d, 0), WGMMA_REGISTERS(d, 16), WGMMA_REGISTERS(d, 32), WGMMA_REGISTERS(d, 48), WGMMA_REGISTERS(d, 64)
WGMMA_SHAPE(160, WGMMA_LIST_0 ", " WGMMA_LIST_16 ", " WGMMA_LIST_32 ", " WGMMA_LIST_48 ", " WGMMA_LIST_64, WGMMA_R160, 80, 81, 82)
#define WGMMA_R192 WGMMA_REGISTERS(d, 0), WGMMA_REGISTERS(d, 16), WGMMA_REGISTERS(d, 32), WGMMA_REGISTERS(d, 48), WGMMA_REGISTERS(d, 64), WGMMA_REGISTERS(d, 80)
WGMMA_SHAPE(192, WGMMA_LIST_0 ", " WGMMA_LIST_16 ", " WGMMA_LIST_32 ", " WGMMA_LIST_48 ", " WGMMA_LIST_64 ", " WGMMA_LIST_80, WGMMA_R192, 96, 97, 98)
#define WGMMA_R256 WGMMA_REGISTERS(d, 0), WGMMA_REGISTERS(d, 16), WGMMA_REGISTERS(d, 32), WGMMA_REGISTERS(d, 48), WGMMA_REGISTERS(d, 64), WGMMA_REGISTERS(d, 80), WGMMA_REGISTERS(d, 96), WGMMA_REGISTERS(d, 112)
WGMMA_SHAPE(256, WGMMA_LIST_0 ", " WGMMA_LIST_16 ", " WGMMA_LIST_32 ", " WGMMA_LIST_48 ", " WGMMA_LIST_64 ", " WGMMA_LIST_80 ", " WGMMA_LIST_96 ", " WGMMA_LIST_112, WGMMA_R256, 128, 129, 130)

#undef WGMMA_SHAPE

}  // namespace wgmma
