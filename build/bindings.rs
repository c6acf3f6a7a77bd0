//! Kernel parameters: `cuda/include/params.h` to `src/device/cuda/params.rs`, which is checked in so that it can be
//! read and reviewed. Every build with the `cuda` feature makes it anew and refuses to go on if it differs.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use crate::toolchain::{Toolchain, system_libclang};

/// Set to 1 by `cargo xtask bindings`: write the file instead of comparing.
pub const WRITE: &str = "ABRUZZI_WRITE_BINDINGS";

/// Compares the checked-in bindings with the header, or writes them if asked to.
pub fn check(root: &Path, toolchain: &Toolchain, host_compiler: &Path) -> io::Result<()> {
    let Some(libclang) = toolchain.libclang.clone().or_else(system_libclang) else {
        return Err(io::Error::other(
            "the feature `cuda` needs libclang, and there is none: `cargo xtask toolchain` installs one, \
             or set LIBCLANG_PATH to the folder it is in",
        ));
    };
    let fresh = generate(root, &libclang, host_compiler)?;
    let checked_in = root.join("src/device/cuda/params.rs");
    if fs::read_to_string(&checked_in).is_ok_and(|text| text == fresh) {
        return Ok(());
    }
    if std::env::var_os(WRITE).is_some_and(|v| v == "1") {
        return fs::write(&checked_in, fresh);
    }
    Err(io::Error::other(
        "src/device/cuda/params.rs is not what cuda/include/params.h says: `cargo xtask bindings` writes it anew",
    ))
}

fn generate(root: &Path, libclang: &Path, host_compiler: &Path) -> io::Result<String> {
    // SAFETY: no other thread of this build script is running.
    unsafe { std::env::set_var("LIBCLANG_PATH", libclang) };
    let header = root.join("cuda/include/params.h");
    let mut arguments = vec!["-x".to_owned(), "c++".to_owned(), "-std=c++17".to_owned()];
    // The library comes without clang's own headers (stddef.h); the C++ compiler's serve.
    if let Ok(output) = Command::new(host_compiler).arg("-print-file-name=include").output() {
        let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        arguments.extend(["-isystem".to_owned(), folder]);
    }
    let bindings = bindgen::Builder::default()
        .header(header.display().to_string())
        .clang_args(arguments)
        .allowlist_file(".*/params\\.h")
        .default_enum_style(bindgen::EnumVariation::ModuleConsts)
        .prepend_enum_name(false)
        .derive_default(true)
        .derive_copy(true)
        .layout_tests(true)
        .generate_comments(true)
        .use_core()
        .disable_header_comment()
        .formatter(bindgen::Formatter::Prettyplease)
        .generate()
        .map_err(|e| io::Error::other(format!("bindgen {}: {e}", header.display())))?;
    Ok(format!(
        "// Made from cuda/include/params.h by `cargo xtask bindings`; not to be edited. One file, as the header is one.\n\n{bindings}"
    ))
}
