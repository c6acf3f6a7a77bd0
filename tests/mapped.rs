//! Weights used where the checkpoint's files are mapped: the same as those read into memory, refused for the same damage.

mod common;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use abruzzi::checkpoint::region::HostRegion;
use abruzzi::error::{FaultKind, FaultList, Tier};
use abruzzi::experts::ExpertId;
use abruzzi::experts::host::MappedExperts;
use abruzzi::{Checkpoint, DeviceChoice, Engine, EngineBuilder, Error, LoadOptions, SessionOptions};
use common::{CASES, checkpoint, copy, demo, golden, oracle};
use safetensors::SafeTensors;

fn cpu(dir: &Path) -> EngineBuilder {
    Engine::builder(dir).device(DeviceChoice::Cpu)
}

/// Without a budget weights are mapped; with one they are read, however large it is.
fn both_ways(dir: &Path) -> [(bool, EngineBuilder); 2] {
    [(true, cpu(dir)), (false, cpu(dir).host_budget(1 << 30))]
}

fn logits(engine: &Engine, ids: &[u32]) -> Vec<f32> {
    engine.session(SessionOptions::default()).unwrap().logits(ids).unwrap()
}

/// Where a tensor lies: its file, and its first byte there.
fn place(dir: &Path, name: &str) -> (PathBuf, u64) {
    for item in std::fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        if path.extension().is_none_or(|e| e != "safetensors") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        if let Ok(tensor) = SafeTensors::deserialize(&bytes).unwrap().tensor(name) {
            let at = tensor.data().as_ptr() as u64 - bytes.as_ptr() as u64;
            return (path, at);
        }
    }
    panic!("no {name}");
}

fn write(path: &Path, at: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

fn faults(error: Error) -> FaultList {
    match error {
        Error::Checkpoint { faults, .. } => faults,
        other => panic!("{other:?}"),
    }
}

#[test]
fn mapped_and_read_weights_are_the_same() {
    for case in CASES.into_iter().chain(["demo"]) {
        let checkpoint = Checkpoint::open(checkpoint(case)).unwrap();
        let options = LoadOptions::default();
        let (read, mapped) =
            (checkpoint.load_trunk(&options).unwrap(), checkpoint.map_trunk(&options).unwrap());
        assert_eq!(read.stats.bytes, mapped.stats.bytes);
        let (mut matrices, mut vectors) = (Vec::new(), Vec::new());
        read.trunk.visit(&mut |m| matrices.push(m), &mut |v| vectors.push(v));
        let (mut matrix, mut vector) = (matrices.into_iter(), vectors.into_iter());
        mapped.trunk.visit(
            &mut |m| {
                let read = matrix.next().unwrap();
                assert!(matches!(*read.weight.region, HostRegion::Own(_)));
                assert!(matches!(*m.weight.region, HostRegion::File(_)));
                assert_eq!(read.layout, m.layout);
                assert!(read.weight.bytes() == m.weight.bytes(), "{case}");
                let scale = |m: &abruzzi::checkpoint::region::HostMatrix| {
                    m.scale.as_ref().map(|scale| scale.bytes().to_vec())
                };
                assert!(scale(read) == scale(m), "{case}");
            },
            &mut |v| assert!(v == vector.next().unwrap(), "{case}"),
        );
        assert!(matrix.next().is_none() && vector.next().is_none());
    }
}

#[test]
fn mapped_and_read_models_give_the_same_logits() {
    for case in CASES.into_iter().chain(["demo"]) {
        let golden = golden(case);
        let [mapped, read] = both_ways(&checkpoint(case)).map(|(mapped, builder)| {
            let engine = builder.load().unwrap();
            let placement = engine.placement();
            assert_eq!(placement.contains("experts mapped"), mapped, "{placement}");
            (logits(&engine, &golden.ids), engine.load_stats().bytes)
        });
        assert!(mapped.0 == read.0, "{case}");
        // Records are padded.
        assert!(mapped.1 <= read.1 && mapped.1 > read.1 * 9 / 10, "{case}: {} {}", mapped.1, read.1);
    }
}

#[test]
fn weight_and_scale_may_lie_in_different_shards() {
    let from = oracle("k2-fp8");
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("config.json"), dir.path().join("config.json")).unwrap();
    let shards = ["model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors"]
        .map(|name| std::fs::read(from.join(name)).unwrap());
    let shards = [0, 1].map(|i| SafeTensors::deserialize(&shards[i]).unwrap());
    let all = || shards.iter().flat_map(|shard| shard.iter());
    let scales = all().filter(|(name, _)| name.ends_with("_scale_inv")).count();
    assert!(scales > 10);
    for (name, of_scales) in [("a.safetensors", false), ("b.safetensors", true)] {
        let part = all().filter(|(name, _)| name.ends_with("_scale_inv") == of_scales);
        safetensors::serialize_to_file(part, None, &dir.path().join(name)).unwrap();
    }
    let ids = golden("k2-fp8").ids;
    let want = logits(&cpu(&from).load().unwrap(), &ids);
    for (mapped, builder) in both_ways(dir.path()) {
        assert!(logits(&builder.load().unwrap(), &ids) == want, "mapped: {mapped}");
    }
}

#[test]
fn damage_is_refused_by_name_either_way() {
    let dir = copy(&oracle("v3-groups-fp8"));
    let damaged = [
        ("model.layers.1.self_attn.o_proj.weight", 77, vec![0xff]),
        ("model.layers.2.mlp.experts.3.down_proj.weight_scale_inv", 4, f32::NAN.to_le_bytes().to_vec()),
        ("model.layers.2.mlp.experts.7.up_proj.weight", 4321, vec![0x7f]),
    ];
    // The experts' alone first: a damaged trunk has everything listed by another way.
    for damage in [&damaged[1..], &damaged[..1]] {
        for (name, at, bytes) in damage {
            let (file, start) = place(dir.path(), name);
            write(&file, start + at, bytes);
        }
        for (mapped, builder) in both_ways(dir.path()) {
            let found = faults(builder.load().map(drop).unwrap_err());
            let mut names: Vec<_> = found.0.iter().filter_map(|f| f.tensor.clone()).collect();
            names.sort();
            let all = if damage.len() == 1 { &damaged[..] } else { &damaged[1..] };
            assert_eq!(names, all.iter().map(|d| d.0).collect::<Vec<_>>(), "mapped: {mapped}");
            let firsts: Vec<_> = found.0.iter().map(|f| f.kind.clone()).collect();
            assert!(firsts.contains(&FaultKind::NonFinite { count: 1, first: 4321 }), "{firsts:?}");
        }
    }
}

#[test]
fn one_damaged_expert_leaves_the_others() {
    let dir = copy(&demo());
    let name = "model.layers.2.mlp.experts.7.up_proj.weight";
    let (file, start) = place(dir.path(), name);
    write(&file, start + 4321, &[0x7f]);
    let checkpoint = Arc::new(Checkpoint::open(dir.path()).unwrap());
    let experts = MappedExperts::new(checkpoint.clone(), &LoadOptions::default());
    let mut record = Vec::new();
    for layer in 1..5 {
        let layout = experts.layout(layer).unwrap();
        record.resize(layout.size(), 0);
        for expert in 0..32 {
            let id = ExpertId::new(layer, expert);
            match experts.get(id) {
                Ok(views) => {
                    checkpoint.read_expert(layer, expert, &mut record).unwrap();
                    let mut rows = [vec![0.0; views.down.layout().cols], vec![0.0; views.down.layout().cols]];
                    let row = views.down.layout().rows - 1;
                    views.down.decode(row, 0, &mut rows[0]);
                    layout.views(&record).down.decode(row, 0, &mut rows[1]);
                    assert_eq!(rows[0], rows[1], "{id}");
                }
                Err(error) => {
                    assert_eq!(id, ExpertId::new(2, 7));
                    assert!(matches!(error, Error::Expert { layer: 2, expert: 7, tier: Tier::File, .. }));
                    assert!(error.to_string().contains(name), "{error}");
                }
            }
            assert_eq!(experts.tier(id), Tier::Host);
        }
    }
    let found = faults(experts.wait_loaded().unwrap_err());
    assert_eq!(found.0.len(), 1, "{found}");
    assert_eq!(found.0[0].tensor.as_deref(), Some(name));
    let stats = experts.stats();
    assert_eq!((stats.reads, stats.resident, stats.slots), (128, 128, 128), "{stats:?}");
    assert_eq!(stats.hits + stats.misses, 128);
    for id in [ExpertId::new(0, 0), ExpertId::new(1, 32), ExpertId::new(5, 0)] {
        assert!(matches!(experts.get(id), Err(Error::Argument { name: "expert", .. })));
    }
}

#[test]
fn a_session_meets_damage_when_loading_did_not_wait() {
    let dir = copy(&demo());
    for expert in 0..32 {
        let (file, start) =
            place(dir.path(), &format!("model.layers.3.mlp.experts.{expert}.gate_proj.weight"));
        write(&file, start, &[0x7f]);
    }
    let engine = cpu(dir.path()).serve_while_loading().load().unwrap();
    assert!(engine.placement().contains("experts mapped"));
    for _ in 0..2 {
        let mut session = engine.session(SessionOptions::default()).unwrap();
        let error = session.logits(&[1, 2, 3]).unwrap_err();
        assert!(matches!(error, Error::Expert { layer: 3, tier: Tier::File, .. }), "{error}");
    }
}

/// What loading says if a file is changed while it is going on.
fn changed_meanwhile(threads: usize, change: impl Fn(&File) + Send + Sync + 'static) -> FaultList {
    let dir = copy(&demo());
    let file = OpenOptions::new().write(true).open(dir.path().join("model.safetensors")).unwrap();
    let once = AtomicBool::new(false);
    let builder = cpu(dir.path()).threads(threads).on_load(move |_| {
        if !once.swap(true, Ordering::Relaxed) {
            change(&file);
        }
    });
    faults(builder.load().map(drop).unwrap_err())
}

#[test]
fn a_shard_that_changes_during_load_is_refused() {
    let changed = |found: &FaultList| {
        found.0.iter().any(|f| {
            f.kind == FaultKind::Changed && f.file.as_deref() == Some(Path::new("model.safetensors"))
        })
    };
    // Written into: the last byte, as it was or not.
    let found = changed_meanwhile(0, |file| {
        let len = file.metadata().unwrap().len();
        file.write_all_at(&[1], len - 1).unwrap();
        file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(5)).unwrap();
    });
    assert!(changed(&found), "{found}");
    // Made longer.
    let found = changed_meanwhile(0, |file| file.set_len(file.metadata().unwrap().len() + 4096).unwrap());
    assert!(changed(&found), "{found}");
    // Made shorter: by one thread, or another could be between bringing and looking.
    let found = changed_meanwhile(1, |file| file.set_len(file.metadata().unwrap().len() / 2).unwrap());
    assert!(changed(&found), "{found}");
}

#[test]
fn a_file_renamed_over_the_checkpoints_changes_nothing() {
    let dir = copy(&oracle("v3-groups-fp8"));
    let ids = golden("v3-groups-fp8").ids;
    let engine = cpu(dir.path()).load().unwrap();
    let want = logits(&engine, &ids);
    let file = dir.path().join("model-00001-of-000001.safetensors");
    let other = dir.path().join("other");
    std::fs::write(&other, b"short").unwrap();
    std::fs::rename(&other, &file).unwrap();
    assert!(logits(&engine, &ids) == want);
}

#[test]
fn looking_can_be_cancelled() {
    let checkpoint = Arc::new(Checkpoint::open(demo()).unwrap());
    let cancel = Arc::new(AtomicBool::new(true));
    let mut load = LoadOptions::default();
    load.cancel = Some(cancel.clone());
    assert!(matches!(checkpoint.map_trunk(&load), Err(Error::Cancelled)));
    let experts = MappedExperts::new(checkpoint.clone(), &load);
    assert!(matches!(experts.wait_loaded(), Err(Error::Cancelled)));
    // Who needs an expert gets it all the same.
    assert!(experts.get(ExpertId::new(1, 0)).is_ok());
}
