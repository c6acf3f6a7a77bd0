//! Bit-exact scalar arithmetic, as the PTX ISA defines it.
//!
//! Every function takes and returns plain values, is forced inline and avoids branches, so that the interpreter's
//! loops over 32 lanes become vector code once the mode arguments (always literals there) have folded away. None
//! panics and none depends on the host's rounding mode, so results are the same on every machine.
//!
//! Halves travel as `u16`, pairs as `u32` with the first element in the low half, FP8 as `u8`.

pub mod approx;
pub mod bits;
pub mod convert;
pub mod float;
pub mod halves;
pub mod integer;
pub mod small_float;

#[cfg(test)]
pub(crate) mod tests;

/// Where an inexact result goes: `.rn`, `.rz`, `.rm`, `.rp` (and `.rni` … `.rpi` towards integers).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest, ties to even.
    Nearest,
    /// Towards zero.
    Zero,
    /// Towards −∞.
    Down,
    /// Towards +∞.
    Up,
}

/// The NaN that f32 instructions produce.
pub const NAN_F32: u32 = 0x7fff_ffff;
/// The NaN that f16 and bf16 instructions produce.
pub const NAN_HALF: u16 = 0x7fff;
/// The NaN that conversions to e4m3 and e5m2 produce.
pub const NAN_FP8: u8 = 0x7f;
