//! FP8 as plain arithmetic: matrices of codes and scales, rows quantised, f64 products of both.

use abruzzi::device::cuda::kernels::dequant::QuantisedTensor;
use abruzzi::device::cuda::{CudaMatrix, Gpu};
use abruzzi::quant::{Format, MatrixLayout, fp8};
use half::bf16;

use crate::harness::Random;

/// A matrix of finite FP8 codes with scales of many sizes.
pub struct Weights {
    pub layout: MatrixLayout,
    pub codes: Vec<u8>,
    pub scales: Vec<f32>,
}

pub fn layout(rows: usize, cols: usize) -> MatrixLayout {
    MatrixLayout { format: Format::Fp8Block, rows, cols }
}

impl Weights {
    pub fn random(random: &mut Random, rows: usize, cols: usize) -> Weights {
        // Of size one over √cols, so that products are about as large as x.
        let size = 0.01 / (cols as f32).sqrt();
        let codes = (0..rows * cols).map(|_| encode(random.normal() * 100.0)).collect();
        let blocks = rows.div_ceil(fp8::BLOCK) * cols.div_ceil(fp8::BLOCK);
        let scales = (0..blocks).map(|_| size * (1.0 + 0.9 * random.unit())).collect();
        Weights { layout: layout(rows, cols), codes, scales }
    }

    pub fn device(&self, gpu: &Gpu) -> CudaMatrix {
        CudaMatrix::from_parts(gpu, self.layout, &self.codes, bytemuck::cast_slice(&self.scales)).unwrap()
    }

    /// y = W·x in f64.
    pub fn times(&self, x: &[f64]) -> Vec<f64> {
        let MatrixLayout { rows, cols, .. } = self.layout;
        let values = decoded();
        let product = |row: usize| {
            let codes = &self.codes[row * cols..][..cols];
            let scales = &self.scales[row / fp8::BLOCK * cols.div_ceil(fp8::BLOCK)..];
            let block = |(c, x): (&[u8], &[f64])| {
                c.iter().zip(x).map(|(&c, x)| f64::from(values[usize::from(c)]) * x).sum::<f64>()
            };
            let blocks = codes.chunks(fp8::BLOCK).zip(x.chunks(fp8::BLOCK));
            blocks.zip(scales).map(|(pair, &s)| block(pair) * f64::from(s)).sum()
        };
        (0..rows).map(product).collect()
    }
}

fn decoded() -> [f32; 256] {
    std::array::from_fn(|code| fp8::decode(code as u8))
}

/// The code whose value is nearest, ties to the even code.
pub fn encode(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let magnitude = f64::from(x.abs().min(fp8::MAX));
    // Values grow with codes: find the largest that is not above.
    let (mut below, mut end) = (0u8, 0x7f);
    while end - below > 1 {
        let middle = below.midpoint(end);
        if f64::from(fp8::decode(middle)) <= magnitude { below = middle } else { end = middle }
    }
    let above = (below + 1).min(0x7e);
    let (under, over) =
        (magnitude - f64::from(fp8::decode(below)), f64::from(fp8::decode(above)) - magnitude);
    let nearest = if over < under || (over == under && below % 2 == 1) { above } else { below };
    nearest | if x.is_sign_negative() { 0x80 } else { 0 }
}

/// Codes and the scale of each group of 128, of one row.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    pub codes: Vec<u8>,
    pub scales: Vec<f32>,
}

impl Row {
    pub fn quantise(x: &[f32]) -> Row {
        let mut row = Row { codes: Vec::new(), scales: Vec::new() };
        for group in x.chunks(fp8::BLOCK) {
            let finite = group.iter().filter(|v| v.is_finite());
            let largest = finite.fold(448.0 * f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
            row.scales.push(largest / 448.0);
            let code = |v: &f32| encode(if v.is_finite() { v * (448.0 / largest) } else { f32::NAN });
            row.codes.extend(group.iter().map(code));
        }
        row
    }

    pub fn values(&self) -> Vec<f64> {
        let values = decoded();
        let value = |(i, &c): (usize, &u8)| {
            f64::from(values[usize::from(c)]) * f64::from(self.scales[i / fp8::BLOCK])
        };
        self.codes.iter().enumerate().map(value).collect()
    }
}

/// What the device holds of a row; NaN codes have one form.
pub fn rows_of(tensor: &QuantisedTensor) -> Vec<Row> {
    let (codes, scales) = (tensor.codes.download().unwrap(), tensor.scales.download().unwrap());
    let row = |r: usize| Row {
        codes: codes[r * tensor.row_stride..][..tensor.cols].iter().map(|&c| one_nan(c)).collect(),
        scales: scales.chunks(tensor.scale_stride).map(|group| group[r]).collect(),
    };
    let beyond = tensor.rows.next_multiple_of(4) - tensor.rows;
    assert!(codes[tensor.rows * tensor.row_stride..].iter().all(|&c| c == 0xff), "codes of unused rows");
    for group in scales.chunks(tensor.scale_stride) {
        assert!(group[tensor.rows..].iter().skip(beyond).all(|s| s.is_nan()), "scales of unused rows");
    }
    (0..tensor.rows).map(row).collect()
}

fn one_nan(code: u8) -> u8 {
    if code & 0x7f == 0x7f { 0x7f } else { code }
}

pub fn poison(gpu: &Gpu, tensor: &mut QuantisedTensor) {
    tensor.codes.all_mut().fill_bytes(gpu, 0xff).unwrap();
    tensor.scales.all_mut().fill_bytes(gpu, 0xff).unwrap();
}

/// bf16 values, a row here and there of another magnitude.
pub fn activations(random: &mut Random, rows: usize, cols: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(rows * cols);
    for _ in 0..rows {
        let size = [1.0, 1.0, 1.0, 30.0, 0.01][random.below(5)];
        values.extend((0..cols).map(|_| bf16::from_f32(random.normal() * size).to_f32()));
    }
    values
}

pub fn to_f32(values: Vec<f64>) -> Vec<f32> {
    values.into_iter().map(|v| v as f32).collect()
}
