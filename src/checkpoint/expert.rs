//! Reading one expert at a time into place, around the system's file cache where the file system allows.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use rayon::prelude::*;

use super::Checkpoint;
use super::catalogue::{Located, Shard};
use super::manifest::Source;
use super::read::{CHUNK, Finding, LoadOptions, Run, changed, merge, non_finite, wrong_shape};
use super::record::RecordLayout;
use super::region::{OwnRegion, RECORD_ALIGN};
use super::weights::GatedMlp;
use crate::error::{Error, Fault, FaultKind, Result};

/// What direct reads want offsets, lengths and addresses to be multiples of: a page suffices for every file system
/// that has them.
const DIRECT_ALIGN: usize = RECORD_ALIGN;

/// An aligned buffer that direct reads pass through, one a reading thread: tensors lie at offsets that are not aligned.
#[derive(Debug)]
pub struct ReadBuffer(OwnRegion);

impl ReadBuffer {
    /// Bytes it takes.
    pub const BYTES: usize = CHUNK + 2 * DIRECT_ALIGN;

    /// Allocates one.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new() -> Result<ReadBuffer> {
        OwnRegion::new(ReadBuffer::BYTES, "a read buffer").map(ReadBuffer)
    }
}

/// The shards opened a second time for reads around the file cache, or why there are none. Found out once.
#[derive(Debug, Default)]
pub(super) struct DirectFiles(OnceLock<Result<Vec<File>, String>>);

impl DirectFiles {
    pub(super) fn get(&self, shards: &[Shard]) -> Result<&[File], &str> {
        let files = self.0.get_or_init(|| shards.iter().map(open_direct).collect());
        files.as_deref().map_err(String::as_str)
    }
}

/// Opens a shard for direct reads and tries one. By the open file, not its path: it cannot be another file.
fn open_direct(shard: &Shard) -> Result<File, String> {
    let why = |e: std::io::Error| format!("{}: {e}", shard.name.display());
    let path = format!("/proc/self/fd/{}", shard.file.as_raw_fd());
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).map_err(why)?;
    let mut page = OwnRegion::new(DIRECT_ALIGN, "a read buffer").map_err(|e| e.to_string())?;
    file.read_at(page.bytes_mut(), 0).map_err(why)?;
    Ok(file)
}

impl Checkpoint {
    /// Whether [`Checkpoint::read_expert_direct`] gets around the system's file cache.
    ///
    /// # Errors
    /// Why it does not; it then reads as [`Checkpoint::read_expert`] does.
    pub fn direct_io(&self) -> Result<(), &str> {
        self.direct.get(&self.catalogue.shards).map(|_| ())
    }

    /// Reads the record of an expert, laid out as [`Checkpoint::record_layout`] says, and checks that every value is
    /// finite. Padding becomes zero: a record's bytes depend on the expert alone.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming each damaged tensor and its file, [`Error::Io`]; [`Error::Argument`] if there is no
    /// such expert or `into` is not of the record's size. `into` then holds nothing of use.
    pub fn read_expert(&self, layer: usize, expert: usize, into: &mut [u8]) -> Result<()> {
        self.read_record(layer, expert, into, None)
    }

    /// [`Checkpoint::read_expert`] without filling the system's file cache, where that is possible; what that has is taken
    /// from there.
    ///
    /// # Errors
    /// As [`Checkpoint::read_expert`].
    pub fn read_expert_direct(
        &self,
        layer: usize,
        expert: usize,
        into: &mut [u8],
        buffer: &mut ReadBuffer,
    ) -> Result<()> {
        self.read_record(layer, expert, into, Some(buffer))
    }

    /// All that is damaged in the experts; each is read and forgotten.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Cancelled`].
    pub(crate) fn damaged_experts(&self, options: &LoadOptions) -> Result<Vec<Fault>> {
        let experts = self.bound.experts.iter().enumerate();
        let ids: Vec<_> = experts.flat_map(|(l, experts)| (0..experts.len()).map(move |e| (l, e))).collect();
        let run = Run::new(&self.catalogue, options, self.bytes);
        let faults: Result<Vec<Vec<Fault>>> = run.pool(options.threads)?.install(|| {
            let faults_of = |buffer: &mut Vec<u8>, &(layer, expert): &(usize, usize)| {
                if options.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                    return Err(Error::Cancelled);
                }
                buffer.resize(self.record_layout(layer).map_or(0, |layout| layout.size()), 0);
                match self.read_expert(layer, expert, buffer) {
                    Ok(()) => Ok(Vec::new()),
                    Err(Error::Checkpoint { faults, .. }) => Ok(faults.0),
                    Err(error) => Err(error),
                }
            };
            ids.par_iter().map_init(Vec::new, faults_of).collect()
        });
        Ok(faults?.into_iter().flatten().collect())
    }

    fn read_record(
        &self,
        layer: usize,
        expert: usize,
        into: &mut [u8],
        mut buffer: Option<&mut ReadBuffer>,
    ) -> Result<()> {
        let source = self.expert_source(layer, expert)?;
        let layout = RecordLayout::new(&source.map(|m| m.layout));
        if into.len() != layout.size() {
            let problem = format!("has {} bytes, expected the record's {}", into.len(), layout.size());
            return Err(Error::argument("into", problem));
        }
        let mut findings = Vec::new();
        let mut end = 0;
        for (place, Source { weight, scale, shape, .. }) in
            layout.parts().each().into_iter().zip(source.each())
        {
            for (tensor, range) in [(Some(weight), &place.weight), (scale.as_ref(), &place.scale)] {
                let Some(tensor) = tensor else { continue };
                into[end..range.start].fill(0);
                end = range.end;
                self.read_tensor(tensor, &mut into[range.clone()], buffer.as_deref_mut(), &mut findings)?;
            }
            if let Some(tensor) = shape {
                let mut raw = [0u8; 8];
                self.read_tensor(tensor, &mut raw, None, &mut findings)?;
                let wrong = wrong_shape(raw, [place.layout.rows, place.layout.cols]);
                findings.extend(wrong.map(|kind| Finding { tensor, kind }));
            }
        }
        into[end..].fill(0);
        self.sound_expert(source, merge(&self.catalogue, findings))
    }

    /// Where an expert lies.
    pub(super) fn expert_source(&self, layer: usize, expert: usize) -> Result<&GatedMlp<Source>> {
        let source = self.bound.experts.get(layer).and_then(|experts| experts.get(expert));
        source.ok_or_else(|| {
            Error::argument("expert", format!("is {expert} of layer {layer}, which has none such"))
        })
    }

    /// An error with what was found wrong with an expert, and which of its files have changed since they were opened.
    pub(super) fn sound_expert(&self, source: &GatedMlp<Source>, mut faults: Vec<Fault>) -> Result<()> {
        let tensors = source.each().into_iter().flat_map(|m| [Some(&m.weight), m.scale.as_ref()]).flatten();
        let mut shards: Vec<usize> = tensors.map(|tensor| tensor.shard).collect();
        shards.sort_unstable();
        shards.dedup();
        faults.extend(shards.into_iter().filter_map(|shard| changed(&self.catalogue.shards[shard])));
        if faults.is_empty() { Ok(()) } else { Err(self.damaged(faults)) }
    }

    fn read_tensor<'a>(
        &self,
        tensor: &'a Located,
        into: &mut [u8],
        mut buffer: Option<&mut ReadBuffer>,
        findings: &mut Vec<Finding<'a>>,
    ) -> Result<()> {
        let shard = &self.catalogue.shards[tensor.shard];
        let direct = buffer.as_ref().and_then(|_| self.direct.get(&self.catalogue.shards).ok());
        for (i, piece) in into.chunks_mut(CHUNK).enumerate() {
            let at = (i * CHUNK) as u64;
            let offset = tensor.entry.offset + at;
            let read = match (direct, &mut buffer) {
                // What the file cache has is there at once; a direct read would go to the disk for it.
                (Some(_), Some(_)) if read_cached(&shard.file, offset, piece) => Ok(()),
                (Some(files), Some(buffer)) => {
                    read_direct(&files[tensor.shard], offset, piece, buffer.0.bytes_mut())
                        .or_else(|e| on_refusal(e, &shard.file, offset, piece))
                }
                _ => shard.file.read_exact_at(piece, offset),
            };
            match read {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                    findings.push(Finding { tensor, kind: FaultKind::Changed });
                    break;
                }
                Err(e) => return Err(Error::io(self.dir.join(&shard.name), "read")(e)),
            }
            findings.extend(non_finite(tensor, at, piece).map(|kind| Finding { tensor, kind }));
        }
        Ok(())
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
fn on_refusal(refused: std::io::Error, file: &File, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
    if refused.kind() == std::io::ErrorKind::InvalidInput {
        file.read_exact_at(into, offset)
    } else {
        Err(refused)
    }
}

/// Reads `into.len()` bytes at `offset` in whole blocks through the buffer.
fn read_direct(file: &File, offset: u64, into: &mut [u8], buffer: &mut [u8]) -> std::io::Result<()> {
    let skip = (offset % DIRECT_ALIGN as u64) as usize;
    let start = offset - skip as u64;
    let needed = skip + into.len();
    let buffer = &mut buffer[..needed.next_multiple_of(DIRECT_ALIGN)];
    let mut got = 0;
    while got < needed {
        // After a short read that ended inside a block the block is read again.
        let from = got / DIRECT_ALIGN * DIRECT_ALIGN;
        match file.read_at(&mut buffer[from..], start + from as u64) {
            Ok(n) if from + n <= got => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => got = from + n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    into.copy_from_slice(&buffer[skip..needed]);
    Ok(())
}
