//! A block's shared memory: bytes, what was written, who touched it last.

use super::race::{Clock, Earlier, Shadow};

/// First usable shared address: Hopper keeps the first KiB of each block for itself.
pub(super) const BASE: u32 = 1024;

/// Shared memory of one block.
pub(super) struct Shared {
    bytes: Vec<Chunk>,
    len: u32,
    /// Which bytes were ever written; empty without checks.
    valid: Vec<bool>,
    shadow: Option<Shadow>,
}

/// The strictest alignment any descriptor asks for.
#[derive(Clone, Copy)]
#[repr(C, align(1024))]
struct Chunk([u8; 1024]);

/// Why an access is refused.
pub(super) enum Refusal {
    OutOfBounds,
    Uninitialised(u32),
    Race(Earlier),
}

/// Who accesses: agent, what it knows, and the PTX line.
#[derive(Clone, Copy)]
pub(super) struct Who<'a> {
    pub agent: usize,
    pub clock: &'a Clock,
    pub line: u32,
}

impl Shared {
    pub fn new(len: u32, checks: bool) -> Shared {
        Shared {
            bytes: vec![Chunk([0xff; 1024]); len.div_ceil(1024).max(1) as usize],
            len,
            valid: if checks { vec![false; len as usize] } else { Vec::new() },
            shadow: checks.then(|| Shadow::new(len as usize)),
        }
    }

    /// Forgets the last block.
    pub fn reset(&mut self) {
        if let Some(shadow) = &mut self.shadow {
            shadow.reset();
            self.valid.fill(false);
            self.bytes.fill(Chunk([0xff; 1024]));
        }
    }

    /// Bytes.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Host address of shared address [`BASE`].
    #[inline(always)]
    pub fn host(&self) -> *mut u8 {
        self.bytes.as_ptr().cast::<u8>().cast_mut()
    }

    /// Whether [address, address + len) is inside.
    #[inline(always)]
    pub fn contains(&self, address: u32, len: u32) -> bool {
        let offset = address.wrapping_sub(BASE);
        offset <= self.len && len <= self.len - offset
    }

    /// Checks a read (and notes it).
    #[inline]
    pub fn note_read(&mut self, who: Who<'_>, address: u32, len: u32) -> Result<(), Refusal> {
        if !self.contains(address, len) {
            return Err(Refusal::OutOfBounds);
        }
        let Some(shadow) = &mut self.shadow else { return Ok(()) };
        let offset = address - BASE;
        // A race first: bytes that are still to be written by somebody unordered are that, not merely unset.
        if let Some(earlier) = shadow.read(who.agent, who.clock, offset, len, who.line) {
            return Err(Refusal::Race(earlier));
        }
        let range = &self.valid[offset as usize..(offset + len) as usize];
        // All at once first: that is vector code, and almost always the answer.
        if range.iter().fold(true, |all, v| all & v) {
            return Ok(());
        }
        match range.iter().position(|v| !v) {
            None => Ok(()),
            Some(at) => Err(Refusal::Uninitialised(address + at as u32)),
        }
    }

    /// Checks an atomic update, which synchronises by itself and so races with no other.
    #[inline]
    pub fn note_update(&mut self, address: u32, len: u32) -> Result<(), Refusal> {
        if !self.contains(address, len) {
            return Err(Refusal::OutOfBounds);
        }
        if self.shadow.is_none() {
            return Ok(());
        }
        let offset = (address - BASE) as usize;
        match self.valid[offset..offset + len as usize].iter().position(|v| !v) {
            None => Ok(()),
            Some(at) => Err(Refusal::Uninitialised(address + at as u32)),
        }
    }

    /// Checks a write (and notes it).
    #[inline]
    pub fn note_write(&mut self, who: Who<'_>, address: u32, len: u32) -> Result<(), Refusal> {
        if !self.contains(address, len) {
            return Err(Refusal::OutOfBounds);
        }
        let Some(shadow) = &mut self.shadow else { return Ok(()) };
        let offset = address - BASE;
        self.valid[offset as usize..(offset + len) as usize].fill(true);
        match shadow.write(who.agent, who.clock, offset, len, who.line) {
            Some(earlier) => Err(Refusal::Race(earlier)),
            None => Ok(()),
        }
    }
}
