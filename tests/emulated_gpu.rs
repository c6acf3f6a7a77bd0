//! A build with the `cuda` feature finds the stand-in driver, through the real binding, and says so.
#![cfg(feature = "cuda")]

use std::process::{Command, Output};

fn doctor(profile: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_abruzzi"));
    command.args(["doctor", "--json"]).env("ABRUZZI_EMULATE", "1").env("CUDA_EMULATOR_PROFILE", profile);
    command.output().unwrap()
}

#[test]
fn doctor_sees_the_emulated_gpu_and_says_that_it_is_one() {
    for (profile, memory, multiprocessors) in
        [("h100-80gb", 79u64 << 30..81 << 30, 132), ("h100-mig-10gb", 9 << 30..10 << 30, 16)]
    {
        let out = doctor(profile);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{stderr}");
        assert!(stderr.contains("emulated GPU") && stderr.contains("modelled"), "{stderr}");
        let value: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let gpu = &value["gpus"][0];
        // "cuda-emulator" in hexadecimal; a slice is chosen by another prefix than a whole GPU.
        let prefix = if profile.contains("mig") { "MIG" } else { "GPU" };
        let id = gpu["id"].as_str().unwrap();
        assert!(id.starts_with(&format!("{prefix}-63756461-2d65-6d75-6c61-746f7200")), "{id}");
        assert_eq!(gpu["capability"], serde_json::json!([9, 0]));
        assert_eq!(gpu["multiprocessors"], multiprocessors, "{value}");
        assert!(memory.contains(&gpu["memory"].as_u64().unwrap()), "{value}");
    }
    let out = doctor("a100");
    assert!(!out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("no device profile \"a100\""));
}

#[test]
fn without_being_asked_nothing_is_emulated() {
    let out = Command::new(env!("CARGO_BIN_EXE_abruzzi"))
        .args(["doctor", "--json"])
        .env_remove("ABRUZZI_EMULATE")
        .output()
        .unwrap();
    assert!(out.status.success());
    assert!(!String::from_utf8_lossy(&out.stderr).contains("emulated"));
}

fn abruzzi(arguments: &[&str], emulate: bool) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_abruzzi"));
    command.args(arguments).env_remove("ABRUZZI_EMULATE").env("CUDA_EMULATOR_CHECKS", "off");
    if emulate {
        command.env("ABRUZZI_EMULATE", "1");
    }
    command.output().unwrap()
}

#[test]
fn generate_writes_the_cpus_text_and_says_that_times_are_modelled() {
    let generate = |device, emulate| {
        let arguments = ["generate", "--device", device, "-p", "In the beginning", "-n", "16", "--temp", "0"];
        let out = abruzzi(&arguments, emulate);
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{stderr}");
        (String::from_utf8(out.stdout).unwrap(), stderr)
    };
    let (cpu, _) = generate("cpu", false);
    let (cuda, stderr) = generate("cuda", true);
    assert_eq!(cuda, cpu);
    assert!(stderr.contains("emulated GPU") && stderr.contains("modelled"), "{stderr}");
}

#[test]
fn a_gpu_that_is_not_there_is_an_error_that_says_what_to_do() {
    let out = abruzzi(&["generate", "--device", "cuda:7", "-p", "x"], true);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{stderr}");
    assert!(out.stdout.is_empty());
    assert!(stderr.contains("GPU 7 is not supported: this machine has 1, numbered from 0"), "{stderr}");
}

#[test]
fn a_text_scores_on_the_gpu_as_on_the_cpu() {
    let root = env!("CARGO_MANIFEST_DIR");
    let (model, text) = (format!("{root}/models/demo"), format!("{root}/models/demo/heldout.txt"));
    let nats = |device: &str, emulate: bool| {
        let arguments = ["eval", "-m", &model, "-f", &text, "--window", "16", "--windows", "2", "--json"];
        let out = abruzzi(&[&arguments[..], &["--device", device]].concat(), emulate);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let done = String::from_utf8_lossy(&out.stdout).lines().last().unwrap().to_owned();
        let done: serde_json::Value = serde_json::from_str(&done).unwrap();
        assert_eq!(done["tokens"], 32, "{done}");
        done["nll"]["mean"].as_f64().unwrap()
    };
    let (gpu, cpu) = (nats("cuda", true), nats("cpu", false));
    assert!((gpu - cpu).abs() < 0.02, "{gpu} nats a token on the GPU, {cpu} on the CPU");
    assert!(gpu != cpu, "the GPU computes in bf16");
}

#[test]
fn a_bench_says_that_its_rates_are_the_emulators() {
    let arguments = ["bench", "--device", "cuda", "-p", "4", "-n", "2", "-d", "0", "-r", "1"];
    let out = abruzzi(&arguments, true);
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{stderr}");
    assert!(stdout.contains("(emulated)") && stdout.contains("| tok/s (of the emulator) |"), "{stdout}");
    // Plain reads are the CPU's limit, not a GPU's.
    let decode = stdout.lines().find(|l| l.starts_with("| tg2 |")).unwrap();
    assert!(
        decode.contains(" MB |") && decode.split('|').nth(7).is_some_and(|cell| cell.trim() == "-"),
        "{decode}"
    );
}
