//! nvcc's own output through the parser: `PTX_CORPUS=directory cargo test -p cuda-emulator --test ptx_real -- --ignored
//! --nocapture` parses every `.ptx` and uncompressed `.fatbin` there and says how long each took.

use std::time::Instant;

use cuda_emulator::ptx::{self, ast::Operand};

#[test]
#[ignore = "needs a directory of nvcc's output in $PTX_CORPUS"]
fn corpus_parses() {
    let directory = std::env::var("PTX_CORPUS").expect("PTX_CORPUS names a directory");
    let mut failures = Vec::new();
    let mut parsed_files = 0;
    let mut paths: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|e| e == "ptx" || e == "fatbin")) {
        let bytes = std::fs::read(path).unwrap();
        let image = match ptx::fatbin::ptx_of_image(&bytes) {
            Ok(image) => image,
            Err(error) => {
                failures.push(format!("{}: {error}", path.display()));
                continue;
            }
        };
        let text = image.ptx;
        let start = Instant::now();
        let parsed = ptx::parse(text);
        let seconds = start.elapsed().as_secs_f64();
        let name = path.file_name().unwrap().to_string_lossy();
        match parsed {
            Err(error) => failures.push(format!("{name}: {error}")),
            Ok(module) => {
                let instructions: usize = module.functions.iter().map(|f| f.body.len()).sum();
                let registers: usize = module.functions.iter().map(|f| f.registers.len()).sum();
                println!(
                    "{name}: {} bytes, {} functions, {instructions} instructions, {registers} registers, {:.1} ms",
                    text.len(),
                    module.functions.len(),
                    seconds * 1e3
                );
                for (kernel, count) in image.registers() {
                    println!("    {kernel}: {count} registers on hardware");
                    assert!(module.functions.iter().any(|f| f.entry && f.name == kernel), "{name}: {kernel}");
                }
                for function in &module.functions {
                    ptx::describe(function);
                    let unresolved = |operand: &Operand| match operand {
                        Operand::Label(label) => *label as usize >= function.labels.len(),
                        _ => false,
                    };
                    assert!(!function.body.iter().any(|i| i.operands.iter().any(unresolved)), "{name}");
                }
                parsed_files += 1;
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(parsed_files > 0, "no .ptx or .fatbin in the directory");
}
