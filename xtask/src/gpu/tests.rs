//! The script on machines made of shell scripts: with a GPU, without, with one too old, with tests that fail.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// A package whose programs are scripts, and a PATH of its own.
struct Machine {
    root: tempfile::TempDir,
}

/// Four tests, one of them failing if its file is there; under a sanitizer, another.
const TESTS: &str = r#"#!/bin/sh
if [ "$1" = --list ]; then
  printf 'echo::fields: test\nnorm::small: test\nroute::wide: test\ntiming::copy: test\n'
  exit 0
fi
echo "GPU=${ABRUZZI_TEST_GPU:-} QUICK=${ABRUZZI_TEST_QUICK:-} EMULATOR=${CUDA_EMULATOR_LIBRARY:+yes}"
if [ "$1" = "${FAILING:-}" ]; then echo "panicked at wrong | number"; exit 101; fi
echo "test result: ok. 1 passed; 0 failed"
"#;

const BENCH: &str = r#"#!/bin/sh
[ "$1" = --bench ] || exit 3
if [ "${ABRUZZI_TEST_GPU:-}" = 1 ]; then
  printf 'norm\t64×7168\t4.00\t700 GB/s\t20 %% memory\n' >"$ABRUZZI_BENCH_TABLE"
else
  printf 'norm\t64×7168\t2.00\t1400 GB/s\t40 %% memory\nroute\t8\t1.00\t1 GB/s\t1 %% memory\n' >"$ABRUZZI_BENCH_TABLE"
  echo "gemm 4096: not on the emulator, which would take some 90 s"
fi
"#;

const SMI: &str = r#"#!/bin/sh
case "$*" in
  *=name*) echo "NVIDIA H100 80GB HBM3" ;;
  *=compute_cap*) echo "${CAPABILITY:-9.0}" ;;
  *=driver_version*) echo "${DRIVER:-580.65.06}" ;;
  *) echo "1980 MHz, 2619 MHz, 700.00 W, 31" ;;
esac
"#;

const SANITIZER: &str = r#"#!/bin/sh
[ "$1" = --version ] && { echo "NVIDIA (R) Compute Sanitizer"; echo "Version 2025.3.0"; exit 0; }
if [ "$2" = racecheck ] && [ "$6" = "${RACING:-}" ]; then echo "ERROR SUMMARY: 1 error"; exit 99; fi
shift 4
exec "$@"
"#;

impl Machine {
    fn new() -> Machine {
        let machine = Machine { root: tempfile::tempdir().unwrap() };
        let folder = machine.root.path().join(FOLDER);
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir(machine.root.path().join("bin")).unwrap();
        machine.program(&format!("{FOLDER}/kernels-tests"), TESTS);
        machine.program(&format!("{FOLDER}/kernels-bench"), BENCH);
        fs::write(folder.join("libcuda_emulator.so"), "").unwrap();
        fs::write(folder.join("VERSION"), "commit: abc\nbuild: release, code by CUDA 13.0\n").unwrap();
        write_script(&folder).unwrap();
        machine
    }

    fn with_gpu() -> Machine {
        let machine = Machine::new();
        machine.program("bin/nvidia-smi", SMI);
        machine
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.root.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Exit code, everything printed, the report.
    fn run(&self, options: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
        let reports = self.root.path().join("reports");
        let path = format!("{}:/usr/bin:/bin", self.root.path().join("bin").display());
        let mut command = Command::new("sh");
        command.arg(self.root.path().join(FOLDER).join("run.sh")).args(options).arg("--out").arg(&reports);
        command.env_clear().env("PATH", path).envs(variables.iter().copied());
        let out = command.output().unwrap();
        let said = [out.stdout, out.stderr].concat();
        let report = fs::read_dir(&reports).ok().and_then(|mut list| list.next());
        let report = report.map_or(String::new(), |file| fs::read_to_string(file.unwrap().path()).unwrap());
        (out.status.code().unwrap(), String::from_utf8(said).unwrap(), report)
    }
}

#[test]
fn on_a_gpu_everything_runs_and_is_reported() {
    let machine = Machine::with_gpu();
    machine.program("bin/compute-sanitizer", SANITIZER);
    let (code, said, report) = machine.run(&[], &[]);
    assert_eq!(code, 0, "{said}");
    for line in [
        "| GPU | NVIDIA H100 80GB HBM3 |",
        "| driver | 580.65.06 |",
        "| commit | abc |",
        "| compute-sanitizer | version 2025.3.0 |",
        "| result | all passed |",
        "| `norm` | 64×7168 | 4.00 | 700 GB/s | 20 % memory | 2.00 | 40 % memory | 2.00 |",
        "| `route` | 8 |  |  |  | 1.00 | 1 % memory |  |",
        "- gemm 4096: not on the emulator, which would take some 90 s",
        "None.",
    ] {
        assert!(report.lines().any(|l| l == line), "{line}\n{report}");
    }
    assert!(report.contains("| tests | 4 | 0 | "), "{report}");
    for tool in ["memcheck", "racecheck", "initcheck", "synccheck"] {
        // Without the one about times.
        assert!(report.contains(&format!("| compute-sanitizer {tool} | 3 | 0 | ")), "{report}");
        assert!(report.contains(&format!("--tool {tool} --error-exitcode 99 ./kernels-tests")), "{report}");
    }
    let name =
        fs::read_dir(machine.root.path().join("reports")).unwrap().next().unwrap().unwrap().file_name();
    assert!(name.to_str().unwrap().ends_with("-nvidia-h100-80gb-hbm3.md"), "{name:?}");
}

#[test]
fn failures_are_reported_in_full_and_the_rest_still_runs() {
    let machine = Machine::with_gpu();
    machine.program("bin/compute-sanitizer", SANITIZER);
    let variables = [("FAILING", "norm::small"), ("RACING", "echo::fields")];
    let (code, said, report) = machine.run(&[], &variables);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("tests: norm::small FAILED (exit code 101)"), "{said}");
    for text in [
        "| result | **failed** |",
        "| tests | 3 | 1 | ",
        "| compute-sanitizer racecheck | 1 | 2 | ",
        "### tests: norm::small (exit code 101)",
        "GPU=1 QUICK= EMULATOR=\npanicked at wrong | number",
        "### compute-sanitizer memcheck: norm::small (exit code 101)",
        "GPU=1 QUICK=1 EMULATOR=\npanicked",
        "### compute-sanitizer racecheck: echo::fields (exit code 99)",
        "| `norm` | 64×7168 | 4.00 |",
    ] {
        assert!(report.contains(text), "{text}\n{report}");
    }
}

#[test]
fn a_test_that_does_not_run_does_not_pass() {
    let machine = Machine::with_gpu();
    machine.program(
        &format!("{FOLDER}/kernels-tests"),
        "#!/bin/sh\n[ \"$1\" = --list ] && echo 'echo::fields: test'\necho 'test result: ok. 0 passed; 0 failed'\n",
    );
    let (code, said, _) = machine.run(&[], &[]);
    assert_eq!(code, 1, "{said}");
}

#[test]
fn benches_that_fail_fail_the_run() {
    let machine = Machine::with_gpu();
    machine.program(&format!("{FOLDER}/kernels-bench"), "#!/bin/sh\necho no memory\nexit 7\n");
    let (code, said, report) = machine.run(&[], &[]);
    assert_eq!(code, 1, "{said}");
    assert!(report.contains("### benches (exit code 7)\n\n````text\nno memory\n"), "{report}");
}

#[test]
fn a_dry_run_needs_no_gpu_and_says_that_it_measured_nothing() {
    let (code, said, report) = Machine::new().run(&["--dry-run"], &[("FAILING", "route::wide")]);
    assert_eq!(code, 0, "{said}");
    assert!(report.contains("nothing was measured") && report.contains("| tests | 3 | 0 | "), "{report}");
    assert!(report.contains("| `norm` | 64×7168 |  |  |  | 2.00 | 40 % memory |  |"), "{report}");
    let (code, _, report) = Machine::new().run(&["--dry-run"], &[("FAILING", "norm::small")]);
    assert!(code == 1 && report.contains("GPU= QUICK=1 EMULATOR=yes"), "{report}");
}

#[test]
fn what_is_missing_is_named() {
    let refused = |machine: &Machine, variables: &[(&str, &str)]| {
        let (code, said, report) = machine.run(&[], variables);
        assert!(code == 2 && report.is_empty(), "{said}");
        said
    };
    let said = refused(&Machine::new(), &[]);
    assert!(said.contains("no NVIDIA GPU") && said.contains("--dry-run"), "{said}");
    let machine = Machine::with_gpu();
    assert!(refused(&machine, &[("CAPABILITY", "8.0")]).contains("need 9.0"));
    assert!(refused(&machine, &[("DRIVER", "550.54.15")]).contains("580 or newer"));
    machine.program("bin/nvidia-smi", "#!/bin/sh\necho 'No devices were found'\nexit 6\n");
    assert!(refused(&machine, &[]).contains("finds no GPU (No devices were found)"));
    let machine = Machine::with_gpu();
    fs::remove_file(machine.root.path().join(FOLDER).join("kernels-bench")).unwrap();
    assert!(refused(&machine, &[]).contains("kernels-bench is missing"));
    // Without the sanitizer the rest runs, and the report says so.
    let (code, _, report) = Machine::with_gpu().run(&[], &[("CUDA_HOME", "/nowhere")]);
    let known = Path::new("/usr/local/cuda/bin/compute-sanitizer").exists();
    assert!(known || (code == 0 && report.contains("| compute-sanitizer | | | not found")), "{report}");
}
