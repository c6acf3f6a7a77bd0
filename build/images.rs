//! The Rust side of the fatbins: one constant a kernel file, included by `src/device/cuda/images.rs`.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;

use crate::nvcc::{Compiled, sources};

/// Writes `images.rs` for compiled kernel files.
pub fn write(compiled: &[Compiled], out: &Path) -> io::Result<()> {
    let images = compiled.iter().map(|image| {
        (image.name.clone(), format!("&Aligned(*include_bytes!({:?}))", image.fatbin.display().to_string()))
    });
    write_source(images.collect(), out)
}

/// The same names without code behind them, where there is no compiler.
pub fn write_empty(root: &Path, out: &Path) -> io::Result<()> {
    let names = sources(root)?;
    let images = names.iter().filter_map(|source| Some(source.file_stem()?.to_string_lossy().into_owned()));
    write_source(images.map(|name| (name, "&Aligned([0u8; 0])".to_owned())).collect(), out)
}

fn write_source(images: Vec<(String, String)>, out: &Path) -> io::Result<()> {
    let mut text = String::new();
    for (index, (name, bytes)) in images.iter().enumerate() {
        let constant = name.to_uppercase();
        writeln!(text, "/// `cuda/{name}.cu`.").expect("a string grows");
        writeln!(
            text,
            "pub static {constant}: Image = Image {{ index: {index}, name: {name:?}, bytes: {bytes} }};"
        )
        .expect("a string grows");
    }
    writeln!(text, "/// How many there are.\npub const COUNT: usize = {};", images.len())
        .expect("a string grows");
    fs::write(out.join("images.rs"), text)
}
