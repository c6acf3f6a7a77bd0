//! The toolchain lookup. Beside `build/toolchain.rs`, not in it: that file is also part of build scripts and other tests.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::toolchain::*;

/// What nvcc of that release prints.
fn banner(release: &str, full: &str, build: &str) -> String {
    format!(
        "nvcc: NVIDIA (R) Cuda compiler driver\n\
         Copyright (c) 2005-2025 NVIDIA Corporation\n\
         Built on Wed_Aug_20_01:58:59_PM_PDT_2025\n\
         Cuda compilation tools, release {release}, V{full}\n\
         Build cuda_{release}.r{release}/compiler.{build}_0\n"
    )
}

/// A folder with `bin/nvcc`, a script that prints the banner of `release`.
fn toolkit(root: &Path, name: &str, release: &str) -> PathBuf {
    let home = root.join(name);
    fs::create_dir_all(home.join("bin")).unwrap();
    let text = banner(release, &format!("{release}.99"), "1");
    // Written by a child: were it open for writing in this process, a child that another test forks meanwhile
    // would hold it open too, and running it would fail with "text file busy".
    let written = Command::new("sh")
        .args(["-c", "printf '%s' \"$1\" > \"$0\" && chmod +x \"$0\""])
        .arg(home.join("bin/nvcc"))
        .arg(format!("#!/bin/sh\ncat <<'end'\n{text}end\n"))
        .status();
    assert!(written.unwrap().success());
    home
}

fn found(environment: &Environment) -> Toolchain {
    match Toolchain::of_machine(environment).unwrap() {
        Found::Toolkit(toolchain) => toolchain,
        Found::Nothing { notes } => panic!("nothing found: {notes:?}"),
    }
}

fn refusal(environment: &Environment) -> String {
    match Toolchain::of_machine(environment) {
        Ok(_) => panic!("not refused"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn versions_are_read_from_nvccs_banner() {
    let version = |major, minor| Some(Version { major, minor });
    assert_eq!(Version::parse(&banner("12.4", "12.4.131", "34097967")), version(12, 4));
    assert_eq!(Version::parse(&banner("12.8", "12.8.93", "35583870")), version(12, 8));
    assert_eq!(Version::parse(&banner("13.0", "13.0.88", "36424714")), version(13, 0));
    for garbage in ["", "release", "release 12", "release twelve.4, V", "release 12.x, V", "gcc (GCC) 12.2.0"]
    {
        assert_eq!(Version::parse(garbage), None, "{garbage:?}");
    }
}

#[test]
fn versions_compare_as_numbers() {
    // As text, 12.10 would come before 12.4.
    assert!(Version { major: 12, minor: 10 } > OLDEST);
    assert!(Version { major: 9, minor: 2 } < OLDEST);
}

#[test]
fn cuda_home_wins_over_nvcc_and_nvcc_over_path() {
    let root = tempfile::tempdir().unwrap();
    let (a, b, c) = (
        toolkit(root.path(), "a", "12.4"),
        toolkit(root.path(), "b", "12.8"),
        toolkit(root.path(), "c", "13.0"),
    );
    let mut environment = Environment {
        cuda_home: Some(a.clone().into()),
        nvcc: Some(b.join("bin/nvcc").into()),
        path: Some(c.join("bin").into()),
        libclang_path: None,
    };
    assert_eq!(found(&environment).nvcc, a.join("bin/nvcc"));
    environment.cuda_home = None;
    let toolchain = found(&environment);
    assert_eq!((toolchain.nvcc, toolchain.version.minor), (b.join("bin/nvcc"), 8));
    environment.nvcc = None;
    let toolchain = found(&environment);
    assert_eq!((toolchain.nvcc, toolchain.version.major), (c.join("bin/nvcc"), 13));
    environment.path = None;
    let nothing = Toolchain::of_machine(&environment).unwrap();
    assert!(matches!(nothing, Found::Nothing { notes } if notes.is_empty()));
}

#[test]
fn a_link_to_nvcc_leads_to_its_toolkit() {
    let root = tempfile::tempdir().unwrap();
    let home = toolkit(root.path(), "cuda", "12.8");
    fs::write(home.join("bin/cuobjdump"), "").unwrap();
    let links = root.path().join("links");
    fs::create_dir(&links).unwrap();
    std::os::unix::fs::symlink(home.join("bin/nvcc"), links.join("nvcc")).unwrap();
    let toolchain = found(&Environment { path: Some(links.into()), ..Environment::default() });
    assert_eq!(toolchain.cuda_home, home.canonicalize().unwrap());
    assert!(toolchain.cuobjdump.is_some() && toolchain.nvdisasm.is_none());
}

#[test]
fn nvcc_may_be_a_command_name() {
    let root = tempfile::tempdir().unwrap();
    let home = toolkit(root.path(), "cuda", "12.8");
    fs::rename(home.join("bin/nvcc"), home.join("bin/nvcc-12.8")).unwrap();
    let environment = Environment {
        nvcc: Some("nvcc-12.8".into()),
        path: Some(home.join("bin").into()),
        ..Environment::default()
    };
    assert_eq!(found(&environment).nvcc, home.join("bin/nvcc-12.8"));
}

#[test]
fn a_toolkit_that_was_named_and_is_too_old_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let home = toolkit(root.path(), "old", "12.3");
    let newer = toolkit(root.path(), "newer", "13.0");
    let path = Some(OsString::from(newer.join("bin")));
    let by_home = Environment { cuda_home: Some(home.clone().into()), path, ..Environment::default() };
    let message = refusal(&by_home);
    for part in ["CUDA_HOME", "is CUDA 12.3", "12.4 or newer", "old/bin/nvcc", "unset it"] {
        assert!(message.contains(part), "{message}");
    }
    let by_nvcc = Environment { nvcc: Some(home.join("bin/nvcc").into()), ..Environment::default() };
    assert!(refusal(&by_nvcc).contains("NVCC names"));
}

#[test]
fn a_toolkit_that_was_named_and_is_missing_or_not_nvcc_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let nowhere = Environment { cuda_home: Some(root.path().into()), ..Environment::default() };
    assert!(refusal(&nowhere).contains("cannot run"));
    let other = Environment { nvcc: Some("/bin/echo".into()), ..Environment::default() };
    assert!(refusal(&other).contains("does not name a CUDA release"));
}

#[test]
fn an_old_nvcc_on_path_is_passed_over_with_a_note() {
    let root = tempfile::tempdir().unwrap();
    let home = toolkit(root.path(), "old", "11.8");
    let environment = Environment { path: Some(home.join("bin").into()), ..Environment::default() };
    match Toolchain::of_machine(&environment).unwrap() {
        Found::Nothing { notes } => assert!(notes[0].contains("is CUDA 11.8"), "{notes:?}"),
        Found::Toolkit(toolchain) => panic!("{toolchain:?}"),
    }
}
