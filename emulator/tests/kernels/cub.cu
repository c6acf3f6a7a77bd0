// CUB's block and warp collectives behind entries with flat parameters: cooperative code that nobody here wrote.
//
// Every entry NAME_T_I runs blocks of T threads with I items a thread over n items; the last tile is ragged.
#include <cub/agent/single_pass_scan_operators.cuh>
#include <cub/block/block_exchange.cuh>
#include <cub/block/block_histogram.cuh>
#include <cub/block/block_load.cuh>
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/block/block_store.cuh>
#include <cub/warp/warp_reduce.cuh>
#include <cub/warp/warp_scan.cuh>

namespace {

// Items of this block's tile; the last one may have fewer than a full tile.
template <int TILE>
__device__ int items_of_tile(int n) {
    return min(TILE, n - static_cast<int>(blockIdx.x) * TILE);
}

// out[i] = in[first of the tile] + … + in[i − 1] (exclusive) or … + in[i]; sums[tile] = all of them.
template <int T, int I, cub::BlockScanAlgorithm HOW>
__device__ void block_scan(const int* in, int* out, int* sums, int n, bool inclusive) {
    using Load = cub::BlockLoad<int, T, I, cub::BLOCK_LOAD_WARP_TRANSPOSE>;
    using Store = cub::BlockStore<int, T, I, cub::BLOCK_STORE_TRANSPOSE>;
    using Scan = cub::BlockScan<int, T, HOW>;
    __shared__ union {
        typename Load::TempStorage load;
        typename Store::TempStorage store;
        typename Scan::TempStorage scan;
    } temp;
    const int first = blockIdx.x * T * I, count = items_of_tile<T * I>(n);
    int items[I], sum;
    Load(temp.load).Load(in + first, items, count, 0);
    __syncthreads();
    if (inclusive) {
        Scan(temp.scan).InclusiveSum(items, items, sum);
    } else {
        Scan(temp.scan).ExclusiveSum(items, items, sum);
    }
    __syncthreads();
    Store(temp.store).Store(out + first, items, count);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// out[3 tile + i] = sum, maximum and sum of the first values a thread, by three algorithms.
template <int T, int I>
__device__ void block_reduce(const int* in, int* out, int n) {
    using Raking = cub::BlockReduce<int, T, cub::BLOCK_REDUCE_RAKING>;
    using Commutative = cub::BlockReduce<int, T, cub::BLOCK_REDUCE_RAKING_COMMUTATIVE_ONLY>;
    using Warps = cub::BlockReduce<int, T, cub::BLOCK_REDUCE_WARP_REDUCTIONS>;
    __shared__ union {
        typename Raking::TempStorage raking;
        typename Commutative::TempStorage commutative;
        typename Warps::TempStorage warps;
    } temp;
    const int first = blockIdx.x * T * I, count = items_of_tile<T * I>(n);
    int items[I];
    cub::LoadDirectStriped<T>(threadIdx.x, in + first, items, count, 0);
    const int sum = Raking(temp.raking).Sum(items);
    __syncthreads();
    const int maximum = Warps(temp.warps).Reduce(items[0], cuda::maximum<>{}, min(count, T));
    __syncthreads();
    const int firsts = Commutative(temp.commutative).Sum(items[0]);
    if (threadIdx.x == 0) {
        out[3 * blockIdx.x] = sum;
        out[3 * blockIdx.x + 1] = maximum;
        out[3 * blockIdx.x + 2] = firsts;
    }
}

// Sorts each tile's keys with their values, stably.
template <int T, int I>
__device__ void block_sort(unsigned* keys, unsigned* values, int n, bool descending) {
    using Sort = cub::BlockRadixSort<unsigned, T, I, unsigned>;
    __shared__ typename Sort::TempStorage temp;
    const int first = blockIdx.x * T * I, count = items_of_tile<T * I>(n);
    unsigned key[I], value[I];
    cub::LoadDirectBlocked(threadIdx.x, keys + first, key, count, descending ? 0u : ~0u);
    cub::LoadDirectBlocked(threadIdx.x, values + first, value, count, 0u);
    if (descending) {
        Sort(temp).SortDescending(key, value);
        cub::StoreDirectBlocked(threadIdx.x, keys + first, key, count);
        cub::StoreDirectBlocked(threadIdx.x, values + first, value, count);
    } else {
        Sort(temp).SortBlockedToStriped(key, value);
        cub::StoreDirectStriped<T>(threadIdx.x, keys + first, key, count);
        cub::StoreDirectStriped<T>(threadIdx.x, values + first, value, count);
    }
}

// counts[256 tile + v] = how often v occurs in the tile, which is full.
template <int T, int I, cub::BlockHistogramAlgorithm HOW>
__device__ void block_histogram(const unsigned char* in, unsigned* counts) {
    using Histogram = cub::BlockHistogram<unsigned char, T, I, 256, HOW>;
    __shared__ typename Histogram::TempStorage temp;
    __shared__ unsigned bins[256];
    unsigned char items[I];
    cub::LoadDirectStriped<T>(threadIdx.x, in + blockIdx.x * T * I, items);
    Histogram(temp).Histogram(items, bins);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += T) counts[blockIdx.x * 256 + i] = bins[i];
}

// Blocked → striped → blocked → scattered by ranks: out[tile + ranks[i]] = in[i]; the tile is full.
template <int T, int I>
__device__ void block_exchange(const unsigned long long* in, const int* ranks, unsigned long long* out) {
    using Exchange = cub::BlockExchange<unsigned long long, T, I>;
    using WarpTimeSliced = cub::BlockExchange<unsigned long long, T, I, true>;
    __shared__ union {
        typename Exchange::TempStorage exchange;
        typename WarpTimeSliced::TempStorage sliced;
    } temp;
    const int first = blockIdx.x * T * I;
    unsigned long long items[I];
    int rank[I];
    cub::LoadDirectBlocked(threadIdx.x, in + first, items);
    cub::LoadDirectBlocked(threadIdx.x, ranks + first, rank);
    Exchange(temp.exchange).BlockedToStriped(items, items);
    __syncthreads();
    WarpTimeSliced(temp.sliced).StripedToBlocked(items, items);
    __syncthreads();
    Exchange(temp.exchange).ScatterToStriped(items, items, rank);
    cub::StoreDirectStriped<T>(threadIdx.x, out + first, items);
}

// out[i] = [sum of the logical warp's first `valid`, its prefix before i, running maximum up to i, segment sum where a
// segment starts at i].
template <int T, int WIDTH>
__device__ void warp_collectives(const int* in, const int* heads, int4* out, int n, int valid) {
    using Reduce = cub::WarpReduce<int, WIDTH>;
    using Scan = cub::WarpScan<int, WIDTH>;
    __shared__ typename Reduce::TempStorage reduce[T / WIDTH];
    __shared__ typename Scan::TempStorage scan[T / WIDTH];
    const int i = blockIdx.x * T + threadIdx.x, warp = threadIdx.x / WIDTH;
    const int item = i < n ? in[i] : 0, head = i < n ? heads[i] : 1;
    int4 result;
    result.x = Reduce(reduce[warp]).Sum(item, valid);
    __syncwarp();
    Scan(scan[warp]).ExclusiveSum(item, result.y);
    __syncwarp();
    Scan(scan[warp]).InclusiveScan(item, result.z, cuda::maximum<>{});
    __syncwarp();
    result.w = Reduce(reduce[warp]).HeadSegmentedSum(item, head);
    if (i < n) out[i] = result;
}

using TileState = cub::ScanTileState<int>;

// One pass over all tiles: each looks back at its predecessors' sums (Merrill and Garland's decoupled look-back).
template <int T, int I>
__device__ void lookback_scan(const int* in, int* out, int n, void* state, size_t bytes) {
    using Scan = cub::BlockScan<int, T>;
    using Prefix = cub::TilePrefixCallbackOp<int, cuda::std::plus<>, TileState>;
    using Load = cub::BlockLoad<int, T, I, cub::BLOCK_LOAD_TRANSPOSE>;
    using Store = cub::BlockStore<int, T, I, cub::BLOCK_STORE_WARP_TRANSPOSE>;
    __shared__ union {
        typename Load::TempStorage load;
        typename Store::TempStorage store;
        struct {
            typename Scan::TempStorage scan;
            typename Prefix::TempStorage prefix;
        } both;
    } temp;
    TileState tiles;
    tiles.Init(gridDim.x, state, bytes);
    const int tile = blockIdx.x, first = tile * T * I, count = items_of_tile<T * I>(n);
    int items[I];
    Load(temp.load).Load(in + first, items, count, 0);
    __syncthreads();
    if (tile == 0) {
        int sum;
        Scan(temp.both.scan).InclusiveSum(items, items, sum);
        if (threadIdx.x == 0) tiles.SetInclusive(0, sum);
    } else {
        Prefix prefix(tiles, temp.both.prefix, cuda::std::plus<>{}, tile);
        Scan(temp.both.scan).InclusiveSum(items, items, prefix);
    }
    __syncthreads();
    Store(temp.store).Store(out + first, items, count);
}

}  // namespace

#define BLOCK_ENTRIES(T, I)                                                                                      \
    extern "C" __global__ void __launch_bounds__(T)                                                              \
        scan_raking_##T##_##I(const int* in, int* out, int* sums, int n, int inclusive) {                        \
        block_scan<T, I, cub::BLOCK_SCAN_RAKING>(in, out, sums, n, inclusive);                                   \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(T)                                                              \
        scan_warps_##T##_##I(const int* in, int* out, int* sums, int n, int inclusive) {                         \
        block_scan<T, I, cub::BLOCK_SCAN_WARP_SCANS>(in, out, sums, n, inclusive);                               \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(T) reduce_##T##_##I(const int* in, int* out, int n) {           \
        block_reduce<T, I>(in, out, n);                                                                          \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(T)                                                              \
        sort_##T##_##I(unsigned* keys, unsigned* values, int n, int descending) {                                \
        block_sort<T, I>(keys, values, n, descending);                                                           \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(T)                                                              \
        histogram_atomic_##T##_##I(const unsigned char* in, unsigned* counts) {                                  \
        block_histogram<T, I, cub::BLOCK_HISTO_ATOMIC>(in, counts);                                              \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(T)                                                              \
        histogram_sort_##T##_##I(const unsigned char* in, unsigned* counts) {                                    \
        block_histogram<T, I, cub::BLOCK_HISTO_SORT>(in, counts);                                                \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(T)                                                              \
        exchange_##T##_##I(const unsigned long long* in, const int* ranks, unsigned long long* out) {            \
        block_exchange<T, I>(in, ranks, out);                                                                    \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(T)                                                              \
        lookback_##T##_##I(const int* in, int* out, int n, void* state, unsigned long long bytes) {              \
        lookback_scan<T, I>(in, out, n, state, bytes);                                                           \
    }

BLOCK_ENTRIES(32, 7)
BLOCK_ENTRIES(128, 4)
BLOCK_ENTRIES(256, 3)

#define WARP_ENTRIES(T, WIDTH)                                                                                   \
    extern "C" __global__ void __launch_bounds__(T)                                                              \
        warp_##T##_##WIDTH(const int* in, const int* heads, int4* out, int n, int valid) {                       \
        warp_collectives<T, WIDTH>(in, heads, out, n, valid);                                                    \
    }

WARP_ENTRIES(64, 32)
WARP_ENTRIES(128, 16)
WARP_ENTRIES(96, 4)
// No power of two: through shared memory rather than shuffles, and one logical warp a warp.
WARP_ENTRIES(12, 12)

// Says how many bytes the look-back's state takes for `tiles`, then prepares it.
extern "C" __global__ void lookback_bytes(unsigned long long* bytes, int tiles) {
    size_t needed = 0;
    TileState::AllocationSize(tiles, needed);
    *bytes = needed;
}

extern "C" __global__ void lookback_init(void* state, unsigned long long bytes, int tiles) {
    TileState all;
    all.Init(tiles, state, bytes);
    all.InitializeStatus(tiles);
}
