//! What the writer asks of the file system: names, room, and that a folder's entries are safe.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// Where an output comes into being.
#[derive(Debug)]
pub(super) struct Place {
    pub parent: PathBuf,
    pub out: PathBuf,
    /// The same name with `.partial` behind, so that renaming stays within one file system.
    pub partial: PathBuf,
}

impl Place {
    pub(super) fn of(out: &Path) -> Result<Place> {
        let Some(name) = out.file_name() else {
            let problem = io::Error::new(io::ErrorKind::InvalidInput, "it does not end in a name");
            return Err(Error::io(out, "create")(problem));
        };
        let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut partial = name.to_owned();
        partial.push(".partial");
        Ok(Place { out: parent.join(name), partial: parent.join(partial), parent: parent.to_owned() })
    }
}

/// Whatever stands there, a dangling link included, is not for this to replace.
pub(super) fn refuse_existing(out: &Path) -> Result<()> {
    match fs::symlink_metadata(out) {
        Ok(_) => Err(Error::io(out, "create")(io::ErrorKind::AlreadyExists.into())),
        Err(_) => Ok(()),
    }
}

/// Refuses what does not fit the disk, before anything is written. What an earlier run wrote needs no more room.
pub(super) fn refuse_overfull(out: &Path, partial: &Path, parent: &Path, needed: u64) -> Result<()> {
    let (folder, there) = match allocated(partial) {
        Ok(there) => (partial, there),
        Err(e) if e.kind() == io::ErrorKind::NotFound => (parent, 0),
        Err(e) => return Err(Error::io(partial, "examine")(e)),
    };
    let free = free_bytes(folder).map_err(Error::io(folder, "examine"))?;
    if needed <= free.saturating_add(there) {
        return Ok(());
    }
    let problem = format!("{} bytes are needed, {free} are free", needed.saturating_sub(there));
    Err(Error::io(out, "create")(io::Error::new(io::ErrorKind::StorageFull, problem)))
}

/// Bytes that the files of a folder take on the disk: of a file that is not yet whole, what is there of it.
fn allocated(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0u64;
    for item in fs::read_dir(folder)? {
        bytes = bytes.saturating_add(item?.metadata()?.blocks().saturating_mul(512));
    }
    Ok(bytes)
}

/// Bytes that may be written to the file system of `folder`.
fn free_bytes(folder: &Path) -> io::Result<u64> {
    let name = CString::new(folder.as_os_str().as_bytes())?;
    let mut stats = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `name` is a NUL-terminated string and `stats` has room for what the call writes; both live through it.
    let done = unsafe { libc::statvfs(name.as_ptr(), stats.as_mut_ptr()) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it filled the structure.
    let stats = unsafe { stats.assume_init() };
    Ok(stats.f_bavail.saturating_mul(stats.f_frsize))
}

/// Opens a file of a partial folder to read and write it, keeping its bytes. Not through a link, which might lead to a
/// file that is not the folder's.
pub(super) fn open(path: &Path, create: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create).truncate(false);
    // O_NONBLOCK: opening a FIFO that somebody put there would otherwise hang.
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// Makes the entries of a folder safe against a power failure.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    let sync = || File::open(folder)?.sync_all();
    sync().map_err(Error::io(folder, "sync"))
}

/// Whether `name` names a file in a folder and nothing else.
pub(super) fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let one = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    one && !name.contains(['/', '\0'])
}
