//! Activations and weights in device memory, as kernel launchers take them.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use half::bf16;

use super::gpu::Gpu;
use super::memory::{Buffer, Slice};
use super::params::{TensorMap, WeightMatrix};
use super::staging::Staging;
use crate::checkpoint::region::{HostMatrix, HostPart, PART_ALIGN};
use crate::device::{Precision, Shape};
use crate::error::Result;
use crate::quant::{Format, MatrixLayout, MatrixView};

/// Elements that a row's length is rounded up to, so that every row begins on 16 bytes.
const STRIDE: usize = 8;

/// Activations [rows, cols], row-major, f32 or bf16.
pub struct CudaTensor {
    memory: Buffer<u8>,
    precision: Precision,
    rows: usize,
    max_rows: usize,
    cols: usize,
}

impl Shape for CudaTensor {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }
}

impl CudaTensor {
    /// Room for `max_rows` rows; none are in use yet, and none is initialised.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`], [`crate::Error::Cuda`].
    pub fn new(gpu: &Gpu, max_rows: usize, cols: usize, precision: Precision) -> Result<CudaTensor> {
        let bytes = max_rows * cols.next_multiple_of(STRIDE) * element_bytes(precision);
        let memory = gpu.alloc(bytes, &format!("activations of {max_rows} tokens"))?;
        Ok(CudaTensor { memory, precision, rows: 0, max_rows, cols })
    }

    /// A tensor holding `values` [rows, cols], rounded to the precision.
    ///
    /// # Errors
    /// As [`CudaTensor::new`].
    ///
    /// # Panics
    /// If `values` is not whole rows.
    pub fn upload(gpu: &Gpu, cols: usize, precision: Precision, values: &[f32]) -> Result<CudaTensor> {
        let rows = values.len() / cols;
        assert_eq!(values.len(), rows * cols, "whole rows of {cols}");
        let mut tensor = CudaTensor::new(gpu, rows, cols, precision)?;
        tensor.resize(rows);
        let mut host = vec![0u8; tensor.memory.len()];
        tensor.encode(values, &mut host);
        tensor.memory.all_mut().write(gpu, &host)?;
        Ok(tensor)
    }

    /// The rows in use as f32, after everything issued before.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`], also for what failed before.
    pub fn download(&self, gpu: &Gpu, out: &mut Vec<f32>) -> Result<()> {
        decode(&self.used().download(gpu)?, self.precision, self.cols, self.stride(), out);
        Ok(())
    }

    /// Starts copying the rows in use to the host, as they are after everything issued before.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    pub fn post(&self, gpu: &Gpu) -> Result<CudaRows> {
        let (precision, cols, stride) = (self.precision, self.cols, self.stride());
        Ok(CudaRows { staging: Staging::download(gpu, self.used())?, precision, cols, stride })
    }

    /// Rows from `first` on become `values`, rounded to the precision, after everything issued before.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    ///
    /// # Panics
    /// If they are not whole rows in use.
    pub fn write_rows(&mut self, gpu: &Gpu, first: usize, values: &[f32]) -> Result<()> {
        let rows = values.len() / self.cols;
        assert_eq!(values.len(), rows * self.cols, "whole rows of {}", self.cols);
        assert!(first + rows <= self.rows, "rows {first}..{} of {}", first + rows, self.rows);
        let pitch = self.stride() * element_bytes(self.precision);
        let to = self.memory.slice_mut(first * pitch..(first + rows) * pitch);
        let (address, len) = (to.address(), to.len());
        // SAFETY: the rows are as many bytes of this tensor, which is borrowed alone; the stream orders the copy.
        unsafe { Staging::upload(gpu, address, len, |bytes| self.encode(values, bytes)) }
    }

    /// Makes the rows in use NaN.
    pub(super) fn blank(&mut self, gpu: &Gpu) -> Result<()> {
        let bytes = self.used().len();
        self.memory.slice_mut(..bytes).fill_bytes(gpu, 0xff)
    }

    /// The bytes of the rows in use.
    fn used(&self) -> Slice<'_, u8> {
        self.memory.slice(..self.rows * self.stride() * element_bytes(self.precision))
    }

    /// Writes whole rows as they lie in the device's memory; what is between them becomes zero.
    fn encode(&self, values: &[f32], out: &mut [u8]) {
        let pitch = self.stride() * element_bytes(self.precision);
        for (row, bytes) in values.chunks_exact(self.cols).zip(out.chunks_exact_mut(pitch)) {
            let (row_bytes, padding) = bytes.split_at_mut(self.cols * element_bytes(self.precision));
            match self.precision {
                Precision::Full => row_bytes.copy_from_slice(bytemuck::cast_slice(row)),
                Precision::Working => {
                    for (v, b) in row.iter().zip(row_bytes.chunks_exact_mut(2)) {
                        b.copy_from_slice(&bf16::from_f32(*v).to_le_bytes());
                    }
                }
            }
            padding.fill(0);
        }
    }

    /// Gives the memory another shape, if it is large enough: no rows are in use after it.
    pub(super) fn reshape(&mut self, max_rows: usize, cols: usize) -> bool {
        let fits =
            max_rows * cols.next_multiple_of(STRIDE) * element_bytes(self.precision) <= self.memory.len();
        if fits {
            (self.rows, self.max_rows, self.cols) = (0, max_rows, cols);
        }
        fits
    }

    /// Takes `rows` rows into use; their content is about to be overwritten.
    ///
    /// # Panics
    /// If there is no room for them.
    pub fn resize(&mut self, rows: usize) {
        assert!(rows <= self.max_rows, "{rows} rows, room for {}", self.max_rows);
        self.rows = rows;
    }

    /// Rows there is room for.
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Element type.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Elements from row to row.
    pub fn stride(&self) -> usize {
        self.cols.next_multiple_of(STRIDE)
    }

    /// First byte, as kernels take it.
    pub fn address(&self) -> u64 {
        self.memory.all().address()
    }

    /// Some columns of the rows in use, to be written.
    ///
    /// # Panics
    /// If there are no such columns.
    pub(super) fn columns_mut(&mut self, cols: Range<usize>) -> ColumnsMut<'_> {
        assert!(cols.start <= cols.end && cols.end <= self.cols, "columns {cols:?} of {}", self.cols);
        ColumnsMut {
            address: self.address() + (cols.start * element_bytes(self.precision)) as u64,
            rows: self.rows,
            cols: cols.len(),
            stride: self.stride(),
            precision: self.precision,
            tensor: PhantomData,
        }
    }

    /// The memory of all rows, padding included; for tests that poison it.
    #[doc(hidden)]
    pub fn memory_mut(&mut self) -> &mut Buffer<u8> {
        &mut self.memory
    }
}

/// Columns of a tensor that a product writes: all of them, or those that a piece of a matrix makes.
pub(super) struct ColumnsMut<'t> {
    /// First element.
    pub address: u64,
    pub rows: usize,
    pub cols: usize,
    /// Elements from row to row.
    pub stride: usize,
    pub precision: Precision,
    tensor: PhantomData<&'t mut CudaTensor>,
}

/// Rows of a tensor on their way to the host.
pub struct CudaRows {
    staging: Staging,
    precision: Precision,
    cols: usize,
    stride: usize,
}

impl CudaRows {
    /// The rows, once they are there.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`], also for what failed before.
    pub fn take(self, out: &mut Vec<f32>) -> Result<()> {
        decode(self.staging.bytes()?, self.precision, self.cols, self.stride, out);
        Ok(())
    }
}

/// Rows as they lie in the device's memory, as f32.
fn decode(rows: &[u8], precision: Precision, cols: usize, stride: usize, out: &mut Vec<f32>) {
    out.clear();
    for bytes in rows.chunks_exact(stride * element_bytes(precision)) {
        let row = &bytes[..cols * element_bytes(precision)];
        match precision {
            Precision::Full => {
                out.extend(row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            }
            Precision::Working => {
                out.extend(row.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()));
            }
        }
    }
}

fn element_bytes(precision: Precision) -> usize {
    match precision {
        Precision::Full => 4,
        Precision::Working => 2,
    }
}

/// A weight matrix in its checkpoint format, in memory shared with those beside it.
#[derive(Clone)]
pub struct CudaMatrix {
    memory: Arc<Buffer<u8>>,
    layout: MatrixLayout,
    weight: Range<usize>,
    scale: Range<usize>,
}

impl CudaMatrix {
    /// Copies a matrix to the device.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`], [`crate::Error::Cuda`].
    pub fn upload(gpu: &Gpu, host: &HostMatrix) -> Result<CudaMatrix> {
        let scale = host.scale.as_ref().map_or(&[][..], HostPart::bytes);
        CudaMatrix::from_parts(gpu, host.layout, host.weight.bytes(), scale)
    }

    /// Copies a matrix to the device, given its weights and scales as the checkpoint has them.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`], [`crate::Error::Cuda`].
    ///
    /// # Panics
    /// If a part's length is not what the layout implies.
    pub fn from_parts(gpu: &Gpu, layout: MatrixLayout, weight: &[u8], scale: &[u8]) -> Result<CudaMatrix> {
        // Checks the lengths.
        let _ = MatrixView::new(layout, weight, scale);
        let (weight_at, scale_at) = parts(layout);
        let mut memory = gpu.alloc(scale_at.end, "a weight matrix")?;
        memory.slice_mut(weight_at).write(gpu, weight)?;
        memory.slice_mut(scale_at).write(gpu, scale)?;
        Ok(CudaMatrix::within(Arc::new(memory), layout))
    }

    /// A matrix that lies at the beginning of `memory`, as [`CudaMatrix::from_parts`] lays one out.
    ///
    /// # Panics
    /// If the memory is too small.
    pub(super) fn within(memory: Arc<Buffer<u8>>, layout: MatrixLayout) -> CudaMatrix {
        let (weight, scale) = parts(layout);
        assert!(scale.end <= memory.len(), "{layout:?} in {} bytes", memory.len());
        CudaMatrix { memory, layout, weight, scale }
    }

    /// Format and size.
    pub fn layout(&self) -> MatrixLayout {
        self.layout
    }

    /// The matrix as kernels take it.
    pub(super) fn params(&self) -> WeightMatrix {
        let scale = self.memory.slice(self.scale.clone());
        WeightMatrix {
            weight: self.memory.slice(self.weight.clone()).address(),
            scale: if scale.is_empty() { 0 } else { scale.address() },
            rows: self.layout.rows as u32,
            cols: self.layout.cols as u32,
            format: weight_format(self.layout.format),
            reserved: 0,
        }
    }
}

/// Where a matrix in memory of its own has its weights and its scales.
pub(super) fn parts(layout: MatrixLayout) -> (Range<usize>, Range<usize>) {
    let weight = layout.weight_bytes();
    let scale = weight.next_multiple_of(PART_ALIGN);
    (0..weight, scale..scale + layout.scale_bytes())
}

/// The number `params.h` gives a format.
pub(super) fn weight_format(format: Format) -> u32 {
    use super::params::WeightFormat as F;
    match format {
        Format::F32 => F::WEIGHT_F32,
        Format::F16 => F::WEIGHT_F16,
        Format::Bf16 => F::WEIGHT_BF16,
        Format::Fp8Block => F::WEIGHT_FP8_BLOCK,
        Format::Int4Group32 => F::WEIGHT_INT4_GROUP32,
    }
}

/// What TMA sees of a row-major matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct MapShape {
    /// Element type.
    pub element: MapElement,
    /// Elements of a row, then rows, then planes (1 for a matrix).
    pub extent: [u64; 3],
    /// Bytes from row to row and from plane to plane; multiples of 16.
    pub pitch: [u64; 2],
    /// Elements, rows and planes of a box, each at most 256; a row of the box at most 128 bytes with the swizzle.
    pub tile: [u32; 3],
    /// 128-byte swizzle (for wgmma), or none.
    pub swizzle: bool,
}

/// Element type of a tensor map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MapElement {
    /// One byte: FP8 codes.
    Byte,
    /// bf16.
    Bf16,
    /// f32.
    F32,
}

impl MapShape {
    /// Encodes a 3-D tensor map over memory at `address` (aligned to 16 bytes).
    ///
    /// # Errors
    /// [`crate::Error::Cuda`] if the driver refuses it.
    pub fn encode(&self, address: u64) -> Result<TensorMap> {
        use cudarc::driver::sys;
        #[repr(C, align(64))]
        struct Map(sys::CUtensorMap);
        let mut map = Map(sys::CUtensorMap { opaque: [0; 16] });
        let data_type = match self.element {
            MapElement::Byte => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            MapElement::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            MapElement::F32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        };
        let swizzle = if self.swizzle {
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B
        } else {
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE
        };
        // SAFETY: every pointer is to a local of the length that rank 3 implies; the address is only recorded.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map.0,
                data_type,
                3,
                address as *mut _,
                self.extent.as_ptr(),
                self.pitch.as_ptr(),
                self.tile.as_ptr(),
                [1u32; 3].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(super::failed("cuTensorMapEncodeTiled"))?;
        Ok(TensorMap { words: map.0.opaque })
    }
}
