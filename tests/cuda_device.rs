//! The forward pass on the emulated GPU against transformers and against the CPU: every checkpoint format, prefill and
//! step by step.
#![cfg(feature = "cuda")]

mod common;

use std::sync::Once;

use abruzzi::{DeviceChoice, Engine, Sampling, SessionOptions};
use common::{CASES, GREEDY_PROMPT, checkpoint, difference, golden};

/// Largest 1 − 2Σxy/Σ(x²+y²) of a row with bf16 activations.
const BF16: f64 = 1e-3;
/// The same where activations are rounded to FP8 too: prefill over FP8 weights.
const FP8: f64 = 3e-3;

fn engine(case: &str, device: DeviceChoice) -> Engine {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        if std::env::var_os("ABRUZZI_TEST_GPU").is_none() {
            cuda_emulator::install::install(false).expect("the emulator");
        }
    });
    Engine::builder(checkpoint(case)).device(device).load().unwrap()
}

/// Highest value, its index, and how far the second is below it.
fn best(row: &[f32]) -> (usize, f32) {
    let (mut index, mut largest, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (i, &v) in row.iter().enumerate() {
        if v > largest {
            (index, second, largest) = (i, largest, v);
        } else if v > second {
            second = v;
        }
    }
    (index, largest - second)
}

fn hold(what: &str, got: &[f32], want: &[f32], vocab: usize, bound: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let mut worst = 0.0f64;
    for (row, (got, want)) in got.chunks_exact(vocab).zip(want.chunks_exact(vocab)).enumerate() {
        let found = difference(got, want);
        assert!(found < bound, "{what} row {row}: {found:e}, at most {bound:e}");
        worst = worst.max(found);
        let error = got.iter().zip(want).fold(0.0f32, |m, (g, w)| m.max((g - w).abs()));
        let (token, margin) = best(want);
        if margin > 2.0 * error {
            assert_eq!(best(got).0, token, "{what} row {row}: most probable token");
        }
    }
    eprintln!("{what}: at most {worst:.1e}");
}

#[test]
fn logits_of_the_oracle_cases() {
    for case in CASES.into_iter().chain(["demo"]) {
        let golden = golden(case);
        let engine = engine(case, DeviceChoice::Cuda(0));
        let session = || engine.session(SessionOptions::default()).unwrap();
        let fp8 = case.contains("fp8") || case == "demo";

        let prefill = session().logits(&golden.ids).unwrap();
        let bound = if fp8 { FP8 } else { BF16 };
        hold(&format!("{case} prefill"), &prefill, &golden.logits, golden.vocab, bound);

        let mut stepping = session();
        let step: Vec<f32> = golden.ids.iter().flat_map(|&id| stepping.logits(&[id]).unwrap()).collect();
        hold(&format!("{case} step"), &step, &golden.logits, golden.vocab, BF16);
    }
}

#[test]
fn greedy_tokens_are_the_cpus() {
    let golden = golden("demo");
    let prompt = &golden.greedy[..GREEDY_PROMPT];
    let mut sampling = Sampling::greedy(64);
    sampling.ignore_eos = true;
    let tokens = |device| -> Vec<u32> {
        let engine = engine("demo", device);
        let mut session = engine.session(SessionOptions::default()).unwrap();
        session.generate_tokens(prompt, &sampling).unwrap().map(|t| t.unwrap().id).collect()
    };
    assert_eq!(tokens(DeviceChoice::Cuda(0)), tokens(DeviceChoice::Cpu));
}
