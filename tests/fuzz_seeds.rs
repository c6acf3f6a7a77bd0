//! Every committed fuzz seed through the body of its target: what the fuzzer found once stays found.

#[path = "../fuzz/bodies.rs"]
mod bodies;

use std::path::Path;

/// Runs all seeds of a target.
fn run(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|item| item.unwrap().path()).collect();
    names.sort();
    assert!(names.len() >= 20, "{target} has {} seeds", names.len());
    for name in names {
        // Shown by the test runner where the body fails.
        println!("{}", name.display());
        body(&std::fs::read(name).unwrap());
    }
}

#[test]
fn safetensors_header() {
    run("safetensors_header", bodies::safetensors_header);
}

#[test]
fn shard_index() {
    run("shard_index", bodies::shard_index);
}

#[test]
fn model_config() {
    run("model_config", bodies::model_config);
}

#[test]
fn tokenizer() {
    run("tokenizer", bodies::tokenizer);
}

#[test]
fn chat_template() {
    run("chat_template", bodies::chat_template);
}
