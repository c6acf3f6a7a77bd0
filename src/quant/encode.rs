//! Encoding: values to weights and scales as a file holds them.
//!
//! The bytes depend on the values alone, not on the processor: no fused multiply-add, and rounding is integer arithmetic.

use super::{Format, MatrixLayout, fp8, int4, plain};
use crate::simd::{Isa, Kernel, Simd};

/// What encoding cost, beyond rounding to the nearest value the format has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use = "values that a format cannot hold are only counted here"]
pub struct Encoded {
    /// Values beyond the largest finite one of the format, stored as that. FP8 and INT4 choose their scales, so that
    /// nothing is beyond them; only an INT4 group with values of 2^127 and more has no scale that reaches them.
    /// Clipping that makes the error of an INT4 group least is not counted.
    pub saturated: u64,
    /// Values that were not zero and are now; not counted for INT4, where zero is one of sixteen steps.
    pub vanished: u64,
    /// Scale blocks that took the scale they were given.
    pub kept_scales: u64,
    /// Scale blocks that were given a scale and took another, because that one does not give back the values.
    pub fresh_scales: u64,
}

impl std::ops::AddAssign for Encoded {
    fn add_assign(&mut self, other: Encoded) {
        self.saturated += other.saturated;
        self.vanished += other.vanished;
        self.kept_scales += other.kept_scales;
        self.fresh_scales += other.fresh_scales;
    }
}

impl std::iter::Sum for Encoded {
    fn sum<I: Iterator<Item = Encoded>>(parts: I) -> Encoded {
        parts.fold(Encoded::default(), |mut sum, part| {
            sum += part;
            sum
        })
    }
}

/// A NaN or an infinity where a weight should be. No format here can say that, and nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("value {index} is NaN or infinite; weights must be finite")]
pub struct NonFiniteValue {
    /// Index of the first among the values given.
    pub index: usize,
}

impl MatrixLayout {
    /// Encodes whole rows of this matrix from `first_row` on: `values` is [rows, cols], `weight` and `scale` receive
    /// what [`MatrixView`](super::MatrixView) decodes, for these rows only. Runs on the calling thread; divide a matrix
    /// by blocks of rows to use several.
    ///
    /// Every value becomes the nearest one the format has, ties to even, under the scale of its block. FP8: a block's
    /// largest magnitude becomes 448. INT4: the BF16 scale of least squared error, of those a search tries; never worse
    /// than the largest magnitude / 7. A block of zeros has scale 1, and every scale that is chosen is positive.
    ///
    /// `kept_scale` is what `scale` would receive, from where the values were once decoded. A block takes its
    /// scale from there if that gives back all its values exactly, or all of them rounded to BF16, or all to FP16, as they
    /// are after a conversion to those. So FP8 → BF16 → FP8 has the same bytes at the end, except where BF16 could not
    /// tell two codes apart: where code · scale is below 2^-126. Without scales the argument is not looked at.
    ///
    /// ```
    /// use abruzzi::quant::{Format, MatrixLayout, MatrixView};
    ///
    /// let layout = MatrixLayout { format: Format::Int4Group32, rows: 1, cols: 8 };
    /// let (mut weight, mut scale) = (vec![0; layout.weight_bytes()], vec![0; layout.scale_bytes()]);
    /// let values = [-4.0, -3.5, -0.5, 0.0, 0.5, 1.0, 1.5, 3.5];
    /// layout.encode(0, &values, None, &mut weight, &mut scale)?;
    /// let mut decoded = [0.0; 8];
    /// MatrixView::new(layout, &weight, &scale).decode(0, 0, &mut decoded);
    /// assert_eq!(decoded, values);
    /// # Ok::<(), abruzzi::quant::NonFiniteValue>(())
    /// ```
    ///
    /// # Errors
    /// The first value that is not finite.
    ///
    /// # Panics
    /// If a slice's length is not what the layout implies, or the rows do not begin and end with a block of scales (the
    /// last block may be cut short by the matrix): that is a bug of the caller, who sized them.
    pub fn encode(
        &self,
        first_row: usize,
        values: &[f32],
        kept_scale: Option<&[u8]>,
        weight: &mut [u8],
        scale: &mut [u8],
    ) -> Result<Encoded, NonFiniteValue> {
        self.encode_with(Isa::detect(), first_row, values, kept_scale, weight, scale)
    }

    fn encode_with(
        &self,
        isa: Isa,
        first_row: usize,
        values: &[f32],
        kept_scale: Option<&[u8]>,
        weight: &mut [u8],
        scale: &mut [u8],
    ) -> Result<Encoded, NonFiniteValue> {
        let part = MatrixLayout { rows: values.len().checked_div(self.cols).unwrap_or(0), ..*self };
        let end = first_row + part.rows;
        let block = if self.format == Format::Fp8Block { fp8::BLOCK } else { 1 };
        assert_eq!(values.len(), part.rows * self.cols, "values of whole rows of {self:?}");
        assert!(end <= self.rows, "rows {first_row} to {end} of {self:?}");
        assert!(first_row.is_multiple_of(block), "row {first_row} begins no block of {self:?}");
        assert!(end == self.rows || end.is_multiple_of(block), "row {end} ends no block of {self:?}");
        assert_eq!(weight.len(), part.weight_bytes(), "weight bytes of {part:?}");
        assert_eq!(scale.len(), part.scale_bytes(), "scale bytes of {part:?}");
        let kept = kept_scale.filter(|_| self.scale_shape().is_some());
        if let Some(kept) = kept {
            assert_eq!(kept.len(), scale.len(), "kept scale bytes of {part:?}");
        }
        isa.run(Encode { part, values, kept, weight, scale })
    }
}

/// The rows of `part`, which is a matrix of its own: they begin and end with a block.
struct Encode<'a> {
    part: MatrixLayout,
    values: &'a [f32],
    kept: Option<&'a [u8]>,
    weight: &'a mut [u8],
    scale: &'a mut [u8],
}

impl Kernel for Encode<'_> {
    type Output = Result<Encoded, NonFiniteValue>;

    #[inline(always)]
    fn run<S: Simd>(self) -> Self::Output {
        let Encode { part, values, kept, weight, scale } = self;
        if !largest(values).is_finite() {
            return Err(NonFiniteValue { index: values.iter().position(|v| !v.is_finite()).unwrap_or(0) });
        }
        Ok(match part.format {
            Format::F32 => plain::encode_f32(values, weight),
            Format::F16 => plain::encode_f16(values, weight),
            Format::Bf16 => plain::encode_bf16(values, weight),
            Format::Fp8Block => fp8::encode_rows(values, part.cols, kept, weight, scale),
            Format::Int4Group32 => int4::encode_rows(values, part.cols, kept, weight, scale),
        })
    }
}

/// The largest magnitude; a NaN counts as larger than infinity.
#[inline(always)]
pub(super) fn largest(values: &[f32]) -> f32 {
    // Magnitudes order like their bits, and integers have a vector maximum without rules for NaN.
    let mut largest = 0;
    for value in values {
        largest = largest.max(value.to_bits() & 0x7fff_ffff);
    }
    f32::from_bits(largest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::MatrixView;
    use rand_core::Rng;

    const FORMATS: [Format; 5] =
        [Format::F32, Format::F16, Format::Bf16, Format::Fp8Block, Format::Int4Group32];

    fn uniform(seed: u64) -> impl FnMut() -> f32 {
        let mut rng = rand_pcg::Pcg64Mcg::new(u128::from(seed) | 1);
        move || (rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    #[test]
    fn instruction_sets_give_the_same_bytes() {
        let (rows, cols) = (300, 261);
        let mut random = uniform(3);
        let values: Vec<f32> = (0..rows * cols).map(|_| random().powi(5) * 3.0).collect();
        for format in FORMATS {
            let layout = MatrixLayout { format, rows, cols };
            let [baseline, detected] = [Isa::Portable, Isa::detect()].map(|isa| {
                let (mut weight, mut scale) =
                    (vec![0xaa; layout.weight_bytes()], vec![0xaa; layout.scale_bytes()]);
                let encoded = layout.encode_with(isa, 0, &values, None, &mut weight, &mut scale);
                (encoded, weight, scale)
            });
            assert!(baseline == detected, "{format:?}");
        }
    }

    #[test]
    fn parts_from_any_block_on_are_the_whole() {
        let (rows, cols) = (300, 70);
        let mut random = uniform(4);
        let values: Vec<f32> = (0..rows * cols).map(|_| random()).collect();
        for format in FORMATS {
            let layout = MatrixLayout { format, rows, cols };
            let (mut weight, mut scale) = (vec![0; layout.weight_bytes()], vec![0; layout.scale_bytes()]);
            let whole = layout.encode(0, &values, None, &mut weight, &mut scale).unwrap();
            let mut sum = Encoded::default();
            let (mut weights, mut scales) = (Vec::new(), Vec::new());
            for from in (0..rows).step_by(128) {
                let part = MatrixLayout { rows: 128.min(rows - from), ..layout };
                let (mut weight, mut scale) = (vec![0; part.weight_bytes()], vec![0; part.scale_bytes()]);
                let values = &values[from * cols..][..part.rows * cols];
                sum += layout.encode(from, values, None, &mut weight, &mut scale).unwrap();
                weights.append(&mut weight);
                scales.append(&mut scale);
            }
            assert!((weights, scales, sum) == (weight, scale, whole), "{format:?}");
        }
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_named_and_nothing_written() {
        for format in FORMATS {
            let layout = MatrixLayout { format, rows: 2, cols: 40 };
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
                let mut values = vec![1.0; 80];
                (values[57], values[63]) = (bad, f32::NAN);
                let (mut weight, mut scale) = (vec![7; layout.weight_bytes()], vec![7; layout.scale_bytes()]);
                let result = layout.encode(0, &values, None, &mut weight, &mut scale);
                assert_eq!(result, Err(NonFiniteValue { index: 57 }), "{format:?}");
                assert!(weight.iter().chain(&scale).all(|&b| b == 7), "{format:?}");
            }
        }
    }

    #[test]
    fn what_half_precision_cannot_hold_is_counted() {
        let encode = |format, values: &[f32]| {
            let layout = MatrixLayout { format, rows: 1, cols: values.len() };
            let mut weight = vec![0; layout.weight_bytes()];
            let encoded = layout.encode(0, values, None, &mut weight, &mut []).unwrap();
            let mut decoded = vec![0.0; values.len()];
            MatrixView::new(layout, &weight, &[]).decode(0, 0, &mut decoded);
            (decoded, encoded.saturated, encoded.vanished)
        };
        let (tiny, least) = (2f32.powi(-25), 2f32.powi(-24));
        let values = [65504.0, 65519.9, 65520.0, -1e9, tiny, -tiny.next_up(), 0.0, -0.0];
        let want = vec![65504.0, 65504.0, 65504.0, -65504.0, 0.0, -least, 0.0, 0.0];
        assert_eq!(encode(Format::F16, &values), (want, 2, 1));

        let most = half::bf16::MAX.to_f32();
        let values = [f32::MAX, f32::MIN, most, f32::from_bits(1), -f32::from_bits(0x8001), 3.0];
        let want = vec![most, -most, most, 0.0, -f32::from_bits(0x1_0000), 3.0];
        assert_eq!(encode(Format::Bf16, &values), (want, 2, 1));
        assert_eq!(encode(Format::F32, &values), (values.to_vec(), 0, 0));
    }

    #[test]
    fn int4_values_no_scale_reaches_are_counted_and_finite() {
        let layout = MatrixLayout { format: Format::Int4Group32, rows: 1, cols: 33 };
        let (mut weight, mut scale) = (vec![0; layout.weight_bytes()], vec![0; layout.scale_bytes()]);
        let mut values = vec![1.0; 33];
        (values[0], values[1], values[32]) = (f32::MAX, f32::MIN, f32::from_bits(3));
        let encoded = layout.encode(0, &values, None, &mut weight, &mut scale).unwrap();
        let mut decoded = [0.0; 33];
        MatrixView::new(layout, &weight, &scale).decode(0, 0, &mut decoded);
        assert_eq!(encoded.saturated, 2);
        assert!(decoded.iter().all(|v| v.is_finite()));
        assert!(decoded[0] > f32::MAX * 0.87 && decoded[1] < f32::MIN * 0.99, "{decoded:?}");
    }
}
