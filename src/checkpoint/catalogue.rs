//! Every tensor of a checkpoint, by name, with the file and the bytes it lies in.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::file::{Stamp, open_regular};
use super::header::{Entry, MAX_TENSORS, parse_header};
use super::index::{self, Index, parse_index};
use super::region::{HostRegion, MappedFile};
use crate::error::{Error, Fault, FaultKind, Result};

/// The index's file name.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// An open shard.
#[derive(Debug)]
pub(crate) struct Shard {
    /// Its name in the checkpoint's folder.
    pub name: PathBuf,
    pub file: File,
    pub stamp: Stamp,
    region: OnceLock<Arc<HostRegion>>,
}

impl Shard {
    /// The shard mapped, once for all who ask.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses.
    pub(super) fn region(&self) -> Result<&Arc<HostRegion>> {
        if let Some(region) = self.region.get() {
            return Ok(region);
        }
        // As long as it was when its header was checked: should it have become shorter, bringing the end fails.
        let mapped = MappedFile::new(&self.file, self.stamp.len as usize);
        let region = HostRegion::File(mapped.map_err(Error::io(&self.name, "map"))?);
        Ok(self.region.get_or_init(|| Arc::new(region)))
    }
}

/// A tensor and the shard it lies in.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    pub entry: Entry,
    pub shard: usize,
}

/// All shards and tensors.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    pub shards: Vec<Shard>,
    pub tensors: HashMap<Box<str>, Located>,
}

impl Catalogue {
    /// Opens the checkpoint at `path`, a folder or a single file, and reads its headers. Faults of the files and of
    /// single tensors are appended to `faults`; what is in the catalogue is sound.
    pub(crate) fn open(path: &Path, faults: &mut Vec<Fault>) -> Result<Catalogue> {
        if !path.is_dir() {
            let mut catalogue = Catalogue::default();
            let name = PathBuf::from(path.file_name().unwrap_or(path.as_os_str()));
            catalogue.add(name, path, faults);
            return Ok(catalogue);
        }
        match std::fs::symlink_metadata(path.join(INDEX_FILE)) {
            Ok(_) => Catalogue::indexed(path, faults),
            Err(_) => Catalogue::unindexed(path, faults),
        }
    }

    fn unindexed(dir: &Path, faults: &mut Vec<Fault>) -> Result<Catalogue> {
        let mut names: Vec<PathBuf> = Vec::new();
        for item in std::fs::read_dir(dir).map_err(Error::io(dir, "list"))? {
            let name = PathBuf::from(item.map_err(Error::io(dir, "list"))?.file_name());
            if name.extension().is_some_and(|e| e == "safetensors") {
                names.push(name);
            }
        }
        names.sort();
        if names.is_empty() {
            let problem = "holds neither model.safetensors.index.json nor any *.safetensors file";
            faults.push(Fault { file: None, tensor: None, kind: FaultKind::BadFile(problem.into()) });
        }
        let mut catalogue = Catalogue::default();
        for name in names {
            catalogue.add_beside(dir, name, faults);
        }
        Ok(catalogue)
    }

    fn indexed(dir: &Path, faults: &mut Vec<Fault>) -> Result<Catalogue> {
        let file = dir.join(INDEX_FILE);
        let index = match parse_index(open_regular(&file)?) {
            Ok(index) => index,
            Err(kind) => {
                faults.push(Fault::file(INDEX_FILE, kind));
                return Ok(Catalogue::default());
            }
        };
        let mut catalogue = Catalogue::default();
        for shard in &index.shards {
            catalogue.add_beside(dir, PathBuf::from(shard), faults);
        }
        catalogue.compare(&index, faults);
        Ok(catalogue)
    }

    fn add_beside(&mut self, dir: &Path, name: PathBuf, faults: &mut Vec<Fault>) {
        match index::resolve(dir, &name.to_string_lossy()) {
            Ok(path) => self.add(name, &path, faults),
            Err(kind) => faults.push(Fault::file(name, kind)),
        }
    }

    fn add(&mut self, name: PathBuf, path: &Path, faults: &mut Vec<Fault>) {
        let opened = open_regular(path).and_then(|file| {
            let stamp = Stamp::of(&file).map_err(Error::io(path, "examine"))?;
            Ok((file, stamp))
        });
        let (file, stamp) = match opened {
            Ok(opened) => opened,
            Err(e) => return faults.push(Fault::file(name, FaultKind::BadFile(e.to_string()))),
        };
        let header = match parse_header(&file, stamp.len) {
            Ok(header) => header,
            Err(kind) => return faults.push(Fault::file(name, kind)),
        };
        faults.extend(header.faults.into_iter().map(|(tensor, kind)| Fault {
            file: Some(name.clone()),
            tensor,
            kind,
        }));
        if self.tensors.len() + header.entries.len() > MAX_TENSORS {
            let problem = format!("brings the checkpoint to more than {MAX_TENSORS} tensors");
            return faults.push(Fault::file(name, FaultKind::BadFile(problem)));
        }
        let shard = self.shards.len();
        for entry in header.entries {
            if let Some(other) = self.tensors.get(&entry.name) {
                let other = self.shards[other.shard].name.display().to_string();
                faults.push(Fault::tensor(&name, entry.name, FaultKind::Duplicate { other }));
            } else {
                self.tensors.insert(entry.name.clone(), Located { entry, shard });
            }
        }
        self.shards.push(Shard { name, file, stamp, region: OnceLock::new() });
    }

    /// The index and the shards must tell the same story.
    fn compare(&self, index: &Index, faults: &mut Vec<Fault>) {
        let stale = |problem: String| FaultKind::BadIndex(problem);
        let mut all: Vec<&Box<str>> = index.map.keys().collect();
        all.sort();
        for name in all {
            let claimed = &index.shards[index.map[name] as usize];
            match self.tensors.get(name) {
                Some(found) if self.shards[found.shard].name == Path::new(claimed) => {}
                Some(found) => {
                    let actual = self.shards[found.shard].name.display();
                    let problem = format!("the index places it in {claimed}, but it is in {actual}");
                    faults.push(Fault::tensor(INDEX_FILE, name.clone(), stale(problem)));
                }
                // A shard that could not be read has its own fault; its tensors need none each.
                None if !self.shards.iter().any(|s| s.name == Path::new(claimed)) => {}
                None => {
                    let problem = format!("the index places it in {claimed}, which does not hold it");
                    faults.push(Fault::tensor(INDEX_FILE, name.clone(), stale(problem)));
                }
            }
        }
        let mut unlisted: Vec<&Box<str>> =
            self.tensors.keys().filter(|name| !index.map.contains_key(*name)).collect();
        unlisted.sort();
        for name in unlisted {
            let problem = "the index does not list it".to_owned();
            faults.push(Fault::tensor(
                &self.shards[self.tensors[name].shard].name,
                name.clone(),
                stale(problem),
            ));
        }
        let bytes: u64 = self.tensors.values().map(|t| t.entry.len).sum();
        if let Some(claimed) = index.total_size.filter(|&c| c != bytes && faults.is_empty()) {
            let problem = format!("claims total_size {claimed}, but the tensors have {bytes} bytes");
            faults.push(Fault::file(INDEX_FILE, stale(problem)));
        }
    }
}
