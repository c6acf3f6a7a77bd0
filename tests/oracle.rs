//! The forward pass against transformers, prefill and step by step, on every checkpoint format.

mod common;

use abruzzi::{Engine, Sampling, SessionOptions};
use common::{CASES, GREEDY_PROMPT, checkpoint, difference, golden};

/// Largest 1 − 2Σxy/Σ(x²+y²) of a row. Measured: 2e-11; f32 against f32 leaves that room for other machines' libm.
const BOUND: f64 = 1e-8;

fn cases() -> impl Iterator<Item = &'static str> {
    CASES.into_iter().chain(["demo"])
}

#[test]
fn prefill_and_step_logits() {
    for case in cases() {
        let golden = golden(case);
        let engine = Engine::builder(checkpoint(case)).load().unwrap();
        assert_eq!(engine.config().vocab_size, golden.vocab);
        let session = || engine.session(SessionOptions::default()).unwrap();

        let prefill = session().logits(&golden.ids).unwrap();
        let mut stepping = session();
        let step: Vec<f32> = golden.ids.iter().flat_map(|&id| stepping.logits(&[id]).unwrap()).collect();
        // Chunks of 1, 2, 3, … tokens cross from the absorbed to the expanded form of attention.
        let mut chunking = session();
        let (mut chunks, mut rest, mut n) = (Vec::new(), &golden.ids[..], 1);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(n.min(rest.len()));
            chunks.extend(chunking.logits(now).unwrap());
            (rest, n) = (later, n + 1);
        }

        for (how, logits) in [("prefill", prefill), ("step", step), ("chunks", chunks)] {
            assert_eq!(logits.len(), golden.logits.len(), "{case} {how}");
            let rows = logits.chunks_exact(golden.vocab).zip(golden.logits.chunks_exact(golden.vocab));
            for (row, (got, want)) in rows.enumerate() {
                let difference = difference(got, want);
                assert!(difference < BOUND, "{case} {how} row {row}: {difference:e}");
                let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                for (column, (got, want)) in got.iter().zip(want).enumerate() {
                    let error = (got - want).abs();
                    assert!(error <= 1e-3 * largest, "{case} {how} [{row}, {column}]: {got} for {want}");
                }
            }
        }
    }
}

#[test]
fn greedy_tokens() {
    for case in cases() {
        let golden = golden(case);
        let (prompt, continuation) = golden.greedy.split_at(GREEDY_PROMPT);
        let engine = Engine::builder(checkpoint(case)).load().unwrap();
        let mut session = engine.session(SessionOptions::default()).unwrap();
        let mut sampling = Sampling::greedy(continuation.len());
        sampling.ignore_eos = true;
        let tokens: Vec<u32> =
            session.generate_tokens(prompt, &sampling).unwrap().map(|t| t.unwrap().id).collect();
        assert_eq!(tokens, continuation, "{case}");
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let golden = golden("k2-fp8");
    let logits = |threads| {
        let engine = Engine::builder(checkpoint("k2-fp8")).threads(threads).load().unwrap();
        engine.session(SessionOptions::default()).unwrap().logits(&golden.ids).unwrap()
    };
    assert_eq!(logits(1), logits(3));
}
