//! The files beside the weights that make a checkpoint usable: tokenizer, chat template, generation settings, licence.

use std::path::{Path, PathBuf};

use super::provenance;
use crate::checkpoint::write::{Folder, JOURNAL};
use crate::checkpoint::{INDEX_FILE, resolve};
use crate::error::{Error, Result};

/// Tokenizers take a few megabytes; a larger file is weights in some other dress.
const FILE_BYTES: u64 = 64 << 20;

/// Folders of checkpoints hold some twenty files.
const FILES: usize = 1024;

/// Endings of weights, of this and of other formats.
const WEIGHTS: [&str; 6] = ["safetensors", "bin", "pt", "pth", "gguf", "onnx"];

/// The files to copy, by name.
pub(super) struct Sidecars {
    files: Vec<(String, PathBuf, u64)>,
    left_out: Vec<String>,
}

impl Sidecars {
    /// Looks through a checkpoint's folder.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn of(dir: &Path) -> Result<Sidecars> {
        let mut found = Sidecars { files: Vec::new(), left_out: Vec::new() };
        for item in std::fs::read_dir(dir).map_err(Error::io(dir, "list"))? {
            let name = item.map_err(Error::io(dir, "list"))?.file_name().to_string_lossy().into_owned();
            let ending = Path::new(&name).extension().and_then(|e| e.to_str()).unwrap_or_default();
            // A kill in the last moment may have left the journal in a finished folder.
            let not_its_own = ["config.json", INDEX_FILE, provenance::FILE, JOURNAL].contains(&name.as_str());
            if !not_its_own && !WEIGHTS.contains(&ending) {
                found.consider(dir, name);
            }
        }
        found.files.sort();
        found.left_out.sort();
        Ok(found)
    }

    fn consider(&mut self, dir: &Path, name: String) {
        // As with shards: a link may lead to the hub's cache, not anywhere else.
        let real = match resolve(dir, &name) {
            Ok(real) => real,
            Err(kind) => return self.left_out.push(format!("{name}: {kind}")),
        };
        match std::fs::metadata(&real) {
            Ok(metadata) if !metadata.is_file() => {}
            Ok(metadata) if metadata.len() > FILE_BYTES => {
                self.left_out.push(format!("{name}: has {} bytes, more than {FILE_BYTES}", metadata.len()));
            }
            Ok(_) if self.files.len() == FILES => {
                self.left_out.push(format!("{name}: after the first {FILES} files"));
            }
            Ok(metadata) => self.files.push((name, real, metadata.len())),
            Err(e) => self.left_out.push(format!("{name}: {e}")),
        }
    }

    /// Bytes of all files to copy.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.2).sum()
    }

    /// Names of the files to copy.
    pub(super) fn names(&self) -> Vec<String> {
        self.files.iter().map(|f| f.0.clone()).collect()
    }

    /// Files that are not copied, with the reason.
    pub(super) fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Copies them.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn copy(&self, folder: &Folder) -> Result<()> {
        self.files.iter().try_for_each(|(name, from, _)| folder.copy_file(name, from))
    }
}
