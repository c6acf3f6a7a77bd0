//! What of a partial folder is finished and safely on the disk, and whose folder it is.
//!
//! A text file of JSON lines that only grows: first the identity, then the layout's hash, then a line for each finished
//! unit, written once the unit's bytes are synced. Whoever holds its lock owns the folder. A kill or a power failure can
//! tear the last lines; reading stops at the first that is not whole, and what it would have said is done again.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use blake3::Hash;
use serde::{Deserialize, Serialize};

use super::disk;
use super::layout::Layout;
use crate::error::{Error, Result};

/// Its name in the partial folder.
pub(super) const JOURNAL: &str = "abruzzi.journal";

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
    finished: Vec<Finished>,
}

impl Journal {
    /// Opens the journal of `folder`, or begins one in a folder that is empty. Nothing is changed in a folder of another
    /// identity, of another program, or of a process that is still at work.
    pub(super) fn open(folder: &Path, identity: Hash) -> Result<Journal> {
        let path = folder.join(JOURNAL);
        let failed = |e| Error::io(&path, "open")(e);
        let refuse =
            |problem: &str| Err(Error::Unfinished { folder: folder.to_owned(), problem: problem.to_owned() });
        let file = match disk::open(&path, holds_at_most(folder, 0)?) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return refuse("has no journal, so it is no unfinished result of this program");
            }
            Err(e) => return Err(failed(e)),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let busy = io::Error::new(io::ErrorKind::ResourceBusy, "another process is writing it");
                return Err(Error::io(folder, "continue")(busy));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(&path, "lock")(e)),
        }
        if file.metadata().map_err(failed)?.len() > MAX_JOURNAL {
            return refuse("has a journal that is larger than any of this program");
        }
        let mut journal =
            Journal { folder: folder.to_owned(), path, file, layout: None, finished: Vec::new() };
        let whole = journal.read(&identity.to_hex())?;
        // The first line is on the disk before there is a second file.
        if whole == 0 && !holds_at_most(folder, 1)? {
            return refuse("has a damaged journal");
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
                    let problem = "is the unfinished result of other arguments or another version".to_owned();
                    return Err(Error::Unfinished { folder: self.folder.clone(), problem });
                }
                (_, Ok(Line::Layout(hash))) if self.layout.is_none() => self.layout = Some(hash),
                (_, Ok(Line::Unit(unit, hashes))) if self.layout.is_some() => {
                    let hashes: Result<_, _> = hashes.iter().map(Hash::from_hex).collect();
                    let Ok(hashes) = hashes else { return Ok(whole) };
                    self.finished.push(Finished { unit, hashes });
                }
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
            Some(_) => {
                let problem = "has its tensors laid out otherwise".to_owned();
                return Err(Error::Unfinished { folder: self.folder.clone(), problem });
            }
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
        let mut known = vec![None; layout.units.len()];
        for Finished { unit, hashes } in &self.finished {
            let expected = layout.units.get(*unit).map(|u| u.tensors.len());
            if expected == Some(hashes.len()) && sound[layout.places[*unit].shard] {
                known[*unit] = Some(hashes.clone());
            }
        }
        Ok(known)
    }

    /// Notes that units are finished. Their bytes must be on the disk.
    pub(super) fn note(&mut self, units: Vec<Finished>) -> Result<()> {
        let hex = |hashes: &[Hash]| hashes.iter().map(|hash| hash.to_hex().to_string()).collect();
        let lines: Vec<Line> = units.iter().map(|u| Line::Unit(u.unit, hex(&u.hashes))).collect();
        self.append(&lines)?;
        self.finished.extend(units);
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

fn holds_at_most(folder: &Path, files: usize) -> Result<bool> {
    let entries = fs::read_dir(folder).map_err(Error::io(folder, "list"))?;
    Ok(entries.take(files + 1).count() <= files)
}
