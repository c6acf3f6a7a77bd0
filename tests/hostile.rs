//! Hostile headers and indices cost bounded memory, by the peak that `verify --json` reports of itself.

mod common;

use std::io::Write;
use std::process::Command;

use common::{copy, oracle};

const LIMIT: u64 = 64 << 20;

fn safetensors(header: &[u8], declared: u64) -> Vec<u8> {
    [&declared.to_le_bytes()[..], header].concat()
}

#[test]
fn bad_headers_stay_below_64_mb() {
    let json = |header: &str| safetensors(header.as_bytes(), header.len() as u64);
    let many: String = (0..400_000)
        .map(|i| format!("\"{i:x}\":{{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}},"))
        .collect();
    let entry = |shape: &str, offsets: &str| {
        json(&format!("{{\"a\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":{offsets}}}}}"))
    };
    let cases: Vec<(Vec<u8>, u64, &str)> = vec![
        (safetensors(b"{}", 0), 0, "header length is 0"),
        (safetensors(b"{}", u64::MAX), 0, "truncated"),
        (safetensors(b"{}", 1000), 0, "truncated"),
        // Sparse files: gigabytes long, kilobytes of disk.
        (safetensors(b"{}", 1 << 32), 1 << 33, "more than"),
        (safetensors(b"", 30 << 20), 1 << 33, "not the JSON"),
        (safetensors(b"\xff\xfe\xfd", 3), 0, "not the JSON"),
        (json(&"[".repeat(1 << 20)), 0, "not the JSON"),
        (json(&format!("{{\"a\":{}", "[".repeat(1 << 20))), 0, "not the JSON"),
        (json(&format!("{{{many}\"z\":0}}")), 0, "more than 262144 tensors"),
        (json(&format!("{{\"{}\":0}}", "x".repeat(20 << 20))), 0, "a tensor name of"),
        (
            json(&format!(
                "{{\"a\":{{\"dtype\":\"F32\",\"shape\":[{}1],\"data_offsets\":[0,4]}}}}",
                "1,".repeat(1 << 21)
            )),
            0,
            "rank above",
        ),
        (entry("[1]", "[4,0]"), 0, "reversed offsets"),
        (entry("[1]", "[0,4]"), 0, "truncated"),
        (entry("[0]", "[0,0]"), 0, "empty shape"),
        (entry("[18446744073709551615,2]", "[0,4]"), 0, "impossible shape"),
        (entry("[4294967296,4294967296]", "[0,4]"), 0, "impossible shape"),
        (entry("[2]", "[0,4]"), 0, "spans 4 bytes"),
        (entry("[1]", "[0,18446744073709551615]"), 0, "spans"),
        (entry("[-1]", "[0,4]"), 0, "not the JSON"),
        (entry("[1.5]", "[0,4]"), 0, "not the JSON"),
        (json("{\"a\":{\"dtype\":\"F4\",\"shape\":[1],\"data_offsets\":[0,1]}}"), 0, "unknown type"),
        (
            json(
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
            ),
            1,
            "stands twice",
        ),
        (
            json(
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
            ),
            3,
            "overlap",
        ),
        // One tensor spans two others, of which the second is not its neighbour.
        (
            json(
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[0,9]},\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[2,3]},\"c\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[5,6]}}",
            ),
            9,
            r#"its bytes overlap those of a","tensor":"c""#,
        ),
        (json("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}"), 3, "belong to no tensor"),
        (
            json("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}"),
            9,
            "follow the last tensor",
        ),
    ];
    for (bytes, data, expected) in cases {
        let dir = copy(&oracle("k2-bf16"));
        std::fs::remove_file(dir.path().join("model.safetensors.index.json")).unwrap();
        let mut file = std::fs::File::create(dir.path().join("model-00001-of-000001.safetensors")).unwrap();
        file.write_all(&bytes).unwrap();
        file.set_len(bytes.len() as u64 + data).unwrap();
        check(dir.path(), expected);
    }
}

#[test]
fn bad_indices_stay_below_64_mb() {
    let many: String = (0..600_000).map(|i| format!("\"{i:x}\":\"a\",")).collect();
    let shards: String = (0..100_000).map(|i| format!("\"{i:x}\":\"{i:x}\",")).collect();
    for (index, expected) in [
        (format!("{{\"weight_map\":{{{many}\"z\":\"a\"}}}}"), "more than 262144 tensors"),
        (format!("{{\"weight_map\":{{{shards}\"z\":\"a\"}}}}"), "more than 4096 shards"),
        (format!("{{\"weight_map\":{{\"a\":\"{}\"}}}}", "x".repeat(20 << 20)), "longer than 512"),
        ("{\"weight_map\":{\"a\":\"x\",\"a\":\"x\"}}".to_owned(), "stands twice"),
        ("{\"weight_map\":[]}".to_owned(), "not the JSON"),
        ("{}".to_owned(), "weight_map"),
        ("[".repeat(1 << 20), "not the JSON"),
    ] {
        let dir = copy(&oracle("k2-bf16"));
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        check(dir.path(), expected);
    }
}

fn check(dir: &std::path::Path, expected: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_abruzzi"));
    let out = command.args(["verify", "--json", "-m"]).arg(dir).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let beginning: String = stdout.chars().take(600).collect();
    assert_eq!(out.status.code(), Some(1), "{beginning}{stderr}");
    assert!(stdout.contains(expected), "does not say {expected:?}: {beginning}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let done: serde_json::Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    let peak = done["peak_memory"].as_u64().unwrap();
    assert!(peak < LIMIT, "{expected}: {peak} bytes");
}
