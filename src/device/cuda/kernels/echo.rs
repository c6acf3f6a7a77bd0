//! Parameter structs sent to the device and back: `cuda/echo.cu`. A self-test of the contract in `params.h`.

use std::ptr;

use crate::device::cuda::gpu::{Gpu, Launch};
use crate::device::cuda::images::{ECHO, Kernel};
use crate::device::cuda::params::*;
use crate::error::Result;

/// A field that is given a number no other field has.
trait Field: Sized {
    /// The field's value for the n-th number, and its bits widened as the device widens them.
    fn numbered(n: u64) -> (Self, u64);
}

impl Field for u64 {
    fn numbered(n: u64) -> (u64, u64) {
        let value = n << 40 | n;
        (value, value)
    }
}

impl Field for u32 {
    fn numbered(n: u64) -> (u32, u64) {
        let value = n as u32 + 0x1_0000;
        (value, value.into())
    }
}

impl Field for f32 {
    fn numbered(n: u64) -> (f32, u64) {
        let value = n as f32 + 0.5;
        (value, value.to_bits().into())
    }
}

/// Sends a struct whose fields, in the order of the list, hold distinct values; reports what was sent and received.
macro_rules! check {
    ($gpu:expr, $report:expr, $kernel:literal, $params:ident { $($($field:ident).+),* $(,)? }) => {{
        let mut params = $params::default();
        let mut sent = Vec::new();
        $({
            let (value, bits) = Field::numbered(sent.len() as u64 + 1);
            params.$($field).+ = value;
            sent.push(bits);
        })*
        let received = echo($gpu, Kernel::new(&ECHO, $kernel), &params, sent.len())?;
        $report(stringify!($params), &sent, &received);
    }};
}

fn echo<P>(gpu: &Gpu, kernel: Kernel, params: &P, fields: usize) -> Result<Vec<u64>> {
    let mut out = gpu.alloc_zeroed::<u64>(fields, "echoed fields")?;
    let mut address = out.all_mut().address();
    let mut list = [ptr::from_ref(params).cast_mut().cast(), ptr::from_mut(&mut address).cast()];
    // SAFETY: the kernel takes this struct and writes one word a field, for which there is room.
    unsafe { gpu.launch_raw(kernel, Launch::linear(1, 1), &mut list)? };
    out.download()
}

/// Sends every parameter struct; calls `report` with its name, what was sent and what the device saw, by field.
///
/// # Errors
/// [`crate::Error::Cuda`].
pub fn check_all(gpu: &Gpu, mut report: impl FnMut(&str, &[u64], &[u64])) -> Result<()> {
    check!(
        gpu,
        report,
        c"echo_rms_norm",
        RmsNormParams { x, weight, out, x_stride, out_stride, rows, cols, eps, reserved }
    );
    check!(
        gpu,
        report,
        c"echo_add_rms_norm",
        AddRmsNormParams { x, sum, weight, out, x_stride, sum_stride, out_stride, rows, cols, eps }
    );
    check!(
        gpu,
        report,
        c"echo_rope_query",
        RopeQueryParams { q, inv_freq, stride, tokens, heads, nope, rope, start, amplitude, reserved }
    );
    check!(
        gpu,
        report,
        c"echo_kv_append",
        KvAppendParams {
            kv_a,
            norm,
            inv_freq,
            pages,
            layer_offset,
            kv_stride,
            page_stride,
            tokens,
            latent,
            rope,
            start,
            eps,
            amplitude
        }
    );
    check!(
        gpu,
        report,
        c"echo_embed",
        EmbedParams { table.weight, table.scale, table.rows, table.cols, table.format, table.reserved, ids, out, out_stride, tokens }
    );
    check!(gpu, report, c"echo_add", AddParams { x, sum, x_stride, sum_stride, rows, cols });
    check!(gpu, report, c"echo_copy_rows", CopyRowsParams { x, out, x_stride, out_stride, rows, cols });
    check!(
        gpu,
        report,
        c"echo_swiglu",
        SwigluParams { gate, up, out, gate_stride, up_stride, out_stride, rows, cols, reserved }
    );
    check!(
        gpu,
        report,
        c"echo_combine",
        CombineParams {
            pairs,
            weights,
            positions,
            sum,
            pairs_stride,
            sum_stride,
            pairs_rows,
            tokens,
            cols,
            top_k
        }
    );
    check!(gpu, report, c"echo_watch", WatchParams { x, guard, stride, rows, cols, site });
    check!(
        gpu,
        report,
        c"echo_sample",
        SampleParams {
            logits,
            words,
            ids,
            fault,
            stride,
            rows,
            vocab,
            top_k,
            temperature,
            top_p,
            min_p,
            reserved
        }
    );
    check!(
        gpu,
        report,
        c"echo_quantise",
        QuantiseParams {
            x,
            rows_map,
            codes,
            scales,
            x_stride,
            row_stride,
            scale_stride,
            rows,
            cols,
            reserved
        }
    );
    check!(
        gpu,
        report,
        c"echo_dequant",
        DequantParams {
            weight,
            scale,
            slot_pitch,
            slots,
            out,
            out_pitch,
            saturated,
            rows,
            cols,
            out_stride,
            reserved
        }
    );
    check!(
        gpu,
        report,
        c"echo_gemm",
        GemmParams { out, offsets, slots, reserved, rows, cols, k, groups, out_stride, out_type, reserved2 }
    );
    check!(gpu, report, c"echo_gather", GatherParams { x, rows_map, out, x_stride, out_stride, rows, cols });
    check!(
        gpu,
        report,
        c"echo_group_slots",
        GroupSlotsParams {
            experts.pool, experts.slot_bytes, experts.table, experts.generations, experts.stale,
            experts.gate.weight, experts.gate.scale, experts.gate.rows, experts.gate.cols,
            experts.up.weight, experts.up.scale, experts.up.rows, experts.up.cols,
            experts.down.weight, experts.down.scale, experts.down.rows, experts.down.cols,
            experts.experts, experts.slots, experts.format, experts.reserved,
            offsets, slots, places, batch, reserved
        }
    );
    check!(
        gpu,
        report,
        c"echo_expert_gemm",
        ExpertGemmParams {
            slots.pool,
            slots.slot_bytes,
            slots.table,
            slots.generations,
            slots.stale,
            slots.gate.weight,
            slots.gate.scale,
            slots.gate.rows,
            slots.gate.cols,
            slots.up.weight,
            slots.up.scale,
            slots.up.rows,
            slots.up.cols,
            slots.down.weight,
            slots.down.scale,
            slots.down.rows,
            slots.down.cols,
            slots.experts,
            slots.slots,
            slots.format,
            slots.reserved,
            offsets,
            out,
            out_scale,
            out_stride,
            out_scale_stride,
            rows,
            weight_rows,
            cols,
            column_tiles,
            depth_blocks,
            out_type,
            reserved
        }
    );
    check!(gpu, report, c"echo_route_progress", RouteProgress { fault, blocks_done, reserved });
    check!(
        gpu,
        report,
        c"echo_route",
        RouteParams {
            logits,
            bias,
            ids,
            weights,
            sorted,
            sorted_tokens,
            positions,
            offsets,
            fault,
            progress,
            logits_stride,
            tokens,
            experts,
            top_k,
            groups,
            groups_kept,
            block_tokens,
            normalise,
            scaling,
            reserved,
        }
    );
    check!(
        gpu,
        report,
        c"echo_mla_absorb",
        MlaAbsorbParams { kv_b.weight, kv_b.scale, kv_b.rows, kv_b.cols, kv_b.format, kv_b.reserved, q, query, q_stride, tokens, heads, nope, rope, v }
    );
    check!(
        gpu,
        report,
        c"echo_mla_attend",
        MlaAttendParams { pages.table, pages.layer_offset, pages.stride, pages.reserved, query, partial, log_sum, start, tokens, heads, splits, scale, reserved }
    );
    check!(gpu, report, c"echo_mla_combine", MlaCombineParams { partial, log_sum, mixed, rows, splits });
    check!(
        gpu,
        report,
        c"echo_mla_project",
        MlaProjectParams { kv_b.weight, kv_b.scale, kv_b.rows, kv_b.cols, kv_b.format, kv_b.reserved, mixed, out, out_stride, tokens, heads, nope, v, reserved }
    );
    check!(
        gpu,
        report,
        c"echo_mla_expand",
        MlaExpandParams {
            kv_b.weight, kv_b.scale, kv_b.rows, kv_b.cols, kv_b.format, kv_b.reserved,
            pages.table, pages.layer_offset, pages.stride, pages.reserved, expanded, first, end
        }
    );
    check!(
        gpu,
        report,
        c"echo_mla_prefill",
        MlaPrefillParams {
            pages.table, pages.layer_offset, pages.stride, pages.reserved, q, expanded, sums, norms, out,
            q_stride, out_stride, start, tokens, heads, latent, nope, rope, v, first, end, resume, finish,
            scale, stages, reserved
        }
    );
    check!(
        gpu,
        report,
        c"echo_gemv",
        GemvParams {
            x, out, weight.weight, weight.scale, weight.rows, weight.cols, weight.format, weight.reserved, x_stride,
            out_stride, tokens, out_type, spans, reserved
        }
    );
    check!(
        gpu,
        report,
        c"echo_expert_gemv",
        ExpertGemvParams {
            experts.pool, experts.slot_bytes, experts.table, experts.generations, experts.stale,
            experts.gate.weight, experts.gate.scale, experts.gate.rows, experts.gate.cols,
            experts.up.weight, experts.up.scale, experts.up.rows, experts.up.cols,
            experts.down.weight, experts.down.scale, experts.down.rows, experts.down.cols,
            experts.experts, experts.slots, experts.format, experts.reserved,
            x, sorted_tokens, offsets, hidden, pairs, x_stride, hidden_stride, pairs_stride, reserved
        }
    );
    Ok(())
}
