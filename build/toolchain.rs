//! Where the CUDA compiler and libclang are. One lookup serves every user, so that a build and a test never disagree.
//!
//! nvcc comes from the first of: `$CUDA_HOME/bin/nvcc`, `$NVCC`, nvcc on `PATH`, `target/toolchain` of the workspace
//! (wherever cargo's own target folder may be). One named by a variable is used or refused, never passed over in
//! silence; one on `PATH` that is too old is passed over with a note, since nobody asked for it.
//!
//! `target/toolchain`, which `install.rs` fills from PyPI and which may be copied or moved as a whole:
//!
//! ```text
//! requirements.txt                 a copy of xtask/toolchain.txt: what is installed; absent or different = not usable
//! nvidia/cu13/bin/                 nvcc, ptxas, cuobjdump, nvdisasm, …
//! nvidia/cu13/include/             cuda.h, cuda_fp8.h, …; CUB and libcu++ in cccl/, which nvcc adds by itself
//! nvidia/cu13/lib/                 libcudart_static.a
//! nvidia/cu13/nvvm/                cicc, libdevice
//! clang/native/libclang.so         the library without clang's own headers (stddef.h): give bindgen
//!                                  -isystem $(cc -print-file-name=include)
//! ```
//!
//! Standard library only, so that a build script can include this file too.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest nvcc the kernels are written for: the first one that knows all of sm_90a that they use.
pub const OLDEST: Version = Version { major: 12, minor: 4 };

/// Flags that make one `.cu` file into one fatbin: code for Hopper and PTX beside it. Uncompressed, because the
/// emulator reads the PTX and tests read both; with line numbers, because reports name the line.
pub const FATBIN_FLAGS: [&str; 6] = [
    "-std=c++17",
    "-gencode",
    "arch=compute_90a,code=[sm_90a,compute_90a]",
    "--no-compress",
    "-fatbin",
    "-lineinfo",
];

/// A CUDA release as nvcc prints it; the patch level decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl Version {
    /// Reads "…, release 13.0, V13.0.88" out of what `nvcc --version` prints.
    pub fn parse(text: &str) -> Option<Version> {
        let (_, rest) = text.split_once("release ")?;
        let (release, _) = rest.split_once(',')?;
        let (major, minor) = release.split_once('.')?;
        Some(Version { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The variables the lookup depends on, taken as values so that a test can set them.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    pub cuda_home: Option<OsString>,
    pub nvcc: Option<OsString>,
    pub path: Option<OsString>,
    pub libclang_path: Option<OsString>,
}

impl Environment {
    /// This process's; a variable set to nothing counts as unset.
    pub fn of_process() -> Environment {
        let get = |name| env::var_os(name).filter(|value| !value.is_empty());
        Environment {
            cuda_home: get("CUDA_HOME"),
            nvcc: get("NVCC"),
            path: get("PATH"),
            libclang_path: get("LIBCLANG_PATH"),
        }
    }
}

/// A CUDA toolkit new enough for the kernels, and libclang for bindgen.
#[derive(Clone, Debug)]
pub struct Toolchain {
    pub nvcc: PathBuf,
    pub version: Version,
    /// The folder that has bin/ and include/.
    pub cuda_home: PathBuf,
    /// Absent from some minimal toolkits.
    pub cuobjdump: Option<PathBuf>,
    /// Absent from some minimal toolkits.
    pub nvdisasm: Option<PathBuf>,
    /// A library or the folder it is in: what bindgen takes as LIBCLANG_PATH.
    pub libclang: Option<PathBuf>,
}

/// What a lookup outside target/toolchain came to.
pub enum Found {
    Toolkit(Toolchain),
    /// Nothing usable; the notes say what was passed over.
    Nothing {
        notes: Vec<String>,
    },
}

impl Toolchain {
    /// The machine's own toolkit, without target/toolchain. An error when a variable names one that is unusable.
    pub fn of_machine(environment: &Environment) -> io::Result<Found> {
        if let Some(home) = &environment.cuda_home {
            let nvcc = Path::new(home).join("bin/nvcc");
            return Self::at(&nvcc, environment).map(Found::Toolkit).map_err(|e| refused("CUDA_HOME", &e));
        }
        if let Some(nvcc) = &environment.nvcc {
            // NVCC may be a bare command name, as CC may.
            let nvcc = on_path(nvcc, environment).unwrap_or_else(|| PathBuf::from(nvcc));
            return Self::at(&nvcc, environment).map(Found::Toolkit).map_err(|e| refused("NVCC", &e));
        }
        let mut notes = Vec::new();
        if let Some(nvcc) = on_path(OsStr::new("nvcc"), environment) {
            match Self::at(&nvcc, environment) {
                Ok(toolchain) => return Ok(Found::Toolkit(toolchain)),
                Err(error) => notes.push(format!("not using the nvcc on PATH: {error}")),
            }
        }
        Ok(Found::Nothing { notes })
    }

    /// The toolkit installed in `folder`, laid out as target/toolchain is.
    pub fn in_folder(folder: &Path, environment: &Environment) -> io::Result<Toolchain> {
        let mut toolchain = Self::at(&folder.join("nvidia/cu13/bin/nvcc"), environment)?;
        if environment.libclang_path.is_none() {
            toolchain.libclang = Some(folder.join("clang/native"));
        }
        Ok(toolchain)
    }

    /// The toolkit `nvcc` belongs to, if it runs and is new enough.
    fn at(nvcc: &Path, environment: &Environment) -> io::Result<Toolchain> {
        let output = Command::new(nvcc)
            .arg("--version")
            .output()
            .map_err(|e| io::Error::other(format!("cannot run {}: {e}", nvcc.display())))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(version) = Version::parse(&text) else {
            return Err(io::Error::other(format!(
                "`{} --version` does not name a CUDA release (it printed {:?})",
                nvcc.display(),
                text.trim()
            )));
        };
        if version < OLDEST {
            return Err(io::Error::other(format!(
                "{} is CUDA {version}; abruzzi needs {OLDEST} or newer",
                nvcc.display()
            )));
        }
        // A link such as /usr/local/bin/nvcc says nothing about where the headers are; what it leads to does.
        let real = nvcc.canonicalize().unwrap_or_else(|_| nvcc.to_path_buf());
        let bin = real.parent().unwrap_or(Path::new("."));
        let tool = |name| Some(bin.join(name)).filter(|path| path.is_file());
        Ok(Toolchain {
            nvcc: nvcc.to_path_buf(),
            version,
            cuda_home: bin.parent().unwrap_or(bin).to_path_buf(),
            cuobjdump: tool("cuobjdump"),
            nvdisasm: tool("nvdisasm"),
            libclang: environment.libclang_path.as_ref().map(PathBuf::from),
        })
    }

    /// nvcc, ready for `.cu` files that include CUDA's own headers, CUB and libcu++: its nvcc.profile, which it reads
    /// relative to itself, names all of them, so no flag and no variable has to. Its host compiler is gcc from PATH
    /// unless `NVCC_CCBIN` or `NVCC_PREPEND_FLAGS` says otherwise.
    pub fn nvcc_command(&self) -> Command {
        Command::new(&self.nvcc)
    }
}

/// How a refusal reads: what is wrong, then the two ways out.
fn refused(variable: &str, error: &io::Error) -> io::Error {
    io::Error::other(format!(
        "{variable} names a CUDA toolkit that cannot be used: {error}.\n\
         Set {variable} to a newer toolkit, or unset it and let `cargo xtask toolchain` install one in target/toolchain."
    ))
}

/// The first file `name` in the folders of PATH. A name with a slash is a path already and is not looked for.
fn on_path(name: &OsStr, environment: &Environment) -> Option<PathBuf> {
    if Path::new(name).components().count() != 1 {
        return None;
    }
    env::split_paths(environment.path.as_ref()?).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// libclang where Linux distributions put it; of several LLVM releases the newest.
pub fn system_libclang() -> Option<PathBuf> {
    let mut llvm: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let release = entry.file_name().to_str()?.strip_prefix("llvm-")?.parse().ok()?;
            Some((release, entry.path().join("lib")))
        })
        .collect();
    llvm.sort();
    let folders = llvm.into_iter().rev().map(|(_, folder)| folder);
    folders
        .chain(["/usr/lib64", "/usr/lib"].map(PathBuf::from))
        .find(|folder| folder.join("libclang.so").is_file())
}
