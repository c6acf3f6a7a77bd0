// Returns every field of every parameter struct as the device sees it, in the order of the list: the host fills structs
// with distinct values and compares. A field that stands elsewhere on the device than on the host can't hide.
#include <string.h>

#include "params.h"

namespace {

/// Writes fields, widened to 64 bits, one after the other.
struct Echo {
  uint64_t* out;
  template <typename T>
  __device__ void field(const T& value) {
    static_assert(sizeof(T) <= 8, "nested structs are listed by their own fields");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    *out++ = bits;
  }
  template <typename... Fields>
  __device__ void fields(const Fields&... values) {
    (field(values), ...);
  }
};

}  // namespace

// `p` is the struct; the list names all of its fields.
#define ECHO(NAME, STRUCT, ...)                                                                      \
  extern "C" __global__ void NAME(const __grid_constant__ STRUCT p, uint64_t* out) {                  \
    Echo{out}.fields(__VA_ARGS__);                                                                   \
  }

ECHO(echo_rms_norm, RmsNormParams, p.x, p.weight, p.out, p.x_stride, p.out_stride, p.rows, p.cols, p.eps, p.reserved)
ECHO(echo_gemv, GemvParams, p.x, p.out, p.weight.weight, p.weight.scale, p.weight.rows, p.weight.cols, p.weight.format,
     p.weight.reserved, p.x_stride, p.out_stride, p.tokens, p.out_type, p.spans, p.reserved)
ECHO(echo_expert_gemv, ExpertGemvParams, p.experts.pool, p.experts.slot_bytes, p.experts.table, p.experts.generations,
     p.experts.stale, p.experts.gate.weight, p.experts.gate.scale, p.experts.gate.rows, p.experts.gate.cols, p.experts.up.weight,
     p.experts.up.scale, p.experts.up.rows, p.experts.up.cols, p.experts.down.weight, p.experts.down.scale, p.experts.down.rows,
     p.experts.down.cols, p.experts.experts, p.experts.slots, p.experts.format, p.experts.reserved, p.x, p.sorted_tokens,
     p.offsets, p.hidden, p.pairs, p.x_stride, p.hidden_stride, p.pairs_stride, p.reserved)
