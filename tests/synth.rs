//! `abruzzi synth`: random checkpoints that the loader takes for real ones.

mod common;

use std::path::Path;
use std::process::Stdio;

use abruzzi::quant::Format;
use abruzzi::{Error, LoadOptions, Synth};
use common::cli::{abruzzi, fails, json_lines, stdout, text};
use common::{oracle, root};
use safetensors::SafeTensors;

fn tiny(case: &str) -> String {
    oracle(case).to_str().unwrap().to_owned()
}

/// Every file of a folder with its bytes, by name.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|item| {
            let item = item.unwrap();
            (item.file_name().into_string().unwrap(), std::fs::read(item.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn every_format_verifies_and_computes_finite_lively_logits() {
    let dir = tempfile::tempdir().unwrap();
    for (case, format, dtypes) in [
        ("k2-fp8", "fp8-block", &["BF16", "F32", "F8_E4M3"][..]),
        ("k2-bf16", "int4-g32", &["BF16", "F32", "I32"]),
        ("v3-groups-fp8", "bf16", &["BF16", "F32"]),
    ] {
        let out = dir.path().join(format);
        let out = out.to_str().unwrap();
        let like = tiny(case);
        let args = ["synth", "-o", out, "--like", &like, "--format", format, "--json"];
        let done = &json_lines(&stdout(&args))[0];
        let verified = &json_lines(&stdout(&["verify", "-m", out, "--json"]))[0];
        assert_eq!(verified["faults"], 0);
        assert_eq!(verified["skipped"], serde_json::json!({}));
        assert_eq!((&done["tensors"], &done["bytes"]), (&verified["tensors"], &verified["bytes"]));
        let counted = &json_lines(&stdout(&["inspect", "-m", out, "--json"]))[0];
        assert_eq!(counted["total"]["bytes"], done["bytes"], "{format}");

        let shard = std::fs::read(format!("{out}/model-00001-of-00001.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&shard).unwrap();
        let mut found: Vec<String> = tensors.iter().map(|(_, t)| t.dtype().to_string()).collect();
        found.sort();
        found.dedup();
        assert_eq!(found, dtypes, "{format}");

        let file = dir.path().join("logits.safetensors");
        stdout(&["logits", "-m", out, "--tokens", "1,2,3,4,5,6,7,8", "--out", file.to_str().unwrap()]);
        let bytes = std::fs::read(&file).unwrap();
        let logits = SafeTensors::deserialize(&bytes).unwrap();
        let values = logits.tensor("logits").unwrap().data().as_chunks::<4>().0.to_vec();
        let values: Vec<f32> = values.into_iter().map(f32::from_le_bytes).collect();
        let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(
            values.iter().all(|v| v.is_finite()) && (0.5..50.0).contains(&largest),
            "{format}: {largest}"
        );
        // Different tokens lead to different logits: nothing has collapsed.
        let vocab = values.len() / 8;
        assert!(common::difference(&values[..vocab], &values[7 * vocab..]) > 0.01, "{format}");
    }
}

#[test]
fn the_seed_decides_the_bytes_whatever_the_threads() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, seed: u64, threads: usize| {
        let out = dir.path().join(name);
        let mut options = LoadOptions::default();
        options.threads = threads;
        Synth::like(tiny("k2-int4")).seed(seed).write(&out, &options).unwrap();
        files(&out)
    };
    let first = make("a", 5, 1);
    assert!(first == make("b", 5, 3), "threads change the bytes");
    let other = make("c", 6, 1);
    assert!(first != other, "the seed changes nothing");
    assert_eq!(first.len(), other.len());
}

#[test]
fn shards_stay_below_their_limit_and_the_index_knows_them() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sharded");
    let limit = 400_000;
    let synth = Synth::like(tiny("k2-fp8")).shard_bytes(limit);
    let report = synth.write(&out, &LoadOptions::default()).unwrap();
    assert!(report.shards > 3);
    let files = files(&out);
    assert_eq!(files.len(), report.shards + 2);
    for (name, bytes) in files.iter().filter(|(name, _)| name.ends_with(".safetensors")) {
        let tensors = SafeTensors::deserialize(bytes).unwrap();
        let size: usize = tensors.iter().map(|(_, t)| t.data().len()).sum();
        assert!(size as u64 <= limit || tensors.len() == 1, "{name} has {size} bytes");
    }
    let found = abruzzi::verify(&out, &LoadOptions::default()).unwrap();
    assert_eq!((found.faults, found.bytes), (Vec::new(), report.bytes));
}

#[test]
fn built_in_models_keep_their_widths() {
    // Verifying a real one would write gigabytes; its configuration says what would be written.
    for (name, fixture, layers) in
        [("kimi-k2", "kimi-k2-instruct", 2), ("deepseek-v3", "deepseek-v3", 2), ("moonlight", "moonlight", 2)]
    {
        let real = root().join(format!("tests/fixtures/configs/{fixture}.json"));
        let real = abruzzi::ModelConfig::from_file(&real).unwrap();
        let whole = Synth::like(name).config().unwrap();
        assert_eq!(whole.moe, real.moe, "{name}");
        assert_eq!(whole.attention, real.attention, "{name}");
        let small = Synth::like(name).layers(layers).experts(32).config().unwrap();
        assert_eq!((small.num_layers, small.moe.num_experts), (2, 32));
        assert!(small.first_k_dense < small.num_layers, "{name}: no layer has experts");
        assert_eq!(small.num_mtp_layers, 0);
        assert_eq!(
            (small.hidden_size, small.vocab_size, small.moe.intermediate_size, small.moe.top_k),
            (real.hidden_size, real.vocab_size, real.moe.intermediate_size, real.moe.top_k)
        );
    }
    let thinking = abruzzi::checkpoint::Inventory::of(&Synth::like("kimi-k2-thinking").config().unwrap());
    assert_eq!(thinking.total.parameters, 1_026_408_232_448);
    assert_eq!(thinking.formats["int4-g32"].parameters, 1_014_686_023_680);
    assert_eq!(Synth::names().count(), 4);
}

#[test]
fn what_stands_there_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("taken");
    std::fs::create_dir(&out).unwrap();
    let like = tiny("k2-fp8");
    let at = |out: &Path, expected: &str| {
        fails(&["synth", "-o", out.to_str().unwrap(), "--like", &like], 1, expected);
    };
    at(&out, "taken: cannot create: ");
    std::fs::write(out.join("mine"), "kept").unwrap();
    at(&out, "taken: cannot create: ");
    assert_eq!(files(&out), [("mine".to_owned(), b"kept".to_vec())]);
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    at(&link, "link: cannot create: ");
    at(&dir.path().join("gone/x"), "gone: cannot examine: ");
    // 7 TB fit no disk that a test runs on.
    let big = dir.path().join("big");
    let args = ["synth", "-o", big.to_str().unwrap(), "--like", "kimi-k2", "--format", "bf16"];
    fails(&[&args[..], &["--layers", "220"]].concat(), 1, "bytes are needed");
    let mut left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["link", "taken"]);
}

#[test]
fn impossible_sizes_are_refused_by_flag() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x");
    let refuse = |like: &str, args: &[&str], expected: &str| {
        fails(&[&["synth", "-o", out.to_str().unwrap(), "--like", like], args].concat(), 2, expected);
    };
    refuse("kimi-k3", &[], "--like is \"kimi-k3\", expected kimi-k2, ");
    refuse("kimi-k2", &["--layers", "0"], "--layers is 0");
    refuse("kimi-k2", &["--layers", "100000"], "--layers is 100000");
    refuse("kimi-k2", &["--layers", "-1"], "'--layers <N>'");
    refuse("kimi-k2", &["--experts", "7"], "--experts is 7, expected 8 (what a token chooses)");
    refuse("kimi-k2", &["--experts", "5000"], "--experts is 5000");
    // DeepSeek-V3: 8 groups, 4 of them a token, 8 experts a token.
    refuse(
        "deepseek-v3",
        &["--experts", "12"],
        "--experts is 12, expected a multiple of the model's 8 groups",
    );
    refuse("deepseek-v3", &["--experts", "8"], "--experts is 8, expected at least 16");
    refuse(
        "kimi-k2",
        &["--layers", "500", "--experts", "4096"],
        "--layers with 4096 experts makes 6131712 tensors",
    );
    refuse("kimi-k2", &["--format", "int3"], "'--format <FORMAT>'");
    let bad = Synth::like("kimi-k2").format(Format::F32).config();
    assert!(matches!(bad, Err(Error::Argument { name: "format", .. })), "{bad:?}");
    assert!(Synth::like("deepseek-v3").experts(16).config().is_ok());
}

#[test]
fn an_interrupt_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("k2");
    let partial = dir.path().join("k2.partial");
    // Large enough that it cannot be finished before the interrupt arrives.
    let args =
        ["synth", "-o", out.to_str().unwrap(), "--like", "kimi-k2", "--layers", "2", "--experts", "32"];
    let child = abruzzi(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let shard = partial.join("model-00001-of-00002.safetensors");
    while !shard.exists() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    common::cli::interrupt(&child);
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(130));
    assert_eq!(text(&out.stderr), "interrupted\n");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn after_a_kill_the_same_command_goes_on_and_another_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (out, expected, like) = (at("k2"), at("expected"), tiny("k2-int4"));
    stdout(&["synth", "-o", expected.to_str().unwrap(), "--like", &like]);
    let args = ["synth", "-o", out.to_str().unwrap(), "--like", &like];
    let mut child = abruzzi(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !at("k2.partial").exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // It may have been too fast to be killed; then there is nothing to go on with.
    if !out.exists() {
        stdout(&args);
    }
    assert!(files(&out) == files(&expected), "a kill changes the bytes");
    assert!(!at("k2.partial").exists());

    std::fs::create_dir(at("other.partial")).unwrap();
    std::fs::write(at("other.partial/mine"), "kept").unwrap();
    fails(
        &["synth", "-o", at("other").to_str().unwrap(), "--like", &like],
        1,
        "other.partial: has no journal",
    );
    assert_eq!(files(&at("other.partial")), [("mine".to_owned(), b"kept".to_vec())]);
}
