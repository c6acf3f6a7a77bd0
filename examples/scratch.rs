#![allow(missing_docs)]
use abruzzi::compress::calibrate::{ExpertUse, calibrate};
use abruzzi::compress::heal::heal;
use abruzzi::model::walk::*;
use abruzzi::*;
use std::sync::Arc;
fn walk(dir: &str) -> Walk {
    Walk::new(Arc::new(Checkpoint::open(dir).unwrap()), &WalkOptions::default()).unwrap()
}
fn nats(w: &Walk, windows: &[Vec<u32>]) -> f64 {
    let mut s = w.embed(windows).unwrap();
    for l in 0..w.config().num_layers {
        w.step(l, &mut s, |_| Ok(())).unwrap();
    }
    let l = w.losses(&s).unwrap();
    l.iter().map(|l| l.nats).sum::<f64>() / l.len() as f64
}
fn main() {
    let demo = "models/demo";
    let full = walk(demo);
    let tok = Tokenizer::from_dir(demo.as_ref(), 4096).unwrap();
    let text = std::fs::read_to_string("models/demo/heldout.txt").unwrap();
    let ids = tok.encode(&text).unwrap();
    let all: Vec<Vec<u32>> = ids.chunks_exact(257).map(|c| c.to_vec()).collect();
    println!("{} windows", all.len());
    let cal = &all[100..116];
    let eval = &all[0..16];
    let t = std::time::Instant::now();
    let c = calibrate(&full, cal, &mut |_| ()).unwrap();
    println!("calibrated {:?} nats {}", t.elapsed(), c.nats);
    println!("influence {:?}", c.layers.iter().map(|l| l.influence).collect::<Vec<_>>());
    println!("full {:.4}", nats(&full, eval));
    let kinds: [(&str, fn(&ExpertUse) -> f64); 4] =
        [("mass", |e| e.mass), ("norm", |e| e.norm), ("loss", |e| e.loss), ("worst", |e| -e.loss)];
    for keep in [16usize, 8] {
        for (name, score) in kinds {
            let ex: Vec<Vec<usize>> = c
                .layers
                .iter()
                .map(|l| {
                    let mut o: Vec<usize> = (0..l.experts.len()).collect();
                    o.sort_by(|a, b| score(&l.experts[*b]).total_cmp(&score(&l.experts[*a])));
                    o.truncate(keep);
                    o.sort();
                    o
                })
                .collect();
            let out = format!("/tmp/students/{name}{keep}");
            let ok = std::process::Command::new("python3")
                .args(["/tmp/slice.py", demo, &out, "[0,1,2,3,4]", &format!("{ex:?}")])
                .status()
                .unwrap();
            assert!(ok.success());
            let student = walk(&out);
            let before = nats(&student, eval);
            let t = std::time::Instant::now();
            let h = heal(&full, &student, &[0, 1, 2, 3, 4], cal, &mut |_| ()).unwrap();
            let el = t.elapsed();
            // write healed
            let errs: Vec<String> = h
                .layers
                .iter()
                .flatten()
                .map(|l| format!("{:.4}->{:.4}", l.error_before, l.error_after))
                .collect();
            let scales: Vec<Vec<f32>> =
                h.layers.iter().map(|l| l.as_ref().map_or(vec![], |l| l.scale.clone())).collect();
            let biases: Vec<Vec<f32>> =
                h.layers.iter().map(|l| l.as_ref().map_or(vec![], |l| l.bias.clone())).collect();
            let healed = format!("{out}h");
            let ok = std::process::Command::new("python3")
                .args(["/tmp/apply.py", &out, &healed, &format!("{scales:?}"), &format!("{biases:?}")])
                .status()
                .unwrap();
            assert!(ok.success());
            println!("{name} {keep}: {before:.4} healed {:.4}  {errs:?} {el:?}", nats(&walk(&healed), eval));
        }
    }
}
