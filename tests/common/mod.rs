//! What the integration tests share: fixtures, golden files, comparison.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod cli;

use std::path::{Path, PathBuf};

use abruzzi::{Engine, Sampling, SessionOptions};
use safetensors::SafeTensors;

/// Oracle cases made with transformers' DeepseekV3ForCausalLM in float32 on dequantised weights.
pub const CASES: [&str; 4] = ["k2-bf16", "k2-fp8", "k2-int4", "v3-groups-fp8"];

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub fn oracle(case: &str) -> PathBuf {
    root().join("tests/fixtures/oracle").join(case)
}

pub fn demo() -> PathBuf {
    root().join("models/demo")
}

/// The checkpoint an oracle case was computed from; `demo` is the shipped model.
pub fn checkpoint(case: &str) -> PathBuf {
    if case == "demo" { demo() } else { oracle(case) }
}

/// Golden ids, logits and greedy continuation of a case.
pub struct Golden {
    pub ids: Vec<u32>,
    /// [ids, vocab]
    pub logits: Vec<f32>,
    pub vocab: usize,
    /// Eight prompt ids, then the continuation.
    pub greedy: Vec<u32>,
}

pub const GREEDY_PROMPT: usize = 8;

pub fn golden(case: &str) -> Golden {
    let bytes = std::fs::read(oracle(case).join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words =
        |name: &str| -> Vec<[u8; 4]> { file.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec() };
    Golden {
        ids: words("ids").into_iter().map(u32::from_le_bytes).collect(),
        logits: words("logits").into_iter().map(f32::from_le_bytes).collect(),
        vocab: file.tensor("logits").unwrap().shape()[1],
        greedy: words("greedy").into_iter().map(u32::from_le_bytes).collect(),
    }
}

/// The tokens that an engine finds most probable to follow a prompt, in a session of its own.
pub fn greedy(engine: &Engine, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut sampling = Sampling::greedy(tokens);
    sampling.ignore_eos = true;
    let mut session = engine.session(SessionOptions::default()).unwrap();
    session.generate_tokens(prompt, &sampling).unwrap().map(|t| t.unwrap().id).collect()
}

/// 1 − 2Σxy/Σ(x²+y²): 0 for equal vectors, scale-sensitive unlike a cosine.
pub fn difference(x: &[f32], y: &[f32]) -> f64 {
    assert_eq!(x.len(), y.len());
    let (mut xy, mut squares) = (0.0, 0.0);
    for (&a, &b) in x.iter().zip(y) {
        let (a, b) = (f64::from(a), f64::from(b));
        xy += a * b;
        squares += a * a + b * b;
    }
    1.0 - 2.0 * xy / squares
}

/// A private copy of a checkpoint, to be damaged.
pub fn copy(from: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        if item.file_name() != "golden.safetensors" {
            std::fs::copy(item.path(), dir.path().join(item.file_name())).unwrap();
        }
    }
    dir
}
