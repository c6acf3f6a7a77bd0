//! The layer-by-layer forward pass against the one that generates.

mod common;

use std::sync::Arc;

use abruzzi::model::walk::{Walk, WalkOptions};
use abruzzi::{Checkpoint, DeviceChoice, Engine, Error, SessionOptions};

use common::{CASES, checkpoint, copy, golden, oracle};

fn walk(case: &str, chunk: usize, host_budget: Option<u64>) -> Walk {
    let source = Arc::new(Checkpoint::open(checkpoint(case)).unwrap());
    let options = WalkOptions { chunk, host_budget, ..WalkOptions::default() };
    Walk::new(source, &options).unwrap()
}

/// −ln p of each token but the first, and whether it was the most probable, from logits in a file.
fn naive(logits: &[f32], vocab: usize, ids: &[u32]) -> Vec<(f64, bool)> {
    let rows = logits.chunks(vocab).zip(&ids[1..]);
    rows.map(|(row, &id)| {
        let sum: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
        let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        (sum.ln() - f64::from(row[id as usize]), row[id as usize] == best)
    })
    .collect()
}

#[test]
fn losses_are_those_of_the_golden_logits() {
    for case in CASES.into_iter().chain(["demo"]) {
        let golden = golden(case);
        let want = naive(&golden.logits, golden.vocab, &golden.ids);
        // Chunks that cut the windows, an expert store of one record, and two windows that must not see each other.
        for (chunk, budget) in [(512, None), (5, Some(1 << 20))] {
            let walk = walk(case, chunk, budget);
            let mut windows = walk.embed(&[golden.ids.clone(), golden.ids.clone()]).unwrap();
            for layer in 0..walk.config().num_layers {
                walk.step(layer, &mut windows, |_| Ok(())).unwrap();
            }
            let losses = walk.losses(&windows).unwrap();
            assert_eq!(losses.len(), 2 * want.len());
            for (i, loss) in losses.iter().enumerate() {
                let (nats, first) = want[i % want.len()];
                assert_eq!(loss.window, i / want.len());
                assert!((loss.nats - nats).abs() < 1e-3, "{case}, token {i}: {} for {nats}", loss.nats);
                assert_eq!(loss.first, first, "{case}, token {i}");
            }
        }
    }
}

#[test]
fn what_is_seen_adds_up_to_the_stream() {
    let walk = walk("demo", 16, None);
    let ids: Vec<u32> = (0..40).map(|i| i * 91 % 3840).collect();
    let mut windows = walk.embed(std::slice::from_ref(&ids)).unwrap();
    walk.step(0, &mut windows, |_| panic!("layer 0 is dense")).unwrap();
    let layer = walk.layer(1).unwrap();
    let x = walk.attend(&layer, &mut windows).unwrap();
    let before = windows.hidden().to_vec();
    let (width, top_k) = (walk.config().hidden_size, walk.config().moe.top_k);
    let mut sum = before.clone();
    let mut tokens = 0;
    walk.mix(&layer, &x, &mut windows, |seen| {
        assert_eq!(seen.first, tokens);
        assert_eq!(seen.outputs.len(), seen.routing.tokens() * top_k * width);
        for t in 0..seen.routing.tokens() {
            tokens += 1;
            let row = &mut sum[(seen.first + t) * width..][..width];
            for (c, s) in row.iter_mut().enumerate() {
                let of_expert =
                    |j| seen.routing.weights()[t * top_k + j] * seen.outputs[(t * top_k + j) * width + c];
                *s += (0..top_k).map(of_expert).sum::<f32>() + seen.shared[t * width + c];
            }
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(tokens, ids.len());
    let largest = sum.iter().zip(windows.hidden()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest < 1e-4, "{largest}");
    assert!(sum != before);
}

#[test]
fn it_is_the_model_that_generates() {
    let engine = Engine::builder(checkpoint("demo")).device(DeviceChoice::Cpu).load().unwrap();
    let ids: Vec<u32> = (0..60).map(|i| i * 37 % 3840).collect();
    let logits = engine.session(SessionOptions::default()).unwrap().logits(&ids).unwrap();
    let want = naive(&logits, engine.config().vocab_size, &ids);
    let walk = walk("demo", 64, None);
    let mut windows = walk.embed(&[ids]).unwrap();
    for layer in 0..walk.config().num_layers {
        walk.step(layer, &mut windows, |_| Ok(())).unwrap();
    }
    for (loss, (nats, _)) in walk.losses(&windows).unwrap().iter().zip(want) {
        assert!((loss.nats - nats).abs() < 1e-5, "{} for {nats}", loss.nats);
    }
}

#[test]
fn bad_input_and_damage_are_named() {
    let sound = walk("k2-fp8", 8, None);
    assert!(matches!(sound.embed(&[]), Err(Error::Argument { name: "tokens", .. })));
    assert!(matches!(sound.embed(&[vec![]]), Err(Error::Argument { name: "tokens", .. })));
    assert!(matches!(sound.embed(&[vec![1 << 30]]), Err(Error::Argument { name: "tokens", .. })));
    assert!(matches!(sound.layer(99), Err(Error::Argument { name: "layer", .. })));

    // One NaN code in the middle of a shard: some layer's or expert's weights, found when a walk reads them.
    let dir = copy(&oracle("k2-fp8"));
    let source = Checkpoint::open(dir.path()).unwrap();
    let file = dir.path().join("model-00001-of-000002.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let parsed: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let name = parsed.as_object().unwrap().keys().find(|n| n.ends_with("kv_a_proj_with_mqa.weight")).unwrap();
    let at = parsed[name]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[header + at + 3] = 0x7f;
    drop(source);
    std::fs::write(&file, bytes).unwrap();
    let damaged =
        Walk::new(Arc::new(Checkpoint::open(dir.path()).unwrap()), &WalkOptions::default()).unwrap();
    let layer: usize = name.split('.').nth(2).unwrap().parse().unwrap();
    match damaged.layer(layer) {
        Err(Error::Checkpoint { faults, .. }) => assert!(faults.to_string().contains(name), "{faults}"),
        other => panic!("{:?}", other.map(|_| ())),
    }
}
