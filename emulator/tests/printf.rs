//! Device printf reaches standard output, formatted as C does.

mod common;

use common::{Params, ptx, upload};
use cuda_emulator::exec::{Launch, Module};
use cuda_emulator::{Memory, Settings};

/// Set for the child whose output is read.
const CHILD: &str = "PRINTF_CHILD";

#[test]
fn device_printf() {
    if std::env::var_os(CHILD).is_some() {
        let memory = Memory::new(64 << 20).unwrap();
        let module = Module::load(&ptx("printf.cu", &[]), &memory).unwrap();
        let word = upload(&memory, "word", b"ab\0");
        let talk = module.kernel("talk").unwrap();
        let params = Params::default().add(word).0;
        talk.launch(&Launch::linear(1, 32), &params, &memory, &Settings::default()).unwrap();
        return;
    }
    let this = std::env::current_exe().unwrap();
    let out = std::process::Command::new(this)
        .args(["--exact", "device_printf", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    let expected =
        "thread 3 of 32:  0.75|ab  |beef|-5000000000|k|%\nthread 19 of 32:  4.75|ab  |beef|-5000000000|k|%\n";
    assert!(said.contains(expected), "{said}");
}
