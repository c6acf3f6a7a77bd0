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
ECHO(echo_quantise, QuantiseParams, p.x, p.rows_map, p.codes, p.scales, p.x_stride, p.row_stride, p.scale_stride, p.rows, p.cols,
     p.reserved)
ECHO(echo_expert_gemm, ExpertGemmParams, p.slots.pool, p.slots.slot_bytes, p.slots.table, p.slots.generations, p.slots.stale,
     p.slots.gate.weight, p.slots.gate.scale, p.slots.gate.rows, p.slots.gate.cols, p.slots.up.weight, p.slots.up.scale,
     p.slots.up.rows, p.slots.up.cols, p.slots.down.weight, p.slots.down.scale, p.slots.down.rows, p.slots.down.cols,
     p.slots.experts, p.slots.slots, p.slots.format, p.slots.reserved, p.offsets, p.out, p.out_scale, p.out_stride,
     p.out_scale_stride, p.rows, p.weight_rows, p.cols, p.column_tiles, p.depth_blocks, p.out_type, p.reserved)
