//! `abruzzi compress` and `abruzzi quantize`: what they make of the demo model.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use abruzzi::compress::{
    CompressReport, ExpertLists, Group, Healing, LayerHealing, Layers, Method, Recipe, Selection, Target,
};
use abruzzi::quant::Format;
use abruzzi::{
    Checkpoint, DeviceChoice, Engine, Error, FaultKind, LoadOptions, ModelConfig, Result, Sampling,
};
use common::{demo, oracle};
use safetensors::SafeTensors;

/// Every tensor of a folder's shards: type, shape, bytes.
type Tensors = BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

fn tensors(dir: &Path) -> Tensors {
    let mut all = Tensors::new();
    for item in std::fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            let bytes = std::fs::read(&path).unwrap();
            for (name, t) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                all.insert(name, (t.dtype().to_string(), t.shape().to_vec(), t.data().to_vec()));
            }
        }
    }
    all
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path).unwrap()
}

fn write(recipe: &Recipe, source: &Path, out: &Path) -> Result<CompressReport> {
    recipe.write(&Checkpoint::open(source)?, out, &LoadOptions::default())
}

fn to(source: &Path, format: Format) -> Recipe {
    Recipe::new(Selection::everything(open(source).config())).target(Target::new(format, false).unwrap())
}

/// Verifies, and continues a text without a non-finite value.
#[track_caller]
fn works(dir: &Path) {
    let report = abruzzi::verify(dir, &LoadOptions::default()).unwrap();
    assert_eq!(report.faults, []);
    assert!(report.skipped.0.is_empty());
    let engine = Engine::builder(dir).device(DeviceChoice::Cpu).load().unwrap();
    let mut session = engine.session(Default::default()).unwrap();
    let mut sampling = Sampling::default();
    (sampling.temperature, sampling.max_tokens) = (0.0, 4);
    let tokens: Vec<_> =
        session.generate("In the beginning", &sampling).unwrap().map(Result::unwrap).collect();
    assert!(!tokens.is_empty());
}

#[test]
fn everything_kept_is_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for (i, source) in
        [demo(), oracle("k2-int4"), oracle("v3-groups-fp8"), oracle("k2-bf16")].iter().enumerate()
    {
        let out = dir.path().join(i.to_string());
        let all = Recipe::new(Selection::everything(open(source).config()));
        let report = write(&all, source, &out).unwrap();
        let (before, after) = (tensors(source), tensors(&out));
        assert!(after.iter().all(|(name, tensor)| before[name] == *tensor));
        let left = before.keys().filter(|name| !after.contains_key(*name));
        assert!(left.into_iter().all(|name| name.ends_with("inv_freq")));
        assert_eq!(report.tensors, after.len());
        let estimate = all.estimate(source, Some(&open(source))).unwrap();
        assert_eq!(estimate.bytes, report.bytes);
        if i != 3 {
            assert_eq!(all.estimate(&source.join("config.json"), None).unwrap().bytes, report.bytes);
        }
        let config = |dir: &Path| format!("{:?}", ModelConfig::from_file(dir).unwrap());
        assert_eq!(config(source), config(&out));
    }
    let copied = dir.path().join("0");
    // What a finished folder may hold beside its model does not go on to the next.
    std::fs::write(copied.join("abruzzi.journal"), "left by a kill").unwrap();
    std::fs::write(dir.path().join("outside"), "not the model's").unwrap();
    std::os::unix::fs::symlink("../outside", copied.join("elsewhere.txt")).unwrap();
    let next = dir.path().join("next");
    let report = write(&Recipe::new(Selection::everything(open(&copied).config())), &copied, &next).unwrap();
    assert_eq!(report.left_out.len(), 1);
    assert!(
        report.left_out[0].starts_with("elsewhere.txt: is a link that leads out"),
        "{:?}",
        report.left_out
    );
    assert_eq!(report.copied, ["README.md", "heldout.txt", "tiktoken.model"]);
    std::fs::remove_file(copied.join("elsewhere.txt")).unwrap();
    for name in ["tiktoken.model", "README.md"] {
        assert_eq!(std::fs::read(demo().join(name)).unwrap(), std::fs::read(copied.join(name)).unwrap());
    }
    works(&copied);
}

#[test]
fn experts_that_are_kept_keep_their_bytes_under_new_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let lists = dir.path().join("lists.json");
    std::fs::write(&lists, r#"{"1": [31, 3, 5, 8], "2": [0, 1, 2, 3], "4": [7, 9, 11, 30]}"#).unwrap();
    let source = open(&demo());
    let lists = ExpertLists::read(&lists, source.config()).unwrap();
    let layers: Layers = "0-2,4".parse().unwrap();
    let selection = Selection::new(source.config(), &layers, |layer| lists.of_layer(layer)).unwrap();
    let out = dir.path().join("out");
    write(&Recipe::new(selection), &demo(), &out).unwrap();
    works(&out);

    let (before, after) = (tensors(&demo()), tensors(&out));
    let kept = [(1, 1, [3, 5, 8, 31]), (2, 2, [0, 1, 2, 3]), (4, 3, [7, 9, 11, 30])];
    for (from, to, experts) in kept {
        for (new, old) in experts.iter().enumerate() {
            for part in ["gate_proj.weight", "up_proj.weight_scale_inv", "down_proj.weight"] {
                let name = |layer: usize, e: usize| format!("model.layers.{layer}.mlp.experts.{e}.{part}");
                assert_eq!(before[&name(from, *old)], after[&name(to, new)]);
            }
        }
        let router = |layer: usize| format!("model.layers.{layer}.mlp.gate.weight");
        let bias = |layer: usize| format!("model.layers.{layer}.mlp.gate.e_score_correction_bias");
        let (old, new) = (&before[&router(from)].2, &after[&router(to)].2);
        for (row, expert) in experts.iter().enumerate() {
            assert_eq!(old[expert * 512..][..512], new[row * 512..][..512]);
            assert_eq!(before[&bias(from)].2[expert * 4..][..4], after[&bias(to)].2[row * 4..][..4]);
        }
        for part in ["input_layernorm.weight", "self_attn.o_proj.weight", "mlp.shared_experts.up_proj.weight"]
        {
            let name = |layer: usize| format!("model.layers.{layer}.{part}");
            assert_eq!(before[&name(from)], after[&name(to)]);
        }
    }
    for name in ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"] {
        assert_eq!(before[name], after[name]);
    }
    // What it was made of stands beside it, and makes the same again.
    let text = std::fs::read_to_string(out.join("abruzzi-provenance.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["selection"]["layers"], serde_json::json!([0, 1, 2, 4]));
    let again = dir.path().join("again.json");
    std::fs::write(&again, json["selection"]["experts"].to_string()).unwrap();
    let lists = ExpertLists::read(&again, source.config()).unwrap();
    let selection = Selection::new(source.config(), &layers, |layer| lists.of_layer(layer)).unwrap();
    write(&Recipe::new(selection), &demo(), &dir.path().join("again")).unwrap();
    assert_eq!(tensors(&dir.path().join("again")), after);
    assert_eq!(std::fs::read_to_string(dir.path().join("again/abruzzi-provenance.json")).unwrap(), text);
}

#[test]
fn fewer_experts_and_layers_by_every_method_and_format() {
    let dir = tempfile::tempdir().unwrap();
    let source = open(&demo());
    for (i, (layers, experts, method, format)) in [
        (5, 16, Method::Similarity, None),
        (4, 8, Method::Similarity, Some(Format::F16)),
        (4, 16, Method::Merge, None),
        (5, 8, Method::Merge, Some(Format::Int4Group32)),
        (3, 4, Method::Merge, Some(Format::Bf16)),
    ]
    .into_iter()
    .enumerate()
    {
        let selection = method.select(&source, &Layers::Count(layers), experts, None).unwrap();
        assert_eq!(selection.merges_nothing(), method == Method::Similarity);
        let outline = method.outline(source.config(), &Layers::Count(layers), experts).unwrap();
        let target = format.map_or(Target::AS_IS, |format| Target::new(format, false).unwrap());
        let recipe = Recipe::new(selection).target(target);
        let out = dir.path().join(i.to_string());
        let report = write(&recipe, &demo(), &out).unwrap();
        let estimate =
            Recipe::new(outline).target(target).estimate(&demo().join("config.json"), None).unwrap();
        assert_eq!((estimate.layers.kept, estimate.experts.kept), (layers, experts));
        assert_eq!((estimate.bytes, estimate.shared_experts_dropped), (report.bytes, 0));
        works(&out);
    }
    // Groups of the router keep their share.
    let source = open(&oracle("v3-groups-fp8"));
    let moe = source.config().moe;
    let least = moe.top_k.div_ceil(moe.topk_group) * moe.n_group;
    let all = Layers::Count(source.config().num_layers);
    for method in [Method::Similarity, Method::Merge] {
        let selection = method.select(&source, &all, least, None).unwrap();
        let out = dir.path().join(format!("groups{method:?}"));
        write(&Recipe::new(selection), &oracle("v3-groups-fp8"), &out).unwrap();
        assert_eq!(abruzzi::verify(&out, &LoadOptions::default()).unwrap().faults, []);
    }
}

#[test]
fn merging_an_expert_with_itself_in_another_order_changes_nothing() {
    let copy = common::copy(&oracle("k2-bf16"));
    let config = open(copy.path()).config().clone();
    let (hidden, width) = (config.hidden_size, config.moe.intermediate_size);
    let name = |e: usize, part: &str| format!("model.layers.1.mlp.experts.{e}.{part}_proj.weight");
    let before = tensors(copy.path());
    // Neurons in reverse, the signs of up and down turned: the same function.
    for (part, sign) in [("gate", 0x00), ("up", 0x80)] {
        let rows = before[&name(0, part)].2.chunks(2 * hidden).rev();
        let turned: Vec<u8> = rows.flatten().enumerate().map(|(i, b)| b ^ (sign * (i as u8 % 2))).collect();
        damage(copy.path(), &name(1, part), 0, &turned);
    }
    let columns = before[&name(0, "down")].2.chunks(2 * width);
    let turned: Vec<u8> =
        columns.flat_map(|row| row.chunks(2).rev().flat_map(|v| [v[0], v[1] ^ 0x80])).collect();
    damage(copy.path(), &name(1, "down"), 0, &turned);

    let groups = |_| {
        let first = Group::merged(vec![(0, 0.6), (1, 0.4)]);
        std::iter::once(first).chain((2..config.moe.num_experts).map(|e| Ok(Group::single(e)))).collect()
    };
    let selection = Selection::new(&config, &Layers::Count(config.num_layers), groups).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    write(&Recipe::new(selection), copy.path(), &out).unwrap();
    let after = tensors(&out);
    for part in ["gate", "up", "down"] {
        assert!(after[&name(0, part)] == before[&name(0, part)], "{part}");
        assert!(after[&name(1, part)] == before[&name(2, part)], "{part}");
    }
}

#[test]
fn fp8_to_plain_and_back_is_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for source in [demo(), oracle("k2-fp8")] {
        let before = tensors(&source);
        for format in [Format::Bf16, Format::F16] {
            let name = format!("{}-{}", source.file_name().unwrap().to_str().unwrap(), format.name());
            let (plain, back) = (dir.path().join(&name), dir.path().join(format!("{name}-back")));
            write(&to(&source, format), &source, &plain).unwrap();
            let dtype = if format == Format::Bf16 { "BF16" } else { "F16" };
            let found = tensors(&plain);
            let bias = |name: &str| name.ends_with("_bias");
            assert!(found.iter().all(|(name, t)| t.0 == dtype || bias(name)), "{name}");
            let report = write(&to(&plain, Format::Fp8Block), &plain, &back).unwrap();
            assert!(report.kept_scales > 0);
            if format == Format::Bf16 {
                assert_eq!(report.fresh_scales, 0, "{name}");
                assert!(tensors(&back).iter().all(|(name, tensor)| before[name] == *tensor), "{name}");
            }
            // Without the scales beside it the values are near, the bytes are not.
            std::fs::remove_file(plain.join("fp8-scales.safetensors")).unwrap();
            let fresh = dir.path().join(format!("{name}-fresh"));
            let report = write(&to(&plain, Format::Fp8Block), &plain, &fresh).unwrap();
            assert_eq!((report.kept_scales, report.fresh_scales), (0, 0));
            assert_ne!(tensors(&fresh), tensors(&back));
        }
    }
    works(&dir.path().join("demo-bf16"));
    works(&dir.path().join("demo-fp16-back"));
    works(&dir.path().join("demo-bf16-fresh"));
}

#[test]
fn every_format_to_every_other() {
    let dir = tempfile::tempdir().unwrap();
    for case in ["k2-bf16", "k2-fp8", "k2-int4", "v3-groups-fp8"] {
        let source = oracle(case);
        for format in [Format::Fp8Block, Format::Int4Group32, Format::Bf16, Format::F16] {
            let out = dir.path().join(format!("{case}-{}", format.name()));
            let recipe = to(&source, format);
            let report = write(&recipe, &source, &out).unwrap();
            assert_eq!(recipe.estimate(&source, Some(&open(&source))).unwrap().bytes, report.bytes);
            assert_eq!(report.saturated, 0);
            assert_eq!(abruzzi::verify(&out, &LoadOptions::default()).unwrap().faults, []);
        }
    }
    // Int4 stored again as it was is the same bytes: nothing is decoded.
    let again = tensors(&dir.path().join("k2-int4-int4-g32"));
    let before = tensors(&oracle("k2-int4"));
    assert!(again.iter().all(|(name, tensor)| before[name] == *tensor));
    // Experts alone.
    let only = Target::new(Format::Int4Group32, true).unwrap();
    let out = dir.path().join("only");
    let source = oracle("k2-bf16");
    write(&Recipe::new(Selection::everything(open(&source).config())).target(only), &source, &out).unwrap();
    let (before, after) = (tensors(&source), tensors(&out));
    assert!(after.iter().all(|(name, t)| name.contains(".experts.") || before[name] == *t));
    assert!(after.keys().any(|name| name.ends_with(".experts.0.up_proj.weight_packed")));
}

#[test]
fn int4_of_the_demo_model_works() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("int4");
    write(&to(&demo(), Format::Int4Group32), &demo(), &out).unwrap();
    works(&out);
}

#[test]
fn healing_is_folded_into_down_and_bias() {
    let dir = tempfile::tempdir().unwrap();
    for (case, suffix) in [("k2-fp8", "weight_scale_inv"), ("k2-int4", "weight_scale"), ("k2-bf16", "weight")]
    {
        let source = oracle(case);
        let config = open(&source).config().clone();
        let selection = Selection::everything(&config);
        let experts = config.moe.num_experts;
        let mended = LayerHealing {
            output_scale: (0..experts).map(|e| if e == 1 { 2.0 } else { 1.0 }).collect(),
            router_bias: (0..experts).map(|e| e as f32).collect(),
        };
        let mut layers = vec![None; config.num_layers];
        *layers.last_mut().unwrap() = Some(mended.clone());
        let healing = Healing::new(&selection, layers).unwrap();
        let out = dir.path().join(case);
        write(&Recipe::new(selection).healing(healing), &source, &out).unwrap();
        let (before, after) = (tensors(&source), tensors(&out));
        let at = format!("model.layers.{}.mlp", config.num_layers - 1);
        let down = format!("{at}.experts.1.down_proj.{suffix}");
        let bias = format!("{at}.gate.e_score_correction_bias");
        let changed: Vec<&String> = after.keys().filter(|name| before[*name] != after[*name]).collect();
        assert_eq!(changed, [&down, &bias], "{case}");
        // Twice is one more in the exponent: exact in every type.
        let value = |t: &(String, Vec<usize>, Vec<u8>)| match t.0.as_str() {
            "F32" => t.2.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect::<Vec<f32>>(),
            _ => t.2.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        };
        let twice: Vec<f32> = value(&before[&down]).iter().map(|v| v * 2.0).collect();
        assert_eq!(value(&after[&down]), twice);
        assert_eq!(value(&after[&bias]), mended.router_bias);
    }
}

/// Overwrites bytes of a tensor in a folder's only shard.
fn damage(dir: &Path, tensor: &str, at: usize, with: &[u8]) {
    let file = std::fs::read_dir(dir)
        .unwrap()
        .map(|item| item.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let found = SafeTensors::deserialize(&bytes).unwrap().tensor(tensor).unwrap().data().as_ptr();
    let offset = found as usize - bytes.as_ptr() as usize + at;
    bytes[offset..offset + with.len()].copy_from_slice(with);
    std::fs::write(&file, bytes).unwrap();
}

fn faults(result: Result<CompressReport>) -> Vec<abruzzi::Fault> {
    match result {
        Err(Error::Checkpoint { faults, .. }) => faults.0,
        other => panic!("{other:?}"),
    }
}

#[test]
fn damage_in_the_source_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let down = "model.layers.3.mlp.experts.2.down_proj.weight";
    for recipe in
        [to(&demo(), Format::Int4Group32), Recipe::new(Selection::everything(open(&demo()).config()))]
    {
        let bad = common::copy(&demo());
        damage(bad.path(), down, 700, &[0x7f, 0x00, 0xff]);
        let found = faults(write(&recipe, bad.path(), &out));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].tensor.as_deref(), Some(down));
        assert_eq!(found[0].kind, FaultKind::NonFinite { count: 2, first: 700 });
        assert!(!out.exists() && dir.path().join("out.partial").exists());
        std::fs::remove_dir_all(dir.path().join("out.partial")).unwrap();
    }
    // A scale with which a value is no number any more, though each of the two is.
    let bad = common::copy(&demo());
    damage(bad.path(), &format!("{down}_scale_inv"), 0, &f32::MAX.to_le_bytes());
    let found = faults(write(&to(&demo(), Format::Bf16), bad.path(), &out));
    assert_eq!(found[0].tensor.as_deref(), Some(down));
    assert!(found[0].kind.to_string().contains("times its scale"), "{}", found[0]);
}

#[test]
fn a_missing_scale_is_named() {
    let copy = common::copy(&demo());
    let file = copy.path().join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let name = b"model.layers.3.mlp.experts.2.up_proj.weight_scale_inv\"";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap();
    bytes[at + name.len() - 2] = b'x';
    std::fs::write(&file, bytes).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let found = faults(write(&to(&demo(), Format::Bf16), copy.path(), &dir.path().join("out")));
    let missing = found.iter().find(|fault| matches!(fault.kind, FaultKind::Missing { .. })).unwrap();
    assert_eq!(missing.tensor.as_deref(), Some("model.layers.3.mlp.experts.2.up_proj.weight_scale_inv"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn values_beyond_fp16_are_refused_by_name_unless_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let bad = common::copy(&oracle("k2-bf16"));
    let name = "model.layers.1.mlp.experts.3.up_proj.weight";
    damage(bad.path(), name, 2, &half::bf16::from_f32(-1e6).to_le_bytes());
    let out = dir.path().join("out");
    let recipe = to(bad.path(), Format::F16);
    let refused = write(&recipe, bad.path(), &out).unwrap_err();
    assert!(matches!(refused, Error::Argument { name: "allow-saturation", .. }), "{refused}");
    assert!(refused.to_string().contains(&format!("but 1 of 32768 values of {name}")), "{refused}");
    std::fs::remove_dir_all(dir.path().join("out.partial")).unwrap();
    let report = write(&recipe.allow_saturation(0.001), bad.path(), &out).unwrap();
    assert_eq!(report.saturated, 1);
    let value = &tensors(&out)[name].2[2..4];
    assert_eq!(half::f16::from_le_bytes([value[0], value[1]]), half::f16::MIN);
}

#[test]
fn a_source_that_changes_and_a_target_that_stands_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let copy = common::copy(&oracle("k2-bf16"));
    let recipe = Recipe::new(Selection::everything(open(copy.path()).config()));
    let source = open(copy.path());
    damage(copy.path(), "model.norm.weight", 0, &[1]);
    let found = faults(recipe.write(&source, &out, &LoadOptions::default()));
    assert!(found.iter().all(|fault| fault.kind == FaultKind::Changed), "{found:?}");
    assert!(!out.exists());
    // The partial folder of the source as it was is not continued with the source as it is.
    let partial = dir.path().join("out.partial");
    let other = write(&recipe, copy.path(), &out).unwrap_err();
    assert!(matches!(&other, Error::Unfinished { folder, .. } if *folder == partial), "{other}");
    std::fs::remove_dir_all(&partial).unwrap();
    write(&recipe, copy.path(), &out).unwrap();
    let taken = write(&recipe, copy.path(), &out).unwrap_err();
    assert!(matches!(&taken, Error::Io { path, .. } if *path == out), "{taken}");
    // A missing tensor is found before anything is written.
    let index = out.join("model.safetensors.index.json");
    std::fs::write(
        &index,
        std::fs::read_to_string(&index).unwrap().replace("model.norm.weight", "model.x.weight"),
    )
    .unwrap();
    let next = dir.path().join("next");
    assert!(!faults(write(&recipe, &out, &next)).is_empty());
    assert!(!dir.path().join("next.partial").exists());
}

#[test]
fn a_selection_of_another_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let all = Recipe::new(Selection::everything(open(&demo()).config()));
    let refused = write(&all, &oracle("k2-bf16"), &dir.path().join("out")).unwrap_err();
    assert!(matches!(refused, Error::Argument { .. }), "{refused}");
}

#[test]
fn a_run_that_was_stopped_is_continued_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let source = open(&demo());
    let selection = Method::Merge.select(&source, &Layers::Count(5), 8, None).unwrap();
    let recipe = Recipe::new(selection)
        .target(Target::new(Format::Int4Group32, false).unwrap())
        .shard_bytes(3_000_000);
    let whole = dir.path().join("whole");
    let first = recipe.write(&source, &whole, &LoadOptions::default()).unwrap();
    let out = dir.path().join("out");
    let mut stops = 0;
    for share in [0.1, 0.3, 0.45, 0.7, 2.0] {
        let cancel = Arc::new(AtomicBool::new(false));
        let mut options = LoadOptions::default();
        options.cancel = Some(cancel.clone());
        options.progress = Some(Arc::new(move |p| {
            cancel.fetch_or(p.bytes_done as f64 > share * p.bytes_total as f64, Ordering::Relaxed);
        }));
        match recipe.write(&source, &out, &options) {
            Err(Error::Cancelled) => stops += 1,
            done => assert_eq!(done.unwrap().hash, first.hash),
        }
    }
    assert_eq!(stops, 4);
    for item in std::fs::read_dir(&whole).unwrap() {
        let name = item.unwrap().file_name();
        assert!(
            std::fs::read(whole.join(&name)).unwrap() == std::fs::read(out.join(&name)).unwrap(),
            "{name:?}"
        );
    }
    assert_eq!(std::fs::read_dir(&whole).unwrap().count(), std::fs::read_dir(&out).unwrap().count());
}
