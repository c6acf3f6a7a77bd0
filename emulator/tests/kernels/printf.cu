// What device printf writes (tests/printf.rs).
#include <cstdio>

extern "C" __global__ void talk(const char* word) {
  if (threadIdx.x % 16 == 3)
    printf("thread %d of %u: %5.2f|%-4s|%04x|%lld|%c|%%\n", threadIdx.x, blockDim.x, threadIdx.x / 4.0, word, 0xbeef,
           -5000000000ll, 'k');
}
