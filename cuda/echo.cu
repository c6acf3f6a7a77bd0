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

// ---- mla_decode.cu, mla_prefill.cu

#define MATRIX(m) m.weight, m.scale, m.rows, m.cols, m.format, m.reserved
#define PAGES(p) p.table, p.layer_offset, p.stride, p.reserved
ECHO(echo_mla_absorb, MlaAbsorbParams, MATRIX(p.kv_b), p.q, p.query, p.q_stride, p.tokens, p.heads, p.nope, p.rope, p.v)
ECHO(echo_mla_attend, MlaAttendParams, PAGES(p.pages), p.query, p.partial, p.log_sum, p.start, p.tokens, p.heads, p.splits,
     p.scale, p.reserved)
ECHO(echo_mla_combine, MlaCombineParams, p.partial, p.log_sum, p.mixed, p.rows, p.splits)
ECHO(echo_mla_project, MlaProjectParams, MATRIX(p.kv_b), p.mixed, p.out, p.out_stride, p.tokens, p.heads, p.nope, p.v,
     p.reserved)
ECHO(echo_mla_expand, MlaExpandParams, MATRIX(p.kv_b), PAGES(p.pages), p.expanded, p.first, p.end)
ECHO(echo_mla_prefill, MlaPrefillParams, PAGES(p.pages), p.q, p.expanded, p.sums, p.norms, p.out, p.q_stride, p.out_stride,
     p.start, p.tokens, p.heads, p.latent, p.nope, p.rope, p.v, p.first, p.end, p.resume, p.finish, p.scale, p.stages,
     p.reserved)
