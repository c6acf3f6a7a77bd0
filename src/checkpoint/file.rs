//! Opening what a user points at: only regular files, without ever waiting on one, and a stamp to notice changes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{Error, Result};

/// Opens a regular file for reading. A FIFO, socket, device or folder is refused, not waited for.
///
/// # Errors
/// [`Error::Io`] with the reason.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    // O_NONBLOCK: opening a FIFO without a writer would otherwise hang.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(Error::io(path, "open"))?;
    let metadata = file.metadata().map_err(Error::io(path, "examine"))?;
    if metadata.is_file() {
        return Ok(file);
    }
    let what = if metadata.is_dir() { "it is a folder" } else { "it is not a regular file" };
    Err(Error::io(path, "read")(std::io::Error::new(std::io::ErrorKind::InvalidInput, what)))
}

/// What a file that should be something else is recognised as by its first bytes.
pub(crate) fn looks_like(bytes: &[u8]) -> Option<&'static str> {
    let text = bytes.trim_ascii_start();
    let html = |tag: &[u8]| text.len() >= tag.len() && text[..tag.len()].eq_ignore_ascii_case(tag);
    if bytes.is_empty() {
        Some("empty")
    } else if bytes.starts_with(b"version https://git-lfs") {
        Some("a Git-LFS pointer (the file itself was never downloaded; run `git lfs pull`)")
    } else if html(b"<!doctype html") || html(b"<html") {
        Some("an HTML page (a download that needed a login or a different address)")
    } else if bytes.starts_with(b"\xef\xbb\xbf") {
        Some("text with a byte-order mark")
    } else {
        None
    }
}

/// What identifies a version of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub len: u64,
    inode: u64,
    modified: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(file: &File) -> std::io::Result<Stamp> {
        let m = file.metadata()?;
        Ok(Stamp { len: m.len(), inode: m.ino(), modified: (m.mtime(), m.mtime_nsec()) })
    }
}
