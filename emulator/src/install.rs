//! Puts the emulator in the place of the CUDA driver, for the process that asks.
//!
//! Programs that load the driver at run time ask the loader for `libcuda.so`, versioned names, `libcuda.so.1`. The
//! loader gives out a library it already has under the same SONAME, so loading the emulator first, by path, is enough.
//! A real driver would come first by its unversioned name; in its presence nothing is installed unless forced, and then
//! only programs that ask for `libcuda.so.1` get the emulator.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// File name of the emulator.
const FILE: &str = "libcuda_emulator.so";
/// Names under which a real driver is looked for.
const REAL: [&CStr; 2] = [c"libcuda.so", c"libcuda.so.1"];

/// Why the emulator is not in place.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InstallError {
    /// No file of it anywhere.
    #[error("no {FILE}: set CUDA_EMULATOR_LIBRARY, or build cuda-emulator (looked at {})", list(.0))]
    NotFound(Vec<PathBuf>),
    /// A driver is there.
    #[error("a CUDA driver is installed ({0}); CUDA_EMULATOR_FORCE=1 takes the emulator all the same")]
    RealDriver(String),
    /// The loader's complaint.
    #[error("{path}: {message}")]
    Load {
        /// What was loaded.
        path: PathBuf,
        /// What the loader said.
        message: String,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Loads the emulator so that later searches for the CUDA driver find it. Returns its path.
///
/// # Errors
/// If there is no emulator, if it cannot be loaded, or if there is a real driver and neither `force` nor the variable
/// `CUDA_EMULATOR_FORCE=1` says to pass it over.
pub fn install(force: bool) -> Result<PathBuf, InstallError> {
    let path = find()?;
    let force = force || std::env::var_os("CUDA_EMULATOR_FORCE").is_some_and(|v| v == "1");
    let emulator = is_loaded(&path);
    if !force && !emulator {
        for name in REAL {
            if present(name) {
                return Err(InstallError::RealDriver(name.to_string_lossy().into_owned()));
            }
        }
    }
    load(&path)?;
    Ok(path)
}

/// Where the emulator is: where `CUDA_EMULATOR_LIBRARY` says; else the newest of those beside the executable, in the
/// folder above, and in `deps` of either. Cargo puts it into `deps` unless it was asked for by itself, and may leave an
/// older one above.
///
/// # Errors
/// With all places that were looked at.
pub fn find() -> Result<PathBuf, InstallError> {
    let mut places = Vec::new();
    if let Some(path) = std::env::var_os("CUDA_EMULATOR_LIBRARY").filter(|p| !p.is_empty()) {
        places.push(PathBuf::from(path));
    } else if let Ok(executable) = std::env::current_exe() {
        let folders = executable.ancestors().skip(1).take(2);
        places.extend(folders.flat_map(|folder| [folder.join(FILE), folder.join("deps").join(FILE)]));
    }
    let built = |path: &PathBuf| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let found = places.iter().filter(|path| path.is_file()).max_by_key(|path| built(path));
    found.cloned().ok_or(InstallError::NotFound(places))
}

fn c_path(path: &Path) -> Result<CString, InstallError> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|error| InstallError::Load { path: path.to_owned(), message: error.to_string() })
}

fn is_loaded(path: &Path) -> bool {
    let Ok(path) = c_path(path) else { return false };
    // SAFETY: the path is a C string; with RTLD_NOLOAD nothing is loaded or initialised.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
    !handle.is_null()
}

fn present(name: &CStr) -> bool {
    // SAFETY: the name is a C string. Loading a driver runs its initialisers, which is what any CUDA program does; the
    // handle is closed again, and closing what was just opened leaves everything as it was.
    unsafe {
        let handle = libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL);
        if handle.is_null() {
            return false;
        }
        // The emulator itself, found by its SONAME or a link, is no real driver.
        let real = libc::dlsym(handle, c"cuEmulatorConfigure".as_ptr()).is_null();
        libc::dlclose(handle);
        real
    }
}

fn load(path: &Path) -> Result<(), InstallError> {
    let c = c_path(path)?;
    // SAFETY: the path is a C string; the library's initialisers are Rust's own. The handle is kept for ever.
    let handle = unsafe { libc::dlopen(c.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: dlerror returns null or a C string that holds until this thread's next call of the loader.
    let message = unsafe {
        let text = libc::dlerror();
        if text.is_null() {
            "unknown error".to_owned()
        } else {
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    };
    Err(InstallError::Load { path: path.to_owned(), message })
}
