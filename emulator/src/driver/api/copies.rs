//! Copies and memsets.
//!
//! A copy between the device and pinned memory leaves at once and is executed when the schedule says; one with pageable
//! memory goes through a staging buffer, so the caller has it back only when it is done, as in CUDA.

use crate::check::Kind;
use crate::driver::args::In;
use crate::driver::session::Session;
use crate::driver::status::{Result, Status};
use crate::driver::work::{Action, Rows};

/// CUDA_MEMCPY2D.
#[repr(C)]
#[derive(Clone, Copy)]
struct Copy2d {
    from: Side,
    to: Side,
    width: usize,
    height: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Side {
    x: usize,
    y: usize,
    /// Host 1, device 2, array 3, unified 4.
    kind: u32,
    host: u64,
    device: u64,
    array: u64,
    pitch: usize,
}

impl Side {
    fn address(&self, width: usize) -> Result<(u64, u64)> {
        let base = match self.kind {
            1 => self.host,
            2 | 4 => self.device,
            _ => return Err(Status::NOT_SUPPORTED),
        };
        let pitch = if self.pitch == 0 { width } else { self.pitch };
        if pitch < width || base == 0 {
            return Err(Status::INVALID_VALUE);
        }
        let offset =
            self.y.checked_mul(pitch).and_then(|n| n.checked_add(self.x)).ok_or(Status::INVALID_VALUE)?;
        Ok((base.checked_add(offset as u64).ok_or(Status::INVALID_VALUE)?, pitch as u64))
    }
}

impl Session {
    /// Whether all of a host range is pinned; one that leaves its pinned memory is a finding.
    fn is_pinned(&mut self, at: u64, len: u64) -> Result<bool> {
        let Some((start, pinned)) = self.pinned_at(at) else { return Ok(false) };
        let end = start + pinned.len;
        if len <= end - at {
            return Ok(true);
        }
        let message = format!("[{at:#x}, +{len}) ends outside pinned memory [{start:#x}, {end:#x})");
        Err(self.refuse(Kind::HostCopy, message))
    }

    fn check_device(&mut self, at: u64, len: u64) -> Result {
        if self.memory.arena().is_live(at, len) {
            return Ok(());
        }
        let (kind, message) = self.outside_device(at, len);
        Err(self.refuse(kind, message))
    }

    /// A copy, its direction told by its addresses.
    fn copy(&mut self, to: u64, from: u64, rows: Rows, stream: Option<u64>) -> Result {
        if rows.total() == 0 {
            return Ok(());
        }
        let (from_len, to_len) = (rows.source_span(), rows.target_span());
        if from == 0 || to == 0 || from.checked_add(from_len).is_none() || to.checked_add(to_len).is_none() {
            return Err(Status::INVALID_VALUE);
        }
        let on_device = (self.memory.arena().contains(from), self.memory.arena().contains(to));
        if on_device.0 {
            self.check_device(from, from_len)?;
        }
        if on_device.1 {
            self.check_device(to, to_len)?;
        }
        let (action, pageable) = match on_device {
            (false, true) => {
                let pinned = self.is_pinned(from, from_len)?;
                (Action::Upload { from, to, rows, pinned }, !pinned)
            }
            (true, false) => {
                let pinned = self.is_pinned(to, to_len)?;
                (Action::Download { from, to, rows, pinned }, !pinned)
            }
            (true, true) => (Action::Move { from, to, rows }, false),
            (false, false) => {
                let pinned = self.is_pinned(from, from_len)? && self.is_pinned(to, to_len)?;
                (Action::HostMove { from, to, rows }, !pinned)
            }
        };
        let on = self.stream(stream.unwrap_or(0))?;
        let id = self.issue(on, action, Vec::new())?;
        // Copies within the device need not hold the host up.
        if pageable || stream.is_none() && on_device != (true, true) {
            self.synchronise(on, id)
        } else {
            Ok(())
        }
    }

    /// A copy whose device ends are given as such: a host address there is a mistake.
    fn copy_between(
        &mut self,
        to: (u64, bool),
        from: (u64, bool),
        bytes: usize,
        stream: Option<u64>,
    ) -> Result {
        if bytes > 0 {
            for (at, device) in [to, from] {
                if device && self.pinned_at(at).is_none() {
                    self.check_device(at, bytes as u64)?;
                }
            }
        }
        self.copy(to.0, from.0, Rows::one(bytes as u64), stream)
    }

    fn copy_2d(&mut self, copy: &In<Copy2d>, stream: Option<u64>) -> Result {
        let copy = copy.get()?;
        let (from, from_pitch) = copy.from.address(copy.width)?;
        let (to, to_pitch) = copy.to.address(copy.width)?;
        let rows = Rows { bytes: copy.width as u64, count: copy.height as u64, from_pitch, to_pitch };
        let largest = from_pitch.max(to_pitch).checked_mul(rows.count);
        largest.ok_or(Status::INVALID_VALUE)?;
        self.copy(to, from, rows, stream)
    }

    fn fill(&mut self, to: u64, value: u32, width: u64, count: usize, stream: u64) -> Result {
        let bytes = (count as u64).checked_mul(width).ok_or(Status::INVALID_VALUE)?;
        self.fill_rows(to, value, width, Rows::one(bytes), stream)
    }

    fn fill_2d(
        &mut self,
        to: u64,
        pitch: usize,
        value: (u32, u64),
        size: (usize, usize),
        stream: u64,
    ) -> Result {
        let bytes = (size.0 as u64).checked_mul(value.1).ok_or(Status::INVALID_VALUE)?;
        let pitch = pitch as u64;
        if pitch < bytes || pitch.checked_mul(size.1 as u64).is_none() || !pitch.is_multiple_of(value.1) {
            return Err(Status::INVALID_VALUE);
        }
        let rows = Rows { bytes, count: size.1 as u64, from_pitch: pitch, to_pitch: pitch };
        self.fill_rows(to, value.0, value.1, rows, stream)
    }

    fn fill_rows(&mut self, to: u64, value: u32, width: u64, rows: Rows, stream: u64) -> Result {
        let stream = self.stream(stream)?;
        if rows.total() == 0 {
            return Ok(());
        }
        if !to.is_multiple_of(width) {
            return Err(Status::INVALID_VALUE);
        }
        self.check_device(to, rows.target_span())?;
        self.issue(stream, Action::Fill { to, value, width, rows }, Vec::new())?;
        Ok(())
    }
}

api! {
    context fn cuMemcpy(to: u64, from: u64, bytes: usize) |s| { s.copy(to, from, Rows::one(bytes as u64), None) }

    context fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: u64) |s| {
        s.copy(to, from, Rows::one(bytes as u64), Some(stream))
    }

    context fn cuMemcpyHtoD_v2(to: u64, from: u64, bytes: usize) |s| {
        s.copy_between((to, true), (from, false), bytes, None)
    }

    context fn cuMemcpyHtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) |s| {
        s.copy_between((to, true), (from, false), bytes, Some(stream))
    }

    context fn cuMemcpyDtoH_v2(to: u64, from: u64, bytes: usize) |s| {
        s.copy_between((to, false), (from, true), bytes, None)
    }

    context fn cuMemcpyDtoHAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) |s| {
        s.copy_between((to, false), (from, true), bytes, Some(stream))
    }

    context fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) |s| {
        s.copy_between((to, true), (from, true), bytes, None)
    }

    context fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) |s| {
        s.copy_between((to, true), (from, true), bytes, Some(stream))
    }

    context fn cuMemcpy2D_v2(copy: In<Copy2d>) |s| { s.copy_2d(&copy, None) }

    context fn cuMemcpy2DUnaligned_v2(copy: In<Copy2d>) |s| { s.copy_2d(&copy, None) }

    context fn cuMemcpy2DAsync_v2(copy: In<Copy2d>, stream: u64) |s| { s.copy_2d(&copy, Some(stream)) }

    context fn cuMemsetD8_v2(to: u64, value: u8, count: usize) |s| { s.fill(to, value.into(), 1, count, 0) }

    context fn cuMemsetD16_v2(to: u64, value: u16, count: usize) |s| { s.fill(to, value.into(), 2, count, 0) }

    context fn cuMemsetD32_v2(to: u64, value: u32, count: usize) |s| { s.fill(to, value, 4, count, 0) }

    context fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: u64) |s| {
        s.fill(to, value.into(), 1, count, stream)
    }

    context fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: u64) |s| {
        s.fill(to, value.into(), 2, count, stream)
    }

    context fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: u64) |s| {
        s.fill(to, value, 4, count, stream)
    }

    context fn cuMemsetD2D8_v2(to: u64, pitch: usize, value: u8, width: usize, height: usize) |s| {
        s.fill_2d(to, pitch, (value.into(), 1), (width, height), 0)
    }

    context fn cuMemsetD2D16_v2(to: u64, pitch: usize, value: u16, width: usize, height: usize) |s| {
        s.fill_2d(to, pitch, (value.into(), 2), (width, height), 0)
    }

    context fn cuMemsetD2D32_v2(to: u64, pitch: usize, value: u32, width: usize, height: usize) |s| {
        s.fill_2d(to, pitch, (value, 4), (width, height), 0)
    }

    context fn cuMemsetD2D8Async(to: u64, pitch: usize, value: u8, width: usize, height: usize, stream: u64) |s| {
        s.fill_2d(to, pitch, (value.into(), 1), (width, height), stream)
    }

    context fn cuMemsetD2D16Async(to: u64, pitch: usize, value: u16, width: usize, height: usize, stream: u64) |s| {
        s.fill_2d(to, pitch, (value.into(), 2), (width, height), stream)
    }

    context fn cuMemsetD2D32Async(to: u64, pitch: usize, value: u32, width: usize, height: usize, stream: u64) |s| {
        s.fill_2d(to, pitch, (value, 4), (width, height), stream)
    }
}
