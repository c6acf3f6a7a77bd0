//! Reads around the system's file cache: what it has is taken from it, the rest comes from the disk and leaves nothing in it.
//!
//! Through a [`Ring`] several blocks are on their way at once; where the system has no io_uring for us they are read one after another.
//! Whatever the ring does not bring for whatever reason is read once more the plain way, whose answer counts: both ways find and
//! tell the same.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::OnceLock;

use super::Checkpoint;
use super::catalogue::Shard;
use super::read::{CHUNK, Piece, non_finite};
use super::region::{HostRegion, OwnRegion, RECORD_ALIGN};
use super::ring::Ring;
use crate::error::{Error, FaultKind, Result};

/// What direct reads want offsets, lengths and addresses to be multiples of: a page suffices for every file system
/// that has them.
const DIRECT_ALIGN: usize = RECORD_ALIGN;

/// Bytes of a buffer for [`CHUNK`] bytes that begin anywhere.
pub(super) const BLOCK: usize = CHUNK + 2 * DIRECT_ALIGN;

/// The aligned blocks that some bytes of a file lie in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks {
    /// The first block's offset in the file.
    pub start: u64,
    /// Bytes before the ones that are wanted.
    pub skip: usize,
    /// Bytes up to the end of the ones that are wanted.
    pub needed: usize,
    /// Bytes of all blocks.
    pub whole: usize,
}

impl Blocks {
    pub(super) fn around(offset: u64, len: usize) -> Blocks {
        let skip = (offset % DIRECT_ALIGN as u64) as usize;
        let needed = skip + len;
        Blocks { start: offset - skip as u64, skip, needed, whole: needed.next_multiple_of(DIRECT_ALIGN) }
    }
}

/// What direct reads of one thread pass through: tensors lie at offsets that are not aligned.
#[derive(Debug)]
pub struct ReadBuffer {
    /// For one block after another.
    block: OwnRegion,
    /// For several at once, or why there is none.
    ring: Result<Ring, String>,
}

impl ReadBuffer {
    /// Bytes it takes at most.
    pub const BYTES: usize = BLOCK + Ring::BYTES;

    /// Allocates one, with an io_uring if the system has one for us.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new() -> Result<ReadBuffer> {
        let block = OwnRegion::new(BLOCK, "a read buffer")?;
        Ok(ReadBuffer { block, ring: Ring::new().map_err(|e| e.to_string()) })
    }

    /// Whether it reads several blocks at once, through io_uring.
    ///
    /// # Errors
    /// Why the system refused that; one is then read after another.
    pub fn io_uring(&self) -> Result<(), &str> {
        self.ring.as_ref().map(|_| ()).map_err(String::as_str)
    }
}

/// How a checkpoint's files are read around the system's file cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DirectIo<'a> {
    /// Several blocks at once, through io_uring.
    Queued,
    /// One block after another in each thread, since the system refuses io_uring, with its reason.
    Single(&'a str),
}

/// The shards opened a second time for reads around the file cache, or why there are none, and whether there is an io_uring for them.
/// Found out once.
#[derive(Debug, Default)]
pub(super) struct DirectFiles {
    files: OnceLock<Result<Vec<File>, String>>,
    ring: OnceLock<Result<(), String>>,
}

impl DirectFiles {
    pub(super) fn get(&self, shards: &[Shard]) -> Result<&[File], &str> {
        let files = self.files.get_or_init(|| shards.iter().map(open_direct).collect());
        files.as_deref().map_err(String::as_str)
    }
}

/// Opens a shard for direct reads and tries one. By the open file, not its path: it cannot be another file.
fn open_direct(shard: &Shard) -> Result<File, String> {
    let why = |e: io::Error| format!("{}: {e}", shard.name.display());
    let path = format!("/proc/self/fd/{}", shard.file.as_raw_fd());
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).map_err(why)?;
    let mut page = OwnRegion::new(DIRECT_ALIGN, "a read buffer").map_err(|e| e.to_string())?;
    file.read_at(page.bytes_mut(), 0).map_err(why)?;
    Ok(file)
}

impl Checkpoint {
    /// Whether and how [`Checkpoint::read_expert_direct`] gets around the system's file cache.
    ///
    /// # Errors
    /// Why it does not; it then reads as [`Checkpoint::read_expert`] does.
    pub fn direct_io(&self) -> Result<DirectIo<'_>, &str> {
        self.direct.get(&self.catalogue.shards)?;
        let ring = self.direct.ring.get_or_init(|| Ring::new().map(|_| ()).map_err(|e| e.to_string()));
        Ok(ring.as_ref().map_or_else(|why| DirectIo::Single(why), |()| DirectIo::Queued))
    }

    /// Fills the pieces. What is wrong with each is in its place of the list.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn read_pieces(
        &self,
        pieces: &mut [Piece<'_, '_>],
        buffer: Option<&mut ReadBuffer>,
    ) -> Result<Vec<Option<FaultKind>>> {
        let found = vec![None; pieces.len()];
        let direct = buffer.and_then(|buffer| Some((self.direct.get(&self.catalogue.shards).ok()?, buffer)));
        let Some((files, ReadBuffer { block, ring })) = direct else {
            let through = |piece: &mut Piece<'_, '_>| {
                let (shard, offset) = self.place(piece);
                let read = shard.file.read_exact_at(piece.into, offset);
                self.judge(piece, read)
            };
            return pieces.iter_mut().map(through).collect();
        };
        let mut reading = Reading { checkpoint: self, files, pieces, found, block };
        let Ok(queue) = ring else { return reading.one_by_one() };
        let found = reading.several(queue);
        queue.settle();
        if let Some(refusal) = queue.refusal() {
            let why = refusal.to_string();
            *ring = Err(why);
        }
        found
    }

    /// The shard that a piece lies in, and where.
    fn place(&self, piece: &Piece<'_, '_>) -> (&Shard, u64) {
        (&self.catalogue.shards[piece.tensor.shard], piece.tensor.entry.offset + piece.at)
    }

    /// What is wrong with a piece, read or not.
    fn judge(&self, piece: &Piece<'_, '_>, read: io::Result<()>) -> Result<Option<FaultKind>> {
        match read {
            Ok(()) => Ok(non_finite(piece.tensor, piece.at, piece.into)),
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(Some(FaultKind::Changed)),
            Err(e) => Err(Error::io(self.dir.join(&self.place(piece).0.name), "read")(e)),
        }
    }
}

/// Pieces on their way.
struct Reading<'r, 't, 'm> {
    checkpoint: &'r Checkpoint,
    files: &'r [File],
    pieces: &'r mut [Piece<'t, 'm>],
    found: Vec<Option<FaultKind>>,
    block: &'r mut OwnRegion,
}

impl Reading<'_, '_, '_> {
    fn one_by_one(mut self) -> Result<Vec<Option<FaultKind>>> {
        for i in 0..self.pieces.len() {
            if !self.take_cached(i)? {
                self.plainly(i)?;
            }
        }
        Ok(self.found)
    }

    /// Keeps as many reads in flight as the ring takes; what has come is looked at and put in place while the others are on their
    /// way. On an error some are in flight still.
    fn several(&mut self, ring: &mut Ring) -> Result<Vec<Option<FaultKind>>> {
        // Left by a record whose reading panicked.
        ring.settle();
        for i in 0..self.pieces.len() {
            if self.take_cached(i)? {
                continue;
            }
            if ring.is_full() {
                self.land(ring)?;
            }
            let piece = &self.pieces[i];
            let (_, offset) = self.checkpoint.place(piece);
            if !ring.begin(i, &self.files[piece.tensor.shard], offset, piece.into.len()) {
                self.plainly(i)?;
            }
        }
        while self.land(ring)? {}
        Ok(std::mem::take(&mut self.found))
    }

    /// Puts what has come first in its place; false if nothing is on its way.
    fn land(&mut self, ring: &mut Ring) -> Result<bool> {
        let Some((i, read)) = ring.end() else { return Ok(false) };
        match read {
            Ok(bytes) => {
                self.pieces[i].into.copy_from_slice(bytes);
                self.note(i, Ok(()))?;
            }
            Err(_) => self.plainly(i)?,
        }
        Ok(true)
    }

    /// Takes a piece from the file cache; false if that does not have all of it.
    fn take_cached(&mut self, i: usize) -> Result<bool> {
        let piece = &mut self.pieces[i];
        let (shard, offset) = self.checkpoint.place(piece);
        let cached =
            is_cached(shard, offset, piece.into.len()) && read_cached(&shard.file, offset, piece.into);
        if cached {
            self.note(i, Ok(()))?;
        }
        Ok(cached)
    }

    /// Reads a piece and waits for it.
    fn plainly(&mut self, i: usize) -> Result<()> {
        let piece = &mut self.pieces[i];
        let (shard, offset) = self.checkpoint.place(piece);
        let file = &self.files[piece.tensor.shard];
        let read = read_direct(file, offset, piece.into, self.block.bytes_mut())
            .or_else(|e| on_refusal(e, &shard.file, offset, piece.into));
        self.note(i, read)
    }

    fn note(&mut self, i: usize, read: io::Result<()>) -> Result<()> {
        self.found[i] = self.checkpoint.judge(&self.pieces[i], read)?;
        Ok(())
    }
}

/// Whether the file cache seems to have all of some bytes. Asked before [`read_cached`], which for what is not there has the system
/// read ahead into the cache: the bytes would come from the disk twice.
fn is_cached(shard: &Shard, offset: u64, len: usize) -> bool {
    match shard.region().map(|region| &**region) {
        Ok(HostRegion::File(file)) => file.is_cached(offset as usize..offset as usize + len),
        _ => false,
    }
}

/// Fills `into` from the file cache; false if that does not have all of it, or the system cannot say.
fn read_cached(file: &File, offset: u64, into: &mut [u8]) -> bool {
    let (mut done, len) = (0, into.len());
    while done < len {
        let rest = &mut into[done..];
        let part = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
        let at = offset + done as u64;
        // SAFETY: one part, memory that is ours to write; the file is open.
        let read =
            unsafe { libc::preadv2(file.as_raw_fd(), &raw const part, 1, at as i64, libc::RWF_NOWAIT) };
        match usize::try_from(read) {
            Ok(1..) => done += read as usize,
            // Not in the cache, the file's end, or a refusal: the read that follows tells which.
            _ => return false,
        }
    }
    true
}

/// A file system that took the first direct read may refuse this one: the cached way then is as good.
fn on_refusal(refused: io::Error, file: &File, offset: u64, into: &mut [u8]) -> io::Result<()> {
    if refused.kind() == ErrorKind::InvalidInput { file.read_exact_at(into, offset) } else { Err(refused) }
}

/// Reads `into.len()` bytes at `offset` in whole blocks through the buffer.
fn read_direct(file: &File, offset: u64, into: &mut [u8], buffer: &mut [u8]) -> io::Result<()> {
    let Blocks { start, skip, needed, whole } = Blocks::around(offset, into.len());
    let buffer = &mut buffer[..whole];
    let mut got = 0;
    while got < needed {
        // After a short read that ended inside a block the block is read again.
        let from = got / DIRECT_ALIGN * DIRECT_ALIGN;
        match file.read_at(&mut buffer[from..], start + from as u64) {
            Ok(n) if from + n <= got => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => got = from + n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    into.copy_from_slice(&buffer[skip..needed]);
    Ok(())
}
