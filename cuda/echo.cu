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
ECHO(echo_add_rms_norm, AddRmsNormParams, p.x, p.sum, p.weight, p.out, p.x_stride, p.sum_stride, p.out_stride, p.rows, p.cols,
     p.eps)
ECHO(echo_rope_query, RopeQueryParams, p.q, p.inv_freq, p.stride, p.tokens, p.heads, p.nope, p.rope, p.start, p.amplitude,
     p.reserved)
ECHO(echo_kv_append, KvAppendParams, p.kv_a, p.norm, p.inv_freq, p.pages, p.layer_offset, p.kv_stride, p.page_stride, p.tokens,
     p.latent, p.rope, p.start, p.eps, p.amplitude)
ECHO(echo_embed, EmbedParams, p.table.weight, p.table.scale, p.table.rows, p.table.cols, p.table.format, p.table.reserved, p.ids,
     p.out, p.out_stride, p.tokens)
ECHO(echo_add, AddParams, p.x, p.sum, p.x_stride, p.sum_stride, p.rows, p.cols)
ECHO(echo_copy_rows, CopyRowsParams, p.x, p.out, p.x_stride, p.out_stride, p.rows, p.cols)
ECHO(echo_swiglu, SwigluParams, p.gate, p.up, p.out, p.gate_stride, p.up_stride, p.out_stride, p.rows, p.cols, p.reserved)
ECHO(echo_combine, CombineParams, p.pairs, p.weights, p.positions, p.sum, p.pairs_stride, p.sum_stride, p.pairs_rows, p.tokens,
     p.cols, p.top_k)
ECHO(echo_watch, WatchParams, p.x, p.guard, p.stride, p.rows, p.cols, p.site)
ECHO(echo_sample, SampleParams, p.logits, p.words, p.ids, p.fault, p.stride, p.rows, p.vocab, p.top_k, p.temperature, p.top_p,
     p.min_p, p.reserved)
ECHO(echo_quantise, QuantiseParams, p.x, p.rows_map, p.codes, p.scales, p.x_stride, p.row_stride, p.scale_stride, p.rows, p.cols,
     p.reserved)
ECHO(echo_dequant, DequantParams, p.weight, p.scale, p.slot_pitch, p.slots, p.out, p.out_pitch, p.saturated, p.rows, p.cols,
     p.out_stride, p.reserved)
ECHO(echo_gemm, GemmParams, p.out, p.offsets, p.slots, p.reserved, p.rows, p.cols, p.k, p.groups, p.out_stride, p.out_type,
     p.reserved2)
ECHO(echo_gather, GatherParams, p.x, p.rows_map, p.out, p.x_stride, p.out_stride, p.rows, p.cols)
ECHO(echo_group_slots, GroupSlotsParams, p.experts.pool, p.experts.slot_bytes, p.experts.table, p.experts.generations,
     p.experts.stale, p.experts.gate.weight, p.experts.gate.scale, p.experts.gate.rows, p.experts.gate.cols, p.experts.up.weight,
     p.experts.up.scale, p.experts.up.rows, p.experts.up.cols, p.experts.down.weight, p.experts.down.scale, p.experts.down.rows,
     p.experts.down.cols, p.experts.experts, p.experts.slots, p.experts.format, p.experts.reserved, p.offsets, p.slots, p.places,
     p.batch, p.reserved)
ECHO(echo_expert_gemm, ExpertGemmParams, p.slots.pool, p.slots.slot_bytes, p.slots.table, p.slots.generations, p.slots.stale,
     p.slots.gate.weight, p.slots.gate.scale, p.slots.gate.rows, p.slots.gate.cols, p.slots.up.weight, p.slots.up.scale,
     p.slots.up.rows, p.slots.up.cols, p.slots.down.weight, p.slots.down.scale, p.slots.down.rows, p.slots.down.cols,
     p.slots.experts, p.slots.slots, p.slots.format, p.slots.reserved, p.offsets, p.out, p.out_scale, p.out_stride,
     p.out_scale_stride, p.rows, p.weight_rows, p.cols, p.column_tiles, p.depth_blocks, p.out_type, p.reserved)
ECHO(echo_route_progress, RouteProgress, p.fault, p.blocks_done, p.reserved)
ECHO(echo_route, RouteParams, p.logits, p.bias, p.ids, p.weights, p.sorted, p.sorted_tokens, p.positions, p.offsets, p.fault,
     p.progress, p.logits_stride, p.tokens, p.experts, p.top_k, p.groups, p.groups_kept, p.block_tokens, p.normalise,
     p.scaling, p.reserved)
ECHO(echo_mla_absorb, MlaAbsorbParams, MATRIX(p.kv_b), p.q, p.query, p.q_stride, p.tokens, p.heads, p.nope, p.rope, p.v)
ECHO(echo_mla_attend, MlaAttendParams, PAGES(p.pages), p.query, p.partial, p.log_sum, p.start, p.tokens, p.heads, p.splits,
     p.scale, p.reserved)
ECHO(echo_mla_combine, MlaCombineParams, p.partial, p.log_sum, p.mixed, p.rows, p.splits)
ECHO(echo_mla_project, MlaProjectParams, MATRIX(p.kv_b), p.mixed, p.out, p.out_stride, p.tokens, p.heads, p.nope, p.v,
     p.reserved)
ECHO(echo_gemv, GemvParams, p.x, p.out, p.weight.weight, p.weight.scale, p.weight.rows, p.weight.cols, p.weight.format,
     p.weight.reserved, p.x_stride, p.out_stride, p.tokens, p.out_type, p.spans, p.reserved)
ECHO(echo_expert_gemv, ExpertGemvParams, p.experts.pool, p.experts.slot_bytes, p.experts.table, p.experts.generations,
     p.experts.stale, p.experts.gate.weight, p.experts.gate.scale, p.experts.gate.rows, p.experts.gate.cols, p.experts.up.weight,
     p.experts.up.scale, p.experts.up.rows, p.experts.up.cols, p.experts.down.weight, p.experts.down.scale, p.experts.down.rows,
     p.experts.down.cols, p.experts.experts, p.experts.slots, p.experts.format, p.experts.reserved, p.x, p.sorted_tokens,
     p.offsets, p.hidden, p.pairs, p.x_stride, p.hidden_stride, p.pairs_stride, p.reserved)
ECHO(echo_mla_expand, MlaExpandParams, MATRIX(p.kv_b), PAGES(p.pages), p.expanded, p.first, p.end)
ECHO(echo_mla_prefill, MlaPrefillParams, PAGES(p.pages), p.q, p.expanded, p.sums, p.norms, p.out, p.q_stride, p.out_stride,
     p.start, p.tokens, p.heads, p.latent, p.nope, p.rope, p.v, p.first, p.end, p.resume, p.finish, p.scale, p.stages,
     p.reserved)
