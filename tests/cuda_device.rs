//! The forward pass on the emulated GPU against transformers and against the CPU: every checkpoint format, prefill and
//! step by step.
//!
//! The oracle's models are random, so every few tokens two experts score alike to within bf16's rounding, one device
//! takes the one and another the other, and the logits of that token differ by a tenth. So logits are compared with the
//! experts given, number by number; the router's own choices are compared apart.
#![cfg(feature = "cuda")]

mod common;
#[path = "common/emulator.rs"]
mod emulator;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use abruzzi::checkpoint::{Checkpoint, LoadOptions};
use abruzzi::device::cpu::CpuDevice;
use abruzzi::device::cuda::{CudaDevice, Gpu};
use abruzzi::device::{Device, Routing};
use abruzzi::experts::residency::Placement;
use abruzzi::model::{Model, Sequence};
use abruzzi::{DeviceChoice, Engine, Sampling, SessionOptions};
use common::{CASES, GREEDY_PROMPT, Golden, checkpoint, difference, golden};

/// Largest 1 − 2Σxy/Σ(x²+y²) of a row with bf16 activations.
const BF16: f64 = 1e-3;
/// The same where activations of the MLPs are rounded to FP8 too: prefill over FP8 weights.
const FP8: f64 = 3e-3;
/// Share of a router's choices that may fall differently, of all (token, layer) pairs. Seen: see `Compared`'s report.
const NEAR_TIES_BF16: f64 = 0.10;
const NEAR_TIES_FP8: f64 = 0.35;

fn sequence<D: Device>(case: &str, device: D) -> Sequence<D> {
    let checkpoint = Arc::new(Checkpoint::open(checkpoint(case)).unwrap());
    let model = Model::load(&checkpoint, device, &LoadOptions::default(), &Placement::default()).unwrap();
    Arc::new(model).sequence().unwrap()
}

type Layers = Vec<Option<Routing>>;

/// Logits of all tokens in chunks of `chunk`, and the routing of each chunk. `given` replaces the router's choices.
fn run<D: Device>(
    sequence: &mut Sequence<D>,
    ids: &[u32],
    chunk: usize,
    given: Option<&[Layers]>,
) -> (Vec<f32>, Vec<Layers>) {
    sequence.truncate(0);
    let (mut logits, mut routing) = (Vec::new(), Vec::new());
    for (i, ids) in ids.chunks(chunk).enumerate() {
        if let Some(given) = given {
            sequence.replay_routing(given[i].clone());
        }
        logits.extend_from_slice(&sequence.logits(ids, &AtomicBool::new(false)).unwrap());
        routing.push(sequence.routing().unwrap());
    }
    (logits, routing)
}

/// Highest value's index, and how far the second is below it.
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

/// Every row within the bound, and the most probable token the same wherever its margin exceeds the error.
fn hold(what: &str, got: &[f32], golden: &Golden, bound: f64) {
    assert_eq!(got.len(), golden.logits.len(), "{what}");
    let mut worst = 0.0f64;
    let rows = got.chunks_exact(golden.vocab).zip(golden.logits.chunks_exact(golden.vocab));
    for (row, (got, want)) in rows.enumerate() {
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

/// How many (token, layer) pairs chose other experts, and out of how many.
fn differing(got: &[Layers], want: &[Layers]) -> (usize, usize) {
    let (mut differ, mut all) = (0, 0);
    for (got, want) in got.iter().flatten().flatten().zip(want.iter().flatten().flatten()) {
        let k = want.top_k();
        for (got, want) in got.ids().chunks_exact(k).zip(want.ids().chunks_exact(k)) {
            let sorted = |ids: &[u32]| {
                let mut ids = ids.to_vec();
                ids.sort_unstable();
                ids
            };
            differ += usize::from(sorted(got) != sorted(want));
            all += 1;
        }
    }
    (differ, all)
}

#[test]
fn logits_of_the_oracle_cases() {
    emulator::install();
    for case in CASES.into_iter().chain(["demo"]) {
        let golden = golden(case);
        let mut cpu = sequence(case, CpuDevice::new(0).unwrap());
        let mut cuda = sequence(case, CudaDevice::new(Gpu::open(0).unwrap()));
        let fp8 = case.contains("fp8") || case == "demo";
        let whole = golden.ids.len();
        let modes = [
            (
                "prefill",
                whole,
                if fp8 { FP8 } else { BF16 },
                if fp8 { NEAR_TIES_FP8 } else { NEAR_TIES_BF16 },
            ),
            ("step", 1, BF16, NEAR_TIES_BF16),
        ];
        for (mode, chunk, bound, near_ties) in modes {
            let what = format!("{case} {mode}");
            // Ninety-six forward passes: the kernels' own tests check each, and the prefill here.
            emulator::configure(&format!(r#"{{"checks": {0}, "counters": {0}}}"#, chunk > 1));
            let (_, want) = run(&mut cpu, &golden.ids, chunk, None);
            let (logits, _) = run(&mut cuda, &golden.ids, chunk, Some(&want));
            hold(&what, &logits, &golden, bound);

            let (logits, routing) = run(&mut cuda, &golden.ids, chunk, None);
            let (differ, all) = differing(&routing, &want);
            eprintln!("{what}: {differ} of {all} choices differ");
            assert!((differ as f64) < near_ties * all as f64, "{what}: {differ} of {all} choices differ");
            if differ == 0 || case == "demo" {
                hold(&format!("{what}, free"), &logits, &golden, bound);
            }
        }
    }
}

#[test]
fn greedy_tokens_are_the_cpus() {
    emulator::install();
    emulator::configure(r#"{"checks": false, "counters": false}"#);
    let golden = golden("demo");
    let prompt = &golden.greedy[..GREEDY_PROMPT];
    let mut sampling = Sampling::greedy(64);
    sampling.ignore_eos = true;
    let tokens = |device| -> Vec<u32> {
        let engine = Engine::builder(checkpoint("demo")).device(device).load().unwrap();
        let mut session = engine.session(SessionOptions::default()).unwrap();
        session.generate_tokens(prompt, &sampling).unwrap().map(|t| t.unwrap().id).collect()
    };
    assert_eq!(tokens(DeviceChoice::Cuda(0)), tokens(DeviceChoice::Cpu));
}

#[test]
fn models_without_kernels_are_refused_by_field() {
    emulator::install();
    let device = CudaDevice::new(Gpu::open(0).unwrap());
    let config = Checkpoint::open(checkpoint("k2-bf16")).unwrap().config().clone();
    device.supports(&config.attention, &config.moe).unwrap();
    let (mut attention, mut moe) = (config.attention, config.moe);
    attention.kv_lora_rank = 256;
    moe.num_experts = 513;
    let attention = device.supports(&attention, &config.moe).unwrap_err().to_string();
    assert!(attention.contains("kv_lora_rank 256"), "{attention}");
    let moe = device.supports(&config.attention, &moe).unwrap_err().to_string();
    assert!(moe.contains("n_routed_experts = 513"), "{moe}");
}
