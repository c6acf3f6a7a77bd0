//! Weight matrices of the trunk: in device memory, or in host memory and brought in pieces whenever they are used.
//!
//! Pieces pass through two lanes of device memory, on a stream of copies of their own. While computing reads the piece in
//! one lane, the piece that followed it the last time is on its way into the other. A piece that comes out of turn is copied when
//! it is asked for, so a wrong expectation costs time alone.
//!
//! Invariant: a lane is written only behind everything that was issued to read it, and read only behind its copy.

use std::any::Any;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::copies::CudaFence;
use super::device::CudaDevice;
use super::failed;
use super::gpu::Gpu;
use super::memory::Buffer;
use super::staging::Pin;
use super::tensor::{CudaMatrix, CudaTensor, parts};
use crate::checkpoint::region::{HostMatrix, HostPart, HostRegion};
use crate::device::HostBytes;
use crate::error::Result;
use crate::quant::MatrixLayout;

/// A weight matrix as the forward pass names it.
pub enum CudaWeights {
    /// In device memory.
    Resident(CudaMatrix),
    /// In host memory.
    Hosted(HostedMatrix),
}

/// A matrix that is brought in pieces.
pub struct HostedMatrix {
    /// All of it.
    pub(super) host: HostMatrix,
    /// Its pieces, by their number in the [`TrunkStream`].
    pub(super) pieces: Range<usize>,
}

impl CudaWeights {
    /// Format and size.
    pub fn layout(&self) -> MatrixLayout {
        match self {
            CudaWeights::Resident(matrix) => matrix.layout(),
            CudaWeights::Hosted(matrix) => matrix.host.layout,
        }
    }
}

/// Device memory that pieces pass through.
struct Lane {
    memory: Arc<Buffer<u8>>,
    /// What was copied into it last.
    holds: Option<usize>,
    /// Behind that copy.
    arrived: Option<CudaFence>,
    /// Behind everything that reads it.
    used: Option<CudaFence>,
}

/// The matrices in host memory, and how they get to the device.
pub(super) struct TrunkStream {
    gpu: Gpu,
    stream: sys::CUstream,
    pieces: Vec<HostMatrix>,
    /// By piece, which one was used after it the last time; at first the one behind it.
    followers: Vec<usize>,
    /// Two, from the first use on: their size is that of the largest piece.
    lanes: Vec<Lane>,
    /// The lane used last, and the piece that was in it.
    latest: Option<(usize, usize)>,
    /// Page-locked regions, by first byte; why not, where the system refuses.
    pins: HashMap<usize, Result<Box<dyn Any + Send + Sync>, String>>,
}

// SAFETY: the stream is a handle of the context, used from threads that have made it current.
unsafe impl Send for TrunkStream {}

/// A region as what is page-locked.
struct Whole(Arc<HostRegion>);

impl AsRef<[u8]> for Whole {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl TrunkStream {
    pub fn new(gpu: &Gpu) -> Result<TrunkStream> {
        gpu.bind()?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(failed("cuStreamCreate"))?;
        Ok(TrunkStream {
            gpu: gpu.clone(),
            stream,
            pieces: Vec::new(),
            followers: Vec::new(),
            lanes: Vec::new(),
            latest: None,
            pins: HashMap::new(),
        })
    }

    /// Takes in a matrix, to be brought at most about `piece` bytes at a time: [`HostMatrix::PIECE_ROWS`] rows at least.
    pub fn host(&mut self, host: &HostMatrix, piece: usize) -> HostedMatrix {
        self.pin(&host.weight);
        if let Some(scale) = &host.scale {
            self.pin(scale);
        }
        let rows = rows_a_piece(host.layout, piece);
        let first = self.pieces.len();
        for start in (0..host.layout.rows).step_by(rows) {
            self.pieces.push(host.rows(start..(start + rows).min(host.layout.rows)));
            self.followers.push(self.pieces.len());
        }
        // The last is followed by the first: so it is if they are used in this order.
        if let Some(last) = self.followers.last_mut() {
            *last = 0;
        }
        if first > 0 {
            self.followers[first - 1] = first;
        }
        HostedMatrix { host: host.clone(), pieces: first..self.pieces.len() }
    }

    /// Why host memory is not page-locked, if it is not.
    pub fn unpinned(&self) -> Option<&str> {
        self.pins.values().find_map(|pin| pin.as_ref().err()).map(String::as_str)
    }

    /// Page-locks the region of a part, once.
    fn pin(&mut self, part: &HostPart) {
        let bytes: HostBytes = Arc::new(Whole(part.region.clone()));
        let (gpu, start) = (&self.gpu, part.region.bytes().as_ptr() as usize);
        self.pins.entry(start).or_insert_with(|| match Pin::new(gpu, bytes) {
            Ok(pin) => Ok(Box::new(pin)),
            // Copies then go through the driver's own page-locked memory, and the host waits for them.
            Err(error) => Err(error.to_string()),
        });
    }

    /// A piece, for computing that is issued before [`TrunkStream::used`] is called.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`] for the lanes, [`crate::Error::Cuda`].
    pub fn bring(&mut self, piece: usize) -> Result<CudaMatrix> {
        self.make_lanes()?;
        let lane = match self.lane_of(piece) {
            Some(lane) => lane,
            None => {
                let lane = self.free_lane();
                self.copy(piece, lane)?;
                lane
            }
        };
        let (lane, layout) = (&self.lanes[lane], self.pieces[piece].layout);
        if let Some(arrived) = &lane.arrived {
            arrived.before_computing()?;
        }
        Ok(CudaMatrix::within(lane.memory.clone(), layout))
    }

    /// Computing that reads the piece brought last has been issued: the next one may be copied.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    pub fn used(&mut self, piece: usize) -> Result<()> {
        let Some(lane) = self.lane_of(piece) else { return Ok(()) };
        self.lanes[lane].used = Some(CudaFence::of_computing(&self.gpu)?);
        if let Some((_, before)) = self.latest.replace((lane, piece)) {
            self.followers[before] = piece;
        }
        let next = self.followers[piece];
        if self.lane_of(next).is_none() {
            self.copy(next, self.free_lane())?;
        }
        Ok(())
    }

    fn lane_of(&self, piece: usize) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.holds == Some(piece))
    }

    /// The lane that was not used last.
    fn free_lane(&self) -> usize {
        self.latest.map_or(0, |(lane, _)| 1 - lane)
    }

    fn make_lanes(&mut self) -> Result<()> {
        let bytes = self.pieces.iter().map(|piece| parts(piece.layout).1.end).max().unwrap_or(0);
        while self.lanes.len() < 2 {
            let memory = Arc::new(self.gpu.alloc(bytes, "a part of the trunk on its way")?);
            self.lanes.push(Lane { memory, holds: None, arrived: None, used: None });
        }
        Ok(())
    }

    /// Copies a piece into a lane, behind everything issued to read what is there.
    fn copy(&mut self, piece: usize, lane: usize) -> Result<()> {
        self.gpu.bind()?;
        let Lane { memory, holds, arrived, used } = &mut self.lanes[lane];
        *holds = None;
        if let Some(used) = used {
            used.before(self.stream)?;
        }
        let host = &self.pieces[piece];
        let (weight, scale) = parts(host.layout);
        let scales = host.scale.as_ref().map_or(&[][..], HostPart::bytes);
        for (range, bytes) in [(weight, host.weight.bytes()), (scale, scales)] {
            if !bytes.is_empty() {
                // SAFETY: the lane has the range, and the stream orders the copy behind its readers. The host memory is
                // kept by `pieces` until the stream has been waited for, and nobody writes to it.
                unsafe { result::memcpy_htod_async(memory.slice(range).address(), bytes, self.stream) }
                    .map_err(failed("cuMemcpyHtoDAsync"))?;
            }
        }
        *arrived = Some(CudaFence::record(&self.gpu, self.stream, None)?);
        *holds = Some(piece);
        Ok(())
    }
}

impl Drop for TrunkStream {
    fn drop(&mut self) {
        if self.gpu.bind().is_err() {
            // Copies may still read the host memory.
            std::mem::forget(std::mem::take(&mut self.pieces));
            return;
        }
        // SAFETY: created by `new`. If this fails the context has failed and copies nothing any more.
        let _ = unsafe { result::stream::synchronize(self.stream) };
        // SAFETY: created by `new`, destroyed once; nothing is on it any more.
        let _ = unsafe { result::stream::destroy(self.stream) };
    }
}

impl CudaDevice {
    /// Calls `issue` with a matrix and row 0 or, where it is on the host, with each piece of it and the piece's first row, in
    /// order. The pieces are there for what is issued in the call.
    pub(super) fn each_piece(
        &self,
        w: &CudaWeights,
        mut issue: impl FnMut(&CudaMatrix, usize) -> Result<()>,
    ) -> Result<()> {
        let hosted = match w {
            CudaWeights::Resident(matrix) => return issue(matrix, 0),
            CudaWeights::Hosted(hosted) => hosted,
        };
        let mut trunk = self.trunk();
        let Some(stream) = &mut *trunk else { unreachable!("what is hosted has a stream") };
        let mut first = 0;
        for piece in hosted.pieces.clone() {
            let matrix = stream.bring(piece)?;
            let issued = issue(&matrix, first);
            // Whatever was issued before it failed reads the piece.
            stream.used(piece)?;
            issued?;
            first += matrix.layout().rows;
        }
        Ok(())
    }

    /// Rows of a table in host memory.
    pub(super) fn embed_hosted(&self, table: &HostMatrix, ids: &[u32], out: &mut CudaTensor) -> Result<()> {
        let (view, cols) = (table.view(), table.layout.cols);
        let mut rows = vec![0.0; ids.len() * cols];
        for (&id, row) in ids.iter().zip(rows.chunks_exact_mut(cols)) {
            view.decode(id as usize, 0, row);
        }
        out.resize(ids.len());
        out.write_rows(self.gpu(), 0, &rows)
    }
}

/// Rows of a piece of at most about `piece` bytes: all of them, or whole scale blocks.
fn rows_a_piece(layout: MatrixLayout, piece: usize) -> usize {
    if parts(layout).1.end <= piece {
        return layout.rows.max(1);
    }
    let block = MatrixLayout { rows: HostMatrix::PIECE_ROWS, ..layout };
    (piece / parts(block).1.end).max(1) * HostMatrix::PIECE_ROWS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Format;

    #[test]
    fn pieces_are_whole_scale_blocks_and_no_larger_than_asked() {
        for format in [Format::F32, Format::F16, Format::Bf16, Format::Fp8Block, Format::Int4Group32] {
            for (rows, cols) in [(1usize, 1usize), (127, 33), (300, 130), (4096, 512), (18432, 7168)] {
                let layout = MatrixLayout { format, rows, cols };
                for piece in [1usize, 100_000, 64 << 20] {
                    let each = rows_a_piece(layout, piece);
                    assert!(
                        each >= rows || each.is_multiple_of(HostMatrix::PIECE_ROWS),
                        "{layout:?}: {each}"
                    );
                    let bytes = |rows| parts(MatrixLayout { rows, ..layout }).1.end;
                    let least = bytes(rows.min(HostMatrix::PIECE_ROWS));
                    for first in (0..rows).step_by(each) {
                        let bytes = bytes(each.min(rows - first));
                        assert!(bytes <= piece.max(least), "{layout:?} in {piece}: {bytes}");
                    }
                }
            }
        }
    }
}
