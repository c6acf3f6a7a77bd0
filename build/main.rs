//! With the `cuda` feature: every kernel file becomes a fatbin inside the crate, and `params.h` becomes Rust. Without
//! it: nothing, so that the default build needs neither nvcc nor libclang. No GPU is ever looked for. Either way the crate is
//! told which compiler it comes from.

#[cfg(feature = "cuda")]
mod bindings;
#[cfg(feature = "cuda")]
mod images;
#[cfg(feature = "cuda")]
#[allow(dead_code, reason = "shared with xtask, which uses all of it")]
mod nvcc;
#[cfg(feature = "cuda")]
#[allow(dead_code, reason = "shared with xtask, which uses all of it")]
mod toolchain;

fn main() {
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-env-changed=RUSTFLAGS");
    // Counts of the CPU kernels' instructions are those of this compiler: tests/cpu_counts.
    println!("cargo::rustc-env=ABRUZZI_COMPILER={}", compiler());
    #[cfg(feature = "cuda")]
    if let Err(problem) = cuda() {
        // One line an error: cargo shows these above the build script's own output.
        for line in problem.to_string().lines() {
            println!("cargo::error={line}");
        }
        std::process::exit(1);
    }
}

/// What decides the crate's machine code beside its source: `rustc 1.95.0 (59807616e 2026-04-14), opt-level 3`.
fn compiler() -> String {
    let of = |name| std::env::var(name).unwrap_or_default();
    let version = std::process::Command::new(of("RUSTC")).arg("--version").output();
    let version =
        version.map_or_else(|e| e.to_string(), |out| String::from_utf8_lossy(&out.stdout).into_owned());
    let mut compiler = format!("{}, opt-level {}", version.trim(), of("OPT_LEVEL"));
    for flag in of("CARGO_ENCODED_RUSTFLAGS").split('\x1f').filter(|flag| !flag.is_empty()) {
        compiler.extend([" ", flag]);
    }
    // One line, whatever was in it.
    compiler.replace(['\n', '\r'], " ")
}

#[cfg(feature = "cuda")]
fn cuda() -> std::io::Result<()> {
    use std::path::PathBuf;

    let folder = |name| PathBuf::from(std::env::var_os(name).expect("cargo sets it for build scripts"));
    let (root, out) = (folder("CARGO_MANIFEST_DIR"), folder("OUT_DIR"));
    println!("cargo::rerun-if-changed={}", root.join("cuda").display());
    for variable in ["CUDA_HOME", "NVCC", "PATH", "LIBCLANG_PATH", "CXX", "DOCS_RS", bindings::WRITE] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if std::env::var_os("DOCS_RS").is_some() {
        // No compiler there, and none needed to document.
        return images::write_empty(&root, &out);
    }
    let environment = toolchain::Environment::of_process();
    let found = match toolchain::Toolchain::of_machine(&environment)? {
        toolchain::Found::Toolkit(found) => found,
        toolchain::Found::Nothing { notes } => {
            let installed = root.join("target/toolchain");
            toolchain::Toolchain::in_folder(&installed, &environment).map_err(|_| {
                let notes: String = notes.iter().map(|note| format!("\n({note})")).collect();
                std::io::Error::other(format!(
                    "the feature `cuda` needs a CUDA compiler of {} or newer, and there is none: \
                     `cargo xtask toolchain` installs one in target/toolchain{notes}",
                    toolchain::OLDEST
                ))
            })?
        }
    };
    // Counts of instructions are those of this compiler: tests/kernels/counts.rs.
    println!("cargo::rustc-env=ABRUZZI_CUDA={}", found.version);
    let host = cc::Build::new().cpp(true).get_compiler();
    let jobs = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let compiled = nvcc::compile_all(&nvcc::Job {
        toolchain: &found,
        host_compiler: Some(host.path()),
        root: &root,
        cache: &nvcc::cache(&out),
        jobs,
    })?;
    images::write(&compiled, &out)?;
    bindings::check(&root, &found, host.path())
}
