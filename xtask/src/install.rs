//! Fills target/toolchain and target/toolchain-cutlass with wheels from PyPI, each pinned by version and hash.
//!
//! A folder appears whole or not at all: pip fills a neighbour that is renamed when it is complete and has compiled a
//! kernel. The requirements file goes in as the last one, so an installed folder says what it was made from.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::toolchain::{Environment, FATBIN_FLAGS, Found, Toolchain, system_libclang};

/// A set of wheels and the folder under target/ they go to.
struct Wheels {
    folder: &'static str,
    requirements: &'static str,
    /// For the message before a download.
    what: &'static str,
    /// Proves, and completes, a freshly installed folder.
    finish: fn(&Path) -> Result<()>,
}

const CUDA: Wheels = Wheels {
    folder: "toolchain",
    requirements: include_str!("../toolchain.txt"),
    what: "the CUDA 13.0 compiler and libclang (130 MB)",
    finish: |folder| {
        // nvcc links host programs from lib64; the wheels have lib.
        #[cfg(unix)]
        std::os::unix::fs::symlink("lib", folder.join("nvidia/cu13/lib64"))?;
        compile_a_kernel(&Toolchain::in_folder(folder, &Environment::of_process())?, folder)
    },
};

const CUTLASS: Wheels = Wheels {
    folder: "toolchain-cutlass",
    requirements: include_str!("../cutlass.txt"),
    what: "CUTLASS's headers and examples (6 MB)",
    finish: |folder| {
        let header = cutlass_source(folder).join("include/cute/tensor.hpp");
        if !header.is_file() {
            bail!("the wheel has no {}", header.display());
        }
        Ok(())
    },
};

impl Toolchain {
    /// The machine's toolkit if it has a new enough one, else target/toolchain, installed if need be.
    pub fn find_or_install() -> Result<Toolchain> {
        let environment = Environment::of_process();
        match Toolchain::of_machine(&environment)? {
            Found::Toolkit(mut toolchain) => {
                // A toolkit brings no libclang; a distribution's is as good, and the pinned one is the last resort.
                if toolchain.libclang.is_none() {
                    toolchain.libclang = match system_libclang() {
                        Some(libclang) => Some(libclang),
                        None => Some(CUDA.install()?.join("clang/native")),
                    };
                }
                Ok(toolchain)
            }
            Found::Nothing { notes } => {
                for note in notes {
                    eprintln!("{note}");
                }
                Ok(Toolchain::in_folder(&CUDA.install()?, &environment)?)
            }
        }
    }
}

/// The root of CUTLASS's sources, installed if need be: include/, tools/util/include/, examples/.
pub fn cutlass() -> Result<PathBuf> {
    Ok(cutlass_source(&CUTLASS.install()?))
}

fn cutlass_source(folder: &Path) -> PathBuf {
    folder.join("cutlass_library/source")
}

/// target/ of the workspace, wherever cargo puts its own output: a build script has to find it without asking cargo.
fn target() -> PathBuf {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
    Path::new(&xtask).join("../target").components().fold(PathBuf::new(), |mut path, component| {
        match component {
            std::path::Component::ParentDir => _ = path.pop(),
            other => path.push(other),
        }
        path
    })
}

impl Wheels {
    /// The folder, filled by whichever process came first. A second call reads one small file.
    fn install(&self) -> Result<PathBuf> {
        let target = target();
        let folder = target.join(self.folder);
        if self.is_in(&folder) {
            return Ok(folder);
        }
        fs::create_dir_all(&target).with_context(|| format!("cannot create {}", target.display()))?;
        // Held until this function returns or the process dies, so a killed run leaves nothing locked.
        let lock = File::create(target.join(format!("{}.lock", self.folder)))?;
        lock.lock().context("cannot lock target/")?;
        if self.is_in(&folder) {
            return Ok(folder);
        }
        if !cfg!(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))) {
            bail!(
                "there are wheels of the CUDA compiler for Linux on x86_64 and aarch64 only; \
                 set CUDA_HOME to an installed toolkit"
            );
        }
        eprintln!("installing {} from PyPI into {}", self.what, folder.display());
        // What killed runs left. A pip that outlived its parent may still be writing to one of them, hence a name of
        // our own for the new one.
        let partial = format!("{}.partial-", self.folder);
        for entry in fs::read_dir(&target)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&partial) {
                remove(&entry.path())?;
            }
        }
        let fresh = target.join(format!("{partial}{}", std::process::id()));
        fs::create_dir(&fresh)?;
        let requirements = fresh.join("requirements.partial");
        fs::write(&requirements, self.requirements)?;
        pip_install(&target, &requirements, &fresh)?;
        (self.finish)(&fresh)?;
        fs::rename(&requirements, fresh.join("requirements.txt"))?;
        // A rename does not replace a full folder, so an outdated one steps aside first.
        let old = target.join(format!("{}.old", self.folder));
        remove(&old)?;
        if folder.exists() {
            fs::rename(&folder, &old)?;
        }
        fs::rename(&fresh, &folder)?;
        remove(&old)?;
        Ok(folder)
    }

    fn is_in(&self, folder: &Path) -> bool {
        fs::read_to_string(folder.join("requirements.txt")).is_ok_and(|text| text == self.requirements)
    }
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn pip_install(target: &Path, requirements: &Path, folder: &Path) -> Result<()> {
    let python = python_with_pip(target)?;
    let status = pip(&python)
        .args(["install", "--require-hashes", "--no-deps", "--only-binary", ":all:", "--no-compile"])
        .args(["--quiet", "--disable-pip-version-check", "--target"])
        .arg(folder)
        .arg("-r")
        .arg(requirements)
        .status()
        .context("cannot start pip")?;
    if !status.success() {
        bail!(
            "pip could not install the packages (its message is above). \
             Without a network, set CUDA_HOME to an installed toolkit of 12.4 or newer"
        );
    }
    Ok(())
}

/// pip, deaf to settings meant for other installs. Its output goes to stderr: stdout is for the result.
fn pip(python: &OsString) -> Command {
    let mut command = Command::new(python);
    command
        .args(["-m", "pip"])
        // A user's defaults that contradict --target.
        .envs([("PIP_USER", "0"), ("PIP_REQUIRE_VIRTUALENV", "0"), ("PIP_ROOT_USER_ACTION", "ignore")])
        .stdin(Stdio::null())
        .stdout(Stdio::from(io::stderr()));
    command
}

/// A Python whose pip works: the machine's, or one in a virtual environment, which brings its own pip.
fn python_with_pip(target: &Path) -> Result<OsString> {
    let works = |python: &OsString| {
        pip(python)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    };
    let python = OsString::from("python3");
    if Command::new(&python).arg("--version").output().is_err() {
        bail!(
            "installing the CUDA compiler needs Python 3 with pip, and there is no python3 on PATH.\n\
             Install it (Debian, Ubuntu: apt install python3-pip; Fedora: dnf install python3-pip), \
             or set CUDA_HOME to an installed CUDA toolkit of 12.4 or newer."
        );
    }
    if works(&python) {
        return Ok(python);
    }
    let venv = target.join("toolchain-venv");
    let inside = OsString::from(venv.join("bin/python3"));
    let made = works(&inside)
        || Command::new(&python)
            .args(["-m", "venv", "--clear"])
            .arg(&venv)
            .output()
            .is_ok_and(|output| output.status.success() && works(&inside));
    if !made {
        remove(&venv)?;
        bail!(
            "this python3 has neither pip nor ensurepip.\n\
             Install pip (Debian, Ubuntu: apt install python3-pip; Fedora: dnf install python3-pip), \
             or set CUDA_HOME to an installed CUDA toolkit of 12.4 or newer."
        );
    }
    Ok(inside)
}

/// Finds out now, with a message of its own, what would otherwise fail in the first build: above all a missing g++.
fn compile_a_kernel(toolchain: &Toolchain, folder: &Path) -> Result<()> {
    let (source, fatbin) = (folder.join("probe.cu"), folder.join("probe.fatbin"));
    fs::write(
        &source,
        "#include <cuda_bf16.h>\n#include <cuda_fp8.h>\n#include <cuda/std/limits>\n\
         extern \"C\" __global__ void probe(float* x, const __nv_fp8_e4m3* q) { *x = float(*q); }\n",
    )?;
    let output = toolchain.nvcc_command().args(FATBIN_FLAGS).arg("-o").arg(&fatbin).arg(&source).output()?;
    if !output.status.success() {
        bail!(
            "nvcc does not compile a small kernel. It needs g++ (Debian, Ubuntu: apt install g++); it says:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let cuobjdump = toolchain.cuobjdump.as_ref().context("the wheels have no cuobjdump")?;
    let listing = Command::new(cuobjdump).args(["-lelf", "-lptx"]).arg(&fatbin).output()?;
    let listing = String::from_utf8_lossy(&listing.stdout);
    for part in ["sm_90a.cubin", "sm_90a.ptx"] {
        if !listing.contains(part) {
            bail!("the fatbin of a small kernel has no {part}: {listing:?}");
        }
    }
    fs::remove_file(source)?;
    fs::remove_file(fatbin)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_requirement_is_pinned_by_version_and_hash() {
        for wheels in [CUDA, CUTLASS] {
            let joined = wheels.requirements.replace("\\\n", " ");
            let lines: Vec<&str> = joined.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
            assert!(!lines.is_empty());
            for line in lines {
                let (name, rest) = line.split_once("==").expect(line);
                assert!(!name.is_empty() && rest.matches("--hash=sha256:").count() >= 1, "{line}");
                for hash in rest.split("--hash=sha256:").skip(1) {
                    let hash = hash.trim();
                    assert!(hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()), "{line}");
                }
            }
        }
    }

    #[test]
    fn a_folder_made_from_other_requirements_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!CUTLASS.is_in(folder.path()));
        fs::write(folder.path().join("requirements.txt"), CUDA.requirements).unwrap();
        assert!(!CUTLASS.is_in(folder.path()) && CUDA.is_in(folder.path()));
    }

    #[test]
    fn target_is_beside_xtask() {
        assert!(target().ends_with("target") && target().parent().unwrap().join("xtask").is_dir());
    }
}
