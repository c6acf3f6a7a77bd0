//! Device `printf`: the format and a pointer to the packed arguments, as CUDA passes them to `vprintf`.
//!
//! Each conversion is handed to the C library with its one argument, so widths, flags and precisions are what a C
//! programmer expects. Text goes to standard output, lane by lane.

use std::ffi::CString;
use std::io::Write;

use super::access::LOCAL_WINDOW;
use super::op::{Ctx, NONE, Op};
use crate::check::Kind;
use crate::memory::State;

/// Longest string that is printed.
const LONGEST: u64 = 1 << 16;

/// vprintf: parameters at local offsets `imm` (format) and `aux` (arguments), the result at `second`.
///
/// # Safety
/// As [`super::op::Exec`].
pub(super) unsafe fn vprintf(ctx: &mut Ctx<'_>, op: &Op, active: u32) {
    for lane in (0..32u32).filter(|l| active >> l & 1 == 1) {
        let pointer = |ctx: &Ctx<'_>, offset: u32| {
            local(ctx, lane, offset, 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes)
        };
        let text = pointer(ctx, op.imm as u32).and_then(|at| string(ctx, at));
        let (Some(text), Some(arguments)) = (text, pointer(ctx, op.aux)) else {
            return ctx.fail(
                op,
                Kind::OutOfBounds,
                Some(lane),
                "printf with a format that is no string in memory",
            );
        };
        let Some(printed) = render(ctx, lane, &text, arguments) else {
            return ctx.fail(
                op,
                Kind::OutOfBounds,
                Some(lane),
                "printf reads arguments outside their buffer",
            );
        };
        // Whoever closed standard output does not want it.
        let _ = std::io::stdout().lock().write_all(&printed);
        if op.second != NONE {
            let bytes = ctx.warp.local.len() / 32;
            let at = lane as usize * bytes + op.second as usize;
            if let Some(result) = ctx.warp.local.get_mut(at..at + 4) {
                result.copy_from_slice(&(printed.len() as u32).to_le_bytes());
            }
        }
    }
}

/// Bytes of a lane's local memory.
fn local<'a>(ctx: &'a Ctx<'_>, lane: u32, offset: u32, len: usize) -> Option<&'a [u8]> {
    let bytes = ctx.warp.local.len() / 32;
    let own = ctx.warp.local.get(lane as usize * bytes..(lane as usize + 1) * bytes)?;
    own.get(offset as usize..offset as usize + len)
}

/// The string at a device address, without its terminating 0.
fn string(ctx: &Ctx<'_>, address: u64) -> Option<Vec<u8>> {
    let arena = ctx.grid.memory.arena();
    let mut text = Vec::new();
    for at in address..address + LONGEST {
        if arena.first_other(at, 1, State::Valid).is_some() {
            return None;
        }
        // SAFETY: the byte was just found to be allocated and written device memory.
        match unsafe { (at as *const u8).read_volatile() } {
            0 => return Some(text),
            byte => text.push(byte),
        }
    }
    None
}

/// The text with every conversion replaced. `None` if the arguments do not suffice.
fn render(ctx: &Ctx<'_>, lane: u32, format: &[u8], arguments: u64) -> Option<Vec<u8>> {
    if arguments != 0 && arguments >> 56 != LOCAL_WINDOW >> 56 {
        return None;
    }
    let mut offset = arguments as u32;
    let mut next = |size: u32| {
        offset = offset.next_multiple_of(size);
        let mut raw = [0; 8];
        raw[..size as usize].copy_from_slice(local(ctx, lane, offset, size as usize)?);
        offset += size;
        Some(u64::from_le_bytes(raw))
    };
    let mut out = Vec::new();
    let mut rest = format;
    while let Some((&first, more)) = rest.split_first() {
        rest = more;
        if first != b'%' {
            out.push(first);
            continue;
        }
        let end = rest.iter().position(|c| b"diouxXeEfFgGaAcsp%".contains(c))?;
        let (specification, after) = rest.split_at(end + 1);
        rest = after;
        let kind = specification[end];
        if kind == b'%' {
            out.push(b'%');
            continue;
        }
        let mut c_format = vec![b'%'];
        for &c in &specification[..end] {
            match c {
                b'*' => c_format.extend((next(4)? as i32).to_string().bytes()),
                b'0'..=b'9' | b'-' | b'+' | b' ' | b'#' | b'.' => c_format.push(c),
                // Lengths are said anew below.
                b'l' | b'h' | b'j' | b'z' | b't' => {}
                _ => return None,
            }
        }
        let wide = specification[..end].iter().any(|c| b"ljzt".contains(c));
        match kind {
            b's' => {
                let text = string(ctx, next(8)?)?;
                c_format.push(b's');
                out.extend(formatted(&c_format, Argument::Text(CString::new(text).ok()?))?);
            }
            b'p' => {
                c_format.extend(b"p");
                out.extend(formatted(&c_format, Argument::Whole(next(8)?))?);
            }
            b'e' | b'E' | b'f' | b'F' | b'g' | b'G' | b'a' | b'A' => {
                c_format.push(kind);
                out.extend(formatted(&c_format, Argument::Float(f64::from_bits(next(8)?)))?);
            }
            b'c' => {
                c_format.push(kind);
                out.extend(formatted(&c_format, Argument::Whole(next(4)?))?);
            }
            _ => {
                let value = next(if wide { 8 } else { 4 })?;
                let signed = matches!(kind, b'd' | b'i');
                let value = if signed && !wide { value as i32 as i64 as u64 } else { value };
                c_format.extend([b'l', b'l', kind]);
                out.extend(formatted(&c_format, Argument::Whole(value))?);
            }
        }
    }
    Some(out)
}

enum Argument {
    Whole(u64),
    Float(f64),
    Text(CString),
}

/// One conversion by the C library.
fn formatted(format: &[u8], argument: Argument) -> Option<Vec<u8>> {
    let format = CString::new(format).ok()?;
    let write = |out: *mut libc::c_char, len: usize| {
        // SAFETY: `render` built the format with exactly one conversion, of the argument's type; `out` has `len` bytes.
        unsafe {
            match &argument {
                Argument::Whole(value) => libc::snprintf(out, len, format.as_ptr(), *value),
                Argument::Float(value) => libc::snprintf(out, len, format.as_ptr(), *value),
                Argument::Text(text) => libc::snprintf(out, len, format.as_ptr(), text.as_ptr()),
            }
        }
    };
    let len = usize::try_from(write(std::ptr::null_mut(), 0)).ok().filter(|&n| n as u64 <= LONGEST)?;
    let mut out = vec![0u8; len + 1];
    write(out.as_mut_ptr().cast(), len + 1);
    out.truncate(len);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_are_the_c_librarys() {
        let text = |format: &str, argument| {
            String::from_utf8(formatted(format.as_bytes(), argument).unwrap()).unwrap()
        };
        assert_eq!(text("%05lld", Argument::Whole(-7i64 as u64)), "-0007");
        assert_eq!(text("%-6llx|", Argument::Whole(255)), "ff    |");
        assert_eq!(text("%.3f", Argument::Float(1.0 / 3.0)), "0.333");
        assert_eq!(text("%4s", Argument::Text(CString::new("ab").unwrap())), "  ab");
    }
}
