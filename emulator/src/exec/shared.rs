//! A block's shared memory: bytes, what was written, who touched it last.

use super::race::{Clock, Earlier, Shadow, Trouble};

/// First usable shared address: Hopper keeps the first KiB of each block for itself.
pub(super) const BASE: u32 = 1024;

/// Shared memory of one block.
pub(super) struct Shared {
    bytes: Vec<Chunk>,
    len: u32,
    /// Who touched it; without checks, nobody knows.
    shadow: Option<Shadow>,
    version: u64,
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
            shadow: checks.then(|| Shadow::new(len as usize)),
            version: 0,
        }
    }

    /// Forgets the last block.
    pub fn reset(&mut self) {
        self.version += 1;
        if let Some(shadow) = &mut self.shadow {
            shadow.reset();
            self.bytes.fill(Chunk([0xff; 1024]));
        }
    }

    /// Bytes.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Host address of shared address [`BASE`], to read from.
    #[inline(always)]
    pub fn host(&self) -> *const u8 {
        self.bytes.as_ptr().cast::<u8>()
    }

    /// As [`Shared::host`], to write to.
    #[inline(always)]
    pub fn host_mut(&mut self) -> *mut u8 {
        self.version += 1;
        self.bytes.as_mut_ptr().cast::<u8>()
    }

    /// Another number whenever the bytes may have changed.
    #[inline(always)]
    pub fn version(&self) -> u64 {
        self.version
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
        match shadow.read(who.agent, who.clock, address - BASE, len, who.line) {
            None => Ok(()),
            Some(Trouble::Race(earlier)) => Err(Refusal::Race(earlier)),
            Some(Trouble::Uninitialised(offset)) => Err(Refusal::Uninitialised(BASE + offset)),
        }
    }

    /// Checks reads of `len` bytes each, a multiple of four, as [`Shared::note_read`] does one; tells the address of the
    /// one that is refused.
    pub fn note_reads(&mut self, who: Who<'_>, addresses: &[u32], len: u32) -> Result<(), (u32, Refusal)> {
        if let Some(at) = addresses.iter().find(|at| !self.contains(**at, len)) {
            return Err((*at, Refusal::OutOfBounds));
        }
        let mut rest = addresses;
        while !rest.is_empty() {
            if let Some(shadow) = &mut self.shadow {
                let noted = shadow.read_alike(who.agent, who.clock, rest, BASE, len, who.line);
                rest = &rest[noted..];
            }
            let Some((first, others)) = rest.split_first() else { break };
            self.note_read(who, *first, len).map_err(|refusal| (*first, refusal))?;
            rest = others;
        }
        Ok(())
    }

    /// Checks an atomic update, which synchronises by itself and so races with no other.
    #[inline]
    pub fn note_update(&mut self, address: u32, len: u32) -> Result<(), Refusal> {
        if !self.contains(address, len) {
            return Err(Refusal::OutOfBounds);
        }
        let Some(shadow) = &self.shadow else { return Ok(()) };
        match shadow.unwritten(address - BASE, len) {
            None => Ok(()),
            Some(offset) => Err(Refusal::Uninitialised(BASE + offset)),
        }
    }

    /// Checks a write (and notes it).
    #[inline]
    pub fn note_write(&mut self, who: Who<'_>, address: u32, len: u32) -> Result<(), Refusal> {
        if !self.contains(address, len) {
            return Err(Refusal::OutOfBounds);
        }
        let Some(shadow) = &mut self.shadow else { return Ok(()) };
        match shadow.write(who.agent, who.clock, address - BASE, len, who.line) {
            Some(earlier) => Err(Refusal::Race(earlier)),
            None => Ok(()),
        }
    }
}
