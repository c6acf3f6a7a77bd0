//! Where a producer puts a unit's bytes, and the proof that it put each of them once.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use blake3::Hash;

use super::hash;
use super::run::Run;
use super::sync::{Message, ShardFile};
use crate::error::{Error, Result};

/// Takes the bytes of one unit.
pub(crate) struct Sink<'a> {
    run: &'a Run<'a>,
    messages: &'a Sender<Message>,
    unit: usize,
    file: Arc<ShardFile>,
    tensors: Vec<Span>,
}

/// The place of a tensor.
struct Span {
    /// In the file.
    at: u64,
    len: u64,
    /// The sum, over all pieces that were put, of mark(end) − mark(begin).
    cover: AtomicU64,
}

impl<'a> Sink<'a> {
    pub(super) fn new(run: &'a Run<'a>, messages: &'a Sender<Message>, unit: usize) -> Result<Sink<'a>> {
        let place = run.layout.places[unit];
        let file = run.shards.file(place.shard, messages, || run.go_on())?;
        let mut at = run.layout.shards[place.shard].header + place.offset;
        let tensors = run.layout.units[unit].tensors.iter().map(|tensor| {
            let span = Span { at, len: tensor.bytes(), cover: AtomicU64::new(0) };
            at += span.len;
            span
        });
        let tensors = tensors.collect();
        Ok(Sink { run, messages, unit, file, tensors })
    }

    /// Writes `bytes` to tensor number `tensor` of the unit, from byte `offset` of the tensor on. Any thread may put any
    /// piece at any time; no lock is taken. While too much is not yet on the disk, it waits.
    ///
    /// # Errors
    /// [`Error::Cancelled`], also after another unit has failed; [`Error::Io`]; [`Error::Defect`] for bytes outside the
    /// tensor. The producer is to return them.
    pub(crate) fn put(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        let inside = |span: &&Span| offset.checked_add(len).is_some_and(|end| end <= span.len);
        let Some(span) = self.tensors.get(tensor).filter(inside) else {
            let what = format!(
                "{len} bytes were put at {offset} of {}, which has no room for them",
                self.name_of(tensor)
            );
            return Err(Error::Defect { what });
        };
        self.run.go_on()?;
        self.run.shards.make_room(|| self.run.go_on())?;
        let ShardFile { path, file } = &*self.file;
        file.write_all_at(bytes, span.at + offset).map_err(Error::io(path, "write"))?;
        span.cover.fetch_add(mark(offset + len).wrapping_sub(mark(offset)), Ordering::Relaxed);
        if self.run.shards.wrote(len) {
            // If nobody listens any more, the run has failed and the next step says so.
            let _ = self.messages.send(Message::Now);
        }
        self.run.report(len);
        Ok(())
    }

    /// For a producer that is long at work between two pieces: whether to go on.
    ///
    /// # Errors
    /// [`Error::Cancelled`], as from [`Sink::put`].
    pub(crate) fn go_on(&self) -> Result<()> {
        self.run.go_on()
    }

    /// The hashes of the unit's tensors, once the producer is done.
    ///
    /// # Errors
    /// [`Error::Defect`] for a tensor with a byte that was not put, or was put twice.
    pub(super) fn finish(self) -> Result<Box<[Hash]>> {
        for (number, span) in self.tensors.iter().enumerate() {
            if span.cover.load(Ordering::Relaxed) != mark(span.len).wrapping_sub(mark(0)) {
                let what = format!("not every byte of {} was put exactly once", self.name_of(number));
                return Err(Error::Defect { what });
            }
        }
        let ShardFile { path, file } = &*self.file;
        let hashes = self.tensors.iter().map(|span| hash::content(file, span.at, span.len));
        hashes.collect::<std::io::Result<_>>().map_err(Error::io(path, "read"))
    }

    fn name_of(&self, tensor: usize) -> String {
        match self.run.layout.units[self.unit].tensors.get(tensor) {
            Some(found) => found.name.clone(),
            None => format!("tensor {tensor} of a unit of {}", self.tensors.len()),
        }
    }
}

/// A random number for each position of a tensor. The ends of some pieces and the beginnings of others cancel out of a sum
/// of marks where they meet. What is left is the mark of the tensor's end less that of its beginning if the pieces tile
/// it, and for any holes or overlaps a number that equals this by a chance of 2⁻⁶⁴. One addition a piece replaces a
/// guarded list of pieces. (The function is the output of SplitMix64.)
fn mark(position: u64) -> u64 {
    let mut z = position.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
