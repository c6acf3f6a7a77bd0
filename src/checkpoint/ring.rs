//! Several reads of one thread at once, through Linux's io_uring.
//!
//! The system writes only into blocks that a [`Ring`] owns. They are freed when nothing is in flight any more, whatever
//! happened to the reads, to who asked for them or to the ring.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, types};

use super::direct::{BLOCK, Blocks};
use super::region::SharedRegion;

/// Reads in flight. Eight of 512 KiB are 4 MiB, what a drive of 14 GB/s passes in 300 µs: longer than NVMe takes for one.
/// More would only take memory, in every reading thread (docs/notes/loading.md has them measured).
pub(super) const DEPTH: usize = 8;

/// How long to wait before looking again where the system does not wait for us.
const NAP: Duration = Duration::from_micros(100);

/// A read that the system was given: it may write to the block until it says that the read has ended.
#[derive(Debug)]
struct Flight {
    tag: usize,
    /// What was asked for, in the memory of all blocks.
    bytes: Range<usize>,
    /// Bytes of the block up to its end: fewer read are too few.
    needed: usize,
}

/// An io_uring and the blocks that it reads into.
pub(super) struct Ring {
    queue: IoUring,
    memory: SharedRegion,
    /// One a block.
    flights: [Option<Flight>; DEPTH],
    /// Why the system takes no more reads.
    refusal: Option<io::Error>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("flights", &self.flights).field("refusal", &self.refusal).finish()
    }
}

impl Ring {
    /// Bytes of its blocks.
    pub(super) const BYTES: usize = DEPTH * BLOCK;

    /// Makes one and tries it.
    ///
    /// # Errors
    /// The system's: it may have no io_uring (containers often refuse it), none that reads (before Linux 5.6), or too little
    /// memory.
    pub(super) fn new() -> io::Result<Ring> {
        let queue = IoUring::new(DEPTH as u32)?;
        let mut probe = Probe::new();
        queue.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Read::CODE) {
            return Err(ErrorKind::Unsupported.into());
        }
        let memory = SharedRegion::new(Ring::BYTES, "read buffers").map_err(|_| ErrorKind::OutOfMemory)?;
        let mut ring = Ring { queue, memory, flights: Default::default(), refusal: None };
        // A filter may let rings be made and not used.
        // SAFETY: an operation that touches no memory.
        unsafe { ring.submit(&opcode::Nop::new().build()) }?;
        ring.wait();
        Ok(ring)
    }

    /// Whether as many reads are in flight as can be.
    pub(super) fn is_full(&self) -> bool {
        self.flights.iter().all(Option::is_some)
    }

    /// Why it takes no more reads, if it does not.
    pub(super) fn refusal(&self) -> Option<&io::Error> {
        self.refusal.as_ref()
    }

    /// Gives the system a read of `len` bytes at `offset`, at most [`super::read::CHUNK`], of a file that was opened for direct reads.
    /// False if it is full or the system refuses; nothing was begun then.
    pub(super) fn begin(&mut self, tag: usize, file: &File, offset: u64, len: usize) -> bool {
        let free = self.flights.iter().position(Option::is_none);
        let (Some(slot), None) = (free, &self.refusal) else { return false };
        let blocks = Blocks::around(offset, len);
        let first = slot * BLOCK;
        // SAFETY: the blocks lie in the slot's part of the memory, which has no flight: nobody else reads or writes it. No
        // reference is kept, only the address, which is the kernel's until the flight has ended.
        let block = unsafe { self.memory.part_mut(first..first + blocks.whole) }.as_mut_ptr();
        let read = opcode::Read::new(types::Fd(file.as_raw_fd()), block, blocks.whole as u32)
            .offset(blocks.start)
            .build()
            .user_data(slot as u64);
        // SAFETY: the memory stays until no flight is left (`drop`) and the slot is not used again before its own has ended. The
        // file is open; the kernel holds on to it from here on.
        if let Err(refusal) = unsafe { self.submit(&read) } {
            self.refusal = Some(refusal);
            return false;
        }
        let bytes = first + blocks.skip..first + blocks.needed;
        self.flights[slot] = Some(Flight { tag, bytes, needed: blocks.needed });
        true
    }

    /// Waits for a read to end, whichever is the first: its tag, and its bytes. None if none is in flight.
    ///
    /// An error, a short read among them (the file's end, or whatever else interrupts one), says only that this way did not
    /// bring the bytes.
    pub(super) fn end(&mut self) -> Option<(usize, io::Result<&[u8]>)> {
        while self.flights.iter().any(Option::is_some) {
            let (slot, result) = self.wait();
            let flight = self.flights.get_mut(slot as usize).and_then(Option::take);
            let Some(Flight { tag, bytes, needed }) = flight else { continue };
            let read = match usize::try_from(result) {
                // SAFETY: the read has ended and the slot gets another only through `begin`, after the reference is gone.
                Ok(n) if n >= needed => Ok(unsafe { self.memory.part(bytes) }),
                Ok(_) => Err(ErrorKind::UnexpectedEof.into()),
                Err(_) => Err(io::Error::from_raw_os_error(-result)),
            };
            return Some((tag, read));
        }
        None
    }

    /// Waits for all that is in flight and forgets it.
    pub(super) fn settle(&mut self) {
        while self.end().is_some() {}
    }

    /// Hands an entry over. One that the system refuses stays in the queue, from which nothing is handed over any more then:
    /// neither it nor its memory is looked at.
    ///
    /// # Safety
    /// What the entry points to stays valid, and nobody else's, until it has ended.
    unsafe fn submit(&mut self, entry: &io_uring::squeue::Entry) -> io::Result<()> {
        // SAFETY: what the caller promises.
        unsafe { self.queue.submission().push(entry) }.map_err(|_| ErrorKind::WouldBlock)?;
        match self.queue.submit()? {
            1 => Ok(()),
            _ => Err(ErrorKind::WouldBlock.into()),
        }
    }

    /// Waits for an entry that was handed over to end: what it is known by, and its result.
    fn wait(&mut self) -> (u64, i32) {
        loop {
            if let Some(ended) = self.queue.completion().next() {
                return (ended.user_data(), ended.result());
            }
            // With a refused entry in the queue the call would hand that over. What was begun ends even if nobody waits.
            if self.refusal.is_some() || self.queue.submit_and_wait(1).is_err() {
                std::thread::sleep(NAP);
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.settle();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, OpenOptionsExt};

    use super::super::read::CHUNK;
    use super::*;

    /// A file of distinct bytes, opened for direct reads where its file system has them.
    fn file() -> (tempfile::NamedTempFile, File, Vec<u8>) {
        let bytes: Vec<u8> =
            (0u32..1 << 20).flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().write_all_at(&bytes, 0).unwrap();
        let open = |flags| std::fs::OpenOptions::new().read(true).custom_flags(flags).open(named.path());
        let file = open(libc::O_DIRECT).or_else(|_| open(0)).unwrap();
        (named, file, bytes)
    }

    #[test]
    fn reads_end_in_any_order_and_have_their_own_bytes() {
        let Ok(mut ring) = Ring::new() else { return eprintln!("no io_uring here") };
        let (_named, file, bytes) = file();
        let mut wanted: Vec<(u64, usize)> = (0..64)
            .map(|i| (i * 59_999 % 3_600_000, [1, 4095, 4096, 100_001, CHUNK][i as usize % 5]))
            .collect();
        // What lies behind the end is not there.
        wanted.extend([(4 << 20, 1), ((4 << 20) - 10, 11)]);
        let mut seen = vec![false; wanted.len()];
        let mut take = |ring: &mut Ring| {
            let Some((i, read)) = ring.end() else { return false };
            let (offset, len) = (wanted[i].0 as usize, wanted[i].1);
            match bytes.get(offset..offset + len) {
                Some(want) => assert!(read.unwrap() == want, "{i}"),
                None => assert_eq!(read.unwrap_err().kind(), ErrorKind::UnexpectedEof),
            }
            assert!(!std::mem::replace(&mut seen[i], true), "{i} ended twice");
            true
        };
        for (i, &(offset, len)) in wanted.iter().enumerate() {
            if ring.is_full() {
                assert!(!ring.begin(0, &file, 0, 1), "there is no room");
                take(&mut ring);
            }
            assert!(ring.begin(i, &file, offset, len), "{:?}", ring.refusal());
        }
        while take(&mut ring) {}
        assert!(seen.iter().all(|&seen| seen));
    }

    #[test]
    fn what_is_in_flight_may_be_left() {
        let (named, file, bytes) = file();
        let for_writing = std::fs::OpenOptions::new().write(true).open(named.path()).unwrap();
        for round in 0..20 {
            let Ok(mut ring) = Ring::new() else { return eprintln!("no io_uring here") };
            (0..round % (DEPTH + 1)).for_each(|i| assert!(ring.begin(i, &file, i as u64 * 1000, CHUNK)));
            if round % 2 == 0 {
                ring.settle();
                assert!(ring.end().is_none() && ring.begin(7, &file, 5, 9));
                assert!(matches!(ring.end(), Some((7, Ok(read))) if read == &bytes[5..14]));
                // A read that fails is an error of its own.
                assert!(ring.begin(8, &for_writing, 0, 9));
                assert!(matches!(ring.end(), Some((8, Err(_)))));
            }
        }
    }
}
