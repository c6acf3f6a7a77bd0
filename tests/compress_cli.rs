//! The command line of `abruzzi compress` and `abruzzi quantize`.

mod common;

use std::process::Stdio;

use common::cli::{abruzzi, fails, json_lines, output, stdout, text};
use common::{demo, oracle, root};

const KIMI_K2: &str = "tests/fixtures/configs/kimi-k2-instruct.json";

#[test]
fn a_dry_run_counts_from_a_configuration_alone() {
    let config = root().join(KIMI_K2);
    let args = ["compress", "-m", config.to_str().unwrap(), "--layers", "24", "--experts", "16", "--dry-run"];
    let shown: String = stdout(&args).lines().map(|l| format!("{}\n", l.trim_end())).collect();
    snapbox::assert_data_eq!(
        shown,
        snapbox::str![[r#"
24 of 61 layers, 16 of 384 experts a layer: 22,394,854,768 parameters, 13,117,061,488 active a token

part                        parameters        fp16   fp8-block    int4-g32
attention                2,426,929,152     4.85 GB     2.43 GB     4.85 GB
dense MLP                  396,361,728   792.72 MB   396.46 MB   792.72 MB
embedding                1,174,405,120     2.35 GB     2.35 GB     2.35 GB
head                     1,174,405,120     2.35 GB     2.35 GB     2.35 GB
norms and biases               400,752    802.2 kB    802.2 kB    802.2 kB
routed experts          16,206,790,656    32.41 GB    16.21 GB     9.12 GB
router                       2,637,824     5.28 MB     5.28 MB     5.28 MB
shared experts           1,012,924,416     2.03 GB     1.01 GB     2.03 GB
total                   22,394,854,768    44.79 GB    24.75 GB    21.49 GB

weights                   kept      merged     dropped
attention                  120           0         185
dense MLP                    3           0           0
embedding                    1           0           0
head                         1           0           0
norms and biases           120           0         185
routed experts           1,104           0      68,016
router                      23           0          37
shared experts              69           0         111

to be written: 24,751,600,320 bytes of tensors, if what is plain in the source is BF16
0 shared experts dropped: every layer that is kept keeps its own
K2-Mini, 24 layers with 16 experts, had 39.83 GB on disk and was reported as 32.5 B parameters; 39.83 GB of FP16 is 19.9 B. It lacked its 72 shared-expert weights and its first logits were not finite. This has 22.4 B parameters, 44.79 GB in FP16, and all 69 shared-expert weights of its layers.

"#]]
    );
    let counted = &json_lines(&stdout(&[&args[..], &["--json"]].concat()))[0];
    assert_eq!(counted["experts"], serde_json::json!({"kept": 16, "of": 384}));
    assert_eq!((&counted["exact"], &counted["shared_experts_dropped"]), (&false.into(), &0.into()));
    let merged = [&args[..], &["--method", "merge", "--json"]].concat();
    let routed = &json_lines(&stdout(&merged))[0]["weights"]["routed experts"];
    assert_eq!(*routed, serde_json::json!({"kept": 1104, "merged": 25392, "dropped": 42624}));
}

#[test]
fn what_is_written_is_what_was_counted() {
    let dir = tempfile::tempdir().unwrap();
    let model = demo();
    let model = model.to_str().unwrap();
    for (name, args) in [
        ("small", &["compress", "--layers", "0-2,4", "--experts", "8"][..]),
        ("bf16", &["quantize", "--format", "bf16"]),
    ] {
        let out = dir.path().join(name);
        let out = out.to_str().unwrap();
        let args = [args, &["-m", model, "-o", out, "--json"]].concat();
        let counted = &json_lines(&stdout(&[&args[..], &["--dry-run"]].concat()))[0];
        assert!(!std::path::Path::new(out).exists());
        let written = &json_lines(&stdout(&args))[0];
        assert_eq!((&counted["bytes"], &counted["exact"]), (&written["bytes"], &true.into()));
        let verified = &json_lines(&stdout(&["verify", "-m", out, "--json"]))[0];
        assert_eq!((&verified["bytes"], &verified["faults"]), (&written["bytes"], &0.into()));
        assert!(
            !stdout(&["generate", "-m", out, "-p", "In the beginning", "-n", "4", "--device", "cpu"])
                .is_empty()
        );
        let again = output(&args);
        assert_eq!(again.status.code(), Some(1));
        assert!(text(&again.stderr).contains("cannot create"), "{}", text(&again.stderr));
    }
}

#[test]
fn flags_that_cannot_be_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x");
    let (out, model) = (out.to_str().unwrap(), demo());
    let model = model.to_str().unwrap();
    let compress = |args: &[&str], code: i32, expected: &str| {
        fails(&[&["compress", "-m", model, "-o", out], args].concat(), code, expected);
    };
    compress(&["--layers", "6"], 2, "--layers is 6, expected 1 to 5");
    compress(&["--layers", "1,7"], 2, "--layers has 7, expected 0 to 4");
    compress(&["--layers", "0-0"], 2, "--layers keeps no layer with experts");
    compress(&["--layers", "x"], 2, "--layers has \"x\", expected a number of layers");
    compress(&["--experts", "3"], 2, "--experts is 3, expected 4 (what a token chooses) to 32");
    compress(&["--experts", "-3"], 2, "'--experts <N>'");
    compress(
        &["--experts", "8", "--method", "usage"],
        2,
        "--file (-f) is not given; measuring and healing need",
    );
    compress(&["--experts", "8", "--method", "luck"], 2, "'--method <METHOD>'");
    compress(&["--experts", "8", "--heal"], 2, "--file <FILE>");
    compress(&["--experts", "8", "--steps", "50%"], 2, "cannot be used with");
    compress(&["--steps", "50"], 2, "expected shares such as 75%,50%,25%");
    compress(&["--steps", "50%,75%"], 2, "--steps goes from 16 to 24 experts");
    compress(&["--experts", "8", "--experts-list", "x.json"], 2, "cannot be used with");
    compress(&["--experts-list", "gone.json"], 1, "gone.json: cannot open");
    compress(&["--format", "fp32"], 2, "'--format <FORMAT>'");
    compress(&["--allow-saturation", "-1"], 2, "--allow-saturation is -1, expected a share from 0 to 1");
    let list = dir.path().join("list.json");
    std::fs::write(&list, r#"{"1": [0, 1, 2, 3], "2": [0, 1, 2, 99]}"#).unwrap();
    let list = list.to_str().unwrap();
    compress(
        &["--layers", "0-2", "--experts-list", list],
        2,
        "--experts of layer 2 hold 99, expected 0 to 31",
    );
    compress(&["--experts-list", list], 2, "--experts-list says nothing of layer 3, which is kept");
    fails(&["quantize", "-m", model, "-o", out], 2, "--format <FORMAT>");
    let only = ["quantize", "-m", model, "-o", out, "--format", "int4-g32", "--experts-only"];
    fails(&only, 2, "--experts-only needs a source whose other layers are plain");
    let config = root().join(KIMI_K2);
    let config = config.to_str().unwrap();
    fails(&["quantize", "-m", config, "-o", out, "--format", "bf16"], 2, "--model (-m) is ");
    fails(&["quantize", "-m", config, "--format", "bf16"], 2, "--out <DIR>");
    assert!(!std::path::Path::new(out).exists());
}

#[test]
fn an_interrupted_run_says_how_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let like = oracle("k2-bf16");
    // Widths of the tiny model, but so many experts that writing them takes a moment.
    let args =
        ["synth", "-o", source.to_str().unwrap(), "--like", like.to_str().unwrap(), "--experts", "300"];
    let made = &json_lines(&stdout(&[&args[..], &["--layers", "3", "--json"]].concat()))[0];
    let out = dir.path().join("out");
    let partial = dir.path().join("out.partial");
    let args =
        ["quantize", "-m", source.to_str().unwrap(), "-o", out.to_str().unwrap(), "--format", "int4-g32"];
    let child = abruzzi(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while !partial.exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    common::cli::interrupt(&child);
    let stopped = child.wait_with_output().unwrap();
    let said = text(&stopped.stderr);
    assert_eq!(stopped.status.code(), Some(130), "{said}");
    assert!(said.contains("keeps what is finished; the same command continues it"), "{said}");
    let continued = output(&[&args[..], &["--json"]].concat());
    let said = text(&continued.stderr);
    assert_eq!(continued.status.code(), Some(0), "{said}");
    assert!(said.contains(&format!("continuing {}", partial.display())), "{said}");
    assert!(out.exists() && !partial.exists());
    // Memory does not grow with the model: 58 MB were seen, most of it experts that the proof has tried, of which 64 MiB stay.
    let done = &json_lines(&text(&continued.stdout))[0];
    assert!(made["bytes"].as_u64().unwrap() > 100_000_000, "{made}");
    assert!(done["peak_memory"].as_u64().unwrap() < 90_000_000, "{done}");
}
