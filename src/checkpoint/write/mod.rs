//! Writing a checkpoint: a folder that has its name only once it is whole, and that a killed run's successor continues.
//!
//! The writer knows tensors, not models. It lays [`Unit`]s out in shards, lets a [`Produce`]r make them on many threads,
//! and keeps a journal of what is finished and safely on the disk. Whatever happened on the way (threads, kills, resumed
//! runs), the same units with the same bytes become the same files.
//!
//! ```text
//! let mut folder = Folder::begin(out, identity, needed)?;      OUT.partial, new or continued
//! let written = folder.shards(&units, &producer, shard_bytes, &options)?;
//! folder.json("config.json", &value)?;
//! folder.finish()?;                                            OUT
//! ```
//!
//! Memory: what the producer holds for as many units as there are threads, and about a hundred bytes a tensor.

mod disk;
mod hash;
mod journal;
mod layout;
mod run;
mod sink;
mod sync;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use blake3::Hash;
use serde::Serialize;

pub(crate) use sink::Sink;

use super::{Dtype, INDEX_FILE, LoadOptions, open_regular};
use crate::error::{Error, Result};
pub(crate) use journal::JOURNAL;
use journal::Journal;
use layout::Layout;
pub(crate) use layout::header;
use sync::Pace;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewTensor {
    pub name: String,
    pub shape: Vec<u64>,
    pub dtype: Dtype,
}

impl NewTensor {
    /// Its size in bytes, `u64::MAX` if that does not hold it.
    pub(crate) fn bytes(&self) -> u64 {
        self.shape.iter().fold(self.dtype.bytes(), |bytes, &n| bytes.saturating_mul(n))
    }
}

/// Tensors that are made together and lie together, in one shard: what a killed run has whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    pub tensors: Vec<NewTensor>,
}

impl Unit {
    /// Its size in bytes, `u64::MAX` if that does not hold it.
    pub(crate) fn bytes(&self) -> u64 {
        self.tensors.iter().fold(0, |bytes, tensor| bytes.saturating_add(tensor.bytes()))
    }
}

/// Who makes the bytes.
pub(crate) trait Produce: Sync {
    /// Makes unit number `unit`: hands every byte of its tensors to `sink`, once, in any order and from any thread.
    /// Called on a thread of a rayon pool, of which it may use more; units are begun in their order, as many at a time as
    /// the pool has threads. A unit that an earlier run finished is not asked for.
    ///
    /// # Errors
    /// The first one ends the writing and is what [`Folder::shards`] returns.
    fn produce(&self, unit: usize, sink: &Sink<'_>) -> Result<()>;
}

/// What [`Folder::shards`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    /// Files of tensors.
    pub shards: usize,
    /// Tensors.
    pub tensors: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// BLAKE3 over all tensors in their order, of each: the name and the type, each with its length before it, the number
    /// of dimensions and the dimensions (all these numbers as 8 bytes, the lowest first), and the 32 bytes of the BLAKE3 of
    /// its bytes. It does not depend on shards, threads, or whether the run was resumed.
    pub hash: Hash,
}

/// A checkpoint's folder under construction. Dropped without [`Folder::finish`] it stays on the disk and the next
/// [`Folder::begin`] of the same identity continues it.
pub(crate) struct Folder {
    out: PathBuf,
    partial: PathBuf,
    journal: Journal,
    pace: Pace,
    finished: bool,
}

impl Folder {
    /// Begins the folder `out` as `out`.partial, or continues what an earlier run of the same `identity` left there.
    /// `identity` is a hash of all that decides the bytes; `needed_bytes` is what the finished folder will take, of which
    /// what is already there counts.
    ///
    /// # Errors
    /// [`Error::Io`] if `out` exists (a dangling link does), if the disk has no room (`StorageFull`), if another process
    /// is at work on the folder (`ResourceBusy`), or for what the system refuses; [`Error::Unfinished`] if the partial
    /// folder is of another identity or nothing of this program's.
    pub(crate) fn begin(out: &Path, identity: [u8; 32], needed_bytes: u64) -> Result<Folder> {
        disk::refuse_existing(out)?;
        let disk::Place { parent, out, partial } = disk::Place::of(out)?;
        disk::refuse_overfull(&out, &partial, &parent, needed_bytes)?;
        match fs::create_dir(&partial) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(Error::io(&partial, "create"))?,
        }
        let journal = Journal::open(&partial, Hash::from_bytes(identity))?;
        // Between the first look and the lock another process may have finished.
        disk::refuse_existing(&out)?;
        disk::sync_folder(&partial)?;
        disk::sync_folder(&parent)?;
        Ok(Folder { out, partial, journal, pace: Pace::default(), finished: false })
    }

    /// Writes all tensors and the index. A unit is never divided; a shard ends before it would exceed `shard_bytes`.
    /// Of the options, threads, progress (of tensor bytes, those of an earlier run included) and cancellation are used.
    ///
    /// # Errors
    /// The producer's; [`Error::Io`]; [`Error::Cancelled`]; [`Error::Argument`] for shards that the loader would refuse;
    /// [`Error::Unfinished`] if an earlier run of this identity laid the units out otherwise; [`Error::Defect`] for
    /// tensors the loader would refuse and for a producer that leaves a byte out or puts one twice. What is finished stays
    /// finished.
    pub(crate) fn shards(
        &mut self,
        units: &[Unit],
        producer: &dyn Produce,
        shard_bytes: u64,
        options: &LoadOptions,
    ) -> Result<Written> {
        let layout = Layout::of(units, shard_bytes)?;
        let known = self.journal.begin(&layout)?;
        let hashes = run::all(run::Job {
            folder: &self.partial,
            layout: &layout,
            producer,
            options,
            pace: self.pace,
            journal: &mut self.journal,
            known,
        })?;
        self.create(INDEX_FILE, |file| pretty(file, &layout.index()))?;
        let hash = hash::of_all(units, &hashes);
        Ok(Written { shards: layout.shards.len(), tensors: layout.tensors, bytes: layout.bytes, hash })
    }

    /// Writes a value as indented JSON and a line's end.
    ///
    /// # Errors
    /// [`Error::Io`], also if `name` is not a plain file name.
    pub(crate) fn json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        self.create(name, |file| pretty(file, value))
    }

    /// Copies a file's bytes, whatever their number, under a name of its own.
    ///
    /// # Errors
    /// [`Error::Io`] if `from` is not a regular file or cannot be read, the copy cannot be written, or `name` is not a
    /// plain file name.
    pub(crate) fn copy_file(&self, name: &str, from: &Path) -> Result<()> {
        let mut source = open_regular(from)?;
        self.create(name, |file| io::copy(&mut source, file).map(drop))
    }

    /// Writes a file of any size as `fill` makes it; `fill` is given the path for its errors.
    ///
    /// # Errors
    /// Those of `fill`; [`Error::Io`], also if `name` is not a plain file name.
    pub(crate) fn stream(
        &self,
        name: &str,
        fill: impl FnOnce(&Path, &mut BufWriter<File>) -> Result<()>,
    ) -> Result<()> {
        let path = self.partial.join(name);
        let mut failed = None;
        let made = self.create(name, |file| {
            fill(&path, file).map_err(|e| {
                failed = Some(e);
                io::Error::other("it could not be made")
            })
        });
        failed.map_or(made, Err)
    }

    /// Where the files lie until [`Folder::finish`]; a loader can read them there once all are written.
    pub(crate) fn path(&self) -> &Path {
        &self.partial
    }

    /// Gives the folder its name. All its files are on the disk by then, so that not even a power failure leaves a
    /// folder of that name with less than the whole.
    ///
    /// # Errors
    /// [`Error::Io`] if something of that name has come into being meanwhile, or the system refuses.
    pub(crate) fn finish(&mut self) -> Result<&Path> {
        disk::sync_folder(&self.partial)?;
        disk::refuse_existing(&self.out)?;
        fs::rename(&self.partial, &self.out).map_err(Error::io(&self.out, "create"))?;
        self.finished = true;
        // Only now: killed before the rename, the folder is still one that can be continued.
        let journal = self.out.join(JOURNAL);
        fs::remove_file(&journal).map_err(Error::io(&journal, "remove"))?;
        disk::sync_folder(&self.out)?;
        disk::sync_folder(self.out.parent().unwrap_or(Path::new(".")))?;
        Ok(&self.out)
    }

    /// Removes the partial folder; does nothing after [`Folder::finish`].
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be removed.
    pub(crate) fn abandon(self) -> Result<()> {
        match self.finished {
            true => Ok(()),
            false => fs::remove_dir_all(&self.partial).map_err(Error::io(&self.partial, "remove")),
        }
    }

    fn create(&self, name: &str, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<()> {
        let path = self.partial.join(name);
        let write = || {
            if !disk::is_plain(name) || name == JOURNAL {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a plain file name"));
            }
            let mut file = BufWriter::new(disk::open(&path, true)?);
            file.get_ref().set_len(0)?;
            fill(&mut file)?;
            file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
        };
        write().map_err(Error::io(&path, "write"))
    }
}

fn pretty(file: &mut BufWriter<File>, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *file, value)?;
    file.write_all(b"\n")
}
