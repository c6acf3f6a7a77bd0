// Row-wise kernels of the trunk: norms, rotary positions, the latent cache.
//
// RMSNorm: out = x / √(mean(x²) + eps) ⊙ weight (Zhang and Sennrich, arXiv 1910.07467), by row; x f32 (the residual
// stream) or bf16, weight f32, out bf16, sums in f32.
//   Contract: RmsNormParams; grid = rows, block = 256. cols up to 8192 stay in registers; beyond, x is read twice.
//   Plan: 8 elements a thread and step in 16-byte accesses; one block reduction. Bytes: x once, weight from the second-level
//   cache, out once. Bound by memory.
//
// Residual and norm: sum += x, then out = rms_norm(sum), to the bit what the two operations give one after the other.
//   Contract: AddRmsNormParams; grid and block as above.
//   Plan: as above; a row's sum is written while it is in registers for its norm.
//
// Rotary positions (Su et al., arXiv 2104.09864; halves as in DeepSeek's checkpoints): pairs (2i, 2i+1) of a head's rotary
// part turn by position · inv_freq[i]; their first elements are left in the first half, their second in the second.
//   rope_query: RopeQueryParams; grid = tokens, block = 256; nope a multiple of 8, rope of 16 and rope / 16 a power of two
//   up to 32. Angles are computed once a token and shared by all heads; rope / 16 neighbouring lanes hold a head, 8 pairs
//   each, two 16-byte loads and two 16-byte stores. Bytes: the rotary part, once in and once out. Bound by memory.
//   rope_query_ragged: the same for every other shape; rope up to 4096, the whole block turns one head at a time.
//
// The cache: latent part RMS-normed, key part turned as above, both written as bf16 where the page table says.
//   Contract: KvAppendParams; grid = ⌈tokens / 8⌉, block = 256.
//   Plan: one warp a token, so no block barriers; a latent of up to 512 stays in registers. Bytes: kv_a once in, once out.
#include "vector.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
/// Positions a page of the cache holds.
constexpr uint32_t kPage = 64;

// ---- RMSNorm -----------------------------------------------------------------------------------------------------

/// Writes the norm of a row by `Threads` threads, of which this is number `thread`. `sum_all` adds a float over them;
/// `first(col)` gives the eight elements from col on and `again(col)` gives them a second time: `Kept` times Threads
/// vectors are asked for only once.
template <int Threads, int Kept, typename Sum, typename First, typename Again>
__device__ __forceinline__ void normalize_row(int thread, int cols, const float* weight, float eps, uint16_t* out, Sum sum_all,
                                              First first, Again again) {
  // Squares.
  Vector kept[Kept];
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < Kept; ++k) {
    int col = (k * Threads + thread) * kVector;
    if (col < cols) {
      kept[k] = first(col);
#pragma unroll
      for (float v : kept[k].v) squares += v * v;
    }
  }
  for (int col = (Kept * Threads + thread) * kVector; col < cols; col += Threads * kVector) {
    Vector more = first(col);
#pragma unroll
    for (float v : more.v) squares += v * v;
  }
  const float scale = rsqrtf(sum_all(squares) / static_cast<float>(cols) + eps);

  // Products.
  auto write = [&](int col, Vector& v) {
    Vector w = load_upto(weight, col, cols);
#pragma unroll
    for (int i = 0; i < kVector; ++i) v.v[i] = v.v[i] * scale * w.v[i];
    store_upto(out, col, cols, v);
  };
#pragma unroll
  for (int k = 0; k < Kept; ++k) {
    int col = (k * Threads + thread) * kVector;
    if (col < cols) write(col, kept[k]);
  }
  for (int col = (Kept * Threads + thread) * kVector; col < cols; col += Threads * kVector) {
    Vector more = again(col);
    write(col, more);
  }
}

template <typename T>
__device__ __forceinline__ void rms_norm(const RmsNormParams& p) {
  __shared__ float scratch[kWarps];
  const int cols = p.cols;
  const T* x = reinterpret_cast<const T*>(p.x) + size_t{blockIdx.x} * p.x_stride;
  auto read = [&](int col) { return load_upto(x, col, cols); };
  normalize_row<kThreads, 4>(
      threadIdx.x, cols, reinterpret_cast<const float*>(p.weight), p.eps,
      reinterpret_cast<uint16_t*>(p.out) + size_t{blockIdx.x} * p.out_stride,
      [&](float v) { return block_sum<kWarps>(v, scratch); }, read, read);
}

template <typename X, typename S>
__device__ __forceinline__ void add_rms_norm(const AddRmsNormParams& p) {
  __shared__ float scratch[kWarps];
  const int cols = p.cols;
  const X* x = reinterpret_cast<const X*>(p.x) + size_t{blockIdx.x} * p.x_stride;
  S* sum = reinterpret_cast<S*>(p.sum) + size_t{blockIdx.x} * p.sum_stride;
  auto add = [&](int col) {
    Vector v = load_upto(sum, col, cols), more = load_upto(x, col, cols);
#pragma unroll
    for (int i = 0; i < kVector; ++i) v.v[i] = rounded<S>(v.v[i] + more.v[i]);
    store_upto(sum, col, cols, v);
    return v;
  };
  normalize_row<kThreads, 4>(
      threadIdx.x, cols, reinterpret_cast<const float*>(p.weight), p.eps,
      reinterpret_cast<uint16_t*>(p.out) + size_t{blockIdx.x} * p.out_stride,
      [&](float v) { return block_sum<kWarps>(v, scratch); }, add,
      // A thread reads back what it wrote itself.
      [&](int col) { return load_upto(sum, col, cols); });
}

// ---- Rotation ----------------------------------------------------------------------------------------------------

struct alignas(8) Turn {
  float cos, sin;
};

/// Cosine and sine of position · inv_freq, times `amplitude`, within 2⁻²³ of the amplitude for angles up to 2³⁰. The product
/// is rounded to f32 first, as every implementation of RoPE tables does. Reducing it in f64 needs no table in local memory,
/// unlike sincosf of angles beyond 105,615.
__device__ __forceinline__ Turn turn(uint32_t position, float inv_freq, float amplitude) {
#if ABRUZZI_MUTANT == 1  // The product is not rounded.
  const double angle = static_cast<double>(position) * inv_freq;
#else
  const float angle = static_cast<float>(position) * inv_freq;
#endif
  // angle = quarters · π/2 + r, |r| ≤ π/4; π/2 in two doubles.
  const double quarters = rint(angle * 0.6366197723675814);
  const double near = fma(-quarters, 1.5707963267948966, static_cast<double>(angle));
  const float r = static_cast<float>(fma(-quarters, 6.123233995736766e-17, near));
  // Minimax polynomials on [−π/4, π/4] (Cephes, sinf.c).
  const float z = r * r;
  const float s = fmaf(fmaf(fmaf(-1.9515295891e-4f, z, 8.3321608736e-3f), z, -1.6666654611e-1f) * z, r, r);
  const float c = fmaf(fmaf(fmaf(2.443315711809948e-5f, z, -1.388731625493765e-3f), z, 4.166664568298827e-2f), z * z,
                       fmaf(-0.5f, z, 1.0f));
  const int quadrant = static_cast<int>(quarters) & 3;
  const float sine = quadrant & 1 ? c : s, cosine = quadrant & 1 ? s : c;
  return {(quadrant == 1 || quadrant == 2 ? -cosine : cosine) * amplitude, (quadrant & 2 ? -sine : sine) * amplitude};
}

__device__ __forceinline__ float turned_first(float a, float b, Turn t) { return a * t.cos - b * t.sin; }
__device__ __forceinline__ float turned_second(float a, float b, Turn t) { return b * t.cos + a * t.sin; }

/// Pairs a thread of rope_query holds: 16 elements.
constexpr int kPairs = kVector;
/// Most pairs of a head in rope_query: a warp's.
constexpr int kMostPairs = kPairs * 32;
/// Pairs a thread holds in rope_query_ragged, of heads with up to 4096 rotary elements.
constexpr int kRaggedPairs = 8;

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads) rms_norm_f32(const __grid_constant__ RmsNormParams p) {
  rms_norm<float>(p);
}

extern "C" __global__ void __launch_bounds__(kThreads) rms_norm_bf16(const __grid_constant__ RmsNormParams p) {
  rms_norm<uint16_t>(p);
}

// Types in the order x, sum.
extern "C" __global__ void __launch_bounds__(kThreads) add_rms_norm_f32_f32(const __grid_constant__ AddRmsNormParams p) {
  add_rms_norm<float, float>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads) add_rms_norm_bf16_f32(const __grid_constant__ AddRmsNormParams p) {
  add_rms_norm<uint16_t, float>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads) add_rms_norm_f32_bf16(const __grid_constant__ AddRmsNormParams p) {
  add_rms_norm<float, uint16_t>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads) add_rms_norm_bf16_bf16(const __grid_constant__ AddRmsNormParams p) {
  add_rms_norm<uint16_t, uint16_t>(p);
}

extern "C" __global__ void __launch_bounds__(kThreads) rope_query(const __grid_constant__ RopeQueryParams p) {
  __shared__ Turn turns[kMostPairs];
  const uint32_t half = p.rope / 2, lanes = half / kPairs;

  // Angles of this token: the i-th pairs of all lanes beside each other, so that lanes read different banks.
  const float* inv_freq = reinterpret_cast<const float*>(p.inv_freq);
  for (uint32_t at = threadIdx.x; at < half; at += kThreads)
    turns[at] = turn(p.start + blockIdx.x, inv_freq[at % lanes * kPairs + at / lanes], p.amplitude);
#if ABRUZZI_MUTANT != 2
  // The angles are read by other warps than wrote them.
  __syncthreads();
#endif

  // Heads, a warp's lanes together. A warp whose last lanes have no head left goes through the loop whole.
  uint16_t* token = reinterpret_cast<uint16_t*>(p.q) + size_t{blockIdx.x} * p.stride;
  const uint32_t parts = p.heads * lanes, lane = threadIdx.x % 32, part_lane = threadIdx.x % lanes;
  const uint32_t pair = part_lane * kPairs;
  for (uint32_t first = threadIdx.x - lane; first < parts; first += kThreads) {
    const uint32_t head = (first + lane) / lanes;
    const bool mine = head < p.heads;
    uint16_t* part = token + head * (p.nope + p.rope) + p.nope;
    Vector low, high;
    if (mine) {
      low = load(part + 2 * pair);
      high = load(part + 2 * pair + kVector);
    }
    // Halves are stored where other lanes of the head load pairs.
    __syncwarp();
    if (mine) {
      Vector firsts, seconds;
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const float a = i < 4 ? low.v[2 * i] : high.v[2 * i - 8], b = i < 4 ? low.v[2 * i + 1] : high.v[2 * i - 7];
        const Turn t = turns[i * lanes + part_lane];
        firsts.v[i] = turned_first(a, b, t);
        seconds.v[i] = turned_second(a, b, t);
      }
      store(part + pair, firsts);
      store(part + half + pair, seconds);
    }
  }
}

extern "C" __global__ void __launch_bounds__(kThreads) rope_query_ragged(const __grid_constant__ RopeQueryParams p) {
  const uint32_t half = p.rope / 2;

  // Angles of this token, for this thread's pairs.
  const float* inv_freq = reinterpret_cast<const float*>(p.inv_freq);
  Turn turns[kRaggedPairs];
#pragma unroll
  for (int k = 0; k < kRaggedPairs; ++k) {
    const uint32_t pair = k * kThreads + threadIdx.x;
    if (pair < half) turns[k] = turn(p.start + blockIdx.x, inv_freq[pair], p.amplitude);
  }

  uint16_t* part = reinterpret_cast<uint16_t*>(p.q) + size_t{blockIdx.x} * p.stride + p.nope;
  for (uint32_t head = 0; head < p.heads; ++head, part += p.nope + p.rope) {
    float a[kRaggedPairs], b[kRaggedPairs];
#pragma unroll
    for (int k = 0; k < kRaggedPairs; ++k) {
      const uint32_t pair = k * kThreads + threadIdx.x;
      if (pair < half) a[k] = load_one(part + 2 * pair), b[k] = load_one(part + 2 * pair + 1);
    }
    // Halves are stored where other threads load pairs.
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kRaggedPairs; ++k) {
      const uint32_t pair = k * kThreads + threadIdx.x;
      if (pair < half) {
        store_one(part + pair, turned_first(a[k], b[k], turns[k]));
        store_one(part + half + pair, turned_second(a[k], b[k], turns[k]));
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(kThreads) kv_append(const __grid_constant__ KvAppendParams p) {
  const uint32_t token = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (token >= p.tokens) return;

  // Where the token goes.
  const uint32_t position = p.start + token;
#if ABRUZZI_MUTANT == 3  // All rows go to the first row's page.
  const uint64_t page = reinterpret_cast<const uint64_t*>(p.pages)[p.start / kPage];
#else
  const uint64_t page = reinterpret_cast<const uint64_t*>(p.pages)[position / kPage];
#endif
  uint16_t* out = reinterpret_cast<uint16_t*>(page + p.layer_offset) + size_t{position % kPage} * p.page_stride;
  // An address from memory could be of any kind; this one is global.
  __builtin_assume(__isGlobal(out));
  const uint16_t* x = reinterpret_cast<const uint16_t*>(p.kv_a) + size_t{token} * p.kv_stride;

  // Latent part.
  const int latent = p.latent;
  auto read = [&](int col) { return load_upto(x, col, latent); };
  normalize_row<32, 2>(
      lane, latent, reinterpret_cast<const float*>(p.norm), p.eps, out, [](float v) { return warp_sum(v); }, read, read);

  // Key part: a pair a lane.
  const float* inv_freq = reinterpret_cast<const float*>(p.inv_freq);
  const uint32_t half = p.rope / 2;
  for (uint32_t pair = lane; pair < half; pair += 32) {
    const Turn t = turn(position, inv_freq[pair], p.amplitude);
    const float a = load_one(x + latent + 2 * pair), b = load_one(x + latent + 2 * pair + 1);
    store_one(out + latent + pair, turned_first(a, b, t));
    store_one(out + latent + half + pair, turned_second(a, b, t));
  }
}
