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
    Ok(())
}
