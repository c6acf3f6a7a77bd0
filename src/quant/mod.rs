//! Weight formats: layout, exact decoding, encoding. One file a format.
//!
//! Weights stay in their checkpoint format in memory; kernels decode them on the way into registers through
//! [`MatrixView`], which is a format, a size and two byte slices exactly as they stand on disk.

mod encode;
pub mod fp8;
pub mod int4;
mod int4_scale;
mod kept;
mod narrow;
pub mod plain;

pub use encode::{Encoded, NonFiniteValue};

/// How the elements of a matrix are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// e4m3 with an F32 scale per 128×128 block: [`fp8`].
    Fp8Block,
    /// 4-bit integers with a BF16 scale per 32 columns of a row: [`int4`].
    Int4Group32,
}

impl Format {
    /// The name used in reports and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Format::F32 => "f32",
            Format::F16 => "fp16",
            Format::Bf16 => "bf16",
            Format::Fp8Block => "fp8-block",
            Format::Int4Group32 => "int4-g32",
        }
    }
}

/// Format and size of a matrix [rows, cols], row-major; y = W·x maps cols to rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MatrixLayout {
    /// Element storage.
    pub format: Format,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
}

impl MatrixLayout {
    /// Bytes of the weights alone.
    pub fn weight_bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }

    /// Bytes of one row of weights.
    ///
    /// For INT4 a row is whole 32-bit words, as compressed-tensors packs it.
    pub fn row_bytes(&self) -> usize {
        match self.format {
            Format::F32 => self.cols * 4,
            Format::F16 | Format::Bf16 => self.cols * 2,
            Format::Fp8Block => self.cols,
            Format::Int4Group32 => self.cols.div_ceil(int4::PER_WORD) * 4,
        }
    }

    /// Rows and columns of the scale matrix, if the format has one. Ragged edges count as a block.
    pub fn scale_shape(&self) -> Option<[usize; 2]> {
        match self.format {
            Format::F32 | Format::F16 | Format::Bf16 => None,
            Format::Fp8Block => Some([self.rows.div_ceil(fp8::BLOCK), self.cols.div_ceil(fp8::BLOCK)]),
            Format::Int4Group32 => Some([self.rows, self.cols.div_ceil(int4::GROUP)]),
        }
    }

    /// Bytes of the scales: F32 for FP8 blocks, BF16 for INT4 groups.
    pub fn scale_bytes(&self) -> usize {
        let element = if self.format == Format::Int4Group32 { 2 } else { 4 };
        self.scale_shape().map_or(0, |[r, c]| r * c * element)
    }
}

/// A matrix in memory, borrowed.
#[derive(Debug, Clone, Copy)]
pub struct MatrixView<'a> {
    layout: MatrixLayout,
    weight: &'a [u8],
    scale: &'a [u8],
}

impl<'a> MatrixView<'a> {
    /// # Panics
    /// If a slice's length is not what the layout implies: that is a bug of the caller, who sized them.
    pub fn new(layout: MatrixLayout, weight: &'a [u8], scale: &'a [u8]) -> MatrixView<'a> {
        assert_eq!(weight.len(), layout.weight_bytes(), "weight bytes of {layout:?}");
        assert_eq!(scale.len(), layout.scale_bytes(), "scale bytes of {layout:?}");
        MatrixView { layout, weight, scale }
    }

    /// Format and size.
    pub fn layout(&self) -> MatrixLayout {
        self.layout
    }

    /// The bytes of the weights and of the scales.
    pub fn bytes(&self) -> (&'a [u8], &'a [u8]) {
        (self.weight, self.scale)
    }

    /// Decodes columns `col .. col + out.len()` of `row`, exactly: every format's values are f32 values, and the
    /// scale is multiplied once.
    ///
    /// # Panics
    /// If the range leaves the matrix.
    #[inline(always)]
    pub fn decode(&self, row: usize, col: usize, out: &mut [f32]) {
        let MatrixLayout { format, rows, cols } = self.layout;
        assert!(row < rows && col + out.len() <= cols, "decode outside the matrix");
        let bytes = &self.weight[row * self.layout.row_bytes()..][..self.layout.row_bytes()];
        match format {
            Format::F32 => plain::decode_f32(bytes, col, out),
            Format::F16 => plain::decode_f16(bytes, col, out),
            Format::Bf16 => plain::decode_bf16(bytes, col, out),
            Format::Fp8Block => fp8::decode_row(bytes, self.scale, row, col, cols, out),
            Format::Int4Group32 => int4::decode_row(bytes, self.scale, row, col, cols, out),
        }
    }
}
