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
ECHO(echo_route_progress, RouteProgress, p.fault, p.blocks_done, p.reserved)
ECHO(echo_route, RouteParams, p.logits, p.bias, p.ids, p.weights, p.sorted, p.sorted_tokens, p.positions, p.offsets, p.fault,
     p.progress, p.logits_stride, p.tokens, p.experts, p.top_k, p.groups, p.groups_kept, p.block_tokens, p.normalise,
     p.scaling, p.reserved)
