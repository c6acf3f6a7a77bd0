//! What the emulator's tests share: CUDA source to PTX through nvcc, device buffers, parameter blocks.

#![allow(dead_code, reason = "each test binary uses its own part")]

#[path = "../../../build/toolchain.rs"]
#[allow(dead_code, unreachable_pub, missing_docs, reason = "shared with xtask, which uses all of it")]
mod toolchain;

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use toolchain::{Environment, Found, Toolchain};

use cuda_emulator::Memory;
use cuda_emulator::settings::{Schedule, Settings, Timing};

/// The workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Compiles a file of tests/kernels to PTX; the result is kept under target/ for as long as its source, its flags
/// and the compiler stay the same.
pub fn ptx(file: &str, flags: &[&str]) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels").join(file);
    ptx_of(&source, flags)
}

/// As [`ptx`], for any file.
pub fn ptx_of(source: &Path, flags: &[&str]) -> String {
    let ptx = ["-std=c++17", "-arch=compute_90a", "-ptx", "-lineinfo"];
    let flags: Vec<OsString> = ptx.iter().chain(flags).map(OsString::from).collect();
    std::fs::read_to_string(compiled(source, &flags, &[], "ptx")).unwrap()
}

/// What nvcc makes of a file with these flags. `inputs` are further files that the result depends on.
pub fn compiled(source: &Path, flags: &[OsString], inputs: &[PathBuf], extension: &str) -> PathBuf {
    // One at a time: nvcc takes a core and a gigabyte, and two tests may want the same file.
    static BUSY: Mutex<()> = Mutex::new(());
    let _busy = BUSY.lock().unwrap_or_else(PoisonError::into_inner);
    let toolchain = toolchain();
    let mut hasher = DefaultHasher::new();
    (flags, &toolchain.nvcc, toolchain.version.to_string()).hash(&mut hasher);
    for file in inputs.iter().map(PathBuf::as_path).chain([source]) {
        std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display())).hash(&mut hasher);
    }
    let folder = workspace().join("target/emulator-ptx");
    std::fs::create_dir_all(&folder).unwrap();
    let name = source.file_stem().unwrap().to_string_lossy();
    let kept = folder.join(format!("{name}-{:016x}.{extension}", hasher.finish()));
    if kept.is_file() {
        return kept;
    }
    let partial = folder.join(format!("{name}-{}.partial", std::process::id()));
    let mut nvcc: Command = toolchain.nvcc_command();
    let output = nvcc.args(flags).arg("-o").arg(&partial).arg(source).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nvcc {}: {said}", source.display());
    std::fs::rename(&partial, &kept).unwrap();
    kept
}

/// CUTLASS's source tree.
pub fn cutlass() -> PathBuf {
    let folder = workspace().join("target/toolchain-cutlass/cutlass_library/source");
    assert!(
        folder.join("include/cute/tensor.hpp").is_file(),
        "{} has no CUTLASS; `cargo xtask toolchain --cutlass` installs it",
        folder.display()
    );
    folder
}

/// The CUDA compiler: the machine's, or the one in target/toolchain.
fn toolchain() -> Toolchain {
    let environment = Environment::of_process();
    match Toolchain::of_machine(&environment) {
        Ok(Found::Toolkit(toolchain)) => toolchain,
        Ok(Found::Nothing { .. }) => {
            Toolchain::in_folder(&workspace().join("target/toolchain"), &environment)
                .unwrap_or_else(|e| panic!("{e}; `cargo xtask toolchain` installs a CUDA compiler"))
        }
        Err(e) => panic!("{e}"),
    }
}

/// Device memory holding `bytes`.
pub fn upload(memory: &Memory, name: &str, bytes: &[u8]) -> u64 {
    let address = memory.arena().allocate(bytes.len() as u64, name.to_owned()).unwrap();
    // SAFETY: freshly allocated with this many bytes.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
    memory.arena().mark_valid(address, bytes.len() as u64);
    address
}

/// What a buffer of the device holds.
pub fn download<T: Copy>(address: u64, count: usize) -> Vec<T> {
    // SAFETY: tests pass buffers they allocated, with elements any bits are valid for.
    unsafe { std::slice::from_raw_parts(address as *const T, count) }.to_vec()
}

/// The bytes of numbers.
pub fn bytes<T: Copy>(values: &[T]) -> Vec<u8> {
    // SAFETY: plain numbers without padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) }.to_vec()
}

/// A parameter block: values appended at their natural alignment.
#[derive(Default)]
pub struct Params(pub Vec<u8>);

impl Params {
    pub fn add<T: Copy>(mut self, value: T) -> Params {
        let size = size_of::<T>();
        self.0.resize(self.0.len().next_multiple_of(size.min(64)), 0);
        self.0.extend(bytes(&[value]));
        self
    }
}

/// Eager, lazy and random schedules, the last with several seeds.
pub fn schedules(seeds: u64) -> Vec<(String, Settings)> {
    let with = |schedule| Settings { schedule, spin_limit: 200_000, ..Settings::default() };
    let mut all = Vec::new();
    for seed in 0..seeds {
        for (name, timing) in [("eager", Timing::Eager), ("lazy", Timing::Lazy), ("random", Timing::Random)] {
            all.push((format!("{name}/{seed}"), with(Schedule::all(timing, seed))));
        }
    }
    all
}
