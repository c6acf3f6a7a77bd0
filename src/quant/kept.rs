//! Whether a scale from an earlier decoding still fits.

use super::narrow::{Bf16, F16, Narrow};

/// What the values were rounded to since they were decoded, as far as the ones seen so far can tell.
pub(super) struct Trail {
    exact: bool,
    bf16: bool,
    f16: bool,
}

impl Trail {
    /// Nothing seen, everything possible.
    #[inline(always)]
    pub(super) fn new() -> Trail {
        Trail { exact: true, bf16: true, f16: true }
    }

    /// Notes that encoding `value` and decoding gave `decoded`.
    #[inline(always)]
    pub(super) fn note(&mut self, value: f32, decoded: f32) {
        self.exact &= decoded == value;
        self.bf16 &= Bf16::rounded(decoded) == value;
        self.f16 &= F16::rounded(decoded) == value;
    }

    /// Whether one rounding, the same for all, explains every value.
    #[inline(always)]
    pub(super) fn holds(&self) -> bool {
        self.exact | self.bf16 | self.f16
    }
}
