//! Kernel files to fatbins, in parallel, each compiled again only when something it is made from has changed. Shared
//! by the build script and `cargo xtask gates`, which reads what ptxas said.
//!
//! Standard library only.

use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::toolchain::{FATBIN_FLAGS, Toolchain};

/// Beside [`FATBIN_FLAGS`]: what ptxas is to report. Spills and local memory are refused by the static gates, which name
/// the kernel; here they are warnings in the log.
const REPORT_FLAGS: [&str; 2] = ["-Xptxas", "-v,--warn-on-spills,--warn-on-local-memory-usage"];

/// What to compile, with what, to where.
pub struct Job<'a> {
    pub toolchain: &'a Toolchain,
    /// The C++ compiler for nvcc's host half; `None` leaves the choice to nvcc.
    pub host_compiler: Option<&'a Path>,
    /// The workspace: sources in cuda/, headers in cuda/include/.
    pub root: &'a Path,
    pub cache: &'a Path,
    /// nvcc processes at a time.
    pub jobs: usize,
}

/// A kernel file's products.
pub struct Compiled {
    /// File name without `.cu`.
    pub name: String,
    pub fatbin: PathBuf,
    /// What ptxas reported: registers, spills, shared memory of each kernel.
    pub log: PathBuf,
}

/// Where compiled kernels are kept: beside the profiles' folders, so that debug, release and the gates share them.
pub fn cache(out: &Path) -> PathBuf {
    let target = out.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    target.unwrap_or(out).join("cuda-images")
}

/// Kernel files, by name.
pub fn sources(root: &Path) -> io::Result<Vec<PathBuf>> {
    files(&root.join("cuda"), &["cu"])
}

/// Compiles every kernel file.
///
/// # Errors
/// With what nvcc said, of the first file that fails.
pub fn compile_all(job: &Job) -> io::Result<Vec<Compiled>> {
    fs::create_dir_all(job.cache)?;
    let sources = sources(job.root)?;
    let headers = files(&job.root.join("cuda/include"), &["h", "cuh"])?;
    let mut shared = DefaultHasher::new();
    // Without the host compiler, which only preprocesses: the build script names one and the gates do not, and both are
    // to find the same code.
    flags(&Job { host_compiler: None, ..*job }).hash(&mut shared);
    (&job.toolchain.nvcc, job.toolchain.version.to_string()).hash(&mut shared);
    for header in &headers {
        (header, fs::read(header)?).hash(&mut shared);
    }

    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..job.jobs.clamp(1, sources.len().max(1)) {
            scope.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = compile(job, source, shared.clone());
                    results.lock().expect("no thread panics holding it").push(result);
                }
            });
        }
    });
    let results = results.into_inner().expect("no thread panics holding it");
    let mut compiled = results.into_iter().collect::<io::Result<Vec<Compiled>>>()?;
    compiled.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(compiled)
}

fn flags(job: &Job) -> Vec<OsString> {
    let mut flags: Vec<OsString> = FATBIN_FLAGS.iter().chain(&REPORT_FLAGS).map(OsString::from).collect();
    flags.extend(["-I".into(), job.root.join("cuda/include").into_os_string()]);
    if let Some(compiler) = job.host_compiler {
        flags.extend(["-ccbin".into(), compiler.as_os_str().to_owned()]);
    }
    flags
}

fn compile(job: &Job, source: &Path, mut hasher: DefaultHasher) -> io::Result<Compiled> {
    fs::read(source)?.hash(&mut hasher);
    let name = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let kept = |extension| job.cache.join(format!("{name}-{:016x}.{extension}", hasher.finish()));
    let (fatbin, log) = (kept("fatbin"), kept("log"));
    if fatbin.is_file() && log.is_file() {
        return Ok(Compiled { name, fatbin, log });
    }
    // Two profiles may be built at once: each writes files of its own and renames them.
    let partial = job.cache.join(format!("{name}-{}.partial", std::process::id()));
    // Relative paths in, relative paths in the line table: reports then name cuda/x.cu wherever the workspace is.
    let relative = source.strip_prefix(job.root).unwrap_or(source);
    let output = job
        .toolchain
        .nvcc_command()
        .current_dir(job.root)
        .args(flags(job))
        .arg("-o")
        .args([&partial, relative])
        .output()
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", job.toolchain.nvcc.display())))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let _ = fs::remove_file(&partial);
        return Err(io::Error::other(format!("nvcc {}:\n{said}", relative.display())));
    }
    let partial_log = partial.with_extension("partial-log");
    fs::write(&partial_log, &*said)?;
    fs::rename(&partial_log, &log)?;
    fs::rename(&partial, &fatbin)?;
    Ok(Compiled { name, fatbin, log })
}

fn files(folder: &Path, extensions: &[&str]) -> io::Result<Vec<PathBuf>> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", folder.display()));
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(named)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| extensions.iter().any(|wanted| e == *wanted)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
