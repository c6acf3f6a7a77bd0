//! Running the real binary.

use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// The binary, without what the caller's environment may set for it.
pub fn abruzzi(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_abruzzi"));
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("ABRUZZI_")) {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null());
    command
}

pub fn output(args: &[&str]) -> Output {
    abruzzi(args).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Standard output of a run that must succeed.
pub fn stdout(args: &[&str]) -> String {
    succeeded(&output(args), args)
}

pub fn succeeded(out: &Output, args: &[&str]) -> String {
    assert_eq!(out.status.code(), Some(0), "{args:?}\n{}", text(&out.stderr));
    text(&out.stdout)
}

/// Asserts a failure with this exit code, nothing on stdout, and one `error:` that says `expected`.
pub fn fails(args: &[&str], code: i32, expected: &str) {
    let out = output(args);
    let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(code), "{args:?}\n{stderr}");
    assert_eq!(stdout, "", "{args:?}");
    assert!(stderr.lines().any(|l| l.starts_with("error: ")), "{args:?}\n{stderr}");
    assert!(stderr.contains(expected), "{args:?} does not say {expected:?}:\n{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

pub fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

/// Sends SIGINT.
#[allow(unsafe_code, reason = "the standard library sends no signal but SIGKILL")]
pub fn interrupt(child: &Child) {
    // SAFETY: kill takes no pointer; the child has not been waited for, so its id is still its own.
    let sent = unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    assert_eq!(sent, 0);
}
