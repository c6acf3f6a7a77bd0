//! Measuring a model's experts and healing a damaged one, on the demo model.

mod common;

use std::path::Path;
use std::sync::Arc;

use abruzzi::Checkpoint;
use abruzzi::Error;
use abruzzi::compress::calibrate::calibrate;
use abruzzi::compress::distill::distill;
use abruzzi::model::walk::{Walk, WalkOptions, combine, route};

use common::{copy, demo};

fn walk(dir: &Path, chunk: usize) -> Walk {
    let options = WalkOptions { chunk, ..WalkOptions::default() };
    Walk::new(Arc::new(Checkpoint::open(dir).unwrap()), &options).unwrap()
}

/// Windows of the held-out text.
fn windows(count: usize, len: usize) -> Vec<Vec<u32>> {
    let text = std::fs::read_to_string(demo().join("heldout.txt")).unwrap();
    let tokenizer = abruzzi::Tokenizer::from_dir(&demo(), 4096).unwrap();
    let ids = tokenizer.encode(&text[..count * len * 8]).unwrap();
    ids.chunks_exact(len).take(count).map(<[u32]>::to_vec).collect()
}

#[test]
fn measurements_are_those_of_a_run_without_the_expert() {
    let walk = walk(&demo(), 24);
    let windows = windows(3, 20);
    let mut seen = Vec::new();
    let found = calibrate(&walk, &windows, &mut |layer| seen.push(layer)).unwrap();
    assert_eq!(seen, [0, 1, 2, 3, 4]);
    assert_eq!(found.tokens, 60);
    assert!(found.layers[0].experts.is_empty());

    let (moe, width) = (walk.config().moe, walk.config().hidden_size);
    let mut stream = walk.embed(&windows).unwrap();
    walk.step(0, &mut stream, |_| Ok(())).unwrap();
    let layer = walk.layer(1).unwrap();
    let bias = layer.router_bias().unwrap().to_vec();
    let x = walk.attend(&layer, &mut stream).unwrap();
    let logits = walk.gate(&layer, &x).unwrap();
    let run = |bias: &[f32]| {
        let routing = route(&logits, bias, &moe);
        let outputs = walk.experts(&layer, &x, &routing, 0).unwrap();
        let mut y = vec![0.0; x.len()];
        combine(&outputs, routing.weights(), width, &mut y);
        (routing, outputs, y)
    };
    let (routing, outputs, whole) = run(&bias);
    for (expert, measured) in found.layers[1].experts.iter().enumerate() {
        let pairs: Vec<usize> =
            (0..routing.ids().len()).filter(|&p| routing.ids()[p] as usize == expert).collect();
        assert_eq!(measured.chosen, pairs.len() as u64);
        let mass: f64 = pairs.iter().map(|&p| f64::from(routing.weights()[p])).sum();
        let length = |p: &usize| {
            let output = &outputs[p * width..][..width];
            f64::from(routing.weights()[*p]) * output.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt()
        };
        let norm: f64 = pairs.iter().map(length).sum();
        let mut without = bias.clone();
        without[expert] = -1e9;
        let (_, _, other) = run(&without);
        let loss: f64 = whole.iter().zip(&other).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        for (got, want) in [(measured.mass, mass), (measured.norm, norm), (measured.loss, loss)] {
            assert!((got - want).abs() <= 1e-4 * want.abs().max(1e-3), "expert {expert}: {got} for {want}");
        }
    }
    assert!(found.layers.iter().all(|l| (0.0..2.0).contains(&l.influence)));
}

/// Multiplies the output of some experts, by patching the scales of their down projections.
fn amplify(dir: &Path, factor: impl Fn(usize, usize) -> f32) {
    let file = dir.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let parsed: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    for (name, entry) in parsed.as_object().unwrap() {
        let parts: Vec<&str> = name.split('.').collect();
        let [_, _, layer, _, "experts", expert, "down_proj", "weight_scale_inv"] = parts[..] else {
            continue;
        };
        let by = factor(layer.parse().unwrap(), expert.parse().unwrap());
        let at = |i: usize| header + entry["data_offsets"][i].as_u64().unwrap() as usize;
        for raw in bytes[at(0)..at(1)].as_chunks_mut::<4>().0 {
            *raw = (f32::from_le_bytes(*raw) * by).to_le_bytes();
        }
    }
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn a_sound_student_is_left_alone_and_a_wrong_scale_is_found() {
    let windows = windows(16, 33);
    let teacher = walk(&demo(), 256);
    let all = [0, 1, 2, 3, 4];
    let same = distill(&teacher, &walk(&demo(), 256), &all, &windows, &mut |_| {}).unwrap();
    assert!(same.layers[0].is_none());
    for layer in same.layers.iter().flatten() {
        assert!(layer.scale.iter().all(|s| (s - 1.0).abs() < 1e-2), "{:?}", layer.scale);
        assert!(layer.error_before < 1e-6 && layer.error_after <= layer.error_before);
    }

    let dir = copy(&demo());
    amplify(dir.path(), |layer, expert| if layer == 2 && expert % 2 == 0 { 1.6 } else { 1.0 });
    let healed = distill(&teacher, &walk(dir.path(), 256), &all, &windows, &mut |_| {}).unwrap();
    let layer = healed.layers[2].as_ref().unwrap();
    assert!(layer.error_after < 0.05 * layer.error_before, "{} {}", layer.error_before, layer.error_after);
    let used = calibrate(&teacher, &windows, &mut |_| {}).unwrap().layers[2].experts.clone();
    let mut judged = 0;
    for (expert, scale) in layer.scale.iter().enumerate().filter(|&(e, _)| used[e].chosen > 40) {
        let want = if expert % 2 == 0 { 1.0 / 1.6 } else { 1.0 };
        assert!((scale - want).abs() < 0.05, "expert {expert}: {scale} for {want}");
        judged += 1;
    }
    assert!(judged > 16, "{judged}");
}

#[test]
fn bad_calls_are_refused() {
    let windows = windows(8, 17);
    let (teacher, student) = (walk(&demo(), 64), walk(&demo(), 64));
    let call = |kept: &[usize], windows: &[Vec<u32>]| distill(&teacher, &student, kept, windows, &mut |_| {});
    for kept in [&[0, 1, 2][..], &[0, 1, 2, 3, 5]] {
        assert!(matches!(call(kept, &windows), Err(Error::Argument { name: "kept", .. })));
    }
    assert!(matches!(call(&[0, 1, 2, 3, 4], &windows[..3]), Err(Error::Argument { name: "text", .. })));
}
