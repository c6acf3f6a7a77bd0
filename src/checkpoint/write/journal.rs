//! What of a partial folder is finished and safely on the disk, and whose folder it is.
//!
//! A text file of JSON lines that only grows: first the identity, then the layout's hash, then a line for each finished
//! unit, written once the unit's bytes are synced (or a line that takes some back). Whoever holds its lock owns the folder. A kill or a power failure can
//! tear the last lines; reading stops at the first that is not whole, and what it would have said is done again.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use blake3::Hash;
use serde::{Deserialize, Serialize};

use super::disk;
use super::layout::Layout;
use crate::error::{Error, Result};

/// Its name in the partial folder.
pub(crate) const JOURNAL: &str = "abruzzi.journal";

/// Bytes of a journal at most: several times what the most tensors that are loaded need.
const MAX_JOURNAL: u64 = 256 << 20;

/// A line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    /// Whose folder it is.
    Identity(String),
    /// [`Layout::hash`].
    Layout(String),
    /// A unit and the hashes of its tensors.
    Unit(usize, Vec<String>),
    /// Units that were finished and are so no more.
    Lost(Vec<usize>),
}

/// A finished unit.
#[derive(Debug, Clone)]
pub(super) struct Finished {
    pub unit: usize,
    /// Of the bytes of each tensor.
    pub hashes: Box<[Hash]>,
}

/// An open journal, locked until it is dropped.
#[derive(Debug)]
pub(super) struct Journal {
    folder: PathBuf,
    path: PathBuf,
    file: File,
    layout: Option<String>,
    /// The hashes of finished units' tensors, by unit.
    finished: BTreeMap<usize, Box<[Hash]>>,
}

impl Drop for Journal {
    fn drop(&mut self) {
        // Closing alone does not unlock it while a child that another thread just forked has the open file too. If even this
        // fails, the end of both does it.
        let _ = self.file.unlock();
    }
}

impl Journal {
    /// Opens the journal of `folder`, or begins one in a folder that is empty. Nothing is changed in a folder of another
    /// identity, of another program, or of a process that is still at work.
    pub(super) fn open(folder: &Path, identity: Hash) -> Result<Journal> {
        let path = folder.join(JOURNAL);
        let file = match disk::open(&path, holds_at_most(folder, 0)?) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return refuse(folder, "has no journal, so it is no unfinished result of this program");
            }
            Err(e) => return Err(Error::io(&path, "open")(e)),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let busy = io::Error::new(io::ErrorKind::ResourceBusy, "another process is writing it");
                return Err(Error::io(folder, "continue")(busy));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(&path, "lock")(e)),
        }
        let mut journal =
            Journal { folder: folder.to_owned(), path, file, layout: None, finished: BTreeMap::new() };
        let length = journal.file.metadata().map_err(Error::io(&journal.path, "examine"))?.len();
        if length > MAX_JOURNAL {
            return refuse(folder, "has a journal that is larger than any of this program");
        }
        let whole = journal.read(&identity.to_hex())?;
        // The first line is on the disk before there is a second file.
        if whole == 0 && !holds_at_most(folder, 1)? {
            return refuse(folder, "has a damaged journal");
        }
        journal.cut(whole).map_err(Error::io(&journal.path, "write"))?;
        if whole == 0 {
            journal.append(&[Line::Identity(identity.to_hex().to_string())])?;
        }
        Ok(journal)
    }

    /// Bytes of the lines that are whole; what they say is noted.
    fn read(&mut self, identity: &str) -> Result<u64> {
        let mut reader = BufReader::new(&self.file).take(MAX_JOURNAL);
        let (mut whole, mut text) = (0, Vec::new());
        loop {
            text.clear();
            reader.read_until(b'\n', &mut text).map_err(Error::io(&self.path, "read"))?;
            if text.last() != Some(&b'\n') {
                return Ok(whole);
            }
            match (whole, serde_json::from_slice(&text)) {
                (0, Ok(Line::Identity(found))) if found == identity => {}
                (0, _) => {
                    let problem = "is the unfinished result of other arguments or another version";
                    return refuse(&self.folder, problem);
                }
                (_, Ok(Line::Layout(hash))) if self.layout.is_none() => self.layout = Some(hash),
                (_, Ok(Line::Unit(unit, hashes))) if self.layout.is_some() => {
                    let hashes: Result<_, _> = hashes.iter().map(Hash::from_hex).collect();
                    let Ok(hashes) = hashes else { return Ok(whole) };
                    self.finished.insert(unit, hashes);
                }
                (_, Ok(Line::Lost(units))) => units.iter().for_each(|unit| drop(self.finished.remove(unit))),
                _ => return Ok(whole),
            }
            whole += text.len() as u64;
        }
    }

    /// Forgets what follows the whole lines and goes on behind them.
    fn cut(&mut self, whole: u64) -> io::Result<()> {
        self.file.set_len(whole)?;
        self.file.seek(SeekFrom::Start(whole)).map(drop)
    }

    /// Takes the layout into the journal, or compares it with the one that is there, and says which units are finished,
    /// with the hashes of their tensors.
    pub(super) fn begin(&mut self, layout: &Layout<'_>) -> Result<Vec<Option<Box<[Hash]>>>> {
        let hash = layout.hash().to_hex().to_string();
        match &self.layout {
            Some(found) if *found == hash => {}
            Some(_) => return refuse(&self.folder, "has its tensors laid out otherwise"),
            None => {
                self.append(&[Line::Layout(hash.clone())])?;
                self.layout = Some(hash);
            }
        }
        // A shard that is gone or has another length is not the one that the journal speaks of.
        let sound: Vec<bool> = layout
            .shards
            .iter()
            .map(|shard| {
                let found = fs::symlink_metadata(self.folder.join(&shard.name));
                found.is_ok_and(|found| found.is_file() && found.len() == shard.len())
            })
            .collect();
        let kept = |unit: usize, hashes: &[Hash]| {
            let tensors = layout.units.get(unit).map(|u| u.tensors.len());
            tensors == Some(hashes.len()) && sound[layout.places[unit].shard]
        };
        // Said before the shard is made anew: from then on it has the right length again.
        let lost = self.finished.iter().filter(|&(&unit, hashes)| !kept(unit, hashes));
        let lost: Vec<usize> = lost.map(|(&unit, _)| unit).collect();
        if !lost.is_empty() {
            lost.iter().for_each(|unit| drop(self.finished.remove(unit)));
            self.append(&[Line::Lost(lost)])?;
        }
        Ok((0..layout.units.len()).map(|unit| self.finished.get(&unit).cloned()).collect())
    }

    /// Notes that units are finished. Their bytes must be on the disk.
    pub(super) fn note(&mut self, units: Vec<Finished>) -> Result<()> {
        let hex = |hashes: &[Hash]| hashes.iter().map(|hash| hash.to_hex().to_string()).collect();
        let lines: Vec<Line> = units.iter().map(|u| Line::Unit(u.unit, hex(&u.hashes))).collect();
        self.append(&lines)?;
        self.finished.extend(units.into_iter().map(|u| (u.unit, u.hashes)));
        Ok(())
    }

    fn append(&mut self, lines: &[Line]) -> Result<()> {
        let mut text = Vec::new();
        let mut write = || {
            for line in lines {
                serde_json::to_writer(&mut text, line)?;
                text.push(b'\n');
            }
            self.file.write_all(&text)?;
            self.file.sync_data()
        };
        write().map_err(Error::io(&self.path, "write"))
    }
}

fn refuse<T>(folder: &Path, problem: &str) -> Result<T> {
    Err(Error::Unfinished { folder: folder.to_owned(), problem: problem.to_owned() })
}

fn holds_at_most(folder: &Path, files: usize) -> Result<bool> {
    let entries = fs::read_dir(folder).map_err(Error::io(folder, "list"))?;
    Ok(entries.take(files + 1).count() <= files)
}
