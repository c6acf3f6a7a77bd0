//! Writing a plan: shards, index and configuration into a folder that gets its name last.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};

use super::fill::{CHUNK, Tables};
use super::plan::{Plan, Tensor};
use crate::checkpoint::{INDEX_FILE, LoadOptions, LoadProgress};
use crate::error::{Error, Result};

/// What was written.
#[derive(Debug, Clone, Copy, Serialize)]
#[non_exhaustive]
pub struct SynthReport {
    /// Tensors.
    pub tensors: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Files they lie in.
    pub shards: usize,
    /// Seconds it took.
    pub seconds: f64,
}

/// A folder under construction; removed unless it was finished.
struct Partial {
    folder: PathBuf,
    finished: bool,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing to do if even this fails: the error that matters is the one that led here.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

pub(super) fn write(
    out: &Path,
    config: &Value,
    plan: &Plan,
    seed: u64,
    options: &LoadOptions,
) -> Result<SynthReport> {
    let begun = Instant::now();
    refuse_existing(out)?;
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let free = free_bytes(parent).map_err(Error::io(parent, "examine"))?;
    if plan.bytes > free {
        let problem = format!("{} bytes are needed, {free} are free", plan.bytes);
        return Err(Error::io(out, "create")(io::Error::new(io::ErrorKind::StorageFull, problem)));
    }
    let mut name = out.as_os_str().to_owned();
    name.push(".partial");
    let folder = PathBuf::from(name);
    fs::create_dir(&folder).map_err(Error::io(&folder, "create"))?;
    let mut partial = Partial { folder, finished: false };
    let folder = &partial.folder;

    json_file(&folder.join("config.json"), config)?;
    let mut map = serde_json::Map::new();
    let run = Run { seed, options, begun, total: plan.bytes, done: AtomicU64::new(0) };
    let tables = Tables::of(plan.shards.iter().flatten());
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.threads)
        .build()
        .map_err(|e| Error::argument("threads", format!("cannot be started: {e}")))?;
    for (i, shard) in plan.shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, plan.shards.len());
        pool.install(|| run.shard(&folder.join(&name), shard, &tables))?;
        map.extend(shard.iter().map(|t| (t.name.clone(), Value::from(name.as_str()))));
    }
    let index = json!({"metadata": {"total_size": plan.bytes}, "weight_map": map});
    json_file(&folder.join(INDEX_FILE), &index)?;

    refuse_existing(out)?;
    fs::rename(folder, out).map_err(Error::io(out, "create"))?;
    partial.finished = true;
    let (tensors, bytes, shards) = (plan.tensors, plan.bytes, plan.shards.len());
    Ok(SynthReport { tensors, bytes, shards, seconds: begun.elapsed().as_secs_f64() })
}

/// Whatever stands there, a dangling link included, is not for this to replace.
fn refuse_existing(out: &Path) -> Result<()> {
    match fs::symlink_metadata(out) {
        Ok(_) => Err(Error::io(out, "create")(io::ErrorKind::AlreadyExists.into())),
        Err(_) => Ok(()),
    }
}

fn json_file(path: &Path, value: &Value) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = BufWriter::new(File::create_new(path)?);
        serde_json::to_writer_pretty(&mut file, value)?;
        file.write_all(b"\n")?;
        file.flush()
    };
    write().map_err(Error::io(path, "write"))
}

/// What all chunks share.
struct Run<'a> {
    seed: u64,
    options: &'a LoadOptions,
    begun: Instant,
    total: u64,
    done: AtomicU64,
}

impl Run<'_> {
    fn shard(&self, path: &Path, tensors: &[Tensor], tables: &Tables) -> Result<()> {
        let header = header(tensors);
        let file = File::create_new(path).map_err(Error::io(path, "create"))?;
        file.write_all_at(&header, 0).map_err(Error::io(path, "write"))?;
        let pieces: Vec<(&Tensor, u64)> = tensors
            .iter()
            .flat_map(|t| (0..t.len.div_ceil(CHUNK as u64)).map(move |chunk| (t, chunk)))
            .collect();
        pieces.into_par_iter().try_for_each_init(
            || vec![0u8; CHUNK],
            |buffer, (tensor, chunk)| {
                if self.options.cancel.as_ref().is_some_and(|c| c.load(Ordering::Relaxed)) {
                    return Err(Error::Cancelled);
                }
                let at = chunk * CHUNK as u64;
                let len = (tensor.len - at).min(CHUNK as u64) as usize;
                let bytes = &mut buffer[..len];
                tables.fill(tensor.fill, &tensor.name, self.seed, chunk, bytes);
                file.write_all_at(bytes, header.len() as u64 + tensor.offset + at)
                    .map_err(Error::io(path, "write"))?;
                self.report(len as u64);
                Ok(())
            },
        )
    }

    fn report(&self, len: u64) {
        let bytes_done = self.done.fetch_add(len, Ordering::Relaxed) + len;
        if let Some(progress) = &self.options.progress {
            let seconds = self.begun.elapsed().as_secs_f64();
            progress(LoadProgress { bytes_done, bytes_total: self.total, seconds });
        }
    }
}

/// The safetensors header, padded so that the first tensor is aligned.
fn header(tensors: &[Tensor]) -> Vec<u8> {
    let entries: serde_json::Map<String, Value> = tensors
        .iter()
        .map(|t| {
            let offsets = [t.offset, t.offset + t.len];
            let entry = json!({"dtype": t.dtype.name(), "shape": t.shape, "data_offsets": offsets});
            (t.name.clone(), entry)
        })
        .collect();
    let mut json = Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    header
}

/// Bytes that may be written to the file system of `folder`.
fn free_bytes(folder: &Path) -> io::Result<u64> {
    let name = std::ffi::CString::new(folder.as_os_str().as_bytes())?;
    let mut stats = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `name` is a NUL-terminated string and `stats` has room for what the call writes; both live through it.
    let done = unsafe { libc::statvfs(name.as_ptr(), stats.as_mut_ptr()) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it filled the structure.
    let stats = unsafe { stats.assume_init() };
    Ok(stats.f_bavail * stats.f_frsize)
}
